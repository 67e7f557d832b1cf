"""What the room hands on: files, chunks and the scan as small frozen records. Bytes are of UTF-8, lines count from 1."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlx_gardener.source.secrets import without_secrets


class ChunkType(StrEnum):
    """What kind of code a chunk is."""

    FUNCTION = "function"
    CLASS = "class"
    METHOD = "method"
    MODULE = "module"
    IMPORT = "import"
    VARIABLE = "variable"
    COMMENT = "comment"
    INTERFACE = "interface"
    TYPE = "type"
    BLOCK = "block"


@dataclass(frozen=True)
class SourceFile:
    """A text file of the repository; ``path`` is relative to its root, with forward slashes."""

    path: str
    text: str
    language: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class CodeChunk:
    """A piece of a file that means something by itself.

    ``start_line`` and ``end_line`` are inclusive; ``end_byte`` is exclusive. ``metadata`` has the name, the quality
    score and its reasons. ``dependencies`` are the modules it uses, as written; ``complexity_score`` is 0 to 1.
    """

    id: str
    content: str
    language: str
    chunk_type: ChunkType
    file_path: str
    start_line: int
    end_line: int
    start_byte: int
    end_byte: int
    metadata: dict[str, Any]
    dependencies: tuple[str, ...]
    complexity_score: float


@dataclass(frozen=True)
class ChunkRecord:
    """Where a kept chunk lies and how good it is; its text stays in the file."""

    id: str
    chunk_type: ChunkType
    name: str
    start_byte: int
    end_byte: int
    start_line: int
    end_line: int
    quality: float
    complexity: float

    @property
    def defined_names(self) -> tuple[str, ...]:
        """The names that it defines, by its syntax: ``Harbor`` and ``load_all`` of ``Harbor.load_all``; none of an import."""
        if self.chunk_type in (ChunkType.IMPORT, ChunkType.BLOCK, ChunkType.COMMENT):
            return ()  # they bear the name of what they import, assign to or loop over
        return tuple(re.findall(r"[^\W\d]\w{2,}", self.name))


@dataclass(frozen=True)
class FileRecord:
    """A kept file: its chunks that passed, and the cluster of near duplicates it belongs to."""

    path: str
    language: str
    size_bytes: int
    sha256: str
    cluster: int
    chunks: tuple[ChunkRecord, ...]
    imports: tuple[str, ...]


@dataclass(frozen=True)
class SecretFound:
    """Where something that looks like a secret stands, last line included; never what it is."""

    path: str
    line: int
    end_line: int
    kind: str


@dataclass
class Dropped:
    """What one rule took: how many files or chunks, their bytes, and up to five of their places."""

    unit: str
    count: int = 0
    bytes: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: str, size_bytes: int) -> None:
        """Count one more."""
        self.count += 1
        self.bytes += size_bytes
        if len(self.examples) < 5:
            self.examples.append(place)


@dataclass
class Scan:
    """Everything a scan found out about a repository.

    ``dropped`` is by rule (see `source.filters`); ``languages`` counts kept files, chunks and bytes; ``notes`` are
    sentences about what was not as usual.
    """

    root: Path
    commit: str | None
    file_list_sha256: str
    files: list[FileRecord]
    files_seen: int
    bytes_seen: int
    chunks_found: int
    chunks_kept: int
    dropped: dict[str, Dropped]
    languages: dict[str, dict[str, int]]
    secrets: list[SecretFound]
    exact_duplicates: int
    near_duplicate_clusters: int
    parse_errors: int
    seconds: float
    notes: list[str]

    @property
    def name(self) -> str:
        """The root's own name, as training and manifests may have it: ``(secret)`` where it holds one."""
        return without_secrets(self.root.name)

    def to_json(self) -> dict[str, Any]:
        """The scan as JSON types, without the list of every file; the root by its name only."""
        return {
            "repository": self.name,
            "commit": self.commit,
            "file_list_sha256": self.file_list_sha256,
            "files_seen": self.files_seen,
            "bytes_seen": self.bytes_seen,
            "files_kept": len(self.files),
            "bytes_kept": sum(record.size_bytes for record in self.files),
            "chunks_found": self.chunks_found,
            "chunks_kept": self.chunks_kept,
            "languages": self.languages,
            "dropped": {rule: asdict(dropped) for rule, dropped in self.dropped.items()},
            "exact_duplicates": self.exact_duplicates,
            "near_duplicate_clusters": self.near_duplicate_clusters,
            "files_with_parse_errors": self.parse_errors,
            "secrets": [asdict(secret) for secret in self.secrets],
            "notes": self.notes,
            "seconds": round(self.seconds, 2),
        }
