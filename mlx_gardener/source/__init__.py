"""From a repository to scored chunks: walk, filter, find secrets and duplicates, parse, score.

In: a directory. Out: a `Scan`, which remembers places and never texts, so memory does not grow with the repository.
Cost: about a second per 5 MB on two cores (``benchmarks/scan_throughput.py``).
"""

from mlx_gardener.source.chunks import CodePreprocessor
from mlx_gardener.source.records import (
    ChunkRecord,
    ChunkType,
    CodeChunk,
    Dropped,
    FileRecord,
    Scan,
    SecretFound,
    SourceFile,
)
from mlx_gardener.source.scan import decode_source, dependency_order, read_source, scan_repository

__all__ = [
    "ChunkRecord",
    "ChunkType",
    "CodeChunk",
    "CodePreprocessor",
    "Dropped",
    "FileRecord",
    "Scan",
    "SecretFound",
    "SourceFile",
    "decode_source",
    "dependency_order",
    "read_source",
    "scan_repository",
]
