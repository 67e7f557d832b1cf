"""The base model that belongs to an adapter: where it is on this machine, and whether it is still the same.

A manifest names a local base by its directory's name and its weights' hash, never by its place; places are kept in the
registry, by that hash, and by hash and name where several directories hold the same weights: a base with another tokenizer,
config or template is another one. Cost: a manifest is read once a process; `point_base` reads all weights of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import as_recorded, validate_config
from mlx_gardener.errors import AdapterError
from mlx_gardener.registry import AdapterRecord, ProjectRegistry

if TYPE_CHECKING:
    from mlx_gardener.adapter.manifest import LoadedAdapter
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import Engine, PreparedModel
    from mlx_gardener.model import BaseModel


def base_name(registry: ProjectRegistry, record: AdapterRecord) -> str:
    """What to load for ``record``: the model's id, or the directory or GGUF file in which it lies on this machine.

    Where that is known to be gone, the place it was in, which an error about it then names. A base of another program's store
    is looked for there by its name where the folder that was made of it is gone.
    """
    from mlx_gardener.model.choose import SEEDLING
    from mlx_gardener.model.stores import is_store_name

    if record.base_model == SEEDLING:
        return SEEDLING
    gone = None
    for place in _places(registry, record):
        if place.exists():
            return str(place)
        gone = gone or (str(place) if place.is_absolute() else None)
    is_local = "/" not in record.base_model and not is_store_name(record.base_model)
    return gone if gone is not None and is_local else record.base_model


def _places(registry: ProjectRegistry, record: AdapterRecord) -> Iterator[Path]:
    """Where the base may lie, the surest first."""
    digest = _weights_sha256(record)
    by_hash = () if digest is None else (_named(digest, record.base_model), digest)
    for key in (*by_hash, record.base_model):  # by name alone: before places were kept by hash
        place = registry.local_model(key)
        if place is not None:
            yield place
    latest = registry.latest_training(record.project)  # before they were kept at all
    trained_on = Path(str(latest.config.get("model", ""))) if latest is not None else Path()
    if trained_on.name == record.base_model:
        yield trained_on


def _named(digest: str, name: str) -> str:
    return f"{digest} {name}"


def note_base(registry: ProjectRegistry, base: BaseModel) -> None:
    """Remember where a local base lies, beside others of the same weights; what is neither seedling nor of the hub is local."""
    from mlx_gardener.model.choose import SEEDLING

    if base.id == SEEDLING or base.revision is not None:
        return
    known = registry.local_model(base.weights_sha256)
    shared = known is not None and known != base.path and known.is_dir()
    registry.note_local_model(
        _named(base.weights_sha256, base.id) if shared else base.weights_sha256, base.path
    )
    if base.source is not None:  # the folder made of it may be tidied away, and is made again
        registry.note_local_model(base.id, base.source)


def _weights_sha256(record: AdapterRecord) -> str | None:
    """The hash of the base's weights; None where the manifest cannot be read, which loading the adapter will say."""
    try:
        return _hash_in_manifest(record.directory, record.manifest_sha256)
    except AdapterError:
        return None


@lru_cache(maxsize=4096)
def _hash_in_manifest(directory: Path, manifest_sha256: str) -> str | None:
    from mlx_gardener.adapter.manifest import read_manifest

    found = read_manifest(directory)["base"].get("weights_sha256")
    return found if isinstance(found, str) else None


def point_base(registry: ProjectRegistry, model: str) -> list[AdapterRecord]:
    """Let all adapters that were trained on these very weights find their base in ``model`` from now on; those adapters.

    Args:
        model: a directory, or a hub id.

    Raises:
        AdapterError: no adapter was trained on these weights.
        ModelError: there is no such model.
    """
    from mlx_gardener.model import choose_model, resolve_model
    from mlx_gardener.model.load import weights_sha256

    place = resolve_model(choose_model(model))
    digest = weights_sha256(place)
    records = [
        record for project in registry.list_projects() for record in registry.list_adapters(project.name)
    ]
    found = [record for record in records if _weights_sha256(record) == digest]
    if not found:
        known = ", ".join(sorted({record.base_model for record in records})) or "none"
        raise AdapterError(
            f"No adapter here was trained on the weights in {str(place)!r}.",
            next_step=f"The weights' hash decides, not the name. Bases of the adapters here: {known}.",
        )
    before = {base_name(registry, record) for record in found}
    names = {_named(digest, record.base_model) for record in found}
    shared = (name for name in names if registry.local_model(name) is not None)
    gone = (name for name in before if Path(name).is_absolute() and name != str(place))
    for key in (digest, *shared, *gone):
        registry.note_local_model(key, place)
    return found


