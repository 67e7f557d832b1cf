"""An index on disk: one sealed file, written whole or not at all, believed only where it is what was written.

In: an index and the rules it was made by. Out: the same, its arrays mapped from the file. Cost: writing or reading every byte
once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_gardener.platform.sealed import read_sealed, write_sealed
from mlx_gardener.retrieval.index import Index
from mlx_gardener.retrieval.parts import KEY_BYTES, STAMP_NUMBERS
from mlx_gardener.retrieval.tree import Rules

FORMAT = "mlx-gardener-retrieval"
#: Another number where the file, the chunks, the words or the filters mean something else; an index of another one is made anew.
FORMAT_VERSION = 2
_ARRAYS = (
    "stamps", "states", "keys", "file_chunks", "lines", "lengths", "text_ends", "texts",
    "words", "starts", "chunks", "counts", "weights",
)  # fmt: skip


def write_index(place: Path, index: Index, rules: Rules) -> None:
    """Keep an index.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    import numpy as np

    paths = "\0".join(index.paths).encode(errors="surrogateescape")
    arrays = {name: getattr(index, name) for name in _ARRAYS} | {
        "paths": np.frombuffer(paths, dtype=np.uint8)
    }
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": index.name,
        "rules": rules.to_json(),
    }
    write_sealed(place, arrays, about)


def read_index(place: Path) -> tuple[Index, Rules]:
    """The index that was kept, and the rules it was made by.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another version.
    """
    arrays, about = read_sealed(place)
    if (about.get("format"), about.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError("it was written by another version")
    try:
        joined = arrays.pop("paths").tobytes().decode(errors="surrogateescape")
        paths = tuple(joined.split("\0")) if joined else ()
        found = Index(name=str(about["name"]), paths=paths, **{name: arrays[name] for name in _ARRAYS})
        rules = Rules.from_json(about["rules"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no index ({error})") from error
    _check(found)
    return found, rules


def _check(index: Index) -> None:
    """Raises ValueError where arrays do not belong together."""
    files, chunks, words, postings = (
        len(value) for value in (index.paths, index.lengths, index.words, index.chunks)
    )
    shapes: dict[str, tuple[Any, ...]] = {
        "stamps": (files, STAMP_NUMBERS),
        "states": (files,),
        "keys": (files, KEY_BYTES),
        "file_chunks": (files + 1,),
        "lines": (chunks, 2),
        "text_ends": (chunks + 1,),
        "starts": (words + 1,),
        "counts": (postings,),
        "weights": (postings,),
    }
    for name, shape in shapes.items():
        if getattr(index, name).shape != shape:
            raise ValueError(f"its {name} are {getattr(index, name).shape}, not {shape}")
