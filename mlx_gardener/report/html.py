"""report.html: one self-contained page about a run, with inline SVG and no scripts; light and dark, phone, desk, paper.

In: what the manifest holds, the evidence with its source texts, the run's events. Out: the page. Parts that are not
there (older evidence, a run without steps) are left out. Cost: under a second, most of it syntax colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mlx_gardener.events import Event, MemoryMeasured, StepCompleted
from mlx_gardener.platform.sizes import GIB
from mlx_gardener.report import advice, story
from mlx_gardener.report.code import CSS as CODE_CSS
from mlx_gardener.report.groups import groups_table
from mlx_gardener.report.model_card import environment
from mlx_gardener.report.plan_view import PART_COLOURS, PARTS
from mlx_gardener.report.recipe import About, all_settings, train_command
from mlx_gardener.report.scan_view import RULES
from mlx_gardener.report.svg import (
    Series,
    colour,
    interval_plot,
    line_chart,
    loss_chart,
    stacked_bar,
    variables,
)
from mlx_gardener.report.text import counted, edits_told, file_size
from mlx_gardener.report.time_view import time_line

_DARK = "--ink:#e6edf3;--paper:#0d1117;--panel:#161b22;--rule:#3d444d;--muted:#9198a1;"


def render_report_html(facts: dict[str, Any], *, events: Sequence[Event]) -> str:
    """The page.

    Args:
        facts: as for the model card, with the evidence's source texts; ``scan`` (`source.Scan.to_json`), ``base`` and
            ``versions`` as in the manifest are shown where they are given.
        events: of the run; memory over time is drawn from them.
    """
    shown = (
        evidence_parts(facts["evidence"], about=About.of(facts, facts["project"]), training=facts["training"])
        | run_parts(facts, events)
        | data_parts(facts)
        | recipe_parts(facts)
    )
    contents = [
        ("evidence", "Evidence", True),
        ("words", "What the words mean", True),
        (
            "gains",
            "Where it helps",
            shown["language_gains"] or shown["directory_gains"] or shown["groups_table"].rows,
        ),
        ("samples", "Side by side", shown["samples"]),
        ("training", "Training", True),
        ("data", "Data", True),
        ("files", "Files", True),
        ("reproduce", "Make it again", True),
    ]
    return (
        environment()
        .get_template("report.html")
        .render(
            facts,
            **shown,
            **styles("body"),
            contents=[(anchor, title) for anchor, title, there in contents if there],
        )
    )


def styles(scope: str) -> dict[str, Markup]:
    """CSS of everything inside ``scope``, and the declarations that make it dark."""
    light = variables(dark=False)
    style = environment().get_template("style.css").render(scope=scope, light=light) + CODE_CSS
    return {"style": Markup(style), "dark": Markup(variables(dark=True) + _DARK)}


def evidence_parts(
    evidence: Mapping[str, Any], *, about: About, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is shown of the evidence; ``about`` and ``training`` are for what to do next."""
    by_language, by_directory = story.language_gains(evidence), story.directory_gains(evidence)
    found = story.changes(evidence)
    sweep = evidence.get("scale_sweep")
    files = sorted(evidence["files"], key=lambda file: -file["bytes"])
    return {
        "headline": advice.headline(evidence),
        "meaning": advice.meaning(evidence),
        "steps": advice.next_steps(evidence, about, training=training),
        "power": advice.power(evidence),
        "glossary": advice.GLOSSARY,
        "guards": story.guards(evidence),
        "remarks": story.remarks(evidence),
        "arms_table": story.arms_table(evidence),
        "kinds_table": story.kinds_table(evidence),
        "groups_table": groups_table(evidence),
        "interval_plots": interval_plots(found),
        "changes_table": story.Table(
            ("change", "by", "95 % interval", "files", "tasks"),
            tuple(
                (
                    f"{_metric_title(item.metric)}: {item.sides}",
                    item.value,
                    item.interval,
                    str(item.files),
                    str(item.tasks or "-"),
                )
                for item in found
            ),
        ),
        "sweep_chart": Markup(_sweep_chart(sweep)) if sweep else "",
        "language_gains": by_language,
        "directory_gains": by_directory,
        "most_gain": _scale_end(by_language + by_directory),
        "samples": story.best_and_worst(evidence),
        "files_table": story.Table(
            ("unseen file", "bytes", "base", "adapter"),
            tuple(
                (
                    file["path"],
                    f"{file['bytes']:,}",
                    f"{file['base_bits_per_byte']:.3f}",
                    f"{file['adapter_bits_per_byte']:.3f}",
                )
                for file in files
            ),
        ),
    }


