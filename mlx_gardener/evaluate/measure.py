"""One arm at work: losses on rows, answers to tasks; and how many of each the time allows.

In: a base, with or without an adapter in it. Out: `ArmResult`. Work is counted in tokens passed forward, so that the same
training always gets the same tasks, whatever the speed of the machine on the day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import EvaluationConfig, TrainingConfig
from mlx_gardener.dataset import Batch, HoleTask, NextLineTask, RowSet
from mlx_gardener.engine import Engine, base_topic, kept_row_losses
from mlx_gardener.evaluate.complete import PREFIX_TOKENS, SUFFIX_TOKENS, build_prompt
from mlx_gardener.evaluate.generate import Answer, generate_many, prompt_key
from mlx_gardener.evaluate.metrics import edit_similarity, identifier_f1, parses
from mlx_gardener.evaluate.retrieval import Retriever
from mlx_gardener.platform.kept import KeptValues

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel, CodeTokenizer

#: A training token passes forward, again for the recomputation, and twice as much backward.
_FORWARDS_PER_TRAINED_TOKEN = 4
#: One more token for each answer of a batch costs about so many that are read, however many answers there are: all weights
#: are read for it, and where they are dequantised for that (True) they become floats. By the times of the stages in
#: ``benchmarks/results``: about 40 in real_run_qwen.txt, 20 in real_run_smollm2.txt.
STEP_TOKENS = {True: 40.0, False: 20.0}
#: Where time presses: shares of it for rows and for the guards; the rest is for tasks (judgement).
_ROWS_SHARE, _GUARDS_SHARE = 0.4, 0.2
#: About so many tokens go forward for the guards of one model, with all their work (`stages.check`).
_GUARD_TOKENS = 25_000
#: What is measured however little time there is: rows and tasks of each kind.
_FEWEST_ROWS, _FEWEST_TASKS = 4, 4
#: The shortest answers, where time presses: most lines of code are no longer (judgement).
_FEWEST_NEW_TOKENS = 24
#: The shortest row: an editor's question is no shorter (judgement).
_SHORTEST = 256


def prompt_sizes(config: TrainingConfig) -> tuple[int, int]:
    """Most tokens before and after a place that a prompt shows: what an editor asks with, and no more than a row holds."""
    width = config.data.row_widths[-1]
    return min(PREFIX_TOKENS, 3 * width // 4), min(SUFFIX_TOKENS, width // 4)


@dataclass(frozen=True)
class Work:
    """How much is done: rows measured and tasks of each kind in every arm, and why so many.

    Attributes:
        row_tokens: of the windows that are measured.
        context_tokens: of retrieved code, at most.
        prompt_tokens: before and after a place, at most.
        guard_share: the share of the guards' whole work.
        new_tokens: of an answer, at most.
    """

    rows: int
    next_line_tasks: int
    fim_tasks: int
    reason: str
    row_tokens: int
    context_tokens: int
    prompt_tokens: tuple[int, int]
    guard_share: float
    new_tokens: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return dict(vars(self))


def decide_work(
    config: TrainingConfig,
    *,
    training_tokens: int,
    windows: int,
    tasks: int | None,
    can_write: bool,
    can_fill: bool = True,
    files: int = 1,
    forward_tokens: float = math.inf,
    step_tokens: float = STEP_TOKENS[False],
) -> Work:
    """How many rows and tasks a test of a training over ``training_tokens`` may have.

    Args:
        windows: of held-out code there are, in tokens of the widest row each.
        tasks: asked for by the user, of each kind; None for as many as the share allows.
        can_write: whether answers are generated at all.
        can_fill: whether the model has fill-in-the-middle markers.
        files: held out; enough rows for all of them are better than long ones.
        forward_tokens: that may go forward in the time there is, for everything.
        step_tokens: what one more token for all answers costs, in tokens that are read (`STEP_TOKENS`).
    """
    settings, width = config.evaluation, config.data.row_widths[-1]
    allowed = settings.time_share * _FORWARDS_PER_TRAINED_TOKEN * training_tokens
    kinds = 1 + can_fill
    whole = _Sizes(width, settings.context_tokens, prompt_sizes(config), settings.max_new_tokens)
    row, task, writing = whole.costs(settings, step_tokens)
    rows = min(windows, max(settings.least_rows, int(allowed / 2 / row)))
    fitting = max(settings.least_tasks, int(allowed / 2 / (2 * task)))
    why = f"at most {settings.time_share:.0%} of the work of training on {training_tokens:,} tokens"
    why += (
        f", but at least {settings.least_tasks} tasks and {settings.least_rows} rows where there are as many"
    )
    guard_share, sizes = 1.0, whole
    asked = min(fitting, max(settings.next_line_tasks, settings.fim_tasks))
    if tasks is None and rows * row + kinds * (asked * task + writing) + 2 * _GUARD_TOKENS > forward_tokens:
        sizes, rows, fitting, kinds = _made_to_fit(whole, settings, forward_tokens, step_tokens, kinds, files)
        rows = min(rows, windows * width // sizes.row_tokens)
        guard_share = min(1.0, _GUARDS_SHARE * forward_tokens / (2 * _GUARD_TOKENS))
        why = (
            f"as many as fit into the time that is left, about {forward_tokens:,.0f} tokens forward: stretches of "
            f"{sizes.row_tokens} tokens, prompts of up to {sum(sizes.prompt_tokens)}"
        )
    lines, holes = min(fitting, settings.next_line_tasks), min(fitting, settings.fim_tasks)
    if tasks is not None:
        lines = holes = tasks
        why = f"{tasks} tasks of each kind were asked for; rows: {why}"
    if not can_write:
        lines = holes = 0
        why += "; no tasks, since weights read from disk for every token written would take hours"
    elif can_fill and kinds == 1:
        why += "; no holes, as there was no time for them"
    return Work(
        rows,
        lines,
        holes if can_fill and kinds > 1 else 0,
        why,
        sizes.row_tokens,
        sizes.context_tokens,
        sizes.prompt_tokens,
        guard_share,
        sizes.new_tokens,
    )


def more_work(work: Work, wanted: Work, factor: float, row_tokens: int) -> Work | None:
    """``factor`` times the rows and tasks of ``work``, of the same length; None where none are wanted beyond those.

    Args:
        wanted: what is done where time does not press.
        row_tokens: of its rows.
    """
    more = replace(
        work,
        rows=max(work.rows, min(int(factor * work.rows), wanted.rows * row_tokens // work.row_tokens)),
        next_line_tasks=max(
            work.next_line_tasks, min(int(factor * work.next_line_tasks), wanted.next_line_tasks)
        ),
        fim_tasks=max(work.fim_tasks, min(int(factor * work.fim_tasks), wanted.fim_tasks)),
    )
    return None if more == work else more


@dataclass(frozen=True)
class _Sizes:
    """Tokens of a row, of retrieved code, before and after a place, and of an answer."""

    row_tokens: int
    context_tokens: int
    prompt_tokens: tuple[int, int]
    new_tokens: int

    def costs(self, settings: EvaluationConfig, step_tokens: float) -> tuple[float, float, float]:
        """Tokens that go forward for a row, for a task, and for the writing of any number of answers of a kind, of all arms."""
        with_retrieval = sum(arm.endswith("_bm25") for arm in settings.arms)
        arms = len(settings.arms)
        in_halves = 2 * self.context_tokens + 1.5 * self.row_tokens
        row = (arms - with_retrieval) * self.row_tokens + with_retrieval * in_halves
        prompt = sum(self.prompt_tokens) + self.new_tokens / 2  # few write all they may
        task = arms * prompt + with_retrieval * self.context_tokens
        return row, task, arms * self.new_tokens * step_tokens  # some write all they may


def _made_to_fit(
    whole: _Sizes,
    settings: EvaluationConfig,
    forward_tokens: float,
    step_tokens: float,
    kinds: int,
    files: int,
) -> tuple[_Sizes, int, int, int]:
    """(sizes, rows, tasks of a kind, kinds): the longest rows and prompts of which enough fit; files count more than tokens do.

    Where answers are so slow to write that there is no time for two kinds, next lines are all that is asked.
    """
    for shrink in (1, 2, 4):
        sizes = _Sizes(
            max(_SHORTEST, whole.row_tokens // shrink),
            min(whole.context_tokens, max(_SHORTEST // 2, whole.context_tokens // shrink)),
            (whole.prompt_tokens[0] // shrink, whole.prompt_tokens[1] // shrink),
            min(whole.new_tokens, max(_FEWEST_NEW_TOKENS, whole.new_tokens // shrink)),
        )
        row, task, writing = sizes.costs(settings, step_tokens)
        rows = int(_ROWS_SHARE * forward_tokens / row)
        for_tasks = (1 - _ROWS_SHARE - _GUARDS_SHARE) * forward_tokens
        fitting = int((for_tasks / kinds - writing) / task)
        if rows >= files and fitting >= settings.least_tasks:
            break
    if fitting < _FEWEST_TASKS and kinds > 1:
        kinds, fitting = 1, int((for_tasks - writing) / task)
    return sizes, max(_FEWEST_ROWS, rows), max(_FEWEST_TASKS, fitting), kinds


@dataclass(frozen=True)
class Tasks:
    """What every arm is asked, and the prompts of the arms without and with retrieved code."""

    lines: list[NextLineTask]
    holes: list[HoleTask]
    defined: frozenset[str]


@dataclass
class ArmResult:
    """What one arm did: loss by file in nats, and answers in the order of the tasks."""

    losses: dict[str, float] = field(default_factory=dict)
    lines: list[Answer] = field(default_factory=list)
    holes: list[Answer] = field(default_factory=list)


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

    def losses(
        self, rows: RowSet, tell: Callable[[float], None] = lambda share: None, *, of: str
    ) -> dict[str, float]:
        """Loss in nats by file; from the store where they are known."""
        size = self.config.optimizer.tokens_per_update
        count, losses = rows.update_count(size), dict[str, float]()
        for done, batch in enumerate(rows.batches(size, seed=None)):
            found = self.row_losses(batch, part_of(tell, done, count), of=of)
            for path, loss in zip(batch.paths, found, strict=True):
                losses[path] = losses.get(path, 0.0) + loss
            tell((done + 1) / count)
        return losses

    def row_losses(
        self, batch: Batch, tell: Callable[[float], None] = lambda share: None, *, of: str
    ) -> list[float]:
        """Loss in nats of every row; from the store where they are known."""

        def between(share: float) -> None:
            self.interrupt()
            tell(share)

        return kept_row_losses(
            self.engine, self.base, batch, self.store, adapter=of, between_segments=between
        )

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        kind: str,
        of: str,
        max_new_tokens: int,
        tell: Callable[[float], None] = lambda share: None,
    ) -> list[Answer]:
        """Answers to prompts; from the store where they are known."""
        topic = base_topic(self.base, f"answers {kind}", adapter=of)
        keys = [prompt_key(prompt, max_new_tokens) for prompt in prompts]
        kept = self.store.read(topic)
        known = {key: answer for key in keys if (answer := Answer.from_json(kept.get(key))) is not None}
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        if new:
            answers = generate_many(
                self.base,
                list(new.values()),
                max_new_tokens=max_new_tokens,
                engine=self.engine,
                is_enough=(lambda text: "\n" in text.lstrip("\n")) if kind == "line" else None,
                tell=tell,
                interrupt=self.interrupt,
            )
            found = dict(zip(new, answers, strict=True))
            self.store.add(topic, {key: answer.to_json() for key, answer in found.items()})
            known |= found
        return [known[key] for key in keys]

    def lines(
        self,
        tasks: Tasks,
        retriever: Retriever | None,
        work: Work,
        *,
        of: str,
        tell: Callable[[float], None],
    ) -> list[Answer]:
        """The next line of every task, with retrieved code in front where there is a retriever.

        Args:
            work: says how long prompts and answers are.
        """
        prompts = [
            line_prompt(task, self.base.tokenizer, retriever, work.prompt_tokens) for task in tasks.lines
        ]
        return self.answers(prompts, kind="line", of=of, max_new_tokens=work.new_tokens, tell=tell)

    def holes(
        self,
        tasks: Tasks,
        retriever: Retriever | None,
        work: Work,
        *,
        of: str,
        tell: Callable[[float], None],
    ) -> list[Answer]:
        """What fills the hole of every task, likewise."""
        prompts = [
            hole_prompt(task, self.base.tokenizer, retriever, work.prompt_tokens) for task in tasks.holes
        ]
        return self.answers(prompts, kind="hole", of=of, max_new_tokens=work.new_tokens, tell=tell)


def line_prompt(
    task: NextLineTask, tokenizer: CodeTokenizer, retriever: Retriever | None, sizes: tuple[int, int]
) -> list[int]:
    """Line breaks at the end are left to the model: newlines and indentation are often one token."""
    prefix = task.prefix.rstrip("\n")
    prompt = build_prompt(tokenizer, prefix, None, task.path, prefix_tokens=sizes[0])
    return _with_context(prompt, task.path, prefix, tokenizer, retriever)


def hole_prompt(
    task: HoleTask, tokenizer: CodeTokenizer, retriever: Retriever | None, sizes: tuple[int, int]
) -> list[int]:
    """The model's own markers around what stands before and after the hole."""
    prompt = build_prompt(
        tokenizer, task.prefix, task.suffix, task.path, prefix_tokens=sizes[0], suffix_tokens=sizes[1]
    )
    return _with_context(prompt, task.path, task.prefix, tokenizer, retriever)


