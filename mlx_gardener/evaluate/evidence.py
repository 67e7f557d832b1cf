"""Evidence: what every arm did on the same unseen code, what guards it, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Every arm with its title, in the order in which they are shown.
ARM_TITLES = {
    "base": "base",
    "base_bm25": "base + retrieval",
    "adapter": "adapter",
    "adapter_bm25": "adapter + retrieval",
    "control": "adapter of another repository",
}

#: What the answers to all tasks are judged by, with its short name; and by what evidence without them tells.
ANSWERS = {
    "answers_exact": "exactly right",
    "answers_similarity": "similarity",
    "answers_f1": "the repository's names",
}
_NEXT_LINES = ("next_line_exact", "next_line_similarity", "identifier_f1")
#: The share of lines that were read and that greedy writing gives (`read_places`).
READ_LINES = "read_line_exact"


@dataclass(frozen=True)
class Sample:
    """One place in an unseen file, and how base and adapter go on from it. Texts are as generated.

    ``kind`` is "next_line" (shown with the lines that follow) or "fim" (a span); ``gain`` is the adapter's edit
    similarity to what stands there, less the base's.
    """

    path: str
    line: int
    context: str
    expected: str
    base: str
    adapter: str
    kind: str = "next_line"
    gain: float = 0.0


@dataclass(frozen=True)
class Arm:
    """One arm's figures on the held-out files; a metric that was not measured is absent."""

    name: str
    title: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """An arm against another on one metric: change with its 95 % interval, by file.

    ``unit`` is "relative" (a fraction of the other's) or "points" (a difference of shares).
    """

    arm: str
    against: str
    metric: str
    change: float
    low: float
    high: float
    files: int
    tasks: int
    unit: str


@dataclass(frozen=True)
class Group:
    """Answers of one kind in one language that are exactly right: shares by arm, and the change from base to adapter in points.

    ``kind`` is read_line, read_cross_file or read_assertion, next_line, cross_file, assertion or fim; the
    interval is by file, as everywhere.
    """

    language: str
    kind: str
    tasks: int
    files: int
    exact: Mapping[str, float]
    change: float
    low: float
    high: float


@dataclass(frozen=True)
class Guard:
    """Something that must not happen for an adapter to be promoted; ``measured`` None where it could not be measured."""

    name: str
    passed: bool
    measured: float | None
    limit: float
    reason: str


@dataclass(frozen=True)
class Power:
    """How many files would be needed to be sure of the effect that was seen, with 80 % power."""

    metric: str
    effect: float
    files_seen: int
    files_needed: int | None
    note: str


def power_note(files_seen: int, files_needed: int | None, *, told_apart: bool) -> str:
    """Whether the files were enough for the change that was seen, in one sentence.

    Args:
        files_needed: to be sure of it with 80 % power.
        told_apart: whether its interval leaves zero out; where it does not, more files are needed, whatever the rule of
            thumb for ``files_needed`` says of so few.
    """
    seen = f"{files_seen} unseen file{'s' * (files_seen != 1)}"
    were = "was" if files_seen == 1 else "were"
    if files_needed is None:
        return f"In {seen} no difference was seen at all."
    if told_apart and files_needed <= files_seen:
        return f"There {were} {seen}; about {files_needed} are enough to see a change of this size."
    if told_apart or files_needed > files_seen:
        return f"There {were} {seen}; to be sure of a change of this size about {files_needed:,} like these are needed."
    return f"There {were} only {seen}: too few to be sure of a change of this size."


@dataclass(frozen=True)
class AnswersPower:
    """What the answers could show: ``told`` is the smallest difference in exact answers that is seen with 80 % power, a fraction.

    ``tasks_for_five`` is how many tasks like these tell a difference of five points.
    """

    tasks: int
    files: int
    told: float
    tasks_for_five: int


def answers_state(intervals: Iterable[tuple[str, float, float]]) -> str:
    """How an adapter's answers are against its base's: "better", "worse", "unclear" or "unmeasured".

    Better is a whole interval above zero and none below, worse the reverse; else it is unclear. Lines that were read count as answers.

    Args:
        intervals: metric, low and high of the adapter's comparisons with the base.
    """
    known = {metric: (low, high) for metric, low, high in intervals}
    names = [name for name in ANSWERS if name in known] or [name for name in _NEXT_LINES if name in known]
    names += [READ_LINES] * (READ_LINES in known)
    if not names:
        return "unmeasured"
    better = any(known[name][0] > 0 for name in names)
    worse = any(known[name][1] < 0 for name in names)
    if better == worse:
        return "unclear"
    return "better" if better else "worse"


