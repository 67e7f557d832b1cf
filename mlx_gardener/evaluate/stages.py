"""What is measured of an adapter, in the order of what matters: where time runs out, what comes later is missing.

In: a base, adapters, rows and tasks of held-out code (`Survey`). Out: `Findings`: what each arm did, stage by stage. In a stage all
arms do the same, so that whatever is there is paired. What was measured is kept as it is measured (`Bench`): an
evaluation that was cut goes on where it stopped. Cost: `measure.decide_work` bounds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter import LoadedAdapter, attach_adapter
from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import (
    PreparedData,
    RowSet,
    assertion_tasks,
    cross_file_tasks,
    edit_tasks,
    fim_tasks,
    names_defined,
    next_line_tasks,
)
from mlx_gardener.evaluate.checks import Checks, check
from mlx_gardener.evaluate.measure import ArmResult, Bench, Tasks
from mlx_gardener.evaluate.progress import Part, Progress
from mlx_gardener.evaluate.read_places import places_right, places_to_read
from mlx_gardener.evaluate.retrieval import Retriever, training_excerpts
from mlx_gardener.evaluate.rows import draw_windows, make_windows, plain_rows, rows_with_context
from mlx_gardener.evaluate.work import STEP_TOKENS, Work, decide_work, more_work

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

_TOLD = {"base": "the base", "adapter": "the adapter", "control": "the adapter of another repository"}
LOSSES, LINES, SPANS = "bits per byte", "next lines", "spans"
CROSS_FILE, ASSERTIONS, EDITS = "cross-file lines", "assertions", "next edits"
_GUARDS = "guards"


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        results: of every arm that was begun.
        checks: what the guards need, of base and adapter.
        missing: what was to be measured and was not, in words.
    """

    results: dict[str, ArmResult] = field(default_factory=dict)
    checks: dict[str, Checks] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """Some arms doing one kind of work, and the share of all work that it is about."""

    arms: tuple[str, ...]
    kind: str

    @property
    def title(self) -> str:
        """What it measures, in words."""
        if self.kind == _GUARDS:
            return "forgetting and memorisation"
        if self.arms == ("control",):
            return f"{self.kind} of another repository's adapter"
        return f"{self.kind}{' with retrieval' * self.arms[0].endswith('_bm25')}"


def stages_of(names: Sequence[str], tasks: Tasks) -> Iterator[Stage]:
    """The stages of these arms, the most telling first."""
    both = ("base", "adapter")
    retrieving = tuple(name for name in names if name.endswith("_bm25"))
    control = tuple(name for name in names if name == "control")
    others = [arms for arms in (retrieving, control) if arms]
    yield Stage(both, LOSSES)
    if tasks.lines:
        yield Stage(both, LINES)
    yield Stage(both, _GUARDS)
    yield from (Stage(arms, LOSSES) for arms in others)
    kinds = (CROSS_FILE, ASSERTIONS, SPANS)
    yield from (Stage(both, kind) for kind in (*kinds, EDITS) if getattr(tasks, _FIELDS[kind]))
    for arms in others:
        yield from (Stage(arms, kind) for kind in (LINES, *kinds) if getattr(tasks, _FIELDS[kind]))


def measure_all(
    bench: Bench,
    survey: Survey,
    data: PreparedData,
    adapters: dict[str, LoadedAdapter],
    names: Sequence[str],
    retriever: Retriever | None,
    findings: Findings,
    *,
    on_progress: Callable[[float, str], None],
) -> None:
    """Go through all stages; whatever ends it early leaves in ``findings`` what is whole, and what is missing.

    Args:
        adapters: "adapter", and "control" where there is one.
        names: the arms.
        on_progress: told the share done (0 to 1) and a line for people.
    """
    stages = list(stages_of(names, survey.tasks))
    trained = training_excerpts(data)
    findings.missing[:] = [stage.title for stage in stages]
    tokens = {(stage, arm): _tokens(bench, survey, stage.kind, arm) for stage in stages for arm in stage.arms}
    progress = Progress(on_progress, sum(tokens.values()))
    fingerprints = {name: fingerprint(adapter) for name, adapter in adapters.items()}
    for stage in stages:
        found: dict[str, Any] = {}
        for arm in stage.arms:
            model, _, context = arm.partition("_")
            adapter = adapters.get(model)
            message = f"Measuring {_TOLD[model]}: {stage.title}"
            part = Part(progress, tokens[stage, arm], message, bench.interrupt)
            noted, tell = replace(bench, interrupt=part.computes), part.tell
            with _attached(bench.base, adapter):
                of = "" if adapter is None else fingerprints[model]
                if stage.kind == _GUARDS:
                    found[arm] = check(noted, data, trained, survey.work, survey.widths, of=of, tell=tell)
                else:
                    found[arm] = _do(
                        noted, survey, stage.kind, retriever if context else None, of=of, tell=tell
                    )
            part.end()
        for arm, result in found.items():
            if stage.kind == _GUARDS:
                findings.checks[arm] = result
                continue
            results = findings.results.setdefault(arm, ArmResult())
            if stage.kind == LOSSES:
                results.losses, results.read = result
            else:
                setattr(results, _FIELDS[stage.kind], result)
        findings.missing.remove(stage.title)


