"""Which adapter version a training goes on from, if any: decided by name when it begins, and looked at in its worker.

"auto" takes the active version where base model and LoRA settings are the same and its manifest says which files it
knows; whether enough is the same in the repository is `dataset.changes`'. Asked for by name, what does not fit is an error.
A version that knows what the project is to forget is never gone on from. Cost: the base's weights are hashed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig, as_recorded
from mlx_gardener.errors import AdapterError, RegistryError
from mlx_gardener.events import WarningRaised
from mlx_gardener.platform.files import resolved
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.context import Run
from mlx_gardener.runs.job import Resume
from mlx_gardener.runs.ranks import check_hosts
from mlx_gardener.runs.result import RunResult

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.dataset import Earlier, PreparedData
    from mlx_gardener.model import ModelChoice
    from mlx_gardener.source import Scan


#: Settings that change nothing about what comes out: a training may go on with others.
MAY_CHANGE = frozenset(
    {
        "training_timeout_minutes",
        "progress_update_interval",
        "checkpoint_interval_seconds",
        "parallel",
        "serve",
    }
)
#: Settings that make a training's rows: with others the updates that a time limit left are of other rows.
_OF_ROWS = {"data", "max_training_chunks", "seed", "training_data_quality_threshold"}
#: What a training goes on from is decided when it begins, so a resumed one keeps it.
DECIDED_AT_START = "continue_from"


@dataclass(frozen=True)
class Parent:
    """The version to go on from: the files it knows, its weights by mlx-lm's names, its manifest, and whether it was asked for."""

    earlier: Earlier
    manifest: dict[str, Any]
    weights: dict[str, mx.array]
    is_asked: bool


def decide_parent(registry: ProjectRegistry, project: str, wish: str) -> str:
    """``continue_from`` as a training records it: ``never``, ``auto:VERSION`` or the version that was asked for.

    Raises:
        RegistryError: the version that was asked for is not there.
    """
    if wish == "never" or wish.startswith("auto:"):
        return wish
    if wish == "auto":
        active = registry.get_project(project).active_adapter
        return "never" if active is None else f"auto:{active}"
    return registry.get_adapter(project, None if wish == "active" else wish).version


def find_parent(run: Run, choice: ModelChoice) -> Parent | None:
    """The version that a run's settings name, where it can be gone on from.

    Raises:
        AdapterError, RegistryError: it was asked for by name, and cannot.
    """
    from mlx_gardener.adapter import PeftManager
    from mlx_gardener.dataset import Earlier
    from mlx_gardener.model import resolve_model
    from mlx_gardener.model.load import weights_sha256

    wish = run.config.continue_from
    if wish == "never" or wish in ("auto", "active"):  # the latter only where nobody decided
        return None
    is_asked, version = not wish.startswith("auto:"), wish.removeprefix("auto:")
    try:
        adapter = PeftManager(run.registry).load_adapter(run.project.name, version)
        earlier = Earlier.of_manifest(version, adapter.manifest)
        manifest = adapter.manifest

        def has_same_base() -> bool:
            return bool(manifest["base"].get("weights_sha256") == weights_sha256(resolve_model(choice)))

        why = _why_not(run.registry, run.project.name, run.config, manifest, earlier, has_same_base)
    except (AdapterError, RegistryError) as error:
        if is_asked:
            raise
        run.publish(WarningRaised(f"Training begins from scratch: {error.message}"))
        return None
    if why is None and earlier is not None:
        return Parent(earlier, adapter.manifest, adapter.weights, is_asked)
    if is_asked:
        raise AdapterError(f"Training cannot go on from {version}: {why}.", next_step="Train with --fresh.")
    run.publish(WarningRaised(f"Training begins from scratch, not from {version}: {why}."))
    return None


def already_trained(run: Run, parent: Parent | None, data: PreparedData) -> RunResult | None:
    """The result that is there already, where training anew from the same files and settings would only repeat it.

    Says why a training begins from scratch though there is a version to go on from.
    """
    from mlx_gardener.dataset.prepare import UNCHANGED

    anew = data.summary.not_continued
    if parent is None or anew is None or run.resume is Resume.ALWAYS:
        return None
    version, why = parent.earlier.version, anew["why"]
    if why == UNCHANGED:
        others = _other_settings(run.config, parent.manifest)
        if not others:
            made = run.registry.training_that_made(run.project.name, version)
            known = (
                parent.manifest if made is None else made.result
            )  # the manifest's evidence quotes no source
            told = {key: known[key] for key in ("metrics", "evidence", "training")}
            return RunResult(version, **told, unchanged_since=version)
        why = f"no file has changed since, but settings have ({', '.join(others)})"
    run.publish(WarningRaised(f"Training begins from scratch, not from {version}: {why}."))
    return None


def _other_settings(config: TrainingConfig, manifest: dict[str, Any]) -> list[str]:
    """Settings by which a training would give something else than the version of a manifest; the base is compared by its weights."""
    mine, theirs = config.model_dump(mode="json"), as_recorded(manifest["config"])
    compared = mine.keys() - MAY_CHANGE - {DECIDED_AT_START, "model"}
    return sorted(key for key in compared if theirs.get(key) != mine[key])