def _scale_end(found: Sequence[story.Gain]) -> float:
    """What half of a bar stands for: a round share, never so little that a change of no account fills it."""
    most = max((abs(gain.change) for gain in found), default=0.0)
    return next((end for end in (0.1, 0.2, 0.5, 1.0) if most <= end), most)


def _metric_title(metric: str) -> str:
    return story.METRICS[metric][0] if metric in story.METRICS else metric


def interval_plots(found: Sequence[story.Change]) -> list[tuple[str, Markup]]:
    """A title and a plot for every metric that was compared."""
    plots = []
    for metric in dict.fromkeys(item.metric for item in found):
        items = [item for item in found if item.metric == metric]
        below = story.METRICS[metric][2] if metric in story.METRICS else False
        relative = items[0].unit == "relative"
        title = f"{_metric_title(metric).capitalize()}, change in {'%' if relative else 'points'}"
        told = "; ".join(f"{item.sides} {item.value}, {item.interval}" for item in items)
        plot = interval_plot(
            [
                (
                    story.ARMS.get(item.arm, item.arm),
                    story.ARMS.get(item.against, item.against),
                    item.change,
                    item.low,
                    item.high,
                )
                for item in items
            ],
            title=f"{title}: {told}",
            values=[item.value for item in items],
            better_below=below,
            per_cent="%" if relative else "points",
        )
        plots.append((title, Markup(plot)))
    return plots


def _sweep_chart(sweep: Mapping[str, Any]) -> str:
    points = [
        (float(scale), float(bits))
        for scale, bits in zip(sweep["scales"], sweep["bits_per_byte"], strict=True)
    ]
    return line_chart(
        [("validation part", "blue", points)],
        title=f"Bits per byte over the adapter's scale; {sweep['chosen']:g} was chosen",
        x_label="scale of the adapter",
        y_label="bits per byte",
        mark=float(sweep["chosen"]),
        height=200,
    )


def run_parts(facts: Mapping[str, Any], events: Sequence[Event]) -> dict[str, Any]:
    """Loss, memory over time, and what the budget was planned for."""
    plan = facts.get("plan") or {}
    parts = memory_parts(plan)
    return {
        "loss_chart": Markup(loss_chart(facts["training"])),
        "memory_chart": Markup(memory_chart(events, plan)),
        "memory_parts": parts,
        "memory_bar": Markup(memory_bar(plan)) if parts else "",
        "kept": story.kept(facts["training"]),
        "time_told": time_line(facts["training"]["time_plan"]) if facts["training"].get("time_plan") else "",
    }


