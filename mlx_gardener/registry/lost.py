"""``lost+found`` in the home: what repair moves out of the way. Nothing but its owner deletes it."""

from __future__ import annotations

import time
from pathlib import Path

LOST_NAME = "lost+found"


def lost_directory(home: Path, name: str) -> Path:
    """A new name in ``lost+found``, whose directory is made."""
    lost = home / LOST_NAME
    lost.mkdir(mode=0o700, exist_ok=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    number, path = 0, lost / stem
    while path.exists() or path.is_symlink():
        number += 1
        path = lost / f"{stem}.{number}"
    return path


def move_to_lost(home: Path, path: Path) -> str:
    """Rename into ``lost+found``; the new path below the home, empty where there is nothing to move."""
    if not path.exists() and not path.is_symlink():
        return ""
    name = "-".join(
        part for part in path.relative_to(home).parts if part not in ("projects", "adapters", "runs")
    )
    moved = lost_directory(home, name)
    path.rename(moved)
    return moved.relative_to(home).as_posix()


def unknown_repository(home: Path, project: str) -> Path:
    """What a project stands for whose repository nobody knows any more; there is nothing there."""
    return home / LOST_NAME / "unknown-repositories" / project
