"""What there is to tell about a run's evidence, as plain values: the page, the notebook and the terminal show the same.

In: ``Evidence.to_json()``, of this version or an older one, where whatever was not measured is absent. Out: tables of
text, changes with intervals, gains by group, samples in the order they are worth looking at. Cost: nothing to speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mlx_gardener.evaluate.evidence import ARM_TITLES, answers_state
from mlx_gardener.evaluate.statistics import unseen_share

#: Metric: title, how it is written, and whether less of it is better.
METRICS: dict[str, tuple[str, Callable[[float], str], bool]] = {
    "bits_per_byte": ("bits per byte", lambda value: f"{value:.4f}", True),
    **{
        name: (title, lambda value: f"{value:.1%}", False)
        for name, title in {
            "read_line_exact": "lines read, exactly right",
            "read_cross_file_exact": "cross-file lines read, exactly right",
            "read_assertion_exact": "assertions read, exactly right",
            "answers_exact": "all answers exactly right",
            "answers_similarity": "all answers, similarity",
            "answers_f1": "all answers, own names F1",
            "next_line_exact": "next line exactly right",
            "next_line_similarity": "next line, similarity",
            "identifier_f1": "next line, own names F1",
            "cross_file_exact": "cross-file line exactly right",
            "cross_file_similarity": "cross-file line, similarity",
            "cross_file_f1": "cross-file line, own names F1",
            "assertion_exact": "assertion exactly right",
            "assertion_similarity": "assertion, similarity",
            "edit_exact": "next edit exactly right",
            "edit_quiet": "quiet where no edit is due",
            "fim_exact": "span filled exactly right",
            "fim_similarity": "span filled, similarity",
            "fim_parse_ok": "file with filled span parses",
            "stop_rate": "stops by itself",
        }.items()
    },
}
ARMS = {**ARM_TITLES, "control": "control"}
GUARDS = {
    "forgetting": "Other projects' code is not forgotten",
    "memorisation": "Training files are not known by heart",
    "parse_ok": "Filled spans still parse",
}
#: Kinds of samples and of tasks.
KINDS = {
    "read_line": "line read",
    "read_cross_file": "cross-file line read",
    "read_assertion": "assertion read",
    "next_line": "next line",
    "cross_file": "cross-file line",
    "assertion": "assertion",
    "fim": "span to fill",
}
#: Kinds of tasks by the metric that says how many were right.
_EXACT = {
    "read_line_exact": "lines read",
    "read_cross_file_exact": "cross-file lines read",
    "read_assertion_exact": "assertions read",
    "next_line_exact": "next lines",
    "cross_file_exact": "cross-file lines",
    "assertion_exact": "assertions",
    "edit_exact": "next edits",
    "edit_quiet": "windows left as they are where no edit is due",
    "fim_exact": "spans to fill",
}
_MOST_GROUPS = 10
#: Half a point of similarity: less would be shown as none.
_SEEN = 0.005


def reason(evidence: Mapping[str, Any]) -> str:
    """Why the verdict is what it is; without the command that earlier versions named in it, with no project."""
    return str(evidence["reason"]).replace("; `mlx-gardener eval PROJECT` measures it", "")


def kept_step(training: Mapping[str, Any]) -> int:
    """The update after which the adapter was kept (0: before the first), as `training.standing.Standing.adapter` decides."""
    validated = max((point["step"] for point in training.get("validation") or ()), default=0)
    best = int(training.get("best_step") or 0)
    steps = int(training.get("steps", 0))
    return steps if steps > validated and best in (0, validated) else best


def kept(training: Mapping[str, Any]) -> str:
    """Which state of the training the adapter is, and why, in a sentence."""
    steps, best, at = training["steps"], int(training.get("best_step") or 0), kept_step(training)
    validated = max((point["step"] for point in training.get("validation") or ()), default=0)
    if at != best:
        return f"The adapter was kept as it was after update {at}, the last one: the time was over before it could be validated."
    if at == 0:
        return "No update made the validation part go better, so the adapter was kept as it was before the first: it changes nothing."
    later = f"; what came after update {validated} was not validated, as the time was over" * (
        steps > validated
    )
    return f"The adapter was kept as it was after update {at}, where the validation part went best{later}."


def arms(evidence: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """Title and metrics of every arm; evidence without ``arms`` has two."""
    if evidence.get("arms"):
        return [
            (ARMS.get(arm["name"], arm.get("title", arm["name"])), arm["metrics"]) for arm in evidence["arms"]
        ]
    found = evidence["metrics"]
    return [
        (
            ARMS[arm],
            {name: found[f"{arm}_{name}"] for name in METRICS if found.get(f"{arm}_{name}") is not None},
        )
        for arm in ("base", "adapter")
    ]


@dataclass(frozen=True)
class Table:
    """Text in cells; ``best`` are (row, column) of what is best in its row, ``words`` columns that are no numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    words: frozenset[int] = frozenset()


