"""Where editors keep their settings on macOS and Linux.

In: the name of an editor, as `connect` takes it. Out: paths, for the room `editors`, which reads and writes there. Cost: nothing.

Zed: zed.dev/docs/configuring-zed. VS Code: code.visualstudio.com/docs/configure/settings. Vim and Neovim load every file
of ``plugin/`` in their directories (``:help load-plugins``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _config() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def settings_file(editor: str) -> Path:
    """The settings file of an editor that has one to be written; it need not exist."""
    if editor in ("zed", "zed-ollama"):  # on macOS too it is ~/.config, whatever XDG says
        return (Path.home() / ".config" if sys.platform == "darwin" else _config()) / "zed" / "settings.json"
    if editor == "vscode":
        mac = Path.home() / "Library" / "Application Support"
        return (mac if sys.platform == "darwin" else _config()) / "Code" / "User" / "settings.json"
    if editor == "vim":
        return Path.home() / ".vim" / "plugin" / "mlx_gardener.vim"
    if editor == "continue":
        return Path.home() / ".continue" / "models" / "mlx-gardener.yaml"
    return _config() / "nvim" / "plugin" / f"mlx_gardener{'_lsp.lua' if editor == 'neovim-lsp' else '.vim'}"


def has_vscode_extension(name: str) -> bool | None:
    """Whether VS Code has an extension; None where its extensions are not where they usually are."""
    extensions = Path.home() / ".vscode" / "extensions"
    if not extensions.is_dir():
        return None
    return any(extensions.glob(f"{name}-*"))


def plugin_places(editor: str, name: str) -> list[Path]:
    """Files ``name`` of plug-ins of ``vim`` or ``neovim`` that managers keep beside the runtime path until they are wanted."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nvim"
    vim = Path.home() / ".vim"
    roots = [data / "lazy", data / "plugged", data / "site"] if editor == "neovim" else [vim / "bundle"]
    roots += [vim / "plugged", vim] if editor == "vim" else []
    return [
        file
        for root in roots
        for pattern in (f"*/{name}", f"pack/*/start/*/{name}", f"pack/*/opt/*/{name}")
        for file in sorted(root.glob(pattern))
    ]
