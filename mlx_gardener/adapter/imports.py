"""Adapters of Hugging Face PEFT taken into the registry as versions of a project, without evidence.

PEFT may give every module its own rank, alpha and place; mlx-lm's form has one rank and scale and the same modules in
the last N layers. What differs is made the same without changing the sum: a smaller rank is filled up with zeros, an
alpha of its own goes into B, and a module that has no adapter gets one whose B is zero. In: what `peft_files` read, and
the base. Out: a version in the registry. Cost: the base is read once.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.peft_files import SAVE_AGAIN, PeftAdapter, read_peft
from mlx_gardener.errors import AdapterError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.adapter.manager import PeftManager
    from mlx_gardener.model import BaseModel
    from mlx_gardener.model.lora import AdapterSettings
    from mlx_gardener.registry import AdapterRecord, ProjectRegistry

logger = logging.getLogger(__name__)

_MOST_RANK = 1024
_LAYER = re.compile(r"(.*\blayers\.)(\d+)\.(.+)")


def to_one_shape(adapter: PeftAdapter, base: BaseModel) -> tuple[dict[str, mx.array], AdapterSettings]:
    """Weights and settings in mlx-lm's form, for ``base``.

    Raises:
        AdapterError: a module is not in the base's layers, or a shape does not fit.
    """
    import mlx.core as mx

    from mlx_gardener.model.lora import AdapterSettings, detach_lora, lora_parameters

    modules = sorted({name.rpartition(".")[0] for name in adapter.weights})
    ranks = {}
    for module in modules:
        pair = [adapter.weights.get(f"{module}.{leaf}") for leaf in ("lora_a", "lora_b")]
        if any(value is None or value.ndim != 2 for value in pair) or pair[0].shape[1] != pair[1].shape[0]:  # type: ignore[union-attr]
            raise AdapterError(
                f"The module {module!r} has no pair of matrices A and B that fit each other.",
                next_step=SAVE_AGAIN,
            )
        ranks[module] = pair[0].shape[1]  # type: ignore[union-attr]
        said = int(adapter.ranks[module])
        if ranks[module] != said:
            raise AdapterError(
                f"The rank of {module!r} is {ranks[module]}, but the configuration says {said}.",
                next_step=SAVE_AGAIN,
            )
    rank = max(ranks.values(), default=0)
    if not 1 <= rank <= _MOST_RANK:
        raise AdapterError(
            f"A rank of {rank} cannot be imported; 1 to {_MOST_RANK} can.",
            next_step="Train it again with a rank in between.",
        )
    places = {module: _LAYER.fullmatch(module) for module in modules}
    outside = next((module for module, place in places.items() if place is None), None)
    if outside is not None:
        raise AdapterError(
            f"The adapter changes {outside!r}, which lies outside of the model's layers; mlx-lm has no place for that.",
            next_step="Train it again on modules within the layers.",
        )
    keys = tuple(sorted({place[3] for place in places.values() if place is not None}))
    first = min(int(place[2]) for place in places.values() if place is not None)
    count = len(base.model.layers)
    shared = adapter.scale_of(modules[0])
    settings = AdapterSettings(
        max(1, count - first), rank, shared, keys, is_dora=bool(adapter.config.get("use_dora"))
    )
    try:
        settings.put_into(base.model)
        present = dict(lora_parameters(base.model))
        weights = {
            name: value.astype(mx.float32) if name.endswith(".m") else mx.zeros(value.shape)
            for name, value in present.items()
        }
        mx.eval(weights)
    except ValueError as error:
        raise AdapterError(
            f"{base.id} cannot take this adapter ({error}).",
            next_step="Name the model it was trained on with --base.",
        ) from error
    finally:
        detach_lora(base.model)
    changed = False
    for name, value in adapter.weights.items():
        module, _, leaf = name.rpartition(".")
        value = value.astype(mx.float32)
        if leaf == "lora_a":
            value = mx.pad(value, [(0, 0), (0, rank - ranks[module])])
        elif leaf == "lora_b":
            value = mx.pad(value * (adapter.scale_of(module) / shared), [(0, rank - ranks[module]), (0, 0)])
        if name not in weights or weights[name].shape != value.shape:
            fits = (
                "has no such linear layer" if name not in weights else f"wants {tuple(weights[name].shape)}"
            )
            raise AdapterError(
                f"{name!r} of shape {tuple(value.shape)} does not fit: {base.id} {fits}.",
                next_step="Name the model it was trained on with --base.",
            )
        if not mx.isfinite(value).all().item():
            raise AdapterError(
                f"{name!r} times its alpha over its rank is beyond what float32 holds.", next_step=SAVE_AGAIN
            )
        if leaf == "m":
            changed = changed or not mx.allclose(weights[name], value).item()
        weights[name] = value
    mx.eval(weights)
    if not changed and not any(_has_effect(weights, module) for module in modules):
        raise AdapterError(
            "This adapter changes nothing: in every module A or B is zero, as before training.",
            next_step="Name the directory that holds what training left.",
        )
    return weights, settings


def _has_effect(weights: dict[str, mx.array], module: str) -> bool:
    return all(bool((weights[f"{module}.{leaf}"] != 0).any().item()) for leaf in ("lora_a", "lora_b"))


def import_adapter(
    manager: PeftManager, project: str, directory: Path, *, base: str | None = None, activate: bool = False
) -> AdapterRecord:
    """Register a PEFT adapter as a new version of ``project``, without evidence.

    Args:
        base: the model it was trained on; what its configuration names when None, as far as that is on this machine.
        activate: whether other programs pick it up from now on.

    Raises:
        AdapterError: it cannot be read, held, or does not fit the base; nothing is registered.
        ModelError: the base cannot be found.
        RegistryError: there is no such project.
    """
    from mlx_gardener.model import load_base

    manager.registry.get_project(project)
    adapter = read_peft(directory)
    model = load_base(base or _named_base(adapter.config))
    return register_imported(
        manager, project, adapter, model, form="Hugging Face PEFT's form", activate=activate
    )


def register_imported(
    manager: PeftManager, project: str, adapter: PeftAdapter, model: BaseModel, *, form: str, activate: bool
) -> AdapterRecord:
    """Register what was read as a new version of ``project``.

    Args:
        form: that it came in, for the card.

    Raises:
        AdapterError: it does not fit the base; nothing is registered.
    """
    from mlx_gardener.adapter.manifest import ManifestDetails
    from mlx_gardener.platform.untrusted import sha256_of

    weights, settings = to_one_shape(adapter, model)
    source_sha256 = sha256_of(adapter.file)
    _clear_away(manager.registry, project, source_sha256, model.weights_sha256)
    details = ManifestDetails(
        config={"lora": {"rank": settings.rank, "scale": settings.scale}},
        data={"commit": None},
        metrics={},
        evidence={},
        training={
            "imported": True,
            "source_sha256": source_sha256,
            "rank": adapter.config["r"],
            "lora_alpha": adapter.config["lora_alpha"],
            "use_rslora": bool(adapter.config.get("use_rslora")),
            "use_dora": bool(adapter.config.get("use_dora")),
        },
        plan={},
    )
    card = (
        f"# {project}: an imported adapter\n\nA LoRA adapter of `{model.id}` that was trained elsewhere and imported "
        f"from {form}. mlx-gardener has measured nothing about it: there is no evidence that it helps.\n"
    )
    with manager.stage_adapter(project, weights, base=model, settings=settings) as staged:
        return staged.commit(details, model_card=card, activate=activate)


def _clear_away(registry: ProjectRegistry, project: str, source_sha256: str, base_sha256: str) -> None:
    """Delete what killed imports left: half an adapter, and a whole one of the same that was put in its place unregistered.

    One whose manifest cannot be read is left where it is, and named in the log: it may be of another import, or of a training.

    Raises:
        RegistryError: it cannot be deleted.
    """
    from mlx_gardener.adapter.manifest import read_manifest
    from mlx_gardener.platform.locks import is_held

    registry.sweep(project)
    versions = (registry.project_directory(project) / "adapters").glob("v*")
    # Who is asked second knows whatever another import has let go of by then.
    found = [directory for directory in sorted(versions) if not is_held(directory)]
    known = {record.directory for record in registry.list_adapters(project)}
    for directory in found:
        if directory in known:
            continue
        try:
            manifest = read_manifest(directory)
        except AdapterError as error:
            logger.warning(
                "%s/%s is not registered, and what it is cannot be told: %s It was left there; `mlx-gardener registry check` "
                "lists what is wrong, `mlx-gardener registry repair` clears it away.",
                project,
                directory.name,
                error.message,
            )
            continue
        training, base = manifest["training"], manifest["base"]
        if (training.get("source_sha256"), base.get("weights_sha256")) == (source_sha256, base_sha256):
            registry.discard(directory)


def _named_base(config: dict[str, Any]) -> str:
    """The base that an adapter's configuration names, where it is here: a stranger's file fetches nothing.

    Raises:
        AdapterError: it is not here.
    """
    from mlx_gardener.model.choose import SEEDLING
    from mlx_gardener.model.hub import cached_model

    named = config.get("base_model_name_or_path")
    if named == SEEDLING:
        return SEEDLING
    if isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named) and cached_model(named) is not None:
        return named
    raise AdapterError(
        f"The base model {named!r} that this adapter names is not in the local cache.",
        next_step="Name it with --base: a directory, or a hub id to fetch.",
    )