def model_place(registry: ProjectRegistry, name: str) -> str:
    """``name`` of a setting, or where `point_base` was told that the directory it names has gone."""
    seen = {name}
    while Path(name).is_absolute() and not Path(name).exists():
        place = registry.local_model(name)
        if place is None or str(place) in seen:
            break
        name = str(place)
        seen.add(name)
    return name


def load_adapter_base(name: str, adapter: LoadedAdapter, *, lazy: bool = False) -> BaseModel:
    """The base of ``adapter``, compared with what its manifest says.

    Args:
        name: as `base_name` gives it, or as the user does.
        lazy: as `load_lazy_base`.

    Raises:
        AdapterError: it is another model.
        ModelError: it cannot be found or loaded.
    """
    from mlx_gardener.model import load_base, load_lazy_base

    base = load_lazy_base(name) if lazy else load_base(name)
    check_base(base, adapter)
    return base


def trained_config(adapter: LoadedAdapter, **others: Any) -> TrainingConfig:
    """The settings of the adapter's training but for ``others``; defaults where its manifest tells none, as an imported one's."""
    return validate_config({**as_recorded({"data": {}, **adapter.manifest["config"]}), **others})


def load_adapter_engine(
    registry: ProjectRegistry,
    record: AdapterRecord,
    adapter: LoadedAdapter,
    config: TrainingConfig,
    *,
    warn: Callable[[str], None] = lambda message: None,
) -> tuple[BaseModel, Engine]:
    """The base of ``adapter`` as far as the budget of ``config`` lets it into memory, and the engine that measures on it.

    Args:
        record: the adapter's; says where its base lies.
        config: the budget; all else is as in `trained_config`.
        warn: as for `load_engine`.

    Raises:
        AdapterError: it is another model.
        MemoryBudgetError: it does not fit the budget in any way.
        ModelError: it cannot be found or loaded.
    """
    from mlx_gardener.engine import prepare_model

    name = base_name(registry, record)
    config = trained_config(adapter, model=name, memory_limit_gb=config.memory_limit_gb)
    prepared = prepare_model(config, registry.home / "cache")
    return load_to_measure(registry, prepared, adapter, config, warn=warn)


def load_to_measure(
    registry: ProjectRegistry,
    prepared: PreparedModel,
    adapter: LoadedAdapter,
    config: TrainingConfig,
    *,
    warn: Callable[[str], None],
    tell: Callable[[float, str], None] = lambda share, message: None,
) -> tuple[BaseModel, Engine]:
    """The base that was ``prepared`` for ``adapter``, and the engine for it, by which nothing is trained.

    Args:
        config: settings; ``model`` is the base.
        warn, tell: as for `load_engine`.

    Raises:
        AdapterError, MemoryBudgetError, ModelError: as `load_adapter_engine`.
    """
    from mlx_gardener.engine import load_engine

    base, engine = load_engine(
        config.model,
        prepared.plan(config),
        config,
        facts=prepared.facts,
        backend=prepared.backend,
        warn=warn,
        dry_run=False,  # it tries a training step, which takes more than measuring does
        cache_dir=registry.home / "cache",
        tell=tell,
    )
    check_base(base, adapter)
    return base, engine


def check_base(base: BaseModel, adapter: LoadedAdapter) -> None:
    """Compare a base with the one that ``adapter`` was trained on.

    Raises:
        AdapterError: it is another model, or is not what it was.
    """
    if base.weights_sha256 != adapter.manifest["base"].get("weights_sha256"):
        raise AdapterError(
            f"{base.id} is not the model that the adapter {adapter.directory.name!r} was trained on.",
            next_step="Say where that model is with `mlx-gardener registry base DIRECTORY`, or train again on this one.",
        )