def arms_table(evidence: Mapping[str, Any]) -> Table:
    """Metrics by arms, the first column naming the metric; what was not measured is "-"."""
    found = arms(evidence)
    rows: list[tuple[str, ...]] = []
    best: set[tuple[int, int]] = set()
    for name, (title, form, less_is_better) in METRICS.items():
        values = [metrics.get(name) for _, metrics in found]
        known = [value for value in values if value is not None]
        if not known:
            continue
        target = min(known) if less_is_better else max(known)
        if len(set(known)) > 1:
            best |= {(len(rows), at) for at, value in enumerate(values, start=1) if value == target}
        hint = " (less is better)" if less_is_better else ""
        rows.append((title + hint, *("-" if value is None else form(value) for value in values)))
    return Table(("on code it never saw", *(title for title, _ in found)), tuple(rows), frozenset(best))


@dataclass(frozen=True)
class Change:
    """One metric of one arm against another: fractions, with their 95 % interval."""

    metric: str
    arm: str
    against: str
    change: float
    low: float
    high: float
    files: int
    tasks: int
    unit: str

    @property
    def value(self) -> str:
        """The change as text."""
        return self._form(self.change)

    @property
    def interval(self) -> str:
        """Its interval as text."""
        return f"{self._form(self.low)} to {self._form(self.high)}"

    @property
    def sides(self) -> str:
        """``adapter against base``."""
        return f"{ARMS.get(self.arm, self.arm)} against {ARMS.get(self.against, self.against)}"

    @property
    def told(self) -> str:
        """``adapter against base -7.0% (95 % interval -9.0% to -5.0%)``; points are said."""
        points = "" if self.unit == "relative" else " points"
        return f"{self.sides} {self.value}{points} (95 % interval {self.interval})"

    @property
    def better(self) -> bool | None:
        """Whether the whole interval is better or worse; None where it spans zero."""
        less_is_better = METRICS[self.metric][2] if self.metric in METRICS else False
        if self.high < 0:
            return less_is_better
        return not less_is_better if self.low > 0 else None

    def _form(self, value: float) -> str:
        return f"{value:+.1%}" if self.unit == "relative" else f"{100 * value:+.1f}"


def changes(evidence: Mapping[str, Any]) -> list[Change]:
    """All comparisons; evidence without them has the one of its verdict."""
    if evidence.get("comparisons"):
        return [
            Change(
                item["metric"], item["arm"], item["against"], item["change"], *interval_ends(item),
                item.get("files", 0), item.get("tasks", 0), item.get("unit", "relative"),
            )
            for item in evidence["comparisons"]
            if all(isinstance(item.get(name), int | float) for name in ("change", "low", "high"))
        ]  # fmt: skip
    found = evidence.get("metrics") or {}
    names = ("bits_per_byte_change", "bits_per_byte_change_low", "bits_per_byte_change_high")
    if not all(name in found for name in names):
        return []
    change, low, high = (found[name] for name in names)
    return [
        Change("bits_per_byte", "adapter", "base", change, low, high, len(evidence["files"]), 0, "relative")
    ]


