"""All arms on the same unseen code, with the guards; what comes out is `Evidence`.

In: a base, an adapter read back from its files, the prepared data. Cost: bounded by `config.evaluation.time_share` and the
time limit, see `measure.decide_work`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter import LoadedAdapter
from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import PreparedData
from mlx_gardener.engine import Engine
from mlx_gardener.errors import TimeLimitError, TrainingCancelledError
from mlx_gardener.evaluate import guards
from mlx_gardener.evaluate.checks import Checks
from mlx_gardener.evaluate.evidence import (
    ARM_TITLES,
    AnswersPower,
    Arm,
    Comparison,
    Evidence,
    Group,
    Guard,
    Power,
    power_note,
)
from mlx_gardener.evaluate.measure import ArmResult, Bench, Scores, score
from mlx_gardener.evaluate.metrics import bits_per_byte
from mlx_gardener.evaluate.read_places import ASSERTION, CROSS_FILE, LINE
from mlx_gardener.evaluate.retrieval import Retriever, training_index
from mlx_gardener.evaluate.samples import side_by_side
from mlx_gardener.evaluate.stages import Findings, Survey, measure_all
from mlx_gardener.evaluate.statistics import (
    Change,
    files_needed,
    relative_change,
    share_change,
    smallest_told,
)
from mlx_gardener.evaluate.work import STEP_TOKENS, SURE, room_for_more, with_tasks
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.source.languages import language_of

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

#: Of the progress that is left to be shown: a round's, where another may follow (judgement).
_ROUND = 0.7
#: The difference in exact answers that tasks should tell.
_FIVE_POINTS = 0.05
#: (arm, against) of every comparison of bits per byte that is made where both arms are there.
_PAIRS = (
    ("adapter", "base"),
    ("base_bm25", "base"),
    ("adapter_bm25", "base"),
    ("control", "base"),
    ("adapter", "control"),
    ("base_bm25", "adapter"),
    ("adapter_bm25", "base_bm25"),
    ("adapter_bm25", "adapter"),
)
#: (arm, against) of every comparison of answers, likewise; the last decides whether code is retrieved for the adapter.
_ANSWER_PAIRS = (
    ("adapter", "base"),
    ("base_bm25", "base"),
    ("adapter_bm25", "base"),
    ("control", "base"),
    ("adapter_bm25", "adapter"),
)


@dataclass(frozen=True)
class Control:
    """The adapter of another repository, and its project's name and version."""

    name: str
    adapter: LoadedAdapter


def compare(
    base: BaseModel,
    adapter: LoadedAdapter,
    data: PreparedData,
    config: TrainingConfig,
    engine: Engine,
    *,
    training_tokens: int,
    cache_dir: Path,
    control: Control | None = None,
    trained_on_test: Sequence[str] = (),
    tasks: int | None = None,
    notes: Sequence[str] = (),
    seconds: float = math.inf,
    forward_tokens_per_second: float = math.inf,
    on_progress: Callable[[float, str], None],
    interrupt: Callable[[], None],
) -> Evidence:
    """Evidence on the test part of ``data``; all arms see the same rows and tasks.

    Args:
        adapter: read back from its files.
        training_tokens: that it was trained on; they decide how much work its test may be.
        cache_dir: where losses and answers are kept.
        control: for the arm of that name; without one it is left out, and ``notes`` should say why.
        trained_on_test: test files whose content was trained on, by the manifest.
        tasks: of each kind, instead of as many as the share allows.
        seconds: that it may take; the work is made to fit, and what is not done by then is missing.
        forward_tokens_per_second: of this base on this machine, to make it fit.
        on_progress: told the share done (0 to 1) and a line for people.
        interrupt: asked between segments and tokens; may raise. Where it is `TimeLimitError` or `TrainingCancelledError`,
            what is there becomes the evidence, and its notes say what is missing.

    Raises:
        AdapterError: an adapter does not fit the base.
    """
    began = time.monotonic()
    ends = began + seconds
    config = with_tasks(config, tasks)

    def asked() -> None:
        interrupt()
        if time.monotonic() > ends:
            raise TimeLimitError("The time for the evidence is over.")

    names = [arm for arm in ARM_TITLES if arm in config.evaluation.arms and (arm != "control" or control)]
    tokens = math.inf if math.isinf(seconds) else SURE * seconds * forward_tokens_per_second
    measured = config.evaluation.model_copy(
        update={"arms": tuple(names)}
    )  # no time is kept for an arm that is not there
    survey = Survey.make(
        base, data, config.model_copy(update={"evaluation": measured}), training_tokens, tasks,
        can_write=engine.streamed is None, forward_tokens=tokens, step_tokens=STEP_TOKENS[engine.plan.dequantize],
    )  # fmt: skip
    retriever = None
    if any(name.endswith("_bm25") for name in names):
        longest = min(survey.work.context_tokens, config.data.sequence_lengths[-1])
        retriever = Retriever(training_index(data), base.tokenizer, limit_tokens=longest)
        survey.add_context(base, retriever)
    adapters = {"adapter": adapter} | ({} if control is None else {"control": control.adapter})
    findings, notes = Findings(), list(notes)
    bench = Bench(base, engine, config, KeptValues(cache_dir), asked)
    shown = 0.0  # of the progress, by the end of the last round

    def measure(survey: Survey, findings: Findings) -> None:
        nonlocal shown
        before, more = shown, survey.wants_more(config)
        shown += (1 - before) * (_ROUND if more else 1.0)

        def tell(share: float, line: str) -> None:
            on_progress(before + (shown - before) * share, line)

        measure_all(bench, survey, data, adapters, names, retriever, findings, on_progress=tell)

    try:
        measure(survey, findings)
        took = time.monotonic() - began
        while (room := room_for_more(took, ends - time.monotonic())) > 0:
            started = time.monotonic()
            bigger = survey.with_more(1 + room, base, data, config)
            if bigger is None:
                break
            if retriever is not None:
                bigger.add_context(base, retriever)
            more = Findings()  # what was measured before comes from the store
            measure(bigger, more)
            survey, findings = bigger, more
            took = (time.monotonic() - started) * (1 + room) / room
    except (TimeLimitError, TrainingCancelledError) as error:
        why = "it was cancelled" if isinstance(error, TrainingCancelledError) else "the time was over"
        if "adapter" not in findings.results:
            notes.append(f"{why[:1].upper()}{why[1:]} before anything was measured.")
        elif findings.missing:
            notes.append(f"Not measured, as {why}: {', '.join(findings.missing)}.")
    measured_some = "adapter" in findings.results
    notes = [*(survey.notes if measured_some else ()), *notes]
    if data.split.since is not None:
        notes.append(
            f"Held out are files that commits since {data.split.since[:12]} added; what these changed in other files was "
            "trained on."
        )
    survey.keep_what_was_done(findings.missing)
    if not measured_some:
        return Evidence({}, (), (), 0, work=survey.work.to_json(), notes=tuple(notes))
    return _evidence(
        findings, data, survey, config, control=control, trained_on_test=trained_on_test, notes=notes
    )


