"""One arm at work: losses on rows, answers to tasks, and their scores.

In: a base, with or without an adapter in it, and how much is done (`work`). Out: `ArmResult`, `Scores`. Cost: the tokens
that go forward, but for those whose losses and answers are in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import AssertionTask, Batch, EditTask, FimTask, NextLineTask, RowSet, first_value
from mlx_gardener.engine import Engine, base_topic, kept_row_losses, kept_row_readings, model_facts
from mlx_gardener.evaluate.complete import CaretPrompt, caret_prompt
from mlx_gardener.evaluate.evidence import ANSWERS
from mlx_gardener.evaluate.exact import writes_exactly
from mlx_gardener.evaluate.generate import Answer, generate_many, prompt_key
from mlx_gardener.evaluate.metrics import edit_similarity, identifier_f1, parses
from mlx_gardener.evaluate.read_places import ReadPlace
from mlx_gardener.evaluate.retrieval import Retriever
from mlx_gardener.evaluate.work import Work
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.retrieval import code_in_front, with_context
from mlx_gardener.retrieval.context import most_in_front

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.model import BaseModel, CodeTokenizer

#: When an answer of a kind has all that is looked at: a line, or the rest of one.
_ENOUGH: dict[str, Callable[[str], bool]] = {
    "next line": lambda text: "\n" in text.lstrip("\n"),
    "value": lambda text: "\n" in text,
}
#: What is written for a task.
_ANSWER_OF: dict[type, str] = {NextLineTask: "next line", AssertionTask: "value", FimTask: "fim"}
#: The score of the repository's names of a kind of task, where it has one of its own.
_NAMES = {"next_line": "identifier_f1", "cross_file": "cross_file_f1"}


@dataclass(frozen=True)
class Tasks:
    """What every arm is asked, and the prompts of the arms without and with retrieved code."""

    lines: list[NextLineTask]
    spans: list[FimTask]
    defined: frozenset[str]
    cross_file: list[NextLineTask] = field(default_factory=list)
    assertions: list[AssertionTask] = field(default_factory=list)
    edits: list[EditTask] = field(default_factory=list)
    read: list[ReadPlace] = field(default_factory=list)


@dataclass
class ArmResult:
    """What one arm did: loss by file in nats, answers in the order of the tasks, which edits and places read it writes exactly."""

    losses: dict[str, float] = field(default_factory=dict)
    read: list[bool] = field(default_factory=list)
    lines: list[Answer] = field(default_factory=list)
    spans: list[Answer] = field(default_factory=list)
    cross_file: list[Answer] = field(default_factory=list)
    assertions: list[Answer] = field(default_factory=list)
    edits: list[bool] = field(default_factory=list)


def part_of(tell: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """What to tell the share of one part to, of ``count`` that ``tell`` is told about together."""
    return lambda share: tell((number + share) / count)


@dataclass(frozen=True)
class Bench:
    """What all arms share.

    Attributes:
        store: keeps losses and answers between runs, by what is attached to the base: "" for nothing, else the adapter's hash.
        interrupt: asked between segments and tokens; may raise.
    """

    base: BaseModel
    engine: Engine
    config: TrainingConfig
    store: KeptValues
    interrupt: Callable[[], None]

    @property
    def batch_tokens(self) -> int:
        """Positions of a batch of rows."""
        return max(self.config.optimizer.tokens_per_update, self.engine.forward_tokens)

    def losses(
        self, rows: RowSet, tell: Callable[[float], None] = lambda share: None, *, of: str
    ) -> dict[str, float]:
        """Loss in nats by file; from the store where they are known."""
        losses = dict[str, float]()
        for batch, part in self._batches(rows, tell):
            self._add(losses, batch, self.row_losses(batch, part, of=of))
        return losses

    def read(
        self, rows: RowSet, tell: Callable[[float], None] = lambda share: None, *, of: str
    ) -> tuple[dict[str, float], dict[Any, np.ndarray]]:
        """`losses`, and by the rows' labels the likeliest tokens at their targets, int32 (targets,)."""
        losses = dict[str, float]()
        likeliest: dict[Any, np.ndarray] = {}
        for batch, part in self._batches(rows, tell):
            found = kept_row_readings(
                self.engine, self.base, batch, self.store, adapter=of, between_segments=self._between(part)
            )
            self._add(losses, batch, [row.loss for row in found])
            likeliest |= {label: row.likeliest for label, row in zip(batch.labels, found, strict=True)}
        return losses, likeliest

    def _batches(
        self, rows: RowSet, tell: Callable[[float], None]
    ) -> Iterator[tuple[Batch, Callable[[float], None]]]:
        """The batches of ``rows``, and for each what to tell its share to."""
        count = rows.update_count(self.batch_tokens)
        for done, batch in enumerate(rows.batches(self.batch_tokens, seed=None)):
            yield batch, part_of(tell, done, count)
            tell((done + 1) / count)

    @staticmethod
    def _add(losses: dict[str, float], batch: Batch, found: Sequence[float]) -> None:
        for path, loss in zip(batch.paths, found, strict=True):
            losses[path] = losses.get(path, 0.0) + loss

    def row_losses(
        self, batch: Batch, tell: Callable[[float], None] = lambda share: None, *, of: str
    ) -> list[float]:
        """Loss in nats of every row; from the store where they are known."""
        return kept_row_losses(
            self.engine, self.base, batch, self.store, adapter=of, between_segments=self._between(tell)
        )

    def _between(self, tell: Callable[[float], None]) -> Callable[[float], None]:
        def between(share: float) -> None:
            self.interrupt()
            tell(share)

        return between

    def answers(
        self,
        prompts: Sequence[CaretPrompt],
        *,
        kind: str,
        of: str,
        max_new_tokens: int,
        tell: Callable[[float], None] = lambda share: None,
    ) -> list[Answer]:
        """Answers to prompts; from the store where they are known."""
        topic = base_topic(self.base, f"answers {kind}", adapter=of)
        keys = [prompt_key(prompt.ids, max_new_tokens, prompt.begins) for prompt in prompts]
        kept = self.store.read(topic, keys)
        known = {key: answer for key in keys if (answer := Answer.from_json(kept.get(key))) is not None}
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        if new:
            names, found = list(new), dict[str, Answer]()
            try:
                generate_many(
                    self.base,
                    [prompt.ids for prompt in new.values()],
                    max_new_tokens=max_new_tokens,
                    engine=self.engine,
                    begins=[prompt.begins for prompt in new.values()],
                    is_enough=_ENOUGH.get(kind),
                    on_answer=lambda at, answer: found.update({names[at]: answer}),
                    tell=tell,
                    interrupt=self.interrupt,
                )
            finally:  # what is done is kept, also when the time is over
                self.store.add(topic, {key: answer.to_json() for key, answer in found.items()})
            known |= found
        return [known[key] for key in keys]

    def task_answers(
        self,
        tasks: Sequence[NextLineTask | AssertionTask | FimTask],
        retriever: Retriever | None,
        work: Work,
        *,
        of: str,
        tell: Callable[[float], None],
    ) -> list[Answer]:
        """The next line, the rest of an assertion's line, or what fills a span: answers to tasks of one kind.

        In front is as much retrieved code as the model's context has room for, as where it is served, where there is a retriever.

        Args:
            work: says how long prompts and answers are.
        """
        if not tasks:
            return []
        room = model_facts(self.base.path).max_tokens - work.new_tokens
        prompts = [
            task_prompt(task, self.base.tokenizer, retriever, work.prompt_tokens, room) for task in tasks
        ]
        kind = _ANSWER_OF[type(tasks[0])]
        return self.answers(prompts, kind=kind, of=of, max_new_tokens=work.new_tokens, tell=tell)

    def edits(self, tasks: Sequence[EditTask], *, of: str, tell: Callable[[float], None]) -> list[bool]:
        """Whether each window is written exactly as it should be; from the store where that is known."""
        topic = base_topic(self.base, "next edits", adapter=of)
        keys = [prompt_key([*task.prompt, *task.answer], len(task.answer)) for task in tasks]
        kept = self.store.read(topic, keys)
        known = {key: kept[key] for key in keys if isinstance(kept.get(key), bool)}
        new = {key: task for key, task in zip(keys, tasks, strict=True) if key not in known}
        if new:
            names, found = list(new), dict[str, bool]()
            try:
                writes_exactly(
                    self.base,
                    [(task.prompt, task.answer) for task in new.values()],
                    engine=self.engine,
                    on_found=lambda at, right: found.update({names[at]: right}),
                    tell=tell,
                    interrupt=self.interrupt,
                )
            finally:
                self.store.add(topic, found)
            known |= found
        return [known[key] for key in keys]


