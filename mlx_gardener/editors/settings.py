"""What each editor has to be told, and which request it then sends.

Zed: `edit_predictions` with provider `open_ai_compatible_api` or `ollama` (zed.dev/docs/ai/edit-prediction; request: its
crates/edit_prediction/src/fim.rs). VS Code: the extension ggml-org.llama-vscode, `llama-vscode.endpoint`, to which it
adds /infill (its src/llama-server.ts). Vim and Neovim: the plugin ggml-org/llama.vim, `g:llama_config`; its `endpoint` became
`endpoint_fim`, and the old name is complained about at every start and takes the new one's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlx_gardener.editors import plugins
from mlx_gardener.editors.jsonc import Keys
from mlx_gardener.errors import ConfigError

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

LLAMA_VSCODE = "ggml-org.llama-vscode"
VIM_BEGIN, VIM_END = plugins.marks("vim")
#: Zed's name of a prompt's form, by the model's marker of what precedes a FIM span.
_ZED_FORMATS = {
    "<|fim_prefix|>": "qwen",
    "<fim_prefix>": "star_coder",
    "<｜fim▁begin｜>": "deepseek_coder",  # noqa: RUF001  full-width bars, as spelled
    "[PREFIX]": "codestral",
}
_ZED_TOKENS = 64
#: What llama.vim asks of the reading and of the writing.
_VIM_UNITS = ("n", "ms", "per_token_ms", "per_second")


def project_address(address: str, project: str) -> str:
    """Where a server answers for one project alone."""
    return f"{address}/projects/{quote(project, safe='')}"


def check_base(project: str, tokenizer: CodeTokenizer) -> None:
    """Refuse an adapter whose base no editor can use.

    Raises:
        ConfigError: it has no markers to fill in the middle.
    """
    if tokenizer.markers is None:
        raise ConfigError(
            f"Editors ask for the code between what stands before and after the cursor, and the base of {project}'s adapter has "
            "no fill-in-the-middle markers for that.",
            next_step="`mlx-gardener models` says which bases have them (FIM), and the embedded one has: "
            f"`mlx-gardener train --project {project} --fresh --model seedling`. "
            f"In the terminal, `mlx-gardener complete {project} FILE:LINE` works with this one.",
        )


def json_settings(
    editor: str, project: str, address: str, token: str | None, tokenizer: CodeTokenizer
) -> list[tuple[Keys, Any]]:
    """Keys and values for ``zed``, ``zed-ollama`` or ``vscode``.

    Raises:
        ConfigError: Zed does not know this model's form of fill-in-the-middle prompts.
    """
    if editor == "vscode":
        key = [(("llama-vscode.api_key",), token)] if token else []
        return [(("llama-vscode.endpoint",), project_address(address, project)), *key]
    marks = tokenizer.markers
    form = _ZED_FORMATS.get(tokenizer.decode([marks.prefix])) if marks is not None else None
    if form is None:
        raise ConfigError(
            "The project's base has no fill-in-the-middle markers that Zed knows.",
            next_step="Train on another base for Zed; `--model seedling` works.",
        )
    provider, path = (
        ("ollama", "") if editor == "zed-ollama" else ("open_ai_compatible_api", "/v1/completions")
    )
    own = ("edit_predictions", provider)
    return [
        (("edit_predictions", "provider"), provider),
        ((*own, "api_url"), address + path),
        ((*own, "model"), project),
        ((*own, "prompt_format"), form),
        ((*own, "max_output_tokens"), _ZED_TOKENS),
    ]


def vim_endpoint(address: str, project: str) -> str:
    """Where llama.vim asks for completions."""
    return f"{project_address(address, project)}/infill"


def vim_block(project: str, address: str, token: str | None) -> str:
    """Lines for Vim and Neovim; they hold whether llama.vim is loaded before or after them."""
    values = {"endpoint_fim": vim_endpoint(address, project), **({"api_key": token} if token else {})}
    lines = [f"    \\ {_vim(name)}: {_vim(value)}," for name, value in values.items()]
    return "\n".join(
        [
            VIM_BEGIN,
            "let g:llama_config = extend(copy(get(g:, 'llama_config', {})), {",
            *lines,
            "    \\ })",
            "call filter(g:llama_config, 'v:key !=# \"endpoint\"')",
            VIM_END,
            "",
        ]
    )


def block_of(editor: str, project: str, address: str, token: str | None) -> str:
    """Lines between marks, for an editor of `plugins.COMMENTS`."""
    if editor == "continue":
        return plugins.continue_block(project, address, token)
    if editor == "neovim-lsp":
        return plugins.neovim_lsp_block(project, address, token)
    return vim_block(project, address, token)


def _vim(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def request_of(editor: str, project: str, tokenizer: CodeTokenizer) -> tuple[str, dict[str, Any]]:
    """Path and body of a request as the editor sends it, for a small FIM span."""
    if (found := plugins.request_of(editor, project, tokenizer)) is not None:
        return found
    prefix, suffix = "def add(first, second):\n    return ", "\n\n\nprint(add(1, 2))\n"
    if editor == "zed":
        marks = tokenizer.markers
        assert marks is not None  # `json_settings` has seen it
        # As Zed spells it, for any of the forms: markers as text around the two sides.
        ids = marks.prompt(tokenizer.encode(prefix), tokenizer.encode(suffix))
        stops = [
            tokenizer.decode([mark])
            for mark in (marks.prefix, marks.suffix, marks.middle)
            if mark is not None
        ]
        prompt = tokenizer.decode(ids)
        return "/v1/completions", {
            "model": project,
            "prompt": prompt,
            "max_tokens": _ZED_TOKENS,
            "stop": stops,
            "temperature": None,
            "environment": None,
        }
    lines = prefix.rpartition("\n")
    fim = {
        "id_slot": 0,
        "input_prefix": lines[0] + "\n",
        "input_suffix": suffix,
        "input_extra": [],
        "prompt": lines[2],
        "n_predict": 32,
        "n_indent": 4,
        "top_k": 40,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
    }
    if editor == "vscode":
        own: dict[str, Any] = {"top_p": 0.99, "n_cmpl": 3, "t_max_predict_ms": 2500}
    else:
        fields = [f"{part}_{unit}" for part in ("prompt", "predicted") for unit in _VIM_UNITS]
        told = ["content", *(f"timings/{field}" for field in fields), "truncated", "tokens_cached"]
        own = {"top_p": 0.90, "stop": [], "t_max_predict_ms": 1000, "response_fields": told, "model": ""}
    return f"/projects/{quote(project, safe='')}/infill", {**fim, **own}
