"""The Modelfile that imports a fused model into Ollama: where it lies, how a hole is asked for, where to stop.

Ollama fills ``.Prompt`` and ``.Suffix`` in a Go template (its documentation: docs/modelfile.md, docs/template.md). A code
model wants its own fill-in-the-middle markers there, or the suffix is lost, and every marker as a stop.
"""

from __future__ import annotations

from mlx_gardener.model import CodeTokenizer

_CONTEXT_TOKENS = 4096


def render_modelfile(tokenizer: CodeTokenizer, source: str, *, context_tokens: int) -> str:
    """The Modelfile.

    Args:
        source: what ``FROM`` names, relative to the Modelfile.
        context_tokens: the most the model was made for.
    """

    def spelled(index: int | None) -> str:
        return "" if index is None else tokenizer.decode([index])

    marks = tokenizer.markers
    prompt = "{{ .Prompt }}"
    if marks is not None:
        before, after, middle = spelled(marks.prefix), spelled(marks.suffix), spelled(marks.middle)
        if marks.order == "SPM":
            hole = f"{after}{{{{ .Suffix }}}}{before}{{{{ .Prompt }}}}{middle}"
        else:
            hole = f"{before}{{{{ .Prompt }}}}{after}{{{{ .Suffix }}}}{middle}"
        prompt = f"{{{{- if .Suffix }}}}{hole}{{{{- else }}}}{{{{ .Prompt }}}}{{{{- end }}}}"
    stops = {spelled(tokenizer.eos_id), spelled(tokenizer.file_id), spelled(tokenizer.repo_id)}
    if marks is not None:
        stops |= {spelled(marks.prefix), spelled(marks.suffix), spelled(marks.middle), spelled(marks.end)}
    lines = [
        f"FROM ./{source}",
        f'TEMPLATE """{prompt}"""',
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(context_tokens, _CONTEXT_TOKENS)}",
        "PARAMETER num_predict 128",
        *(f'PARAMETER stop "{stop}"' for stop in sorted(stops - {""})),
    ]
    return "\n".join(lines) + "\n"
