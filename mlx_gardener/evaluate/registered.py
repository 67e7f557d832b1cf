"""Evaluating an adapter that is already registered, and finding the adapter of another repository to compare with.

In: a project and a version. The data are made again from the repository with the settings that the manifest records; what
was trained on is never measured. Out: `Evidence`, kept in ``evaluations/`` beside the adapter's own files, which its
manifest does not name, so that nothing that was written changes. Cost: loading the base, reading the repository, and the
test itself (`evaluate`), or what the time limit allows.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import EvaluationConfig, RetrievalWish, TrainingConfig, validate_config
from mlx_gardener.errors import AdapterError, ConfigError, DataError, RegistryError, TimeLimitError
from mlx_gardener.platform.files import is_directory, make_private, write_whole
from mlx_gardener.registry import AdapterRecord, Project, ProjectRegistry
from mlx_gardener.registry.evaluations import (
    DIRECTORY,
    STAMP,
    counting_evaluation,
    kept_at,
    kept_evaluations,
    newest_that_counts,
    training_evidence,
)

if TYPE_CHECKING:
    from mlx_gardener.adapter import LoadedAdapter
    from mlx_gardener.dataset import PreparedData
    from mlx_gardener.engine import Engine
    from mlx_gardener.evaluate import Control, Evidence
    from mlx_gardener.model import BaseModel

#: The share of an evaluation's progress that stands for reading and loading; how long measuring takes has nothing to do with it.
PREPARED = 0.3
#: Where the base's losses and answers are kept below the registry's home.
ANSWERS = "cache/answers"


@dataclass(frozen=True)
class Evaluation:
    """Evidence on a registered adapter, and the file it was written to.

    ``counts`` is False where it measured too little to take the place of what was measured before (`newest_that_counts`).
    """

    project: str
    version: str
    evidence: Evidence
    file: Path
    counts: bool


def evaluate_adapter(
    registry: ProjectRegistry,
    project: str,
    version: str | None = None,
    *,
    control: str | None = None,
    tasks: int | None = None,
    arms: tuple[str, ...] | None = None,
    timeout_minutes: float = 0.0,
    on_progress: Callable[[float, str], None] = lambda share, message: None,
    interrupt: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure an adapter version (the active one by default) as it lies on disk.

    Args:
        control: the project whose adapter is the control; the newest fitting one of any other project when None.
        tasks: of each kind, instead of as many as the time share allows; with a time limit at most.
        arms: to be measured, instead of the recorded ones or, where the training had none, all; base and adapter are always
            among them.
        timeout_minutes: for all of it; what fits is measured, and the evidence's notes say what was left out. 0 for none.
        on_progress: told the share done (0 to 1) and a line for people.
        interrupt: asked between segments and tokens; may raise.

    Raises:
        ConfigError: the time limit cannot be one.
        RegistryError: there is no such project or version.
        AdapterError: the adapter's files, the base or the control do not fit, or it is unknown what was trained on.
        DataError: the repository cannot be read, or holds no files any more that were not trained on.
        TimeLimitError: the time limit was over before anything was measured.
    """
    from mlx_gardener.adapter import PeftManager, base_name
    from mlx_gardener.adapter.base import trained_config
    from mlx_gardener.evaluate import compare

    limit = _TimeLimit(timeout_minutes, interrupt)
    place = registry.get_project(project)
    record = registry.get_adapter(project, version)
    if not is_directory(place.path):
        raise DataError(
            f"The repository of {project!r} is not at {str(place.path)!r} any more.",
            next_step=f"Train where it is now, under the same name: `mlx-gardener train PATH --project {project}`.",
        )
    adapter = PeftManager(registry).load_adapter(project, record.version)
    config = trained_config(adapter, model=base_name(registry, record))
    if arms is None and not config.evaluation.arms:
        arms = EvaluationConfig().arms
    if arms is not None:
        wanted = config.model_dump(mode="json")
        wanted["evaluation"]["arms"] = sorted({"base", "adapter", *arms})
        config = validate_config(wanted)
    on_progress(0.0, "Reading the repository")
    base, engine, data = prepare_to_measure(registry, place, config, adapter, on_progress, limit.interrupt)
    data, trained_on_test, notes = _unseen(data, adapter)
    found = None
    if "control" in config.evaluation.arms:
        found, why = find_control(registry, place, base.weights_sha256, wanted=control)
        notes += [why] if why else []
    limit.interrupt()
    evidence = compare(
        base,
        adapter,
        data,
        config,
        engine,
        training_tokens=int(adapter.manifest["training"].get("tokens_seen", 0)),
        cache_dir=registry.home / ANSWERS,
        control=found,
        trained_on_test=trained_on_test,
        tasks=tasks,
        notes=notes,
        seconds=limit.left_seconds,
        forward_tokens_per_second=max(1e-3, engine.plan.predicted_forward_tokens_per_second),
        on_progress=lambda share, message: on_progress(PREPARED + (1 - PREPARED) * share, message),
        interrupt=interrupt,
    )
    if not evidence.arms:
        limit.interrupt()
    file = _keep(record.directory, project, record.version, data, evidence)
    newest = counting_evaluation(record.directory)
    return Evaluation(
        project, record.version, evidence, file, newest is not None and newest.at == kept_at(file)
    )


