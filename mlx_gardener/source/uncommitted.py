"""What was changed in a working tree since its last commit: the files that somebody works on now, before and after.

In: a repository. Out: `FileChange`s, the one changed last at the end. Only files that are newer than the commit are looked at, the
newest first, and compared here with what git has of them. Cost: a look at every file's time; the contents of some fifty files.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlx_gardener.config import DataConfig
from mlx_gardener.platform.untrusted import read_bytes
from mlx_gardener.source.commits import MOST_FILE_BYTES, FileChange, clean_text
from mlx_gardener.source.filters import drop_by_path
from mlx_gardener.source.walk import Git, list_files

#: Files that are newer than the commit and compared with it.
_MOST_LOOKED_AT = 50


def uncommitted_changes(root: Path, config: DataConfig, *, most: int, always: str = "") -> list[FileChange]:
    """Changed files of the latest commit, by when they were written; files that filters drop or with a secret are left out.

    Args:
        most: files.
        always: a path that is among them whenever it was changed, however long ago.

    Raises:
        DataError: ``root`` is not a directory that can be read.
    """
    git = Git(root)
    told = git.ask("rev-list", "--max-count=1", "--pretty=tformat:%ct", "HEAD")
    listed = git.ask("ls-tree", "-r", "-z", "HEAD")
    if told is None or listed is None:
        return []
    since = int(told.split()[-1])
    blobs = {}
    for entry in listed.split(b"\0"):
        meta, _, name = entry.partition(b"\t")
        if meta.startswith(b"100"):
            blobs[os.fsdecode(name)] = meta.split(b" ")[2].decode()
    times = {path: _written_at(root / path) for path in list_files(root, git) if path in blobs}
    newest = sorted((path for path, time in times.items() if time >= since), key=lambda path: -times[path])
    looked_at = newest[:_MOST_LOOKED_AT] + [always] * (
        always in times and always not in newest[:_MOST_LOOKED_AT]
    )
    found: list[FileChange] = []
    for path in sorted(looked_at, key=lambda path: (path != always, -times[path])):
        if len(found) < most and (change := _change_of(git, root, path, blobs[path], config)) is not None:
            found.append(change)
    return sorted(found, key=lambda change: times[change.path])


def _change_of(git: Git, root: Path, path: str, blob: str, config: DataConfig) -> FileChange | None:
    if drop_by_path(path, config) is not None:
        return None
    size = git.ask("cat-file", "-s", blob)
    if size is None or int(size) > MOST_FILE_BYTES:
        return None
    old = git.ask("cat-file", "blob", blob)
    try:
        new = read_bytes(root / path, max_bytes=MOST_FILE_BYTES, follow_links=False)
    except (OSError, ValueError):
        return None
    if old is None or old == new:
        return None
    before, after = clean_text(old, path, config), clean_text(new, path, config)
    return (
        FileChange(path, before, after)
        if before is not None and after is not None and before != after
        else None
    )


def _written_at(file: Path) -> float:
    try:
        return file.lstat().st_mtime
    except OSError:
        return 0.0