def task_prompt(
    task: NextLineTask | AssertionTask | FimTask,
    tokenizer: CodeTokenizer,
    retriever: Retriever | None,
    sizes: tuple[int, int],
    room: int,
) -> CaretPrompt:
    """What is asked in an editor with the caret at the task's place: as much as ``sizes`` before and after it, in tokens.

    A span has what follows it behind the model's own markers; other tasks go on left to right.

    Args:
        room: tokens that the model's context has for the prompt, retrieved code included.
    """
    suffix = task.suffix if isinstance(task, FimTask) else None
    place = caret_prompt(
        tokenizer, task.prefix, suffix, task.path, prefix_tokens=sizes[0], suffix_tokens=sizes[1]
    )
    most = most_in_front(place.ids, room - len(tokenizer.encode(place.begins)))
    found, _ = code_in_front(retriever, task.path, task.prefix, suffix, own=place.ids, most_tokens=most)
    return replace(place, ids=with_context(place.ids, found, tokenizer))


def line_of(answer: Answer) -> str:
    """The line that was written, without its newline."""
    return answer.text.lstrip("\n").split("\n")[0].rstrip()


def value_of(answer: Answer, task: AssertionTask) -> str:
    """The value that was written, up to what ends it."""
    return first_value(answer.text.split("\n")[0], task.language, in_condition=task.in_condition)