#: Where tasks and answers of a kind are in `Tasks` and `ArmResult`.
_FIELDS = {
    LINES: "lines",
    CROSS_FILE: "cross_file",
    ASSERTIONS: "assertions",
    SPANS: "spans",
    EDITS: "edits",
}


def _tokens(bench: Bench, survey: Survey, kind: str, arm: str) -> float:
    """About so many tokens go forward for what an arm does in a stage."""
    retrieves = arm.endswith("_bm25")
    if kind == _GUARDS:
        return survey.work.guard_tokens
    if kind == LOSSES:
        return float((survey.context_rows if retrieves else survey.rows).total_tokens)
    asked = getattr(survey.tasks, _FIELDS[kind])
    if kind == EDITS:
        return float(sum(len(task.prompt) + len(task.answer) for task in asked))
    step_tokens = STEP_TOKENS[bench.engine.plan.dequantize]
    return survey.work.answers_tokens(len(asked), step_tokens, retrieves=retrieves)


def _do(
    bench: Bench,
    survey: Survey,
    kind: str,
    retriever: Retriever | None,
    *,
    of: str,
    tell: Callable[[float], None],
) -> Any:
    """What one arm does in a stage, with retrieved code in front where there is a retriever."""
    tasks = survey.tasks
    if kind == LOSSES:
        rows = survey.rows if retriever is None else survey.context_rows
        losses, likeliest = bench.read(rows, tell, of=of)
        return losses, places_right(tasks.read, likeliest, bench.base.tokenizer)
    if kind == EDITS:
        return bench.edits(tasks.edits, of=of, tell=tell)
    return bench.task_answers(getattr(tasks, _FIELDS[kind]), retriever, survey.work, of=of, tell=tell)


def fingerprint(adapter: LoadedAdapter) -> str:
    """What evidence is kept under: SHA-256, in hexadecimal, of an adapter's settings and weights, from which follows what it does."""
    import mlx.core as mx
    import numpy as np

    digest = hashlib.sha256(json.dumps(adapter.settings.to_json(), sort_keys=True).encode())
    for name, value in sorted(adapter.weights.items()):
        digest.update(name.encode())
        digest.update(np.array(value.astype(mx.float32)).tobytes())
    return digest.hexdigest()


def _attached(base: BaseModel, adapter: LoadedAdapter | None) -> AbstractContextManager[None]:
    return nullcontext() if adapter is None else attach_adapter(base, adapter)


