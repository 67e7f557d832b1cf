"""The Modelfile that imports into Ollama a fused model, or an adapter on a base that Ollama has; and the import.

Ollama fills ``.Prompt`` and ``.Suffix`` in a Go template (its documentation: docs/modelfile.md, docs/template.md). A code
model wants its own fill-in-the-middle markers there, or the suffix is lost, and every marker as a stop. An adapter on a model
of Ollama's needs none of it: template and parameters are that model's.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from mlx_gardener.errors import AdapterError
from mlx_gardener.model import CodeTokenizer
from mlx_gardener.model.gguf import source_files, source_sha256
from mlx_gardener.model.stores import find_bases

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
    stops = {spelled(tokenizer.eos_id), spelled(tokenizer.file_id), spelled(tokenizer.repo_id)}
    if marks is not None:
        stops |= {spelled(marks.prefix), spelled(marks.suffix), spelled(marks.middle), spelled(marks.end)}
    lines = [
        f"FROM ./{source}",
        f'TEMPLATE """{prompt_template(tokenizer)}"""',
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(context_tokens, _CONTEXT_TOKENS)}",
        "PARAMETER num_predict 128",
        *(f'PARAMETER stop "{stop}"' for stop in sorted(stops - {""})),
    ]
    return "\n".join(lines) + "\n"


def prompt_template(tokenizer: CodeTokenizer) -> str:
    """The Go template by which Ollama forms a code model's prompts: with its markers where there is a suffix, else as they come."""
    marks = tokenizer.markers
    if marks is None:
        return "{{ .Prompt }}"
    ids = (marks.prefix, marks.suffix, marks.middle)
    before, after, middle = ("" if index is None else tokenizer.decode([index]) for index in ids)
    if marks.order == "SPM":
        fim = f"{after}{{{{ .Suffix }}}}{before}{{{{ .Prompt }}}}{middle}"
    else:
        fim = f"{before}{{{{ .Prompt }}}}{after}{{{{ .Suffix }}}}{middle}"
    return f"{{{{- if .Suffix }}}}{fim}{{{{- else }}}}{{{{ .Prompt }}}}{{{{- end }}}}"


def ollama_base(folder: Path) -> str:
    """What ``FROM`` names for an adapter of the base in ``folder``: Ollama's own name of it, else the GGUF file's place.

    Ollama keeps a model under the sha256 of its file, so that the very one is found, also when it was trained on elsewhere.

    Raises:
        AdapterError: the base is of no GGUF file, or of one that is gone.
    """
    digest = source_sha256(folder)
    if digest is None:
        raise AdapterError(
            "Ollama puts adapters on GGUF models only, and this base is none.",
            next_step="Export the form modelfile, which is the merged model; or train on a model of Ollama's "
            "(`mlx-gardener models` lists them).",
        )
    names = [
        base.name for base in find_bases() if base.store == "ollama" and base.path.name == f"sha256-{digest}"
    ]
    if names:
        return min(names, key=len).removeprefix("ollama:")
    files = source_files(folder)
    if files is None or len(files) > 1:
        gone = "is not here any more" if files is None else "is in shards, which Ollama does not take"
        raise AdapterError(
            f"The GGUF file of this base {gone}, and Ollama has no such model.",
            next_step="Pull it again with Ollama, or export the form modelfile, which is the merged model.",
        )
    return str(files[0])


def render_adapter_modelfile(base: str, adapter: str) -> str:
    """The Modelfile of an adapter on a base that `ollama_base` found; ``adapter`` is relative to the Modelfile."""
    return f"FROM {base}\nADAPTER ./{adapter}\n"


def check_ollama() -> None:
    """Raises AdapterError where there is no ``ollama`` to run."""
    if shutil.which("ollama") is None:
        raise AdapterError(
            "There is no program `ollama` on the PATH.",
            next_step="Leave --create out, and run the command that the export ends with where Ollama is.",
        )


def create_in_ollama(directory: Path, name: str) -> None:
    """``ollama create`` of the Modelfile in ``directory``.

    Raises:
        AdapterError: Ollama did not take it; says what it said. The directory stays.
    """
    check_ollama()
    command = ["ollama", "create", name, "-f", "Modelfile"]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise AdapterError(
            f"Ollama did not take {name!r} (exit code {done.returncode}): {(lines or ['it said nothing'])[-1][:300]}",
            next_step=f"The export is in {str(directory)!r}: start Ollama (`ollama serve`), and run "
            f"`ollama create {name} -f Modelfile` there.",
        )