def interval_ends(item: Mapping[str, Any]) -> tuple[float, float]:
    """Of a comparison's interval; earlier versions told one from nothing to nothing where nothing differed."""
    low, high = item["low"], item["high"]
    if item["change"] == low == high == 0:
        high = unseen_share(item.get("files", 0))
        low = -high
    return low, high


def kinds_table(evidence: Mapping[str, Any]) -> Table:
    """Answers that are exactly right by kind of task and arm, with the change from base to adapter; empty without kinds."""
    found = arms(evidence)
    against = {item.metric: item for item in changes(evidence) if (item.arm, item.against) == ("adapter", "base")}  # fmt: skip
    rows = []
    for name, title in _EXACT.items():
        values = [metrics.get(name) for _, metrics in found]
        change = against.get(name)
        if all(value is None for value in values):
            continue
        cells = ("-" if value is None else f"{value:.1%}" for value in values)
        told = ("-", "-") if change is None else (str(change.tasks), f"{change.value} ({change.interval})")
        rows.append((title, told[0], *cells, told[1]))
    columns = ("exactly right", "tasks", *(title for title, _ in found), "adapter against base, points")
    return Table(columns, tuple(rows))


def answers(evidence: Mapping[str, Any], arm: str = "adapter", against: str = "base") -> str:
    """How an arm's answers are against another's (`answers_state`), also in evidence that does not say it."""
    return answers_state(
        (item.metric, item.low, item.high)
        for item in changes(evidence)
        if (item.arm, item.against) == (arm, against)
    )


def remarks(evidence: Mapping[str, Any]) -> list[str]:
    """What must be said also where it speaks against the adapter: retrieval or a stranger's adapter did as well."""
    said = []
    for item in changes(evidence):
        what = METRICS[item.metric][0] if item.metric in METRICS else item.metric
        sides = {item.arm, item.against}
        adapter_better = item.better if item.arm == "adapter" or item.better is None else not item.better
        if sides == {"adapter", "base_bm25"} and adapter_better is False:
            said.append(f'Retrieval alone did better in "{what}": {item.told}.')
        if sides == {"adapter", "base"} and adapter_better is False and item.metric != "bits_per_byte":
            said.append(f'The adapter did worse in "{what}": {item.told}.')
        if sides == {"adapter", "control"} and adapter_better is not True:
            said.append(
                f'In "{what}" an adapter of another repository (the control) did not do clearly worse: {item.told}.'
            )
    return said


@dataclass(frozen=True)
class GuardShown:
    """A guard for people; ``state`` is "passed", "failed", or "unclear" where it says neither."""

    title: str
    state: str
    reason: str

    @property
    def sign(self) -> str:
        """What it is recognised by without colour."""
        return {"passed": "✓", "failed": "✗"}.get(self.state, "?")


def guards(evidence: Mapping[str, Any]) -> list[GuardShown]:
    """Every guard. One that was not measured, or whose interval does not leave out what it guards against, is unclear."""
    lows = {
        item.metric: item.low for item in changes(evidence) if (item.arm, item.against) == ("adapter", "base")
    }
    return [
        GuardShown(
            GUARDS.get(guard["name"], guard["name"]),
            _state(guard, lows.get("fim_parse_ok")),
            as_sentence(str(guard.get("reason") or "")),
        )
        for guard in evidence.get("guards") or ()
    ]


def _state(guard: Mapping[str, Any], parse_low: float | None) -> str:
    """``parse_low`` is the lower end of the interval in which the change of the share of parsing FIM spans lies, where it is known."""
    if not guard["passed"]:
        return "failed"
    least = measured = guard.get("measured")
    if guard["name"] == "parse_ok" and parse_low is not None and measured is not None:
        least = min(measured, parse_low)
    fell = guard["name"] == "parse_ok" and least is not None and least < -guard["limit"]
    return "unclear" if measured is None or fell else "passed"


