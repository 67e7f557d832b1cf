"""Editors' settings as people have them, and the change that connecting an editor makes in them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from mlx_gardener import editors
from mlx_gardener.editors.change import Change
from mlx_gardener.model import CodeTokenizer

ADDRESS = "http://127.0.0.1:8012"
VSCODE = '{\r\n\t"editor.tabSize": 4, // four\r\n\t"files.exclude": {"**/.git": true,},\r\n}\r\n'


def planned(editor: str, file: Path, tokenizer: CodeTokenizer, *, token: str | None = None) -> Change:
    home = Path(os.environ["MLX_GARDENER_HOME"])
    return editors.plan_change(
        editor, file, project="web", address=ADDRESS, token=token, tokenizer=tokenizer, home=home
    )


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