@dataclass
class Survey:
    """Rows and tasks, the same for every arm.

    Attributes:
        wanted: the work where time does not press.
        notes: what readers of the evidence should know; ``said`` are those that do not depend on ``work``.
    """

    work: Work
    wanted: Work
    rows: RowSet
    context_rows: RowSet
    tasks: Tasks
    windows: list[Any]
    widths: tuple[int, ...]
    sizes: dict[str, int]
    notes: list[str]
    said: Sequence[str]

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
        forward_tokens: float,
        step_tokens: float,
    ) -> Survey:
        defined = names_defined(data.scan.files, data.split.train)
        others = (
            cross_file_tasks(data.test_excerpts, 1, defined, seed=config.seed),
            assertion_tasks(data.test_excerpts, 1, seed=config.seed),
            data.held_out_edits,
        )
        decide = partial(
            decide_work,
            config,
            training_tokens=training_tokens,
            windows=len(make_windows(data.test_excerpts, base.tokenizer, config.data.sequence_lengths[-1])),
            tasks=tasks,
            can_write=can_write,
            can_fill=base.tokenizer.markers is not None,
            other_kinds=sum(map(bool, others)),
            files=len({excerpt.path for excerpt in data.test_excerpts}),
            step_tokens=step_tokens,
        )
        notes = []
        if not can_write:
            notes.append("Nothing was generated: the base's weights are read from disk for every pass.")
        if base.tokenizer.markers is None and can_write:
            notes.append("No spans were filled: the model has no fill-in-the-middle markers.")
        if (data.summary.edits or {}).get("examples") and not data.held_out_edits:
            notes.append("No next edits were asked: no commit that is held out edits a test file.")
        return cls.draw(decide(forward_tokens=forward_tokens), decide(), base, data, config, notes)

    @classmethod
    def draw(
        cls,
        work: Work,
        wanted: Work,
        base: BaseModel,
        data: PreparedData,
        config: TrainingConfig,
        notes: Sequence[str],
    ) -> Survey:
        """The rows and tasks of ``work``; those of less work are among them."""
        widths, tokenizer, seed = config.data.sequence_lengths, base.tokenizer, config.seed
        if work.row_tokens < widths[-1]:
            widths = (work.row_tokens,)
        windows = make_windows(data.test_excerpts, tokenizer, work.row_tokens)
        length = f" of {work.row_tokens} tokens" if work.row_tokens < config.data.sequence_lengths[-1] else ""
        drawn = f"{work.rows} of {len(windows)} stretches of held-out code{length} were measured."
        sampled = [drawn] if len(windows) > work.rows else []
        sampled += work.left_out(wanted)
        windows = draw_windows(windows, work.rows, seed=seed)
        defined = names_defined(data.scan.files, data.split.train)
        asked = Tasks(
            next_line_tasks(data.test_excerpts, work.next_line_tasks, seed=seed),
            fim_tasks(data.test_excerpts, work.fim_tasks, seed=seed),
            frozenset(defined),
            cross_file_tasks(data.test_excerpts, work.other_tasks, defined, seed=seed),
            assertion_tasks(data.test_excerpts, work.other_tasks, seed=seed),
            edit_tasks(
                data.held_out_edits, work.other_tasks, tokenizer, config.data.sequence_lengths[-1], seed=seed
            ),
            places_to_read(windows, data.test_excerpts, tokenizer, defined),
        )
        rows = plain_rows(windows, tokenizer, widths)
        return cls(work, wanted, rows, rows, asked, windows, widths, _sizes(rows), [*sampled, *notes], notes)

    def wants_more(self, config: TrainingConfig) -> bool:
        """Whether there are rows or tasks that are wanted and not among these, for want of time."""
        return more_work(self.work, self.wanted, 2.0, config.data.sequence_lengths[-1]) is not None

    def with_more(
        self, factor: float, base: BaseModel, data: PreparedData, config: TrainingConfig
    ) -> Survey | None:
        """This with ``factor`` times the rows and tasks, as far as they are wanted; None where none more are."""
        work = more_work(self.work, self.wanted, factor, config.data.sequence_lengths[-1])
        return None if work is None else Survey.draw(work, self.wanted, base, data, config, self.said)

    def keep_what_was_done(self, missing: Sequence[str]) -> None:
        """Leave tasks out that not even base and adapter were asked."""
        for kind, name in _FIELDS.items():
            if kind in missing:
                left_out: dict[str, Any] = {name: []}
                self.tasks = replace(self.tasks, **left_out)

    def add_context(self, base: BaseModel, retriever: Retriever) -> None:
        """Make the rows with retrieved code in front."""
        self.context_rows = rows_with_context(self.windows, base.tokenizer, retriever, self.widths)


def _sizes(rows: RowSet) -> dict[str, int]:
    """Source bytes of the targets of each file."""
    sizes: dict[str, int] = {}
    for batch in rows.batches(1, seed=None):
        for path, row_bytes in zip(batch.paths, batch.row_bytes, strict=True):
            sizes[path] = sizes.get(path, 0) + int(row_bytes)
    return sizes
