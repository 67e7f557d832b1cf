"""The tables of `knows`: means over repositories with intervals, bars, and Markdown. In: what it keeps. Cost: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.machine import bar
from mlx_gardener.evaluate.statistics import Change, share_change

ARMS = ("base", "base_bm25", "adapter", "adapter_bm25", "control")
METRICS = (
    ("bits_per_byte", "bits per byte", "{:.3f}"),
    ("read_line_exact", "lines read exact", "{:.1%}"),
    ("read_cross_file_exact", "cross-file lines read exact", "{:.1%}"),
    ("read_assertion_exact", "assertions read exact", "{:.1%}"),
    ("next_line_exact", "next line exact", "{:.1%}"),
    ("next_line_similarity", "similarity", "{:.1%}"),
    ("cross_file_exact", "cross-file exact", "{:.1%}"),
    ("assertion_exact", "assertion exact", "{:.1%}"),
    ("fim_exact", "span exact", "{:.1%}"),
    ("answers_exact", "all answers exact", "{:.1%}"),
    ("answers_similarity", "similarity", "{:.1%}"),
    ("answers_f1", "own names F1", "{:.1%}"),
)
#: Metrics of one kind of task, which a repository may have few of.
KIND_OF = {
    "next_line_exact": "next_line",
    "next_line_similarity": "next_line",
    "cross_file_exact": "cross_file",
    "assertion_exact": "assertion",
    "fim_exact": "fim",
    "read_line_exact": "read_line",
    "read_cross_file_exact": "read_cross_file",
    "read_assertion_exact": "read_assertion",
}
#: A repository with fewer tasks of a kind counts in no mean of that kind: one assertion would be 100 points.
LEAST_TASKS = 5
#: What is compared: an arm against another one.
PAIRS = (
    ("adapter", "base"),
    ("base_bm25", "base"),
    ("adapter_bm25", "base"),
    ("adapter_bm25", "base_bm25"),
    ("adapter_bm25", "adapter"),
    ("adapter", "control"),
)


def arm_metrics(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of every arm of an evidence."""
    return {arm["name"]: dict(arm["metrics"]) for arm in entry["evidence"]["arms"]}


def task_counts(entry: Mapping[str, Any]) -> dict[str, int]:
    """How many tasks of each kind an evidence has, and lines that were read."""
    counts: dict[str, int] = {}
    for group in entry["evidence"]["groups"]:
        counts[group["kind"]] = counts.get(group["kind"], 0) + group["tasks"]
    return counts


def has_enough(entry: Mapping[str, Any], metric: str) -> bool:
    """Whether a repository's figure may stand in a mean: it rests on `LEAST_TASKS` tasks, where it rests on tasks of a kind."""
    kind = KIND_OF.get(metric)
    return kind is None or task_counts(entry).get(kind, 0) >= LEAST_TASKS


def mean_change(changes: Mapping[str, float]) -> dict[str, Any]:
    """The mean over repositories of paired changes, with its 95 % interval; the repositories are the units."""
    names = sorted(changes)
    found: Change = share_change([0.0] * len(names), [changes[name] for name in names], names, seed=0)
    return {
        "change": round(found.change, 5),
        "low": round(found.low, 5),
        "high": round(found.high, 5),
        "repositories": len(names),
    }


