"""How clients name files, and how the repository does: training, evidence and index know every file by its path from the root.

In: a path as it was sent, from the root, in full or as ``file://`` address. Out: the one from the root. Nothing is read, and no file
need be there: editors ask about what was never saved. Cost: of a path in full, following its links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlx_gardener.errors import DataError
from mlx_gardener.platform.files import path_of_address, resolved


def path_from_root(root: Path, sent: str) -> str:
    """The path from ``root`` of a file inside it that is named in full; any other name as it was sent.

    Args:
        root: with its links followed.
    """
    given = Path(os.path.normpath(path_of_address(sent)))
    if given.is_absolute():
        for place in _places(given):
            if place != root and place.is_relative_to(root):
                return place.relative_to(root).as_posix()
    return sent


def _places(given: Path) -> Iterator[Path]:
    """Where a file is, as training and index know it, and as it was opened; projects have their roots with links followed."""
    with suppress(DataError):  # it leads nowhere
        yield resolved(given)
    yield given
