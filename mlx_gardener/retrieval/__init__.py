"""Retrieved code: which pieces of a repository belong in front of a prompt, found by BM25 over its syntax chunks.

In: a working tree, as the scan's filters leave it. Out: an `Index` that is kept on disk and refreshed file by file, and token
ids in the model's own form. Evidence and serving use the same: what is served is what was measured. Cost: the modules say
theirs; ``benchmarks/retrieval.py`` measures it.
"""

from mlx_gardener.retrieval.context import Context, Piece, Retriever, code_in_front, with_context
from mlx_gardener.retrieval.index import Index, index_of_chunks
from mlx_gardener.retrieval.store import read_index, write_index
from mlx_gardener.retrieval.tree import Rules, index_of_files, refreshed

__all__ = [
    "Context",
    "Index",
    "Piece",
    "Retriever",
    "Rules",
    "code_in_front",
    "index_of_chunks",
    "index_of_files",
    "read_index",
    "refreshed",
    "with_context",
    "write_index",
]