class _TimeLimit:
    """A limit of so many minutes from now on, 0 for none.

    Raises:
        ConfigError: it cannot be one.
    """

    def __init__(self, minutes: float, interrupt: Callable[[], None]) -> None:
        if not minutes >= 0:
            raise ConfigError(
                f"A time limit of {minutes:g} minutes cannot be.", next_step="Give minutes; 0 for no limit."
            )
        self._minutes, self._interrupt = minutes, interrupt
        self._ends = time.monotonic() + (60 * minutes or math.inf)

    @property
    def left_seconds(self) -> float:
        """Until it is over; ``math.inf`` without a limit."""
        return max(0.0, self._ends - time.monotonic())

    def interrupt(self) -> None:
        """Asked while nothing is measured yet.

        Raises:
            TimeLimitError: the time is over.
        """
        self._interrupt()
        if self.left_seconds == 0:
            raise TimeLimitError(
                f"The time limit of {self._minutes:g} minutes was over before anything was measured.",
                next_step="Give it more minutes; answers that were written are kept, and are not asked again.",
            )


def prepare_to_measure(
    registry: ProjectRegistry,
    project: Project,
    config: TrainingConfig,
    adapter: LoadedAdapter,
    on_progress: Callable[[float, str], None],
    interrupt: Callable[[], None],
) -> tuple[BaseModel, Engine, PreparedData]:
    """The base, the engine for it and the repository's data, all as the training of ``adapter`` would have them now.

    Args:
        config: the adapter's settings; ``model`` is where its base is.
        on_progress: told the share done (0 to 0.25) and a line for people.
        interrupt: asked between files; may raise.

    Raises:
        AdapterError, DataError, MemoryBudgetError, ModelError: as `load_to_measure` and `TrainingDataPreparator.prepare`.
    """
    from mlx_gardener.adapter.base import load_to_measure
    from mlx_gardener.dataset import TrainingDataPreparator
    from mlx_gardener.engine import prepare_model
    from mlx_gardener.model import load_tokenizer

    def tell(share: float, message: str) -> None:
        interrupt()
        on_progress(0.15 + 0.1 * share, message)

    prepared = prepare_model(config, registry.home / "cache")
    data = TrainingDataPreparator(
        config,
        tokenizer=load_tokenizer(prepared.path),
        cache_dir=registry.home / "cache" / "tokens",
        on_progress=lambda share, message: on_progress(0.15 * share, message),
        interrupt=interrupt,
    ).prepare(project.path)
    base, engine = load_to_measure(
        registry,
        prepared,
        adapter,
        config,
        warn=lambda message: on_progress(0.25, message),
        tell=tell,
    )
    return base, engine, data


def _unseen(data: PreparedData, adapter: LoadedAdapter) -> tuple[PreparedData, list[str], list[str]]:
    """(data whose test part holds only what was not trained on, test files that were all the same, notes).

    Raises:
        AdapterError: the repository has changed, and the manifest does not say what was trained on.
        DataError: nothing is left to measure on.
    """
    from mlx_gardener.dataset.changes import Earlier
    from mlx_gardener.dataset.prepare import path_hash

    known = adapter.manifest["data"].get("trained_files")
    unchanged = adapter.manifest["data"].get("data_sha256") == data.data_sha256
    if known is None:
        if unchanged:
            return data, [], []
        raise AdapterError(
            "The repository has changed since this adapter was trained, and its manifest does not list what was trained on.",
            next_step="Train again; or check out the commit that the manifest names.",
        )
    contents, paths = set(known["content_sha256"]), set(known["path_sha256"])
    # A version that went on from another was shown some of its files again; it has learned from all of them.
    earlier = Earlier.of_manifest("", adapter.manifest)
    learned = (
        {}
        if earlier is None
        else {path: digits for path, (digits, part) in earlier.files.items() if part != "test"}
    )
    contents |= set(learned.values())
    paths |= {path_hash(path) for path in learned}
    seen = {
        record.path
        for record in data.split.test
        if record.sha256[:16] in contents or path_hash(record.path) in paths
    }
    if unchanged:
        return data, sorted(seen), []
    notes = ["The repository has changed since the training, so that other files are held out now."]
    if seen:
        notes.append(f"{len(seen)} of them were left out because they were trained on.")
    left = tuple(excerpt for excerpt in data.test_excerpts if excerpt.path not in seen)
    edits = tuple(example for example in data.held_out_edits if example.path not in seen)
    if not left:
        raise DataError(
            "Every file that would be held out now was trained on.",
            next_step="Train again, so that files are held out from the start.",
        )
    return replace(data, test_excerpts=left, held_out_edits=edits), [], notes


