"""A run, from a repository to a registered adapter: `run_training` and its five phases, in order, by name.

It happens inside the worker process (`mlx_gardener.runs.worker`); every part it calls lives in a room of its own.
`mlx_gardener.runs.manager` holds `TrainingPipeline`, the way in. Cost: next to nothing; the parts' docstrings say theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_gardener.errors import DataError, ModelError, TimeLimitError, TrainingCancelledError
from mlx_gardener.events import (
    DataPrepared,
    PlanChosen,
    TrainingPhase,
    WarningRaised,
)
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry.names import has_checkpoint
from mlx_gardener.registry.patience import PATIENCE_SECONDS
from mlx_gardener.report.text import duration
from mlx_gardener.runs.context import Run
from mlx_gardener.runs.forecast import learn_from
from mlx_gardener.runs.job import Resume
from mlx_gardener.runs.journal import JOURNAL_NAME, read_journal
from mlx_gardener.runs.measuring import clock_with_evidence, measure
from mlx_gardener.runs.parent import Parent, already_trained, find_parent
from mlx_gardener.runs.rank import coordinate, hand_out
from mlx_gardener.runs.recovery import (
    already_registered,
    clear_away,
    keep_result,
    look_for_checkpoints,
    plan_of,
)
from mlx_gardener.runs.result import RunResult

if TYPE_CHECKING:
    from mlx_gardener.adapter import StagedAdapter
    from mlx_gardener.dataset import PreparedData
    from mlx_gardener.engine import Engine
    from mlx_gardener.evaluate import Evidence
    from mlx_gardener.model import BaseModel, ModelChoice
    from mlx_gardener.training import TrainOutcome
    from mlx_gardener.training.checkpoint import Origin


def run_training(run: Run) -> RunResult:
    """A whole run, phase by phase.

    Returns:
        What the run left behind.

    Raises:
        GardenerError: whatever ended the run early; a checkpoint of the last update is kept.
    """
    clear_away(run)
    if (result := already_registered(run)) is not None:
        run.ranks.leave(None)
        return result
    choice = _initialize(run)
    parent = find_parent(run, choice)
    data = _prepare_data(run, choice, parent)
    if (result := already_trained(run, parent, data)) is not None:
        run.ranks.leave(None)
        return result
    earlier = look_for_checkpoints(run, choice, data)
    base, engine = _start_training(run, choice, earlier)
    resume = earlier is not None or run.resume is Resume.ALWAYS
    outcome = _train(run, base, data, engine, parent, resume=resume)
    return _complete(run, base, data, engine, outcome)


def _initialize(run: Run) -> ModelChoice:
    """INITIALIZING: which base model, and why; fetched or read where it is not here yet, refused where the budget is too small."""
    from mlx_gardener.engine import choose_base, prepare_model
    from mlx_gardener.engine.choosing import what_is_against
    from mlx_gardener.model import check_model

    verb = "Choosing" if run.config.model == "auto" else "Opening"
    run.tell(TrainingPhase.INITIALIZING, 0.0, f"{verb} the base model")
    useless: list[str] = []
    while True:
        choice = choose_base(run.config, may_fetch=True, without=useless)
        try:
            choice = _made_ready(run, choice)
            check_model(choice, run.config.lora)  # before the repository is read, which may take longer
            break
        except ModelError as error:
            if run.config.model != "auto" or choice.name in (*useless, "seedling"):
                raise
            useless += [choice.name, f"hf:{choice.name}"]
            run.publish(
                WarningRaised(f"{choice.name} is passed over: {what_is_against(choice.name, error)}.")
            )
    if not has_checkpoint(run.directory):  # a training that goes on has its plan
        prepare_model(run.config, run.registry.home / "cache", choice=choice).plan(run.config)
    for line in choice.lines:
        run.tell(TrainingPhase.INITIALIZING, 1.0, line, model=choice.name)
    run.interrupt()
    return choice


def _made_ready(run: Run, choice: ModelChoice) -> ModelChoice:
    """The choice with its folder, fetched or read where it has to be; the embedded one where nobody asked for it and it cannot.

    The time limit is for the training, however fast the network is: fetching or reading a base does not use it.
    """
    from mlx_gardener.model import resolve_model
    from mlx_gardener.model.choose import embedded

    if choice.path is not None:
        return choice
    began = time.monotonic()
    verb, whole = "Fetching" if choice.gguf is None else "Reading", 0
    run.tell(TrainingPhase.INITIALIZING, 0.0, f"{verb} {choice.name} ({choice.reason})")

    def on_progress(done: int, total: int) -> None:
        nonlocal began, verb, whole
        run.interrupt()
        if whole not in (0, total):  # a GGUF file that was fetched is read
            began, verb = time.monotonic(), "Reading"
        whole = total
        share = done / max(1, total)
        left = f", {duration((time.monotonic() - began) * (1 - share) / share)} left" if share > 0.01 else ""
        message = f"{verb} {choice.name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB{left}"
        run.tell(TrainingPhase.INITIALIZING, 0.9 * share, message)

    try:
        with run.clock_stands():
            path = resolve_model(choice, on_progress)
    except ModelError as error:
        if run.config.model != "auto" or choice.gguf is not None:
            raise
        return replace(embedded(error.message), passed_over=choice.passed_over)
    reason = choice.reason.replace("to be fetched", "fetched").replace("to be read once", "read")
    return replace(choice, path=path, reason=reason)


def _prepare_data(run: Run, choice: ModelChoice, parent: Parent | None) -> PreparedData:
    """PREPARING_DATA: repository to chunks to token rows; of what changed, where the training goes on from a parent."""
    from mlx_gardener.dataset import TrainingDataPreparator
    from mlx_gardener.model import load_tokenizer, resolve_model

    def on_progress(share: float, message: str) -> None:
        run.tell(TrainingPhase.PREPARING_DATA, share, message)

    run.tell(TrainingPhase.PREPARING_DATA, 0.0, "Reading the repository")
    preparator = TrainingDataPreparator(
        run.config,
        tokenizer=load_tokenizer(resolve_model(choice)),
        cache_dir=run.registry.home / "cache" / "tokens",
        on_progress=on_progress,
        interrupt=run.interrupt,
    )
    if parent is None:
        data = preparator.prepare(run.project.path)
    else:
        data = preparator.prepare(run.project.path, earlier=parent.earlier, must_continue=parent.is_asked)
    run.publish(DataPrepared(data.summary.to_json()))
    _index(run)
    return data


def _index(run: Run) -> None:
    """The index of the working tree, from which code is retrieved when the adapter answers; a training does without, too."""
    from mlx_gardener.retrieval import Rules
    from mlx_gardener.runs.indexed import update_index

    run.tell(TrainingPhase.PREPARING_DATA, 1.0, "Indexing the repository")
    rules = Rules.of(run.config.data, run.config.training_data_quality_threshold)
    try:
        update_index(run.registry, run.project.name, rules, interrupt=run.interrupt)
    except (OSError, DataError) as error:
        message = f"The repository's index for retrieval could not be kept ({reason_of(error)})"
        run.publish(WarningRaised(f"{message}; it is made when the adapter is served."))


def _start_training(run: Run, choice: ModelChoice, earlier: Origin | None) -> tuple[BaseModel, Engine]:
    """STARTING_TRAINING: how the budget is used, then the base model, as far as it fits, and the engine for it.

    A training that goes on keeps its plan, since another one adds floats in another order; where memory ran out with
    that plan, it takes the next smaller one.
    """
    from mlx_gardener.engine import load_engine, prepare_model
    from mlx_gardener.engine.states import room_for_states

    config = run.config
    run.tell(TrainingPhase.STARTING_TRAINING, 0.0, "Planning memory")
    prepared = prepare_model(config, run.registry.home / "cache", choice=choice)
    kept = plan_of(earlier, config)
    plan = kept or prepared.plan(config)
    if run.smaller_plan:
        plan = plan.smaller(free_bytes=room_for_states(run.registry.home / "cache")) or plan
    run.publish(PlanChosen(plan.to_json()))
    run.interrupt()
    coordinate(run.ranks, config, choice.name, plan)
    base, engine = load_engine(
        choice.name,
        plan,
        config,
        facts=prepared.facts,
        backend=prepared.backend,
        warn=lambda message: run.publish(WarningRaised(message)),
        dry_run=kept is None and not run.smaller_plan,
        between=_telling_of_dry_run(run),
        cache_dir=run.registry.home / "cache",
        tell=_telling_of_loading(run),
    )
    if engine.plan is not plan:
        run.publish(PlanChosen(engine.plan.to_json()))
    run.tell(TrainingPhase.STARTING_TRAINING, 1.0, f"Loaded {choice.name}")
    run.interrupt()
    return base, engine


def _telling_of_loading(run: Run) -> Callable[[float, str], None]:
    """What is told of a base that is loaded and checked: each thing it does, once a second, with the time that is left for it."""
    told_at = began = first = 0.0
    before = ""

    def tell(share: float, message: str) -> None:
        nonlocal told_at, began, first, before
        run.interrupt()
        now, what = time.monotonic(), message.partition(",")[0]
        if what != before or share < first:  # another thing, or the same anew
            before, began, first = what, now, share
        elif now - told_at < 1:
            return
        told_at = now
        left = (now - began) * (1 - share) / (share - first) if share > first else None
        run.tell(TrainingPhase.STARTING_TRAINING, 0.3 + 0.5 * share, message, eta_seconds=left)

    return tell


def _telling_of_dry_run(run: Run) -> Callable[[float], None]:
    """What is called between the segments of a dry run: of part of a micro-batch, then perhaps of all of it."""
    began = told = time.monotonic()
    before = 0.0

    def between(share: float) -> None:
        nonlocal began, told, before
        run.interrupt()
        now = time.monotonic()
        if share < before:  # the next try begins
            began = now
        before = share
        if now - told >= 1 and share > 0:
            told, left = now, (now - began) * (1 - share) / share
            run.tell(
                TrainingPhase.STARTING_TRAINING,
                0.8 + 0.2 * share,
                f"Dry run: trying how much memory a micro-batch takes, {share:.0%} of it done",
                eta_seconds=left,
            )

    return between


def _train(
    run: Run, base: BaseModel, data: PreparedData, engine: Engine, parent: Parent | None, *, resume: bool
) -> TrainOutcome:
    """TRAINING: updates until the epochs are over or validation stops improving."""
    import mlx.core as mx

    from mlx_gardener.evaluate.registered import ANSWERS
    from mlx_gardener.platform.kept import KeptValues
    from mlx_gardener.platform.processes import OthersWork
    from mlx_gardener.training import train as train_adapter

    hand_out(run.ranks, base, data)
    together = f", {run.ranks.size} ranks together" if run.ranks.size > 1 else ""
    run.tell(TrainingPhase.TRAINING, 0.0, f"Training{together}")
    plan = engine.plan
    mx.reset_peak_memory()
    others = OthersWork()
    outcome = train_adapter(
        base,
        data,
        run.config,
        engine,
        publish=run.publish,
        interrupt=run.interrupt,
        checkpoint_dir=run.checkpoints,
        resume=resume,
        initial=parent.weights if parent is not None and data.continued_from else None,
        first_update=data.first_update,
        clock=clock_with_evidence(run, base, engine),
        store=KeptValues(run.registry.home / ANSWERS),
        ranks=run.ranks,
    )
    if engine.plan is plan:  # it never had to be made smaller
        learn_from(run, base, engine, outcome, mx.get_peak_memory(), others.share)
    return outcome


def _complete(
    run: Run, base: BaseModel, data: PreparedData, engine: Engine, outcome: TrainOutcome
) -> RunResult:
    """COMPLETING: write the adapter, measure what was written, register it."""
    from mlx_gardener.adapter import PeftManager

    run.tell(TrainingPhase.COMPLETING, 0.0, "Writing the adapter")
    with PeftManager(run.registry).stage_adapter(
        run.project.name, outcome.weights, base=base, settings=outcome.settings
    ) as staged:
        evidence = measure(run, base, staged, data, engine, outcome)
        return _register(run, base, staged, data, engine, outcome, evidence)


def _was_cancelled(run: Run) -> bool:
    try:
        run.interrupt()
    except TrainingCancelledError:
        return True
    except TimeLimitError:
        pass
    return False


def _register(
    run: Run,
    base: BaseModel,
    staged: StagedAdapter,
    data: PreparedData,
    engine: Engine,
    outcome: TrainOutcome,
    evidence: Evidence,
) -> RunResult:
    """Manifest, model card and report beside the weights, all renamed into place at once."""
    from mlx_gardener.adapter import ManifestDetails
    from mlx_gardener.adapter.manifest import package_versions
    from mlx_gardener.report.html import render_report_html
    from mlx_gardener.report.model_card import render_model_card

    run.tell(TrainingPhase.COMPLETING, 0.95, "Registering the adapter")
    training = {**outcome.to_json(), "parent": data.continued_from}
    details = ManifestDetails(
        config=run.config.model_dump(mode="json", exclude={"parallel", "serve"}),  # names of machines
        data=data.describe(),
        metrics=evidence.metrics,
        evidence=evidence.to_json(),
        training=training,
        plan=engine.plan.to_json(),
    )
    facts = {
        "project": run.project.name,
        "version": staged.version,
        "base_model": base.id,
        **details.to_json(),
    }
    shown = facts | {
        "evidence": evidence.to_json(with_source=True),
        "scan": data.scan.to_json(),
        "base": {
            "revision": base.revision,
            "weights_sha256": base.weights_sha256,
            "has_fim": base.tokenizer.markers is not None,
        },
        "versions": package_versions(),
    }
    events, _ = read_journal(run.directory / JOURNAL_NAME)
    result = RunResult(
        staged.version,
        dict(evidence.metrics),
        evidence.to_json(with_source=True),
        training,
        cancelled_late=_was_cancelled(run),
    )
    keep_result(run, result)
    staged.commit(
        details,
        model_card=render_model_card(facts),
        extra_files={"report.html": render_report_html(shown, events=events).encode()},
        activate=evidence.verdict != "reject",
        patience_seconds=PATIENCE_SECONDS,
        training_id=run.training_id,
    )
    return result
