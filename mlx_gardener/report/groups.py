"""Answers by language and kind of task: where an adapter helps, and what to do where it does not.

In: ``Evidence.to_json()``. Out: a table as `report.story` has them. Cost: nothing to speak of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_gardener.report.story import ARMS, KINDS, Change, Table, interval_ends

#: So few tasks of a group say nothing, whatever came out (judgement).
_FEWEST_IN_GROUP = 8


def groups_table(evidence: Mapping[str, Any]) -> Table:
    """Exactly right answers by language and kind, and what to do where the adapter does not help; empty without groups."""
    known = [group for group in evidence.get("groups") or () if group.get("exact")]
    shown = [arm for arm in ARMS if any(arm in group["exact"] for group in known)]
    rows = []
    for group in known:
        cells = ("-" if (share := group["exact"].get(arm)) is None else f"{share:.1%}" for arm in shown)
        change = Change(
            "", "", "", group["change"], *interval_ends(group), group["files"], group["tasks"], "points"
        )
        kind = KINDS.get(group["kind"], group["kind"])
        counts = (f"{group['tasks']} in {group['files']}",)
        change_told = f"{change.value} ({change.interval})"
        advice = _group_advice(group, change)
        rows.append((f"{group['language']}, {kind}", *counts, *cells, change_told, advice))
    told = ("adapter against base, points", "where it does not help")
    columns = ("language and kind", "tasks in files", *(ARMS[arm] for arm in shown), *told)
    return Table(columns, tuple(rows), words=frozenset({len(columns) - 1}))


def _group_advice(group: Mapping[str, Any], change: Change) -> str:
    """What to do about a group; what is likely where nothing is sure."""
    exact, tasks = group["exact"], group["tasks"]
    if change.low > 0:
        return ""
    retrieving = max((exact[arm] for arm in ("base_bm25", "adapter_bm25") if arm in exact), default=-1.0)
    if tasks < _FEWEST_IN_GROUP:
        read = str(group["kind"]).startswith("read_")  # as many are read, however many tasks are asked
        return "too few to say" if read else "too few tasks to say: eval --thorough"
    if change.high < 0:
        retrieval_alone = exact.get("base_bm25", -1.0) >= exact["base"]
        return "worse: " + (
            "retrieval only" if retrieval_alone else "a smaller learning rate, or a larger base"
        )
    if retrieving > max(exact["base"], exact["adapter"]):
        return "not told apart: retrieval does most"
    if max(exact.values()) == 0:
        return "none is right: a larger base"
    return "not told apart: more steps, or a larger base"