def may_have_control(registry: ProjectRegistry, project: Project, weights_sha256: str) -> bool:
    """Whether `find_control` will find one, as far as manifests tell; nothing is loaded."""
    for record in _others_adapters(registry, project):
        with suppress(AdapterError):
            if _is_on(record, weights_sha256):
                return True
    return False


def _others_adapters(
    registry: ProjectRegistry, project: Project, wanted: str | None = None
) -> list[AdapterRecord]:
    """Adapters of other repositories, or of the project ``wanted``, the newest first."""
    others = (
        [registry.get_project(wanted)]
        if wanted is not None
        else [other for other in registry.list_projects() if other.path != project.path]
    )
    return sorted(
        (
            record
            for other in others
            if other.name != project.name
            for record in registry.list_adapters(other.name)
        ),
        key=lambda record: (-record.created_at, record.project, record.version),
    )


def _is_on(record: AdapterRecord, weights_sha256: str) -> bool:
    """Whether an adapter's base has these weights; raises `AdapterError` where its manifest cannot be read."""
    from mlx_gardener.adapter.manifest import read_manifest

    return bool(read_manifest(record.directory)["base"].get("weights_sha256") == weights_sha256)


def find_control(
    registry: ProjectRegistry, project: Project, weights_sha256: str, *, wanted: str | None = None
) -> tuple[Control | None, str | None]:
    """(the newest adapter of another repository on the same base, or why there is none).

    Args:
        wanted: a project by name; without one, any whose repository is another one.

    Raises:
        RegistryError: ``wanted`` is unknown.
        AdapterError: ``wanted`` has no adapter on the same base.
    """
    from mlx_gardener.adapter import PeftManager
    from mlx_gardener.evaluate import Control

    damaged = 0
    for record in _others_adapters(registry, project, wanted):
        try:
            if not _is_on(record, weights_sha256):
                continue
            adapter = PeftManager(registry).load_adapter(record.project, record.version)
        except (AdapterError, RegistryError):
            damaged += 1  # said below; somebody else's damaged adapter must not end this training
            continue
        return Control(f"{record.project}/{record.version}", adapter), None
    if wanted is not None:
        raise AdapterError(
            f"{wanted!r} has no readable adapter of another repository on the same base.",
            next_step="Train it on this base first, or leave --control out.",
        )
    why = "The control was left out: no adapter of another repository on the same base is registered"
    return None, f"{why} ({damaged} could not be read)." if damaged else f"{why}."


def _keep(directory: Path, project: str, version: str, data: PreparedData, evidence: Evidence) -> Path:
    """Write the evidence beside the adapter's files; it holds no source text."""
    at = time.time()
    while (directory / DIRECTORY / f"{time.strftime(STAMP, time.gmtime(at))}.json").exists():
        at += 1  # another one ended in this second
    now = time.strftime(STAMP, time.gmtime(at))
    told = {
        "format_version": 1,
        "created_at": now,
        "project": project,
        "version": version,
        "commit": data.scan.commit,
        "data_sha256": data.data_sha256,
        "evidence": evidence.to_json(),
    }
    file = directory / DIRECTORY / f"{now}.json"
    try:
        make_private(file.parent)
        write_whole(file, json.dumps(told, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise AdapterError(
            f"The evaluation of {project}/{version} cannot be written ({error.strerror}).",
            next_step="Free disk space, then evaluate again.",
        ) from error
    return file


@dataclass(frozen=True)
class RetrievalChoice:
    """Whether code is retrieved for a version's answers, ``why``, and at most how many tokens of it."""

    on: bool
    why: str
    limit_tokens: int


def choose_retrieval(directory: Path, wish: RetrievalWish, *, with_adapter: bool = True) -> RetrievalChoice:
    """What ``serve.retrieval`` means for a version: "auto" follows the newest evidence that counts and has the arms, else is off.

    Args:
        directory: the version's.
        with_adapter: whether it answers, or its base alone.
    """
    from mlx_gardener.evaluate.retrieval import retrieval_helps
    from mlx_gardener.retrieval.context import CONTEXT_TOKENS

    found = [training_evidence(directory), *(kept.evidence for kept in kept_evaluations(directory))]
    arm = "adapter_bm25" if with_adapter else "base_bm25"
    telling = [item for item in found if any(found_arm["name"] == arm for found_arm in item.get("arms", ()))]
    evidence: dict[str, Any] = telling[newest_that_counts(telling)] if telling else {}
    limit = int((evidence.get("work") or {}).get("context_tokens", CONTEXT_TOKENS))
    if wish != "auto":
        return RetrievalChoice(wish == "on", f"serve.retrieval is {wish}", limit)
    helps, why = retrieval_helps(evidence, with_adapter=with_adapter)
    return RetrievalChoice(helps, why, limit)