def _evidence(
    findings: Findings,
    data: PreparedData,
    plan: Survey,
    config: TrainingConfig,
    *,
    control: Control | None,
    trained_on_test: Sequence[str],
    notes: list[str],
) -> Evidence:
    # An arm whose losses are missing has nothing to be compared by.
    results = {name: findings.results[name] for name in ARM_TITLES if name in findings.results}
    paths = sorted(plan.sizes)
    total = sum(plan.sizes.values())
    scores = {name: score(result, plan.tasks) for name, result in results.items()}
    scores = {name: found.without_parts_of(scores["base"]) for name, found in scores.items()}
    arms = tuple(
        Arm(
            name,
            ARM_TITLES[name] if name != "control" or control is None else f"adapter of {control.name}",
            _rounded(
                {"bits_per_byte": bits_per_byte(sum(result.losses.values()), total), **scores[name].means()}
            ),
        )
        for name, result in results.items()
    )
    comparisons, found = _comparisons(results, scores, paths, seed=config.seed)
    main = found["adapter", "base", "bits_per_byte"]
    metrics = {
        **{f"base_{name}": value for name, value in arms[0].metrics.items()},
        **{
            f"adapter_{name}": value
            for arm in arms
            if arm.name == "adapter"
            for name, value in arm.metrics.items()
        },
        "bits_per_byte_change": main.change,
        "bits_per_byte_change_low": main.low,
        "bits_per_byte_change_high": main.high,
    }
    lost = found.get(("adapter", "control", "bits_per_byte"))
    if lost is not None and control is not None and lost.high >= 0:
        notes.append(
            f"The adapter of {control.name} is not clearly worse here ({lost.change:+.1%} bits per byte from it to this "
            "one): part of the gain may not be knowledge of this repository."
        )
    return Evidence(
        metrics=_rounded(metrics),
        samples=side_by_side(results["base"], results["adapter"], plan.tasks),
        files=tuple(_file(path, plan.sizes[path], results) for path in paths),
        next_line_tasks=len(plan.tasks.lines),
        arms=arms,
        comparisons=comparisons,
        guards=_guards(findings.checks, main, found, trained_on_test),
        power=_power(main),
        answers_power=_answers_power(found, scores["base"]),
        work={
            **plan.work.to_json(),
            "rows": len(plan.windows),
            "fim_tasks": len(plan.tasks.spans),
            "cross_file_tasks": len(plan.tasks.cross_file),
            "assertion_tasks": len(plan.tasks.assertions),
            "edit_tasks": sum(task.is_due for task in plan.tasks.edits),
            "read_lines": sum(LINE in place.kinds for place in plan.tasks.read),
            "quiet_tasks": sum(not task.is_due for task in plan.tasks.edits),
        },
        notes=tuple(notes),
        held_out_since=data.split.since,
        groups=_groups(scores, seed=config.seed),
    )


