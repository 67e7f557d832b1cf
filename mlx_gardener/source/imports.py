"""What a file imports, as written, and in which order files build on each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_gardener.source.records import FileRecord

_QUOTED = r"""["']([^"'\n]{1,200})["']"""
_SCRIPT = re.compile(rf"(?:\bfrom\s+|\bimport\s+|\brequire\s*\(\s*|\bimport\s*\(\s*){_QUOTED}")
_PATTERNS = {
    "python": re.compile(r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import|import[ \t]+([\w.]+))", re.M),
    "javascript": _SCRIPT,
    "typescript": _SCRIPT,
    "tsx": _SCRIPT,
    "go": re.compile(r"^[ \t]*(?:import[ \t]+)?(?:[\w.]+[ \t]+)?\"([\w./~-]+)\"[ \t]*$", re.M),
    "rust": re.compile(r"^[ \t]*(?:pub\s+)?(?:use|mod)\s+([\w:]+)", re.M),
    "c": re.compile(r"^[ \t]*#\s*include\s*[<\"]([^>\"\n]+)[>\"]", re.M),
    "cpp": re.compile(r"^[ \t]*#\s*include\s*[<\"]([^>\"\n]+)[>\"]", re.M),
    "java": re.compile(r"^[ \t]*import\s+(?:static\s+)?([\w.]+)", re.M),
    "kotlin": re.compile(r"^[ \t]*import\s+([\w.]+)", re.M),
    "swift": re.compile(r"^[ \t]*import\s+(?:\w+\s+)?([\w.]+)", re.M),
    "csharp": re.compile(r"^[ \t]*using\s+(?:static\s+)?([\w.]+)\s*;", re.M),
    "php": re.compile(
        r"^[ \t]*use\s+([\w\\]+)|(?:require|include)(?:_once)?\s*(?:\(\s*)?['\"]([^'\"\n]+)['\"]", re.M
    ),
    "ruby": re.compile(rf"^[ \t]*require(?:_relative)?\s*(?:\(\s*)?{_QUOTED}", re.M),
    "bash": re.compile(r"^[ \t]*(?:source|\.)\s+([\w./-]+)", re.M),
}


def imports_of(code: str, language: str) -> tuple[str, ...]:
    """Modules and paths that ``code`` imports, as written, in order, each once."""
    pattern = _PATTERNS.get(language)
    if pattern is None:
        return ()
    found = (next((group for group in match.groups() if group), "") for match in pattern.finditer(code))
    return tuple(dict.fromkeys(name for name in found if name))[:200]


def dependency_order(files: Sequence[FileRecord]) -> list[FileRecord]:
    """Files so that what is imported comes before what imports it; ties by path.

    An import means the file whose path ends with it. Where a cycle leaves no file free, the one that waits for the fewest
    others goes first, so the order is always total.
    """
    by_stem: dict[str, list[int]] = {}
    for index, record in enumerate(files):
        path = PurePosixPath(record.path)
        stem = path.parent.name if path.stem in ("__init__", "index", "mod") else path.stem
        by_stem.setdefault(stem, []).append(index)
    waits: list[set[int]] = []
    for index, record in enumerate(files):
        needed: set[int] = set()
        for name in record.imports:
            needed.update(_files_meant(name, files, by_stem))
        waits.append(needed - {index})
    users: list[list[int]] = [[] for _ in files]
    for index, needed in enumerate(waits):
        for other in needed:
            users[other].append(index)
    left = sorted(range(len(files)), key=lambda index: files[index].path)
    order: list[FileRecord] = []
    placed: set[int] = set()
    ready = [index for index in left if not waits[index]]
    while len(order) < len(files):
        if not ready:
            ready = [
                min(
                    (index for index in left if index not in placed),
                    key=lambda index: (len(waits[index]), index),
                )
            ]
        index = ready.pop(0)
        if index in placed:
            continue
        placed.add(index)
        order.append(files[index])
        for user in users[index]:
            waits[user].discard(index)
            if not waits[user] and user not in placed:
                ready.append(user)
    return order


def _files_meant(name: str, files: Sequence[FileRecord], by_stem: dict[str, list[int]]) -> list[int]:
    """Files whose path ends like an import: ``pkg.sub.mod`` means ``.../sub/mod.py``."""
    bare = re.sub(r"\.(js|ts|jsx|tsx|mjs|h|hpp|rb|php|sh)$", "", name)
    parts = [part for part in re.split(r"[./:\\]+", bare) if part and part not in ("crate", "self", "super")]
    if not parts:
        return []
    candidates = by_stem.get(parts[-1], [])
    if len(parts) == 1 or len(candidates) <= 1:
        return candidates if len(candidates) <= 3 else []
    return [index for index in candidates if parts[-2] in PurePosixPath(files[index].path).parts]
