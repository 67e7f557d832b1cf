"""The scan: every file of a repository looked at once, in worker processes, and remembered by its places only.

In: a root and the settings of the dataset. Out: a `Scan`. Files are read, filtered, searched for secrets, parsed and
scored one by one; texts are dropped as soon as that is done. Cost: about a second per 5 MB on two cores, and about
1 KB of memory a chunk.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlx_gardener.config import DataConfig
from mlx_gardener.errors import DataError
from mlx_gardener.platform.files import resolved
from mlx_gardener.platform.processes import safe_children
from mlx_gardener.platform.untrusted import read_bytes
from mlx_gardener.source.chunks import CodePreprocessor
from mlx_gardener.source.duplicates import NearDuplicates, content_key, signature_of
from mlx_gardener.source.filters import decode_source, drop_by_bytes, drop_by_path, drop_by_text
from mlx_gardener.source.imports import dependency_order, imports_of
from mlx_gardener.source.languages import language_of
from mlx_gardener.source.records import (
    ChunkRecord,
    Dropped,
    FileRecord,
    Scan,
    SecretFound,
    SourceFile,
)
from mlx_gardener.source.secrets import TooManySecretsError, find_secrets, names_with_secrets, without_secrets
from mlx_gardener.source.walk import Git, head_commit, list_files, marked_paths, require_directory

if TYPE_CHECKING:
    from rensa import RMinHash

__all__ = ["decode_source", "dependency_order", "read_source", "scan_repository"]

#: From this many files on, worker processes earn their start-up of about half a second.
PARALLEL_FILES = 300
_BATCH = 16
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Examined:
    """What was found out about one file: the rule that drops it, or what is worth keeping."""

    path: str
    size_bytes: int
    rule: str | None
    language: str = ""
    sha256: str = ""
    key: bytes = b""
    signature: RMinHash | None = None
    imports: tuple[str, ...] = ()
    chunks: tuple[ChunkRecord, ...] = ()
    dropped_chunks: tuple[tuple[str, int, int], ...] = ()  # (rule, line, bytes)
    secrets: tuple[SecretFound, ...] = ()
    parse_error: bool = False


def scan_repository(
    root: Path,
    config: DataConfig,
    *,
    quality_threshold: float,
    on_progress: Callable[[float, str], None] | None = None,
    interrupt: Callable[[], None] | None = None,
    processes: int | None = None,
) -> Scan:
    """Look at every file below ``root``.

    Args:
        quality_threshold: least quality score of a chunk that is kept, 0 to 1.
        on_progress: told the share done (0 to 1) and a line for people.
        interrupt: asked between files; may raise.
        processes: worker processes; as many as cores for large repositories when None, 1 for none.

    Raises:
        DataError: ``root`` is not a directory that can be read, went away meanwhile, or holds no files at all.
    """
    started = time.perf_counter()
    root = resolved(root)
    if on_progress is not None:
        on_progress(0.0, "Listing files")
    git = Git(root)
    paths = list_files(root, git)
    if not paths:
        raise DataError(
            f"{without_secrets(str(root))!r} holds no files.",
            next_step="Name the root directory of a repository.",
        )
    marked = marked_paths(root, paths, git)
    scan = Scan(
        root=root,
        commit=head_commit(root, git),
        file_list_sha256=hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest(),
        files=[], files_seen=len(paths), bytes_seen=0, chunks_found=0, chunks_kept=0, dropped={}, languages={},
        secrets=[], exact_duplicates=0, near_duplicate_clusters=0, parse_errors=0, seconds=0.0, notes=[],
    )  # fmt: skip
    if git.is_silent:
        scan.notes.append(
            "git does not answer here (a pipe in .git, or in the place of a .gitignore, keeps it waiting): "
            "files were listed without it."
        )
    near = NearDuplicates()
    first_with: dict[bytes, str] = {}
    numbers: list[int] = []
    for done, found in enumerate(
        _examine_all(root, paths, marked, config, quality_threshold, processes), start=1
    ):
        if interrupt is not None:
            interrupt()
        if on_progress is not None and (done % 20 == 0 or done == len(paths)):
            on_progress(done / len(paths), f"Read {done} of {len(paths)} files")
        scan.bytes_seen += found.size_bytes
        if found.rule is not None:
            _drop(scan, found.rule, "files", found.path, found.size_bytes)
        elif first_with.setdefault(found.key, found.path) != found.path:
            scan.exact_duplicates += 1
            _drop(scan, "exact_duplicate", "files", found.path, found.size_bytes)
        else:
            _keep(scan, found)
            if found.chunks:
                numbers.append(near.add(found.signature))
    require_directory(root)
    _assign_clusters(scan, near, numbers)
    scan.seconds = time.perf_counter() - started
    return scan


def _drop(scan: Scan, rule: str, unit: str, place: str, size_bytes: int) -> None:
    scan.dropped.setdefault(rule, Dropped(unit)).add(place, size_bytes)


def _keep(scan: Scan, found: Examined) -> None:
    scan.chunks_found += len(found.chunks) + len(found.dropped_chunks)
    scan.chunks_kept += len(found.chunks)
    scan.parse_errors += found.parse_error
    scan.secrets.extend(found.secrets)
    for rule, line, size_bytes in found.dropped_chunks:
        _drop(scan, rule, "chunks", f"{found.path}:{line}", size_bytes)
    if not found.chunks:
        return
    record = FileRecord(
        found.path, found.language, found.size_bytes, found.sha256, -1, found.chunks, found.imports
    )
    scan.files.append(record)
    counts = scan.languages.setdefault(found.language, {"files": 0, "chunks": 0, "bytes": 0})
    counts["files"] += 1
    counts["chunks"] += len(found.chunks)
    counts["bytes"] += sum(chunk.end_byte - chunk.start_byte for chunk in found.chunks)


def _assign_clusters(scan: Scan, near: NearDuplicates, numbers: list[int]) -> None:
    clusters = [near.cluster_of(number) for number in numbers]
    scan.files = [
        FileRecord(
            record.path,
            record.language,
            record.size_bytes,
            record.sha256,
            cluster,
            record.chunks,
            record.imports,
        )
        for record, cluster in zip(scan.files, clusters, strict=True)
    ]
    scan.near_duplicate_clusters = sum(count > 1 for count in Counter(clusters).values())


def _examine_all(
    root: Path,
    paths: list[str],
    marked: dict[str, str],
    config: DataConfig,
    quality_threshold: float,
    processes: int | None,
) -> Iterator[Examined]:
    """Every path examined, in order; a bounded number of batches is under way at any time."""
    marked = marked | dict.fromkeys(names_with_secrets(paths), "secret_in_name")
    jobs = ((root, path, marked.get(path), config, quality_threshold) for path in paths)
    yield from done_by_processes(_examine, jobs, len(paths), processes)


def done_by_processes(
    work: Callable[..., _Result], jobs: Iterator[tuple[Any, ...]], count: int, processes: int | None = None
) -> Iterator[_Result]:
    """``work(*job)`` of each job, in order; a bounded number of batches is under way at any time.

    Args:
        work: a function of a module, as other processes have to find it.
        count: how many jobs there are: few are done in this process.
        processes: as in `scan_repository`.
    """
    workers = processes or (min(4, os.cpu_count() or 1) if count >= PARALLEL_FILES else 1)
    if workers == 1:
        for job in jobs:
            yield work(*job)
        return
    context = multiprocessing.get_context("spawn")  # MLX and BLAS threads do not survive a fork
    with safe_children(), ProcessPoolExecutor(workers, mp_context=context) as pool:
        batches = iter(lambda: list(islice(jobs, _BATCH)), [])
        waiting = deque(pool.submit(_do_batch, work, batch) for batch in islice(batches, workers * 4))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(_do_batch, work, batch) for batch in islice(batches, 1))


def _do_batch(work: Callable[..., _Result], batch: list[tuple[Any, ...]]) -> list[_Result]:
    return [work(*job) for job in batch]


def _examine(
    root: Path, path: str, marked: str | None, config: DataConfig, quality_threshold: float
) -> Examined:
    return examine_file(root, path, marked, config, quality_threshold)[0]


def examine_file(
    root: Path, path: str, marked: str | None, config: DataConfig, quality_threshold: float
) -> tuple[Examined, str]:
    """What one file is, and its text, of which the kept chunks may be looked at; "" where the file is dropped.

    Args:
        marked: the rule that drops it whatever it holds, if one does (`marked_paths`, `names_with_secrets`).
    """
    rule = marked or drop_by_path(path, config) or _drop_by_kind(root, path)
    if rule is not None:
        shown = without_secrets(path) if rule == "secret_in_name" else path
        return Examined(shown, _size_of(root / path), rule), ""
    try:
        size = (root / path).stat().st_size
        if size > config.max_file_bytes:
            return Examined(path, size, "too_large"), ""
        data = read_bytes(root / path, max_bytes=config.max_file_bytes, follow_links=False)
    except FileNotFoundError:
        return Examined(path, 0, "deleted_during_scan"), ""
    except (OSError, ValueError):
        return Examined(path, _size_of(root / path), "unreadable"), ""
    rule = drop_by_bytes(data, config)
    if rule is None:
        try:
            text = decode_source(data)
        except UnicodeDecodeError:
            rule = "not_utf8"
    if rule is None:
        rule = drop_by_text(path, text, config)
    if rule is None:
        try:
            found = find_secrets(text, path)
        except TooManySecretsError:
            rule = "many_secrets"
    if rule is not None:
        return Examined(path, len(data), rule), ""
    secrets = tuple(SecretFound(path, *place) for place in found)
    return _examine_text(path, data, text, secrets, config, quality_threshold), text


def _examine_text(
    path: str,
    data: bytes,
    text: str,
    secrets: tuple[SecretFound, ...],
    config: DataConfig,
    quality_threshold: float,
) -> Examined:
    language = language_of(path)
    kept, dropped = [], []
    broken = False
    for chunk in CodePreprocessor(config).preprocess_code(text, language, path):
        quality = chunk.metadata["quality"]
        broken = broken or chunk.metadata["parse_error"]
        size = chunk.end_byte - chunk.start_byte
        if any(chunk.start_line <= secret.end_line and secret.line <= chunk.end_line for secret in secrets):
            dropped.append(("secret", chunk.start_line, size))
        elif quality < quality_threshold:
            dropped.append(("low_quality", chunk.start_line, size))
        else:
            kept.append(
                ChunkRecord(
                    chunk.id,
                    chunk.chunk_type,
                    chunk.metadata["name"],
                    chunk.start_byte,
                    chunk.end_byte,
                    chunk.start_line,
                    chunk.end_line,
                    quality,
                    chunk.complexity_score,
                )
            )
    return Examined(
        path=path,
        size_bytes=len(data),
        rule=None,
        language=language,
        sha256=hashlib.sha256(data).hexdigest(),
        key=content_key(text),
        signature=signature_of(text),
        imports=imports_of(text, language),
        chunks=tuple(kept),
        dropped_chunks=tuple(dropped),
        secrets=secrets,
        parse_error=broken,
    )


def _drop_by_kind(root: Path, path: str) -> str | None:
    """The rule that drops what is no plain file: links, sub-modules, pipes."""
    full = root / path
    try:
        mode = full.lstat().st_mode
        if full.parent.resolve() != full.parent:
            return "symlink_outside"  # an index may name files behind a link to a directory
        if stat.S_ISLNK(mode):
            target = full.resolve(strict=True)
            return "symlink" if target.is_relative_to(root) else "symlink_outside"
    except FileNotFoundError:
        return "symlink_broken" if full.is_symlink() else "deleted_during_scan"
    except (OSError, RuntimeError) as error:  # Python 3.11 to 3.12 raise RuntimeError for a loop
        is_loop = isinstance(error, RuntimeError) or error.errno == errno.ELOOP
        return "symlink_loop" if is_loop else "unreadable"
    if stat.S_ISDIR(mode):
        return "submodule" if os.access(full, os.R_OK) else "unreadable"
    return None if stat.S_ISREG(mode) else "special_file"


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def read_source(root: Path, record: FileRecord) -> SourceFile:
    """Read a kept file again.

    Raises:
        DataError: it is gone, cannot be read, or is not what the scan saw.
    """
    try:
        data = read_bytes(root / record.path, max_bytes=record.size_bytes, follow_links=False)
    except OSError as error:
        raise DataError(
            f"{record.path!r} cannot be read any more ({error.strerror}).", next_step="Scan again."
        ) from error
    except ValueError:
        data = b""  # longer, or no plain file any more
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DataError(f"{record.path!r} has changed since it was scanned.", next_step="Scan again.")
    return SourceFile(record.path, decode_source(data), record.language, len(data), record.sha256)