def _with_context(
    prompt: list[int], path: str, before: str, tokenizer: CodeTokenizer, retriever: Retriever | None
) -> list[int]:
    if retriever is None:
        return prompt
    opening = 0 if tokenizer.bos_id is None else 1
    return [*prompt[:opening], *retriever.context(path, before), *prompt[opening:]]


def line_of(answer: Answer) -> str:
    """The line that was written, without its newline."""
    return answer.text.lstrip("\n").split("\n")[0].rstrip()


@dataclass(frozen=True)
class Scores:
    """An arm's score for each task, by metric, with the file of each."""

    values: dict[str, list[float]]
    files: dict[str, list[str]]

    def means(self) -> dict[str, float]:
        """The mean of every metric."""
        return {name: sum(found) / len(found) for name, found in self.values.items() if found}


def score(result: ArmResult, tasks: Tasks) -> Scores:
    """Every answer against what stands there."""
    values: dict[str, list[float]] = {}
    files: dict[str, list[str]] = {}

    def add(name: str, path: str, value: float) -> None:
        values.setdefault(name, []).append(value)
        files.setdefault(name, []).append(path)

    # An arm that time ran out for has no answers of a kind at all.
    for line, answer in zip(tasks.lines, result.lines, strict=bool(result.lines)):
        written, target = line_of(answer), line.target.rstrip()
        add("next_line_exact", line.path, float(written == target))
        add("next_line_similarity", line.path, edit_similarity(written, target))
        found = identifier_f1(written, target, tasks.defined)
        if found is not None:
            add("identifier_f1", line.path, found)
    for hole, answer in zip(tasks.holes, result.holes, strict=bool(result.holes)):
        add("fim_exact", hole.path, float(answer.text.strip() == hole.target.strip()))
        add("fim_parse_ok", hole.path, float(parses(hole.prefix + answer.text + hole.suffix, hole.language)))
        add("stop_rate", hole.path, float(answer.stopped))
    return Scores(values, files)