def memory_parts(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, bytes, share and colour of the plan's parts, and of what is left; empty without a plan."""
    budget = plan.get("budget_bytes", 0)
    if not budget or not plan.get("predicted_parts"):
        return []
    parts = [
        {
            "title": PARTS.get(name, name),
            "bytes": size,
            "share": size / budget,
            "colour": Markup(colour(PART_COLOURS.get(name, "grey"))),
        }
        for name, size in plan["predicted_parts"].items()
        if size
    ]
    left = budget - sum(plan["predicted_parts"].values())
    return [*parts, {"title": "left of the budget", "bytes": left, "share": left / budget, "colour": None}]


def memory_bar(plan: Mapping[str, Any]) -> str:
    """The plan's parts side by side in the budget."""
    sizes = {
        PARTS.get(name, name): (size / GIB, PART_COLOURS.get(name, "grey"))
        for name, size in plan["predicted_parts"].items()
        if size
    }
    told = ", ".join(f"{name} {size:.2f} GB" for name, (size, _) in sizes.items())
    budget = plan["budget_bytes"] / GIB
    return stacked_bar(sizes, whole=budget, title=f"Plan for {budget:g} GB: {told}", width=720)


def memory_chart(events: Sequence[Event], plan: Mapping[str, Any] | None = None) -> str:
    """Footprint of the process and MLX's arrays against budget and plan, in GB over minutes; "" for a run without steps."""
    measured = [event for event in events if isinstance(event, MemoryMeasured)]
    if not measured:
        return ""
    start = next((event for event in events if isinstance(event, StepCompleted)), measured[0]).timestamp
    minutes = [(event.timestamp - start) / 60 for event in measured]

    def over_time(sizes: Sequence[float]) -> list[tuple[float, float]]:
        return [(at, size / GIB) for at, size in zip(minutes, sizes, strict=True)]

    def level(size: float) -> list[tuple[float, float]]:
        return [(at, size / GIB) for at in (minutes[0], minutes[-1])]

    budget = measured[0].budget_bytes
    series: list[Series] = [
        ("process", "green", over_time([event.footprint_bytes for event in measured])),
        ("MLX's arrays", "blue", over_time([event.active_bytes for event in measured])),
        ("budget", "red", level(budget)),
    ]
    if plan and plan.get("predicted_peak_bytes"):
        series.insert(2, ("planned peak", "yellow-dashed", level(plan["predicted_peak_bytes"])))
    most = max(event.footprint_bytes for event in measured) / GIB
    title = f"Memory over time: the process took at most {most:.2f} GB of {budget / GIB:.2f} GB"
    return line_chart(series, title=title, x_label="minutes", y_label="GB", zero=True)


def data_parts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained on and what was left out, by rule and, of secrets, by place."""
    summary, scan = facts["data"]["summary"], facts.get("scan") or {}
    dropped = scan.get("dropped") or summary["dropped"]
    with_examples = any("examples" in item for item in dropped.values())
    rows = [
        (
            RULES.get(rule, rule.replace("_", " ")),
            counted(item["count"], item["unit"]),
            *((file_size(item["bytes"]), ", ".join(item["examples"][:2])) if with_examples else ()),
        )
        for rule, item in sorted(dropped.items(), key=lambda pair: -pair[1].get("bytes", pair[1]["count"]))
    ]
    if summary.get("chunks_over_maximum"):
        cells = ("", "") if with_examples else ()
        rows.append(("over max_training_chunks", counted(summary["chunks_over_maximum"], "chunk"), *cells))
    columns = ("because", "count", "size", "for example") if with_examples else ("because", "count")
    split = summary.get("split") or {}
    return {
        "split_table": story.Table(
            ("part", "files", "bytes"),
            tuple((name, str(part["files"]), f"{part['bytes']:,}") for name, part in split.items()),
        )
        if split
        else None,
        "languages_table": story.Table(
            ("language", "files", "chunks", "bytes"),
            tuple(
                (name, str(counts["files"]), str(counts["chunks"]), f"{counts['bytes']:,}")
                for name, counts in sorted(summary["languages"].items(), key=lambda item: -item[1]["bytes"])
            ),
        ),
        "dropped_table": story.Table(columns, tuple(rows), words=frozenset({3})),
        "secrets": scan.get("secrets") or [],
        "edits": edits_told(summary),
    }


def recipe_parts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Command, hashes, versions and settings."""
    config, data, base = facts["config"], facts["data"], facts.get("base") or {}
    hashes = [
        ("base model", facts["base_model"]),
        ("its revision", base.get("revision")),
        ("its weights, sha256", base.get("weights_sha256")),
        ("commit", data.get("commit")),
        ("list of files, sha256", data.get("file_list_sha256")),
        ("training rows, sha256", data.get("data_sha256")),
        ("versions", ", ".join(f"{name} {value}" for name, value in (facts.get("versions") or {}).items())),
    ]
    return {
        "command": train_command(config, facts["base_model"], facts["project"]),
        "hashes": [(name, value) for name, value in hashes if value],
        "settings": all_settings(config, facts["base_model"]),
    }
