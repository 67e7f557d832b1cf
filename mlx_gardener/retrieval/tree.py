"""A working tree as an index, made once and then kept up to date file by file.

In: a root, the `Rules` of the scan, an earlier index. Out: an index of exactly what a scan would keep now: the same filters in the
same order, no chunk that a suspected secret touches, of files with the same content only the first. Training takes the best
``max_training_chunks`` of these, retrieval all. Cost: git's list and a look at every file's times (about 5 seconds
for a million files, 0.3 for 50,000), then the scan of the files that changed; an index that is refreshed
equals one that is made anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.config import DataConfig
from mlx_gardener.errors import DataError
from mlx_gardener.retrieval.index import Index, merged
from mlx_gardener.retrieval.parts import DROPPED, DUPLICATE, KEPT, FilePart, file_part
from mlx_gardener.source.filters import MAX_LINE_LENGTH
from mlx_gardener.source.records import ChunkRecord, FileRecord
from mlx_gardener.source.scan import done_by_processes, examine_file, read_source
from mlx_gardener.source.secrets import names_with_secrets, without_secrets
from mlx_gardener.source.walk import Git, list_files, marked_paths, require_directory

#: A file that changed so shortly before it was looked at may change again without another time.
_TICK_NS = 100_000_000
#: The stamp of a file that its name or git's attributes leave out, whatever is in it.
_MARKED = (-1, 0, 0, 0)


@dataclass(frozen=True)
class Rules:
    """What of a repository is kept: the settings of `DataConfig` that files are filtered by, and the least quality of a chunk."""

    max_file_bytes: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    quality: float

    @classmethod
    def of(cls, data: DataConfig, quality: float) -> Rules:
        """Those of a training's settings."""
        return cls(data.max_file_bytes, data.include, data.exclude, quality)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rules:
        """The rules that `to_json` told.

        Raises:
            KeyError, TypeError, ValueError: it did not, or by another version that had other ones.
        """
        if values.get("max_line_length", MAX_LINE_LENGTH) != MAX_LINE_LENGTH:
            raise ValueError("files were left out by another longest line")
        return cls(
            int(values["max_file_bytes"]),
            tuple(map(str, values["include"])),
            tuple(map(str, values["exclude"])),
            float(values["quality"]),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def data(self) -> DataConfig:
        """As the scan takes them."""
        return DataConfig(
            max_file_bytes=self.max_file_bytes,
            include=self.include,
            exclude=self.exclude,
        )


def index_of_files(root: Path, files: Iterable[FileRecord], *, name: str) -> Index:
    """The index of what a scan kept of some files; those that changed since are left out."""
    parts = []
    for record in files:
        try:
            data = read_source(root, record).text.encode()
        except DataError:
            continue  # counted when the rows were made (files_changed_while_reading)
        parts.append(_part(record.path, data, record.chunks))
    return merged(None, parts, name=name)


def _part(path: str, data: bytes, chunks: Sequence[ChunkRecord], **known: Any) -> FilePart:
    return file_part(
        path,
        [data[chunk.start_byte : chunk.end_byte] for chunk in chunks],
        [(chunk.start_line, chunk.end_line) for chunk in chunks],
        [chunk.defined_names for chunk in chunks],
        **known,
    )


def refreshed(
    earlier: Index | None,
    root: Path,
    rules: Rules,
    *,
    interrupt: Callable[[], None] = lambda: None,
    processes: int | None = None,
) -> Index:
    """The index of the tree as it is now; ``earlier`` itself where nothing has changed.

    Args:
        earlier: made by the same rules.
        interrupt: asked between files; may raise.
        processes: as in `source.scan_repository`.

    Raises:
        DataError: ``root`` is not a directory that can be read, or went away meanwhile.
    """
    root = root.resolve()
    name = without_secrets(root.name)
    git = Git(root)
    paths = list_files(root, git)
    marked = marked_paths(root, paths, git) | dict.fromkeys(names_with_secrets(paths), "secret_in_name")
    known = {} if earlier is None else {path: number for number, path in enumerate(earlier.paths)}
    now, kept, parts, to_examine = time.time_ns(), dict[str, int](), list[FilePart](), list[str]()
    stamps: dict[str, tuple[int, int, int, int]] = {}
    for path in paths:
        stamp = stamps[path] = _MARKED if path in marked else _stamp(root / path, now)
        number = known.get(path)
        if (
            earlier is not None
            and number is not None
            and stamp == tuple(earlier.stamps[number].tolist()) != (0,) * 4
        ):
            kept[path] = number
        elif path in marked:
            parts.append(FilePart(path, stamp))
        else:
            to_examine.append(path)
    parts += _examined(root, to_examine, rules, stamps, interrupt, processes)
    if earlier is not None and not parts and len(kept) == len(earlier.paths) and earlier.name == name:
        return earlier
    firsts = _first_with_content(earlier, kept, parts)
    # A file whose earlier double is gone, and files of which an earlier double has come.
    again = [
        path
        for path, number in kept.items()
        if earlier is not None
        and earlier.states[number] != DROPPED
        and (earlier.states[number] == DUPLICATE) == (firsts[earlier.keys[number].tobytes()] == path)
    ]
    for path in again:
        del kept[path]
    parts += _examined(root, again, rules, stamps, interrupt, processes)
    firsts = _first_with_content(earlier, kept, parts)
    parts = [
        part
        if part.state == DROPPED or firsts[part.key] == part.path
        else FilePart(part.path, part.stamp, DUPLICATE, part.key)
        for part in parts
    ]
    require_directory(root)
    return merged(earlier, parts, name=name, kept=sorted(kept.values()))


def _first_with_content(
    earlier: Index | None, kept: dict[str, int], parts: list[FilePart]
) -> dict[bytes, str]:
    """The first path of each content."""
    found = {part.path: part.key for part in parts if part.state != DROPPED}
    if earlier is not None:
        found |= {
            path: earlier.keys[number].tobytes()
            for path, number in kept.items()
            if earlier.states[number] != DROPPED
        }
    firsts: dict[bytes, str] = {}
    for path in sorted(found):
        firsts.setdefault(found[path], path)
    return firsts


def _stamp(file: Path, now_ns: int) -> tuple[int, int, int, int]:
    """Numbers by which a change of a file shows; zeros where it changed just now, or cannot be looked at."""
    try:
        found = os.lstat(file)
    except OSError:
        return (0, 0, 0, 0)
    if now_ns - max(found.st_mtime_ns, found.st_ctime_ns) < _TICK_NS:
        return (0, 0, 0, 0)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino % 2**63)


def _examined(
    root: Path,
    paths: list[str],
    rules: Rules,
    stamps: dict[str, tuple[int, int, int, int]],
    interrupt: Callable[[], None],
    processes: int | None,
) -> Iterator[FilePart]:
    jobs = ((root, path, rules, stamps[path]) for path in paths)
    for part in done_by_processes(_examine, jobs, len(paths), processes):
        interrupt()
        yield part


def _examine(root: Path, path: str, rules: Rules, stamp: tuple[int, int, int, int]) -> FilePart:
    """The part of one file: its chunks that a scan would keep."""
    found, text = examine_file(root, path, None, rules.data(), rules.quality)
    if found.rule is not None:
        return FilePart(path, stamp)
    return _part(path, text.encode(), found.chunks, stamp=stamp, state=KEPT, key=found.key)