@dataclass(frozen=True)
class Scores:
    """An arm's score for each task, by metric, with the file of each."""

    values: dict[str, list[float]]
    files: dict[str, list[str]]

    def means(self) -> dict[str, float]:
        """The mean of every metric."""
        return {name: sum(found) / len(found) for name, found in self.values.items() if found}

    def without_parts_of(self, whole: Scores) -> Scores:
        """This without the metrics over all tasks where ``whole`` was asked others: they could not be compared."""
        kept = {
            name: found
            for name, found in self.values.items()
            if name not in ANSWERS or len(found) == len(whole.values.get(name, ()))
        }
        return Scores(kept, {name: self.files[name] for name in kept})


def score(result: ArmResult, tasks: Tasks) -> Scores:
    """Every answer against what stands there: by kind of task, and all together (`ANSWERS`), where no place counts twice."""
    scores = Scores({}, {})
    seen: set[tuple[str, int]] = set()

    def add(name: str, path: str, value: float | None) -> None:
        if value is not None:
            scores.values.setdefault(name, []).append(value)
            scores.files.setdefault(name, []).append(path)

    def compare(kind: str, path: str, written: str, target: str, *, again: bool = False) -> None:
        exact, similarity = float(written == target), edit_similarity(written, target)
        found = identifier_f1(written, target, tasks.defined)
        add(f"{kind}_exact", path, exact)
        add(f"{kind}_similarity", path, similarity)
        if kind in _NAMES:
            add(_NAMES[kind], path, found)
        if not again:
            for name, value in zip(ANSWERS, (exact, similarity, found), strict=True):
                add(name, path, value)

    # An arm that time ran out for has no answers of a kind at all.
    for line, answer in zip(tasks.lines, result.lines, strict=bool(result.lines)):
        compare("next_line", line.path, line_of(answer), line.target.rstrip())
        seen.add((line.path, line.line))
    for line, answer in zip(tasks.cross_file, result.cross_file, strict=bool(result.cross_file)):
        again = (line.path, line.line) in seen
        compare("cross_file", line.path, line_of(answer), line.target.rstrip(), again=again)
    for task, answer in zip(tasks.assertions, result.assertions, strict=bool(result.assertions)):
        compare("assertion", task.path, value_of(answer, task), task.target)
    for edit, right in zip(tasks.edits, result.edits, strict=bool(result.edits)):
        add("edit_exact" if edit.is_due else "edit_quiet", edit.path, float(right))
    for read, right in zip(tasks.read, result.read, strict=bool(result.read)):
        for kind in read.kinds:
            add(f"{kind}_exact", read.path, float(right))
    for span, answer in zip(tasks.spans, result.spans, strict=bool(result.spans)):
        compare("fim", span.path, answer.text.strip(), span.target.strip())
        add("fim_parse_ok", span.path, float(parses(span.prefix + answer.text + span.suffix, span.language)))
        add("stop_rate", span.path, float(answer.stopped))
    return scores
