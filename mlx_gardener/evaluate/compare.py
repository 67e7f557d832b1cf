"""All arms on the same unseen code, one after the other, with the guards; what comes out is `Evidence`.

In: a base, an adapter read back from its files, the prepared data. Cost: bounded by `config.evaluation.time_share`, see
`measure.decide_work`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter import LoadedAdapter, attach_adapter
from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import PreparedData, RowSet, continuation_places, hole_tasks, next_line_tasks
from mlx_gardener.dataset.examples import Segment, header_text
from mlx_gardener.engine import Engine
from mlx_gardener.evaluate import guards
from mlx_gardener.evaluate.evidence import (
    ARM_TITLES,
    Arm,
    Comparison,
    Evidence,
    Guard,
    Power,
    Sample,
    ScaleSweep,
)
from mlx_gardener.evaluate.measure import (
    ArmResult,
    Bench,
    Scores,
    Tasks,
    Work,
    decide_work,
    line_of,
    part_of,
    score,
)
from mlx_gardener.evaluate.metrics import bits_per_byte, edit_similarity
from mlx_gardener.evaluate.retrieval import Retriever, training_chunks, training_segments
from mlx_gardener.evaluate.rows import draw_windows, make_windows, plain_rows, rows_with_context
from mlx_gardener.evaluate.statistics import Change, files_needed, relative_change, share_change
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.source.languages import language_of

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

_CONTEXT_LINES = 8
#: (arm, against) of every comparison of bits per byte that is made where both arms are there.
_PAIRS = (
    ("adapter", "base"),
    ("base_bm25", "base"),
    ("adapter_bm25", "base"),
    ("control", "base"),
    ("adapter", "control"),
    ("base_bm25", "adapter"),
    ("adapter_bm25", "base_bm25"),
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
    sweep: ScaleSweep | None = None,
    trained_on_test: Sequence[str] = (),
    tasks: int | None = None,
    notes: Sequence[str] = (),
    on_progress: Callable[[float, str], None],
    interrupt: Callable[[], None],
) -> Evidence:
    """Evidence on the test part of ``data``; all arms see the same rows and tasks.

    Args:
        adapter: read back from its files.
        training_tokens: that it was trained on; they decide how much work its test may be.
        cache_dir: where the base's losses and answers are kept.
        control: for the arm of that name; without one it is left out, and ``notes`` should say why.
        sweep: what was tried on the validation part, to be recorded.
        trained_on_test: test files whose content was trained on, by the manifest.
        tasks: of each kind, instead of as many as the share allows.
        on_progress: told the share done (0 to 1) and a line for people.
        interrupt: asked between segments and tokens; may raise.

    Raises:
        AdapterError: an adapter does not fit the base.
    """
    names = [arm for arm in ARM_TITLES if arm in config.evaluation.arms and (arm != "control" or control)]
    trained = training_segments(data)
    plan = _Plan.make(base, data, config, training_tokens, tasks, can_write=engine.streamed is None)
    bench = Bench(base, engine, config, KeptValues(cache_dir), interrupt)
    retriever = None
    if any(name.endswith("_bm25") for name in names):
        room = min(config.evaluation.context_tokens, config.data.row_widths[-1])
        retriever = Retriever(training_chunks(data), base.tokenizer, limit_tokens=room)
        plan.add_context(base, config, retriever)
    results: dict[str, ArmResult] = {}
    checks: dict[str, _Checks] = {}
    steps = len(names) + 2  # the guards take about as long as an arm, for base and adapter each
    for model, attached in _models(base, adapter, control, names):

        def tell(share: float, model: str = model) -> None:
            on_progress(min(1.0, (len(results) + len(checks) + share) / steps), f"Measuring {_TOLD[model]}")

        with attached:
            for name in [name for name in names if name.removesuffix("_bm25") == model]:
                with_context = name.endswith("_bm25")
                results[name] = bench.work(
                    plan.context_rows if with_context else plan.rows,
                    plan.tasks,
                    retriever if with_context else None,
                    keep=model == "base",
                    tell=tell,
                )
            if model != "control":
                checks[model] = _check(bench, data, trained, plan, keep=model == "base", tell=tell)
    return _evidence(
        results, checks, data, plan, config,
        control=control, sweep=sweep, trained_on_test=trained_on_test, notes=[*notes, *plan.notes],
    )  # fmt: skip


_TOLD = {"base": "the base", "adapter": "the adapter", "control": "the adapter of another repository"}


def _models(
    base: BaseModel, adapter: LoadedAdapter, control: Control | None, names: Sequence[str]
) -> list[tuple[str, AbstractContextManager[None]]]:
    models: list[tuple[str, AbstractContextManager[None]]] = [
        ("base", nullcontext()),
        ("adapter", attach_adapter(base, adapter)),
    ]
    if control is not None and "control" in names:
        models.append(("control", attach_adapter(base, control.adapter)))
    return models


@dataclass
class _Plan:
    """Rows and tasks, the same for every arm."""

    work: Work
    rows: RowSet
    context_rows: RowSet
    tasks: Tasks
    windows: list[Any]
    sizes: dict[str, int]
    notes: list[str]

    @classmethod
    def make(
        cls,
        base: BaseModel,
        data: PreparedData,
        config: TrainingConfig,
        training_tokens: int,
        tasks: int | None,
        *,
        can_write: bool,
    ) -> _Plan:
        widths, tokenizer, seed = config.data.row_widths, base.tokenizer, config.seed
        windows = make_windows(data.test_segments, tokenizer, widths[-1])
        work = decide_work(
            config, training_tokens=training_tokens, windows=len(windows), tasks=tasks, can_write=can_write
        )
        notes = []
        if len(windows) > work.rows:
            notes.append(f"{work.rows} of {len(windows)} stretches of held-out code were measured.")
        windows = draw_windows(windows, work.rows, seed=seed)
        if not can_write:
            notes.append("Nothing was generated: the base's weights are read from disk for every pass.")
        holes = work.fim_tasks
        if tokenizer.markers is None and holes:
            notes.append("No holes were filled: the model has no fill-in-the-middle markers.")
            holes = 0
        defined = {
            name
            for record in data.scan.files
            for chunk in record.chunks
            for name in re.findall(r"[^\W\d]\w{2,}", chunk.name)
        }
        asked = Tasks(
            next_line_tasks(data.test_segments, work.next_line_tasks, seed=seed),
            hole_tasks(data.test_segments, holes, seed=seed),
            frozenset(defined),
        )
        rows = plain_rows(windows, tokenizer, widths)
        return cls(work, rows, rows, asked, windows, _sizes(rows), notes)

    def add_context(self, base: BaseModel, config: TrainingConfig, retriever: Retriever) -> None:
        """Make the rows with retrieved code in front."""
        self.context_rows = rows_with_context(self.windows, base.tokenizer, retriever, config.data.row_widths)


def _sizes(rows: RowSet) -> dict[str, int]:
    """Source bytes of the targets of each file."""
    sizes: dict[str, int] = {}
    for batch in rows.batches(1, seed=None):
        for path, row_bytes in zip(batch.paths, batch.row_bytes, strict=True):
            sizes[path] = sizes.get(path, 0) + int(row_bytes)
    return sizes


@dataclass(frozen=True)
class _Checks:
    """What the guards need of base and of adapter: losses on other code and on validation files, words kept by heart."""

    other: dict[str, float]
    other_bytes: int
    validation: float
    train_share: float
    held_out_share: float
    places: int


def _check(
    bench: Bench,
    data: PreparedData,
    trained: Sequence[Segment],
    plan: _Plan,
    *,
    keep: bool,
    tell: Callable[[float], None],
) -> _Checks:
    tokenizer, config = bench.base.tokenizer, bench.config
    other = plain_rows(
        make_windows(guards.other_code(), tokenizer, config.data.row_widths[-1]),
        tokenizer,
        config.data.row_widths,
    )
    losses = bench.losses(other, lambda share: tell(0.2 * share), keep=keep)
    size = config.optimizer.tokens_per_update
    most = min(-(-_VALIDATION_TOKENS // size), data.validation.update_count(size))
    validation = 0.0
    for done, batch in enumerate(islice(data.validation.batches(size, seed=None), most)):
        part = part_of(lambda share: tell(0.2 + 0.2 * share), done, most)
        validation += math.fsum(bench.row_losses(batch, part, keep=keep))
    count = config.evaluation.memorisation_places if bench.engine.streamed is None else 0
    shares = []
    places = 0
    for number, segments in enumerate((trained, data.test_segments)):
        found = continuation_places(
            segments, count, least_rest=8 * guards.CONTINUED_TOKENS, seed=config.seed + number
        )
        opening = [index for index in (tokenizer.bos_id, tokenizer.file_id) if index is not None]
        pairs = [
            guards.prompt_and_rest(
                place, tokenizer, [*opening, *tokenizer.encode(header_text(tokenizer, place.path))]
            )
            for place in found
        ]
        answers = bench.answers(
            [shown for shown, _ in pairs],
            kind="verbatim",
            keep=keep,
            max_new_tokens=guards.CONTINUED_TOKENS,
            tell=part_of(lambda share: tell(0.4 + 0.6 * share), number, 2),
        )
        shares.append(guards.verbatim_share(answers, [rest for _, rest in pairs]))
        places = len(pairs) if number == 0 else min(places, len(pairs))
    tell(1.0)
    return _Checks(losses, other.source_bytes, validation, shares[0], shares[1], places)


#: Tokens of the validation part that its gain is taken from.
_VALIDATION_TOKENS = 8_192


def _evidence(
    results: dict[str, ArmResult],
    checks: dict[str, _Checks],
    data: PreparedData,
    plan: _Plan,
    config: TrainingConfig,
    *,
    control: Control | None,
    sweep: ScaleSweep | None,
    trained_on_test: Sequence[str],
    notes: list[str],
) -> Evidence:
    paths = sorted(plan.sizes)
    total = sum(plan.sizes.values())
    scores = {name: score(result, plan.tasks) for name, result in results.items()}
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
        samples=_samples(results, plan.tasks, config.evaluation.samples),
        files=tuple(_file(path, plan.sizes[path], results) for path in paths),
        next_line_tasks=len(plan.tasks.lines),
        arms=arms,
        comparisons=comparisons,
        guards=_guards(checks, main, found, trained_on_test, config),
        power=_power(main),
        scale_sweep=sweep,
        work={**plan.work.to_json(), "rows": len(plan.windows), "fim_tasks": len(plan.tasks.holes)},
        notes=tuple(notes),
    )


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
    """Bits per byte of the pairs that matter, and adapter against base on every score of answers."""
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
    for metric, values in scores["base"].values.items():
        files = scores["base"].files[metric]
        for arm in ("adapter", "base_bm25", "adapter_bm25", "control"):
            if arm in scores:
                change = share_change(values, scores[arm].values[metric], files, seed=seed)
                add(arm, "base", metric, change, len(values), "points")
    return tuple(made), found


def _guards(
    checks: dict[str, _Checks],
    main: Change,
    found: dict[tuple[str, str, str], Change],
    trained_on_test: Sequence[str],
    config: TrainingConfig,
) -> tuple[Guard, ...]:
    base, adapter = checks["base"], checks["adapter"]
    settings = config.evaluation
    return (
        guards.forgetting(base.other, adapter.other, base.other_bytes, settings.forgetting_limit),
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
            settings=settings,
        ),
        guards.parse_ok(found.get(("adapter", "base", "fim_parse_ok")), settings.parse_ok_limit),
    )


def _power(main: Change) -> Power:
    needed = files_needed(main)
    if needed is None:
        note = "No difference was seen, so no number of files would show one."
    elif needed <= main.files:
        note = f"{needed} files like these are enough for an effect of this size with 80 % power; there were {main.files}."
    else:
        note = f"To be sure of an effect of this size with 80 % power, {needed} files would be needed; there were {main.files}."
    return Power("bits_per_byte", round(main.change, 5), main.files, needed, note)


def _samples(results: dict[str, ArmResult], tasks: Tasks, count: int) -> tuple[Sample, ...]:
    """The answers that gained most against the base's, and those that lost most, in this order."""
    samples = []
    for line, before, after in zip(tasks.lines, results["base"].lines, results["adapter"].lines, strict=True):
        first, second, target = line_of(before), line_of(after), line.target.rstrip()
        gain = round(edit_similarity(second, target) - edit_similarity(first, target), 5)
        shown = "\n".join(line.prefix.rstrip("\n").split("\n")[-_CONTEXT_LINES:])
        samples.append(Sample(line.path, line.line, shown, line.target, first, second, "next_line", gain))
    for hole, before, after in zip(tasks.holes, results["base"].holes, results["adapter"].holes, strict=True):
        gain = edit_similarity(after.text, hole.target) - edit_similarity(before.text, hole.target)
        shown = "\n".join(hole.prefix.split("\n")[-_CONTEXT_LINES:])
        samples.append(
            Sample(hole.path, hole.line, shown, hole.target, before.text, after.text, "fim", round(gain, 5))
        )
    ordered = sorted(samples, key=lambda sample: (-sample.gain, sample.path, sample.line, sample.kind))
    best, worst = ordered[: (count + 1) // 2], ordered[(count + 1) // 2 :][-(count // 2) :]
    return (*best, *(worst if count > 1 else ()))
