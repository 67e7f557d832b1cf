"""Project and version names: what may stand in a path, a table and a terminal without harm."""

from __future__ import annotations

import re
from pathlib import Path

from mlx_gardener.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def check_project_name(name: str) -> str:
    """``name``, when it can be a directory below the home.

    Raises:
        ConfigError: it is empty, longer than 64 characters, or has other characters than letters, digits, ``._-``.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"{name!r} cannot be a project name.",
            next_step="Use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter, digit or '_'.",
        )
    return name


def project_name_for(path: Path) -> str:
    """A good project name for a directory: its own name, with everything unusual made a hyphen."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).resolve().name).strip("-.")[:64].rstrip(".-")
    return name or "project"
