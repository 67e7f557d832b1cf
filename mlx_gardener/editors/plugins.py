"""Editors whose settings are a file of their own, or are entered by hand, and what these then send.

A file of its own: Continue reads every YAML file below ``~/.continue/models`` (its core/config/yaml/loadYaml.ts, 1.3.40); Neovim
every file of ``plugin/``, and from 0.12 on it shows inline completions of language servers (``:help vim.lsp.inline_completion``),
here of ``mlx-gardener lsp``. By hand: twinny keeps its providers in VS Code's own store, and minuet's are given to its ``setup()``.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

#: Files of lines between marks, with what begins a comment in them.
COMMENTS = {"vim": '"', "neovim": '"', "neovim-lsp": "--", "continue": "#"}
BY_HAND = ("twinny", "minuet")
_PREFIX, _SUFFIX = "def add(first, second):\n    return ", "\n\n\nprint(add(1, 2))\n"


def marks(editor: str) -> tuple[str, str]:
    """The lines that begin and end what is ours in a file."""
    comment = COMMENTS[editor]
    return f"{comment} mlx-gardener: begin", f"{comment} mlx-gardener: end"


def continue_block(project: str, address: str, token: str | None) -> str:
    """A model for Continue's completions, with what its requests are to carry."""
    begin, end = marks("continue")
    lines = [
        begin,
        f"name: {json.dumps(f'mlx-gardener {project}', ensure_ascii=False)}",
        "version: 0.0.1",
        "schema: v1",
        "models:",
        f"  - name: {json.dumps(project, ensure_ascii=False)}",
        "    provider: ollama",
        f"    model: {json.dumps(project, ensure_ascii=False)}",
        f"    apiBase: {json.dumps(address)}",
        "    roles:",
        "      - autocomplete",
    ]
    if token is not None:
        lines += [
            "    requestOptions:",
            "      headers:",
            f"        Authorization: {json.dumps(f'Bearer {token}')}",
        ]
    return "\n".join([*lines, end, ""])


def neovim_lsp_block(project: str, address: str, token: str | None) -> str:
    """A language server for Neovim, and its completions shown where Neovim can."""
    begin, end = marks("neovim-lsp")
    command = [sys.executable, "-m", "mlx_gardener", "lsp", project, "--address", address]
    secret = [f"    cmd_env = {{ MLX_GARDENER_TOKEN = {_lua(token)} }},"] if token is not None else []
    return "\n".join(
        [
            begin,
            "if vim.lsp.inline_completion then",
            "  vim.lsp.config('mlx_gardener', {",
            f"    cmd = {{ {', '.join(map(_lua, command))} }},",
            *secret,
            "    root_markers = { '.git' },",
            "  })",
            "  vim.lsp.enable('mlx_gardener')",
            "  vim.lsp.inline_completion.enable(true)",
            "  vim.keymap.set('i', '<C-F>', function()",
            "    return vim.lsp.inline_completion.get() and '' or '<C-F>'",
            "  end, { expr = true, desc = 'Take the inline completion' })",
            "end",
            end,
            "",
        ]
    )


def by_hand(editor: str, project: str, address: str, token: str | None) -> str:
    """What somebody enters for ``twinny`` or ``minuet``."""
    parts = urlsplit(address)
    if editor == "twinny":
        port = parts.port or (443 if parts.scheme == "https" else 80)
        key = f"\n  API key   {token}" if token is not None else ""
        return (
            "In twinny's side bar, Manage providers, Add provider:\n  Type      fim\n  Provider  ollama\n"
            f"  Protocol  {parts.scheme}\n  Hostname  {parts.hostname}\n  Port      {port}\n  Path      {parts.path}/api/generate\n"
            f"  Model     {project}\n  FIM template of the base's family (codeqwen for the embedded one){key}"
        )
    key = "'TERM'" if token is None else "'MLX_GARDENER_TOKEN'"
    return "\n".join(
        [
            "In your Neovim configuration:",
            "require('minuet').setup {",
            "  provider = 'openai_fim_compatible',",
            "  n_completions = 1,",
            "  provider_options = {",
            "    openai_fim_compatible = {",
            f"      api_key = {key}, -- the name of an environment variable",
            "      name = 'mlx-gardener',",
            f"      end_point = {_lua(f'{address}/v1/completions')},",
            f"      model = {_lua(project)},",
            "      optional = { max_tokens = 56, top_p = 0.9 },",
            "    },",
            "  },",
            "}",
        ]
    )


def _lua(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def request_of(editor: str, project: str, tokenizer: CodeTokenizer) -> tuple[str, dict[str, Any]] | None:
    """Path and body as the plug-in sends them for a small FIM span; None for an editor of `settings`."""
    if editor in ("zed-ollama", "twinny"):
        known = tokenizer.markers
        assert known is not None  # `settings.check_base` has seen it
        ids = known.prompt(tokenizer.encode(_PREFIX), tokenizer.encode(_SUFFIX))
        body: dict[str, Any] = {"model": project, "prompt": tokenizer.decode(ids)}
        ends = [
            tokenizer.decode([mark])
            for mark in (known.end, known.prefix, known.middle, known.suffix)
            if mark is not None
        ]
        if editor == "twinny":
            own = {"temperature": 0.2, "num_predict": 512, "stop": ends[:2]}
            return "/api/generate", {**body, "stream": True, "keep_alive": "5m", "options": own}
        own = {"num_predict": 64, "temperature": 0.2, "stop": ends}
        return "/api/generate", {**body, "raw": True, "stream": False, "options": own}
    sides = {"model": project, "prompt": _PREFIX, "suffix": _SUFFIX}
    if editor == "continue":
        own = {
            "temperature": 0.01,
            "num_predict": 4096,
            "stop": ["/src/", "#- coding: utf-8", "```"],
            "num_ctx": 8192,
        }
        return "/api/generate", {**sides, "options": own, "keep_alive": 1800, "stream": True}
    if editor == "minuet":
        return "/v1/completions", {**sides, "max_tokens": 56, "top_p": 0.9, "stream": True}
    if editor == "neovim-lsp":
        return "/v1/completions", {**sides, "path": "add.py", "max_tokens": 64}
    return None


def text_of(raw: bytes) -> str:
    """The text in an answer of `request_of`'s: one document, lines of JSON, or events.

    Raises:
        ValueError, KeyError, IndexError, TypeError: it is not there.
    """
    lines = [line.removeprefix("data: ") for line in raw.decode().splitlines() if line.strip()]
    found = [json.loads(line) for line in lines if line != "[DONE]"]
    if not found:
        raise ValueError("nothing was answered")
    return "".join(str(one["response"] if "response" in one else one["choices"][0]["text"]) for one in found)