def changes(
    found: Mapping[str, Mapping[str, Any]],
    arm: str,
    against: str,
    metric: str,
    other: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """By repository, what a metric of an arm is beyond that of another one; of bits per byte the relative change.

    Args:
        other: where ``against`` is taken from; the same evidence when None.
    """
    result = {}
    for name, entry in found.items():
        if (other is not None and name not in other) or not has_enough(entry, metric):
            continue
        mine, theirs = arm_metrics(entry).get(arm, {}), arm_metrics((other or found)[name]).get(against, {})
        if metric in mine and metric in theirs and (metric != "bits_per_byte" or theirs[metric]):
            result[name] = (
                mine[metric] / theirs[metric] - 1
                if metric == "bits_per_byte"
                else mine[metric] - theirs[metric]
            )
    return result


def means(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """By variant: the mean of every arm's metrics, and the changes between arms; and between variants, of the same arm.

    Args:
        found: variant, repository, what `evaluate` gives.
    """
    result: dict[str, Any] = {}
    first = next(iter(found), "")
    for variant, entries in found.items():
        arms: dict[str, dict[str, float]] = {}
        for arm in ARMS:
            rows = [(entry, arm_metrics(entry).get(arm, {})) for entry in entries.values()]
            for metric, *_ in METRICS:
                values = [row[metric] for entry, row in rows if metric in row and has_enough(entry, metric)]
                if values:
                    arms.setdefault(arm, {})[metric] = round(sum(values) / len(values), 5)
        pairs = [
            {"arm": arm, "against": against, "metric": metric, **mean_change(between)}
            for arm, against in PAIRS
            for metric, *_ in METRICS
            if (between := changes(entries, arm, against, metric))
        ]
        beside = [
            {"arm": arm, "against": first, "metric": metric, **mean_change(between)}
            for arm in ("adapter", "adapter_bm25")
            for metric, *_ in METRICS
            if variant != first and (between := changes(entries, arm, arm, metric, found[first]))
        ]
        result[variant] = {"arms": arms, "changes": pairs, "against_first": beside}
    return result


def bars(mean: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, over the repositories that are done."""

    def change(arm: str, against: str, metric: str) -> dict[str, Any] | None:
        pick = (arm, against, metric)
        return next(
            (row for row in mean["changes"] if (row["arm"], row["against"], row["metric"]) == pick), None
        )

    rows = []
    for metric, points, relative in (
        ("next_line_exact", 0.1, 0.4),
        ("read_line_exact", 0.1, 0.4),
        ("cross_file_exact", 0.15, 0.6),
        ("read_cross_file_exact", 0.15, 0.6),
        ("assertion_exact", 0.1, None),
        ("read_assertion_exact", 0.1, None),
    ):
        seen, base = change("adapter_bm25", "base", metric), mean["arms"].get("base", {}).get(metric)
        if seen is not None and base is not None:
            met = seen["change"] >= points or (
                relative is not None and base > 0 and seen["change"] / base >= relative
            )
            wanted = f"+{points:.0%}" + (f" or +{relative:.0%} relative" if relative else "")
            rows.append(bar(f"{metric}: adapter + retrieval", "base", wanted, told(seen), met))
    for metric in ("next_line_exact", "read_line_exact"):
        if (seen := change("adapter_bm25", "base_bm25", metric)) is not None:
            title, met = f"{metric}: adapter + retrieval", seen["low"] > 0
            rows.append(bar(title, "base + retrieval", "interval above zero", told(seen), met))
    if (seen := change("adapter", "base", "bits_per_byte")) is not None:
        rows.append(bar("bits per byte: adapter", "base", "-15%", told(seen), seen["change"] <= -0.15))
    lost = changes(found, "adapter", "control", "bits_per_byte")
    if lost:
        worse = sum(value < 0 for value in lost.values())
        rows.append(
            bar(
                "the control loses",
                "adapter of another repository",
                "all",
                f"{worse} of {len(lost)}",
                worse == len(lost),
            )
        )
    guards = [
        guard
        for entry in found.values()
        for guard in entry["evidence"]["guards"]
        if guard["name"] == "forgetting"
    ]
    if guards:
        passed = sum(guard["passed"] for guard in guards)
        rows.append(
            bar(
                "forgetting within its guard",
                "base",
                "all",
                f"{passed} of {len(found)}",
                passed == len(found),
            )
        )
    return rows


def told(change: Mapping[str, Any]) -> str:
    """``+4.2% (+1.0% to +7.4%)``; of one repository, which tells nothing of others, the change alone."""
    if change["repositories"] < 2:
        return f"{change['change']:+.1%}"
    return f"{change['change']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as ``benchmarks/results/knows_NAME.md`` holds them."""
    titles = [title for _, title, _ in METRICS]
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"# What adapters know of repositories that {result['model']} cannot have seen",
        "",
        f"{machine['chip']}, {machine['cores']} cores, {machine['memory_gib']} GiB, MLX {machine['mlx']} "
        f"({machine['backend']}), {machine['date']}. "
        f"{result['tasks']} tasks of each kind and repository at most, on held-out files. Settings beside the defaults: "
        + ", ".join(f"`{key}={value}`" for key, value in settings.items())
        + f". Made by `python -m benchmarks.knows`; `knows_{result['name']}.json` has every interval.",
    ]
    for variant, entries in result["evidence"].items():
        mean = result["means"][variant]
        lines += ["", f"## {variant or 'as set'}", ""]
        lines += ["| repository | arm | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
        rows = [
            (name, arm, values)
            for name, entry in entries.items()
            for arm, values in arm_metrics(entry).items()
        ]
        for arm, values in mean["arms"].items():
            count = sum(arm in arm_metrics(entry) for entry in entries.values())
            rows.append((f"**mean of {count}**", arm, values))
        for name, arm, values in rows:
            cells = [form.format(values[metric]) if metric in values else "" for metric, _, form in METRICS]
            lines.append(f"| {name} | {arm} | " + " | ".join(cells) + " |")
        for title, key in (
            ("change", "changes"),
            (f"against {next(iter(result['evidence'])) or 'as set'}", "against_first"),
        ):
            if not mean[key]:
                continue
            lines += [
                "",
                f"| {title}, mean over repositories | " + " | ".join(titles) + " |",
                "|---" * (len(titles) + 1) + "|",
            ]
            for arm, against in dict.fromkeys((row["arm"], row["against"]) for row in mean[key]):
                found = {
                    row["metric"]: row for row in mean[key] if (row["arm"], row["against"]) == (arm, against)
                }
                cells = [told(found[metric]) if metric in found else "" for metric, *_ in METRICS]
                lines.append(f"| {arm} against {against or 'as set'} | " + " | ".join(cells) + " |")
        lines += ["", "| bar | against | wanted | seen | met |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['measure']} | {row['against']} | {row['bar']} | {row['seen']} | {'yes' if row['met'] else 'no'} |"
            for row in result["bars"][variant]
        ]
        lines += [
            "",
            "| repository | files | kB to learn from | updates | minutes | with retrieved code | lines read | "
            "of them cross-file | assertions read | tasks: lines | cross-file | assertions | spans | verdict |",
            "|---" * 14 + "|",
        ]
        for name, entry in entries.items():
            retrieval, counts = entry["retrieval"] or {"examples": 0}, task_counts(entry)
            lines.append(
                f"| {name} | {entry['files']} | {entry['train_bytes'] / 1000:.0f} | {entry['updates']} | "
                f"{entry['training_seconds'] / 60:.1f} | {retrieval['examples']} | "
                + "".join(
                    f"{counts.get(kind, 0)} | "
                    for kind in (
                        "read_line",
                        "read_cross_file",
                        "read_assertion",
                        "next_line",
                        "cross_file",
                        "assertion",
                        "fim",
                    )
                )
                + f"{entry['evidence']['verdict']} |"
            )
    lines += [
        "",
        "Changes of bits per byte are relative, others in points; 95 % intervals with repositories as the units. Of a repository "
        f"alone, intervals by file are in the JSON file. A repository with fewer than {LEAST_TASKS} tasks of a kind counts in no mean "
        "of that kind.",
    ]
    return "\n".join(lines) + "\n"