def as_sentence(text: str) -> str:
    """``text`` with a capital and a full stop; "" stays."""
    return text if not text else text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


@dataclass(frozen=True)
class Gain:
    """Bits per byte of a group of unseen files; ``change`` is the adapter's against the base's, as a fraction."""

    name: str
    files: int
    bytes: int
    base: float
    adapter: float

    @property
    def change(self) -> float:
        """Negative is better."""
        return self.adapter / self.base - 1 if self.base else 0.0


def gains(files: Iterable[Mapping[str, Any]], group_of: Callable[[Mapping[str, Any]], str]) -> list[Gain]:
    """Files by group, weighted by their bytes, the largest group first; the smallest become "others"."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for file in files:
        groups.setdefault(group_of(file), []).append(file)
    ordered = sorted(groups.items(), key=lambda item: (-sum(file["bytes"] for file in item[1]), item[0]))
    if len(ordered) > _MOST_GROUPS:
        rest = [file for _, members in ordered[_MOST_GROUPS - 1 :] for file in members]
        ordered = [*ordered[: _MOST_GROUPS - 1], ("others", rest)]
    return [_gain(name, members) for name, members in ordered]


def _gain(name: str, files: Sequence[Mapping[str, Any]]) -> Gain:
    size = sum(file["bytes"] for file in files)
    base, adapter = (
        sum(file["bytes"] * file[f"{arm}_bits_per_byte"] for file in files) / max(1, size)
        for arm in ("base", "adapter")
    )
    return Gain(name, len(files), size, base, adapter)


def language_gains(evidence: Mapping[str, Any]) -> list[Gain]:
    """By language; empty where the evidence does not tell them."""
    files = [file for file in evidence["files"] if file.get("language")]
    return gains(files, lambda file: str(file["language"]))


def directory_gains(evidence: Mapping[str, Any]) -> list[Gain]:
    """By the first directory that not all files share; empty where there is one group only."""
    files = evidence["files"]
    parts = [PurePosixPath(file["path"]).parts[:-1] for file in files]
    shared = 0
    while parts and all(len(one) > shared and one[shared] == parts[0][shared] for one in parts):
        shared += 1

    def group_of(file: Mapping[str, Any]) -> str:
        directory = PurePosixPath(file["path"]).parts[:-1][: shared + 1]
        return "/".join(directory) + "/" if directory else "(top)"

    found = gains(files, group_of)
    return found if len(found) > 1 else []


def best_and_worst(evidence: Mapping[str, Any], most: int = 3) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Samples under headings: where the adapter came closer to what stands there than the base, and where less close.

    Those whose similarity did not change, as it is shown, are neither; where gains are not known, all are as they are.
    """
    samples = list(evidence.get("samples") or ())
    if not samples:
        return []
    if not all(isinstance(sample.get("gain"), int | float) for sample in samples):
        return [("Side by side", samples)]
    ordered = sorted(samples, key=lambda sample: -sample["gain"])
    parts = [
        ("Where the adapter gained most", [sample for sample in ordered if sample["gain"] >= _SEEN][:most]),
        ("Where it lost most", [sample for sample in reversed(ordered) if sample["gain"] <= -_SEEN][:most]),
    ]
    found = [(title, some) for title, some in parts if some]
    return found or [("In no sample did base and adapter differ", ordered[:most])]


def similarity(sample: Mapping[str, Any]) -> str:
    """``similarity +62 points``: the adapter's against the base's; "" where it is not known."""
    gain = sample.get("gain")
    if not isinstance(gain, int | float):
        return ""
    return f"similarity {100 * gain:+.0f} points" if abs(gain) >= _SEEN else "same similarity"
