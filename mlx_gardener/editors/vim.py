"""Vim and Neovim themselves, run without a screen: what they are, whether llama.vim can run in them, and a completion by it.

The editor starts with the user's own configuration, as at every start, and runs a script that writes what it found as JSON.
Cost: the editor's start, and one completion.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mlx_gardener.errors import GardenerError
from mlx_gardener.platform.editor_places import plugin_places
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import MAX_JSON_BYTES, read_bytes, read_json

_PROGRAMS = {"vim": "vim", "neovim": "nvim"}
_NAMES = {"vim": "Vim", "neovim": "Neovim"}
#: llama.vim's own demand of Vim (its doc/llama.txt); of Neovim it says none, and calls functions that old ones lack.
_LEAST_VIM = 901
_TIMEOUT_SECONDS = 120


class EditorError(GardenerError):
    """The editor, or llama.vim in it, cannot do what is asked; says what it lacks."""


@dataclass(frozen=True)
class VimState:
    """An editor that llama.vim can run in.

    Attributes:
        program: its path.
        version: as it says itself.
        plugin: llama.vim's directory.
        loaded: whether the editor finds the plug-in by itself at its start, or a plug-in manager loads it later.
    """

    program: str
    version: str
    plugin: Path
    loaded: bool


def look(editor: str) -> VimState | None:
    """Look at ``vim`` or ``neovim`` and its llama.vim; None where the editor is not on the PATH.

    Raises:
        EditorError: it does not start, is too old for llama.vim, or has none, or one that is too old.
    """
    program = shutil.which(_PROGRAMS[editor])
    if program is None:
        return None
    name = _NAMES[editor]
    found = _run(editor, program, "look")
    version = str(found["version"])
    if not found["extendnew"] or (editor == "vim" and found["number"] < _LEAST_VIM):
        need = "9.1 or newer" if editor == "vim" else "one that has extendnew()"
        raise EditorError(
            f"{name} {version} cannot run llama.vim, which needs {need}.",
            next_step=f"Update {name}, then connect again.",
        )
    files = [Path(found["plugin"])] if found["plugin"] else plugin_places(editor, "autoload/llama.vim")
    if not files:
        raise EditorError(
            f"The plug-in llama.vim is not installed in {name}.",
            next_step="Install github.com/ggml-org/llama.vim as its README shows, then connect again.",
        )
    try:
        source = read_bytes(files[0], max_bytes=MAX_JSON_BYTES)
    except (OSError, ValueError) as error:
        raise EditorError(
            f"The plug-in llama.vim in {name} cannot be read ({reason_of(error)}).",
            next_step="Install it again, then connect again.",
        ) from error
    if b"endpoint_fim" not in source:
        raise EditorError(
            f"{files[0].parent.parent} is an old llama.vim: it knows no endpoint_fim.",
            next_step="Update the plug-in, then connect again.",
        )
    return VimState(program, version, files[0].parent.parent, bool(found["plugin"]))


def complete(editor: str, state: VimState, file: Path, endpoint: str) -> str:
    """A completion that llama.vim itself asked for, with the settings in ``file``.

    Args:
        endpoint: what the settings must say.

    Raises:
        EditorError: the settings are not what the plug-in reads, it complains about them, or no completion came.
    """
    name = _NAMES[editor]
    found = _run(editor, state.program, "complete", state=state, file=file)
    if found["endpoint"] != endpoint:
        raise EditorError(
            f"llama.vim in {name} asks {found['endpoint'] or 'nobody'}, not {endpoint}.",
            next_step="Take other settings of g:llama_config out of your own configuration.",
        )
    if found["complaints"]:
        raise EditorError(
            f"llama.vim in {name} complains: {'; '.join(found['complaints'])}.",
            next_step="See the lines about llama_config in your own configuration.",
        )
    if not found["answers"]:
        raise EditorError(
            f"llama.vim in {name} got no completion{': ' + found['error'] if found['error'] else ''}.",
            next_step=f"Start {name} and see what `:messages` says.",
        )
    return str(json.loads(found["answers"][0])["content"])


def _run(
    editor: str, program: str, task: str, *, state: VimState | None = None, file: Path | None = None
) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as directory,
        resources.as_file(resources.files(__package__) / "probe.vim") as probe,
    ):
        result = Path(directory) / "result.json"
        environment = {
            **os.environ,
            "MLX_GARDENER_VIM_TASK": task,
            "MLX_GARDENER_VIM_RESULT": str(result),
            "MLX_GARDENER_VIM_FILE": "" if file is None else str(file),
            "MLX_GARDENER_VIM_PLUGIN": "" if state is None or state.loaded else str(state.plugin),
        }
        screen = ["--headless"] if editor == "neovim" else ["--not-a-term", "-T", "dumb"]
        command = [program, *screen, "-n", "-i", "NONE", "-S", str(probe)]
        try:
            subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
            return dict(read_json(result, max_bytes=MAX_JSON_BYTES))
        except (subprocess.TimeoutExpired, OSError, ValueError) as error:
            raise EditorError(
                f"{program} did not answer when it was run without a screen.",
                next_step="Start it by hand and see what it says.",
            ) from error