def predicts_as_the_base(metrics: Mapping[str, Any], files: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an adapter changed the bits per byte of no file, by ``metrics`` and ``files`` of evidence, older one's too."""
    ends = [metrics.get(f"bits_per_byte_change{end}") for end in ("", "_low", "_high")]
    if not all(isinstance(value, int | float) for value in ends) or ends[0] != 0:
        return False
    sides = [(file.get("base_bits_per_byte"), file.get("adapter_bits_per_byte")) for file in files]
    same = bool(sides) and all(base == adapter is not None for base, adapter in sides)
    return same or ends[1] == ends[2] == 0


def fewer(change: float) -> str:
    """A relative change in words."""
    return f"{abs(change):.1%} {'fewer' if change < 0 else 'more'}"


@dataclass(frozen=True)
class Evidence:
    """Paired figures on the test part.

    ``metrics`` holds, for base and adapter, what their arms hold, and ``bits_per_byte_change`` as a fraction with its 95 %
    interval; it is empty where nothing could be measured. ``verdict`` is "reject" when a guard fails, the whole
    interval is a loss, or answers are worse and bits per byte not better; "promote" when all of it is an improvement and
    answers are not worse; "unmeasured" where nothing was measured, else "inconclusive". ``answers`` is apart from it: better,
    worse, unclear or unmeasured (`answers_state`). ``work`` says how many tasks were done and why; ``notes`` what was left out;
    ``held_out_since`` the oldest commit that added one of the files, where they are the latest. ``groups`` are answers by language
    and kind of task.
    """

    metrics: dict[str, float]
    samples: tuple[Sample, ...]
    files: tuple[dict[str, Any], ...]
    next_line_tasks: int
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    guards: tuple[Guard, ...] = ()
    power: Power | None = None
    answers_power: AnswersPower | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    held_out_since: str | None = None
    groups: tuple[Group, ...] = ()

    @property
    def verdict(self) -> str:
        """promote, inconclusive, reject or unmeasured."""
        if not self.metrics:
            return "unmeasured"
        if self.failed_guards or self.metrics["bits_per_byte_change_low"] > 0:
            return "reject"
        worse = self.answers == "worse"
        if self.metrics["bits_per_byte_change_high"] < 0:
            return "inconclusive" if worse else "promote"
        return "reject" if worse else "inconclusive"

    @property
    def answers(self) -> str:
        """How the adapter's answers are against the base's: better, worse, unclear or unmeasured."""
        return answers_state(
            (found.metric, found.low, found.high)
            for found in self.comparisons
            if (found.arm, found.against) == ("adapter", "base")
        )

    @property
    def failed_guards(self) -> tuple[Guard, ...]:
        """The guards that did not pass."""
        return tuple(guard for guard in self.guards if not guard.passed)

    @property
    def reason(self) -> str:
        """The verdict in a sentence, and another for the answers where they were asked."""
        found = self.metrics
        if not found:
            return "It was not measured on files that it never saw."
        low, high = found["bits_per_byte_change_low"], found["bits_per_byte_change_high"]
        files = f"{len(self.files)} file{'s' * (len(self.files) != 1)}"
        files += " of later commits" * (self.held_out_since is not None)
        told = (
            f"On {files} that it never saw the adapter needs {fewer(found['bits_per_byte_change'])} bits "
            f"per byte than the base (95 % interval of the change {low:+.1%} to {high:+.1%})"
        )
        is_the_base = predicts_as_the_base(self.metrics, self.files)
        if is_the_base:
            told = f"On {files} that it never saw the adapter needs exactly as many bits per byte as the base"
            if high > 0:
                told += f" (of all such files fewer than {high:.0%} differ, with 95 % confidence)"
        if self.failed_guards:
            return f"{told}, but {' and '.join(guard.reason for guard in self.failed_guards)}."
        retrieval = self._change("base_bm25", "adapter", "bits_per_byte")
        if retrieval is not None and retrieval.high < 0:
            told += f", but the base with retrieved code in front of the prompt needs {fewer(retrieval.change)} than the adapter"
        elif low <= 0 <= high and not is_the_base:
            told += ": chance explains that as well"
        return f"{told}.{self._answers_told()}"

    def _answers_told(self) -> str:
        """What the answers were, as another sentence; "" where they were not asked, or are the base's."""
        told = {**ANSWERS, READ_LINES: "lines read"}
        changes = {name: self._change("adapter", "base", name) for name in told}
        known = {name: found for name, found in changes.items() if found is not None}
        same = all(found.change == 0 for found in known.values())
        if not known or (same and predicts_as_the_base(self.metrics, self.files)):
            return ""
        figures = ", ".join(
            f"{told[name]} {100 * found.change:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
            for name, found in known.items()
        )
        tasks = max((found.tasks for name, found in known.items() if name in ANSWERS), default=0)
        lines = known[READ_LINES].tasks if READ_LINES in known else 0
        read = f"{lines} line{'s' * (lines != 1)} that it read"
        state = {"better": "better", "worse": "worse"}.get(self.answers, "not measurably better")
        if tasks == 0:
            return f" What it would write of {read} is {state}: {figures}."
        asked = f"{tasks} task{'s' * (tasks != 1)}" + f" and {read}" * (lines > 0)
        return f" Its answers to {asked} are {state}: {figures}."

    def _change(self, arm: str, against: str, metric: str) -> Comparison | None:
        """The comparison of two arms, if it was made."""
        return next(
            (
                found
                for found in self.comparisons
                if (found.arm, found.against, found.metric) == (arm, against, metric)
            ),
            None,
        )

    def to_json(self, *, with_source: bool = False) -> dict[str, Any]:
        """The evidence as JSON types.

        Args:
            with_source: whether samples carry source text (context and expected line); what is written into an
                adapter's manifest leaves it out, its report has it.
        """
        hidden = () if with_source else ("context", "expected")
        samples = [
            {name: value for name, value in asdict(sample).items() if name not in hidden}
            for sample in self.samples
        ]
        return {
            "verdict": self.verdict,
            "answers": self.answers,
            "reason": self.reason,
            "metrics": self.metrics,
            "files": list(self.files),
            "next_line_tasks": self.next_line_tasks,
            "samples": samples,
            "arms": [asdict(arm) for arm in self.arms],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "guards": [asdict(guard) for guard in self.guards],
            "power": None if self.power is None else asdict(self.power),
            "answers_power": None if self.answers_power is None else asdict(self.answers_power),
            "work": dict(self.work),
            "notes": list(self.notes),
            "held_out_since": self.held_out_since,
            "groups": [asdict(group) for group in self.groups],
        }
