"""Models that other programs keep on this machine, by the names that those programs give them.

In: nothing, or a name. Out: `StoredBase`s. Nothing is written, fetched or run; no model's file is opened here, so that all
stores are read in milliseconds. What a model is, and whether it can be trained on, says `mlx_gardener.engine.bases`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf.reader import shards_of
from mlx_gardener.model.stores.folders import StoredBase, bases_below, hub_bases, place_of
from mlx_gardener.model.stores.ollama import ollama_bases
from mlx_gardener.platform.store_places import StorePlace, store_places

#: What a store is called where people read it, by the beginning of the names of its models.
STORES = {
    "hf": "Hugging Face cache",
    "index": "package index",
    "ollama": "Ollama",
    "lmstudio": "LM Studio",
    "llamacpp": "llama.cpp",
    "jan": "Jan",
    "omlx": "oMLX",
    "path": "path",
    "embedded": "mlx-gardener (embedded)",
}

__all__ = ["STORES", "StoredBase", "bases_at", "find_base", "find_bases", "is_store_name", "place_of"]


def find_bases() -> list[StoredBase]:
    """Every model in the stores of this machine, store by store; one that two roots of a store lead to only once."""
    found: dict[str, StoredBase] = {}
    for place in store_places():
        for base in _bases_in(place):
            found.setdefault(base.name, base)
    return list(found.values())


def _bases_in(place: StorePlace) -> Iterator[StoredBase]:
    store = place.store
    if store == "ollama":
        yield from ollama_bases(place.root)
        return
    if store in ("hf", "llamacpp"):  # llama.cpp's cache has the hub's layout since March 2026
        yield from hub_bases(place.root, store)
    if store == "llamacpp":
        for base in bases_below(place.root, store, lambda below: f"{store}:{below}"):
            if base.path.parent == place.root:
                yield base
    elif store != "hf":
        ending = ".gguf" if store == "index" else ""  # its names are ours
        yield from bases_below(place.root, store, lambda below: f"{store}:{below.removesuffix(ending)}")


def bases_at(path: Path) -> list[StoredBase]:
    """The models in the directory ``path`` and below, or the one GGUF file ``path`` or model of which it is a shard, named by
    their places."""
    if path.is_file():
        files = tuple(file for file in shards_of(path) if file.exists())
        return [StoredBase(str(path), "path", path, True, files=files)]
    return list(bases_below(path, "path", lambda below: str(path / below)))


def is_store_name(name: str) -> bool:
    """Whether ``name`` is one as `find_base` takes: it begins with a store's word and a colon."""
    store, colon, _ = name.partition(":")
    return bool(colon) and store in STORES and store not in ("path", "embedded")


def find_base(name: str) -> StoredBase:
    """The model that a store has by ``name``; Ollama's tag ``latest`` and the ending ``.gguf`` may be left out.

    Raises:
        ModelError: there is no such model; names the nearest that there are.
    """
    store, _, rest = name.partition(":")
    known = {base.name: base for base in find_bases() if base.store == store}
    wanted = [name, f"{name}.gguf"]
    if store == "ollama" and ":" not in rest:
        wanted.append(f"{name}:latest")
    for spelled in wanted:
        if spelled in known:
            return known[spelled]
    inside = [base for base in known.values() if base.name.startswith(f"{name}/")]
    trainable = [base for base in inside if base.why_not is None]
    if len(trainable) == 1:
        return trainable[0]
    near = [base.name for base in inside] or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    told = f"There are {', '.join(near[:5])}. " if near else ""
    raise ModelError(
        f"{STORES[store]} has no one model {name!r}."
        if inside
        else f"{STORES[store]} has no model {name!r}.",
        next_step=f"{told}`mlx-gardener models` lists all that are on this machine.",
    )
