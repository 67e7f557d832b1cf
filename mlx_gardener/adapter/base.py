"""The base model that belongs to an adapter: where it is on this machine, and whether it is still the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.errors import AdapterError
from mlx_gardener.registry import AdapterRecord, ProjectRegistry

if TYPE_CHECKING:
    from mlx_gardener.adapter.manifest import LoadedAdapter
    from mlx_gardener.model import BaseModel


def base_name(registry: ProjectRegistry, record: AdapterRecord) -> str:
    """What to load for ``record``: the model's id, or for a local directory the path it was trained with."""
    known = registry.local_model(record.base_model)
    if known is not None and known.is_dir():
        return str(known)
    latest = registry.latest_training(record.project)  # adapters from before paths were remembered
    named = str(latest.config.get("model", "")) if latest is not None else ""
    return named if Path(named).name == record.base_model and Path(named).is_dir() else record.base_model


def load_adapter_base(name: str, adapter: LoadedAdapter, *, lazy: bool = False) -> BaseModel:
    """The base of ``adapter``, compared with what its manifest says.

    Args:
        name: as `base_name` gives it, or as the user does.
        lazy: leave weights on disk until they are used, and compute in float32.

    Raises:
        AdapterError: it is another model.
        ModelError: it cannot be found or loaded.
    """
    from mlx_gardener.model import load_base

    base = (
        load_base(name, compute_dtype="float32", base_weights="dense", unread_layers=10**6, unread_words=True)
        if lazy
        else load_base(name)
    )
    if base.weights_sha256 != adapter.manifest["base"]["weights_sha256"]:
        raise AdapterError(
            f"{base.id} is not the model that the adapter {adapter.directory.name!r} was trained on.",
            next_step="Name that model with --base, or train again on the model as it is now.",
        )
    return base