def _groups(scores: dict[str, Scores], *, seed: int) -> tuple[Group, ...]:
    """Exactly right answers by language and kind, the most tasks first; an arm that was asked less is left out."""
    base, adapter = scores["base"], scores["adapter"]
    found = []
    for kind in (LINE, CROSS_FILE, ASSERTION, "next_line", "cross_file", "assertion", "fim"):
        metric = f"{kind}_exact"
        files = base.files.get(metric, [])
        if len(adapter.values.get(metric, ())) != len(files):
            continue
        for language in sorted({language_of(path) for path in files}):
            places = [at for at, path in enumerate(files) if language_of(path) == language]
            values = {
                arm: [of.values[metric][at] for at in places]
                for arm, of in scores.items()
                if len(of.values.get(metric, ())) == len(files)
            }
            names = [files[at] for at in places]
            change = share_change(values["base"], values["adapter"], names, seed=seed)
            ends = map(_five_digits, (change.change, change.low, change.high))
            exact = {arm: _five_digits(sum(some) / len(some)) for arm, some in values.items()}
            found.append(Group(language, kind, len(places), change.files, exact, *ends))
    return tuple(sorted(found, key=lambda group: (-group.tasks, group.language, group.kind)))


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: _five_digits(value) for name, value in values.items()}


def _five_digits(value: float) -> float:
    """Rounded, and never -0.0: a bound that touches zero from below would be shown as an improvement."""
    return round(value, 5) + 0.0


def _file(path: str, size: int, results: dict[str, ArmResult]) -> dict[str, Any]:
    return {
        "path": path,
        "language": language_of(path),
        "bytes": size,
        "base_bits_per_byte": round(bits_per_byte(results["base"].losses[path], size), 4),
        "adapter_bits_per_byte": round(bits_per_byte(results["adapter"].losses[path], size), 4),
    }


def _comparisons(
    results: dict[str, ArmResult], scores: dict[str, Scores], paths: Sequence[str], *, seed: int
) -> tuple[tuple[Comparison, ...], dict[tuple[str, str, str], Change]]:
    """Bits per byte, and every score of answers, of the pairs that matter."""
    made: list[Comparison] = []
    found: dict[tuple[str, str, str], Change] = {}

    def add(arm: str, against: str, metric: str, change: Change, tasks: int, unit: str) -> None:
        found[arm, against, metric] = change
        middle, low, high = map(_five_digits, (change.change, change.low, change.high))
        made.append(Comparison(arm, against, metric, middle, low, high, change.files, tasks, unit))

    for arm, against in _PAIRS:
        if arm in results and against in results:
            losses = ([results[name].losses[path] for path in paths] for name in (against, arm))
            add(arm, against, "bits_per_byte", relative_change(*losses, seed=seed), len(paths), "relative")
    for metric, files in scores["base"].files.items():
        by_arm = {arm: found.values[metric] for arm, found in scores.items() if metric in found.values}
        for arm, against in _ANSWER_PAIRS:
            if arm in by_arm and against in by_arm:
                change = share_change(by_arm[against], by_arm[arm], files, seed=seed)
                add(arm, against, metric, change, len(files), "points")
    return tuple(made), found


def _guards(
    checks: dict[str, Checks],
    main: Change,
    found: dict[tuple[str, str, str], Change],
    trained_on_test: Sequence[str],
) -> tuple[Guard, ...]:
    parses = guards.parse_ok(found.get(("adapter", "base", "fim_parse_ok")))
    if not checks:
        return (parses,)
    base, adapter = checks["base"], checks["adapter"]
    return (
        guards.forgetting(base.other, adapter.other, base.other_bytes),
        guards.memorisation(
            shares={
                "adapter_train": adapter.train_share,
                "adapter_held_out": adapter.held_out_share,
                "base_held_out": base.held_out_share,
            },
            places=adapter.places,
            trained_on_test=trained_on_test,
            test_gain=-main.change,
            validation_gain=1 - adapter.validation / base.validation if base.validation else None,
        ),
        parses,
    )


def _power(main: Change) -> Power:
    needed = files_needed(main)
    note = power_note(main.files, needed, told_apart=not main.spans_zero)
    return Power("bits_per_byte", round(main.change, 5), main.files, needed, note)


def _answers_power(found: dict[tuple[str, str, str], Change], base: Scores) -> AnswersPower | None:
    change = found.get(("adapter", "base", "answers_exact"))
    if change is None:
        return None
    tasks = len(base.values["answers_exact"])
    told = smallest_told(change, tasks)
    return AnswersPower(
        tasks, change.files, _five_digits(told), math.ceil(tasks * (told / _FIVE_POINTS) ** 2)
    )