def _why_not(
    registry: ProjectRegistry,
    project: str,
    config: TrainingConfig,
    manifest: dict[str, Any],
    earlier: Earlier | None,
    has_same_base: Callable[[], bool],
) -> str | None:
    if earlier is None:
        return "its manifest does not say which files it knows"
    if manifest["config"].get("lora") != config.lora.model_dump(mode="json"):
        return "it has other lora settings"
    if not has_same_base():
        return "it belongs to another base model"
    forgotten = [path for path in registry.forgotten_paths(project) if knows(earlier, path)]
    return f"it knows {forgotten[0]!r}, which is to be forgotten" if forgotten else None


@dataclass(frozen=True)
class GoingOn:
    """What a training would go on from, and with what.

    Attributes:
        updates_left: of the version's epochs, where its time limit ended them and the files are the same.
        changed_files: since the version was trained; 0 where it would have nothing to learn, and none is trained.
        share: of the bytes of the training part, those to learn from.
    """

    version: str
    updates_left: int = 0
    changed_files: int = 0
    share: float = 1.0


def foretell_parent(
    root: Path, config: TrainingConfig, choice: ModelChoice, found: Scan, *, project: str | None = None
) -> GoingOn | None:
    """What a training of the repository at ``root`` would go on from; None where it begins from scratch.

    Told by names, files and settings: no weights are hashed and nothing is tokenised, so the training may still see that it
    cannot, and then says why.

    Args:
        project: by its name; the one that stands for ``root`` when None.

    Raises:
        RegistryError: the version that was asked for is not there.
        TrainingError: it was asked for, and there is nothing to go on with.
    """
    from mlx_gardener.adapter.manifest import read_manifest
    from mlx_gardener.dataset import Earlier, split_files
    from mlx_gardener.dataset.prepare import find_continuation, select_best
    from mlx_gardener.dataset.split import kept_bytes

    place, registry = resolved(root), ProjectRegistry()
    known = registry.list_projects() if registry.exists else []
    name = next(
        (item.name for item in known if item.name == project or (project is None and item.path == place)),
        None,
    )
    wish = "never" if name is None else decide_parent(registry, name, config.continue_from)
    if name is None or wish == "never":
        return None
    is_asked, version = not wish.startswith("auto:"), wish.removeprefix("auto:")
    try:
        manifest = read_manifest(registry.get_adapter(name, version).directory)
    except AdapterError:
        return None
    earlier = Earlier.of_manifest(version, manifest)
    why = _why_not(registry, name, config, manifest, earlier, lambda: manifest["base"].get("id") == choice.id)
    if earlier is None or why is not None:
        return None
    fresh = split_files(
        select_best(found.files, config.max_training_chunks)[0], config.data, seed=config.seed
    )
    going_on = find_continuation(fresh, earlier, seed=config.seed, must=is_asked)
    if going_on is not None:
        learned, whole = (sum(map(kept_bytes, split.train)) for split in (going_on.split, going_on.whole))
        return GoingOn(version, changed_files=going_on.changed_files, share=learned / max(1, whole))
    others = set(_other_settings(config, manifest))
    if not earlier.is_same_as(fresh) or (others & _OF_ROWS if earlier.is_unfinished else others):
        return None
    if not earlier.is_unfinished:
        return GoingOn(version)
    all_updates = math.ceil(manifest["training"]["steps_per_epoch"] * config.optimizer.epochs)
    return GoingOn(version, updates_left=max(1, all_updates - earlier.updates_done))


def knows(earlier: Earlier, path: str) -> bool:
    """Whether a version was trained on, or stopped early by, a file or anything in a directory."""
    return any(
        (name == path or name.startswith(f"{path}/")) and part != "test"
        for name, (_, part) in earlier.files.items()
    )


def exclude_pattern(path: str) -> str:
    """The pattern of data.exclude that means ``path`` (a file or directory, from the repository's root) and nothing else."""
    return "/" + "".join(f"\\{letter}" if letter in "\\*?[]!# " else letter for letter in path)


def without_forgotten(config: TrainingConfig, registry: ProjectRegistry, project: str) -> TrainingConfig:
    """The settings with what ``project`` is to forget among `data.exclude`."""
    known = config.data.exclude
    patterns = (exclude_pattern(path) for path in registry.forgotten_paths(project))
    more = tuple(pattern for pattern in patterns if pattern not in known)
    return config.model_copy(update={"data": config.data.model_copy(update={"exclude": (*known, *more)})})


def as_trained(config: TrainingConfig, root: Path) -> TrainingConfig:
    """The settings that a training of the repository at ``root`` would have; makes no registry where there is none.

    Raises:
        ConfigError: the hosts that it would train on cannot be.
    """
    check_hosts(config.parallel)
    place, registry = resolved(root), ProjectRegistry()
    if not registry.exists:
        return config
    try:
        found = [project.name for project in registry.list_projects() if project.path == place]
        return without_forgotten(config, registry, found[0]) if found else config
    finally:
        registry.close()
