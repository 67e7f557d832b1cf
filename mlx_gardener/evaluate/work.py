"""How much is measured: rows and tasks of each kind, how long they are, and why so many.

In: settings, and what time is left. Out: `Work`. It is counted in tokens passed forward, so that the same training always
gets the same tasks, whatever the speed of the machine on the day. Cost: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from mlx_gardener.config import EvaluationConfig, TrainingConfig
from mlx_gardener.evaluate.complete import PREFIX_TOKENS, SUFFIX_TOKENS
from mlx_gardener.retrieval.context import CONTEXT_TOKENS

#: A training token passes forward, again for the recomputation, and twice as much backward.
_FORWARDS_PER_TRAINED_TOKEN = 4
#: One more token for each answer of a batch costs about so many that are read, however many answers there are: all weights
#: are read for it, and where they are dequantised for that (True) they become floats. By the times of the stages in
#: ``benchmarks/results``: about 40 in real_run_qwen.txt, 20 in real_run_smollm2.txt.
STEP_TOKENS = {True: 40.0, False: 20.0}
#: Where time presses: shares of it for rows and for the guards; the rest is for tasks (judgement).
_ROWS_SHARE, _GUARDS_SHARE = 0.4, 0.2
#: About so many tokens go forward for the guards of one model, with all their work (`checks.check`).
_GUARD_TOKENS = 25_000
#: Whatever the share of the training's work: tasks of each kind and rows, as fewer tell nothing but the largest differences
#: (judgement). Who wants fewer tasks gets as much fewer rows.
_LEAST_TASKS, _LEAST_ROWS = 12, 40
#: Places in training code, and as many in held-out code, that are continued: 25 points more, which the guard takes for
#: memorisation, are nearly three standard errors of 24 places where a tenth is continued by chance. Who wants few tasks gets fewer.
_PLACES, _PLACES_PER_TASK = 24, 4
#: What is measured however little time there is: rows and tasks of each kind.
_FEWEST_ROWS, _FEWEST_TASKS = 4, 4
#: The shortest answers, where time presses: most lines of code are no longer (judgement).
_FEWEST_NEW_TOKENS = 24
#: The share of the time that work is planned for: generation and attention are foretold by the speed of plain rows.
SURE = 0.8
#: Where so much of the time is left, in shares of what was used, more rows and tasks are worth another round.
_WORTH_A_ROUND = 0.25
#: Rows, and prompts apart from them, are at most so many times shorter where time presses (judgement).
_SMALLEST = 4
#: The shortest row: an editor's question is no shorter (judgement).
_SHORTEST = 256
#: Most tokens before and after a place that an editor's prompt shows: what is measured, unless time presses.
SERVED_PROMPT = (PREFIX_TOKENS, SUFFIX_TOKENS)


@dataclass(frozen=True)
class Work:
    """How much is done: rows measured and tasks of each kind in every arm, and why so many.

    Attributes:
        row_tokens: of the windows that are measured.
        context_tokens: of retrieved code, at most.
        prompt_tokens: before and after a place, at most.
        guard_share: the share of the guards' whole work.
        new_tokens: of an answer, at most.
        other_tasks: of each other kind there is, cross-file lines, assertions, windows with and without a next edit.
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
    other_tasks: int = 0

    @property
    def guard_tokens(self) -> float:
        """Tokens that go forward for the guards of one model."""
        return self.guard_share * _GUARD_TOKENS

    def answers_tokens(self, tasks: int, step_tokens: float, *, retrieves: bool) -> float:
        """Tokens that go forward for one arm's answers to so many tasks of a kind."""
        prompt = sum(self.prompt_tokens) + self.new_tokens / 2 + retrieves * self.context_tokens
        return tasks * prompt + bool(tasks) * self.new_tokens * step_tokens

    def left_out(self, wanted: Work) -> list[str]:
        """What is not asked, or otherwise than it is served, for want of time; ``wanted`` is the work without a limit."""
        said = list[str]()
        if self.prompt_tokens != SERVED_PROMPT and self.next_line_tasks:
            before, after = self.prompt_tokens
            said.append(
                f"For want of time prompts showed at most {before} tokens before and {after} after a place, where an editor is "
                f"answered with {SERVED_PROMPT[0]} and {SERVED_PROMPT[1]}: what is served was not measured."
            )
        if self.next_line_tasks < wanted.next_line_tasks:
            more = f"instead of {wanted.next_line_tasks} where there are as many"
            said.append(
                f"For want of time at most {self.next_line_tasks} tasks of each kind were asked, {more}."
            )
        if (self.fim_tasks, self.other_tasks) == (0, 0) and wanted.fim_tasks + wanted.other_tasks:
            said.append("For want of time nothing but next lines was asked.")
        return said

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
    other_kinds: int = 0,
    files: int = 1,
    forward_tokens: float = math.inf,
    step_tokens: float = STEP_TOKENS[False],
) -> Work:
    """How many rows and tasks a test of a training over ``training_tokens`` may have.

    Args:
        windows: of held-out code there are, in tokens of the widest row each.
        tasks: asked for by the user, of each kind, at most where time presses; None for as many as the share allows.
        can_write: whether answers are generated at all.
        can_fill: whether the model has fill-in-the-middle markers.
        other_kinds: of tasks that the held-out code has: cross-file lines, assertions, next edits.
        files: held out; enough rows for all of them are better than long ones.
        forward_tokens: that may go forward in the time there is, for everything.
        step_tokens: what one more token for all answers costs, in tokens that are read (`STEP_TOKENS`).
    """
    settings, width = config.evaluation, config.data.sequence_lengths[-1]
    allowed = settings.time_share * _FORWARDS_PER_TRAINED_TOKEN * training_tokens
    kinds = all_kinds = 1 + can_fill + other_kinds
    whole = _Sizes.whole(config)
    row, task, writing = whole.costs(settings.arms, step_tokens)
    least_tasks, least_rows = _least(settings)
    rows = min(windows, max(least_rows, int(allowed / 2 / row)))
    fitting = max(least_tasks, int(allowed / 2 / (max(2, kinds) * task)))
    share = f"at most {settings.time_share:.0%} of the work of training on {training_tokens:,} tokens"
    why = f"{share}, but at least {least_tasks} tasks and {least_rows} rows where there are as many"
    guard_share, sizes = 1.0, whole
    asked = min(fitting, settings.tasks) if tasks is None else tasks
    if rows * row + kinds * (asked * task + writing) + 2 * _GUARD_TOKENS > forward_tokens:
        sizes, rows, fitting, kinds = _made_to_fit(whole, settings, forward_tokens, step_tokens, kinds, files)
        rows = min(rows, windows * width // sizes.row_tokens)
        guard_share = min(1.0, _GUARDS_SHARE * forward_tokens / (2 * _GUARD_TOKENS))
        why = (
            f"as many as fit into the time that is left, about {forward_tokens:,.0f} tokens forward: stretches of "
            f"{sizes.row_tokens} tokens, prompts of up to {sum(sizes.prompt_tokens)}"
        )
        asked = min(fitting, settings.tasks if tasks is None else tasks)
    elif tasks is not None:
        why_rows = "all there are" if rows == windows else f"{share}, but at least {least_rows}"
        why = f"{tasks} tasks of each kind were asked for; rows: {why_rows}"
    if not can_write:
        asked = 0
        why += "; no tasks, since weights read from disk for every token written would take hours"
    elif kinds < all_kinds and asked:
        why += "; next lines and no spans or others, as there was no time for them"
    return Work(
        rows,
        asked,
        asked if can_fill and kinds == all_kinds else 0,
        why,
        sizes.row_tokens,
        sizes.context_tokens,
        sizes.prompt_tokens,
        guard_share,
        sizes.new_tokens,
        asked if other_kinds and kinds == all_kinds else 0,
    )


def _least(settings: EvaluationConfig) -> tuple[int, int]:
    """Tasks of each kind and rows that are measured, whatever the share of the training's work."""
    tasks = min(_LEAST_TASKS, settings.tasks)
    return tasks, max(_FEWEST_ROWS, _LEAST_ROWS * tasks // _LEAST_TASKS)


def with_tasks(config: TrainingConfig, tasks: int | None) -> TrainingConfig:
    """Settings of a test that somebody asked ``tasks`` of each kind of: where a training had fewer, rows and places grow with them."""
    if tasks is None or tasks <= config.evaluation.tasks:
        return config
    evaluation = config.evaluation.model_copy(update={"tasks": tasks})
    return config.model_copy(update={"evaluation": evaluation})


def memorisation_places(settings: EvaluationConfig) -> int:
    """Places in training code, and as many in held-out code, that are continued where time does not press."""
    return min(_PLACES, _PLACES_PER_TASK * settings.tasks)


def least_tokens(config: TrainingConfig, arms: Collection[str], step_tokens: float) -> float:
    """Tokens to keep time for, so that every arm is measured on the fewest rows and next lines.

    Args:
        arms: that are measured.
        step_tokens: what one more token for all answers costs, in tokens that are read (`STEP_TOKENS`).
    """
    row, task, writing = _Sizes.whole(config).shrunk(_SMALLEST).costs(arms, step_tokens)
    return (_FEWEST_ROWS * row + _FEWEST_TASKS * task + writing) / (1 - _GUARDS_SHARE) / SURE


def room_for_more(took: float, left_seconds: float) -> float:
    """How much more can be done in the time that is left, as a share of what was done; 0 where it is not worth it.

    Args:
        took: seconds for what was done, by the pace of the last round. Answers that were kept take none, so that it says too little
            of those that follow: a round that is cut counts for nothing, so none is more than twice the one before.
    """
    room = SURE * left_seconds / max(1e-3, took)
    return 0.0 if math.isinf(left_seconds) or room < _WORTH_A_ROUND else min(1.0, room)


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
        other_tasks=max(work.other_tasks, min(int(factor * work.other_tasks), wanted.other_tasks)),
    )
    return None if more == work else more


@dataclass(frozen=True)
class _Sizes:
    """Tokens of a row, of retrieved code, before and after a place, and of an answer."""

    row_tokens: int
    context_tokens: int
    prompt_tokens: tuple[int, int]
    new_tokens: int

    @classmethod
    def whole(cls, config: TrainingConfig) -> _Sizes:
        """Sizes where time does not press: prompts as they are served, and of retrieved code no more than a row has room for."""
        width, settings = config.data.sequence_lengths[-1], config.evaluation
        return cls(width, min(CONTEXT_TOKENS, width), SERVED_PROMPT, settings.max_new_tokens)

    def shrunk(self, times: int) -> _Sizes:
        """Sizes ``times`` smaller, but none so small that it says nothing."""
        return self.with_shorter_rows(times).with_shorter_answers(times).with_shorter_prompts(times)

    def with_shorter_rows(self, times: int) -> _Sizes:
        return replace(self, row_tokens=max(_SHORTEST, self.row_tokens // times))

    def with_shorter_answers(self, times: int) -> _Sizes:
        shorter = max(_FEWEST_NEW_TOKENS, self.new_tokens // times)
        return replace(self, new_tokens=min(self.new_tokens, shorter))

    def with_shorter_prompts(self, times: int) -> _Sizes:
        context = min(self.context_tokens, max(_SHORTEST // 2, self.context_tokens // times))
        before, after = self.prompt_tokens
        return replace(self, context_tokens=context, prompt_tokens=(before // times, after // times))

    def costs(self, arms: Collection[str], step_tokens: float) -> tuple[float, float, float]:
        """Tokens that go forward for a row, for a task, and for the writing of any number of answers of a kind, of all arms."""
        with_retrieval = sum(arm.endswith("_bm25") for arm in arms)
        count = len(arms)
        in_halves = 2 * self.context_tokens + 1.5 * self.row_tokens
        row = (count - with_retrieval) * self.row_tokens + with_retrieval * in_halves
        prompt = sum(self.prompt_tokens) + self.new_tokens / 2  # few write all they may
        task = count * prompt + with_retrieval * self.context_tokens
        return row, task, count * self.new_tokens * step_tokens  # some write all they may


def _made_to_fit(
    whole: _Sizes,
    settings: EvaluationConfig,
    forward_tokens: float,
    step_tokens: float,
    kinds: int,
    files: int,
) -> tuple[_Sizes, int, int, int]:
    """(sizes, rows, tasks of a kind, kinds): the longest rows and prompts of which enough fit; files count more than tokens do.

    Shorter answers come before shorter prompts: a prompt that is cut is not the one that is served. Where answers are so slow to
    write that there is no time for two kinds, next lines are all that is asked.
    """
    for_tasks = (1 - _ROWS_SHARE - _GUARDS_SHARE) * forward_tokens
    for answers, prompts in ((1, 1), (2, 1), (2, 2), (_SMALLEST, _SMALLEST)):
        sizes = whole.with_shorter_answers(answers).with_shorter_prompts(prompts)
        _, task, writing = sizes.costs(settings.arms, step_tokens)
        fitting = int((for_tasks / kinds - writing) / task)
        if fitting >= _least(settings)[0]:
            break
    asked = sizes
    for times in (1, 2, _SMALLEST):
        sizes = asked.with_shorter_rows(times)
        rows = int(_ROWS_SHARE * forward_tokens / sizes.costs(settings.arms, step_tokens)[0])
        if rows >= files:
            break
    if fitting < _FEWEST_TASKS and kinds > 1:
        kinds, fitting = 1, int((for_tasks - writing) / task)
    return sizes, max(_FEWEST_ROWS, rows), max(_FEWEST_TASKS, fitting), kinds
