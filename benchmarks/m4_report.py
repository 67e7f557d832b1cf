"""The table and the picture of `m4_throughput.py`'s result, and the figures that both show."""

from __future__ import annotations

import statistics
from html import escape
from typing import Any

from machine import spread

GIB = 2**30
OURS = "mlx_gardener"
SIDES = (OURS, "mlx_lm", "mlx_lm --grad-checkpoint")
_CLASSES = {OURS: "ours", SIDES[1]: "theirs", SIDES[2]: "checked"}


def counted_steps(report: dict[str, Any]) -> slice:
    """Which steps count: whole passes after the first, in which shapes are met first; else all but the first step.

    A side that made only one step is taken by that.
    """
    made, first, per_pass = len(report["seconds"]), report["first_steps"], report["steps_per_pass"]
    passes = (made - first) // per_pass
    if passes >= 2:
        return slice(first + per_pass, first + passes * per_pass)
    return slice(min(1, made - 1), made)


def loss_tokens_per_second(report: dict[str, Any]) -> float:
    """Positions a second of the counted steps, times the share of positions that bear loss in a whole pass.

    For whole passes that is their loss-bearing tokens over their seconds. A part of a pass may hold batches with more
    or less padding than the rest, which must not decide.
    """
    steps = counted_steps(report)
    return loss_share(report) * sum(report["positions"][steps]) / sum(report["seconds"][steps])


def loss_share(report: dict[str, Any]) -> float:
    """The share of a pass's positions that bear loss: all but padding and the first token of every document."""
    return float(report["loss_tokens_per_pass"] / report["positions_per_pass"])


def summary(cells: list[dict[str, Any]], models: list[str]) -> list[dict[str, Any]]:
    """A row for each model and side: spreads over rounds, greatest peaks, the ratio to the better of mlx-lm's, failures."""
    rows: list[dict[str, Any]] = []
    for model in models:
        of_model = [_row(model, side, cells) for side in SIDES]
        theirs = [row["loss_tokens_per_second"] for row in of_model if row["side"] != OURS]
        best = max((speed["median"] for speed in theirs if speed), default=0.0)
        for row in of_model:
            speed = row["loss_tokens_per_second"]
            row["to_the_better_mlx_lm"] = round(speed["median"] / best, 3) if speed and best else None
        rows += of_model
    return rows


def _row(model: str, side: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [cell for cell in cells if cell["model"] == model and cell["side"] == side]
    good = [cell for cell in mine if cell.get("seconds") and "failed" not in cell]
    joules = [cell["joules_per_1000_loss_tokens"] for cell in good if cell.get("joules_per_1000_loss_tokens")]
    failures = [cell["failed"] for cell in mine if "failed" in cell]
    return {
        "model": model,
        "side": side,
        "loss_tokens_per_second": spread([loss_tokens_per_second(cell) for cell in good]) if good else None,
        "peak_footprint_bytes": max((cell["measured_peak_bytes"] for cell in mine), default=None),
        "peak_mlx_bytes": max((cell.get("peak_active_bytes") or 0 for cell in mine), default=0) or None,
        "joules_per_1000_loss_tokens": round(statistics.median(joules), 2) if joules else None,
        "failed": failures[-1] if failures else None,
        "out_of_memory": any(cell.get("out_of_memory") for cell in mine),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown page; the picture stands beside it under the same name."""
    machine, settings = result["machine"], result["settings"]
    where = f"{machine['chip']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
    lines = [
        f"# Throughput on {machine['chip']}",
        "",
        f"{where}; MLX {machine['mlx']} ({machine['backend']}), mlx-lm {machine['mlx_lm']}, {machine['date']}. "
        f"Battery: {_battery(machine)}; thermal state: {machine['thermal_before'] or 'unknown'} before, "
        f"{machine['thermal_after'] or 'unknown'} after. mlx_gardener within {settings['budget_gb']:g} GB; mlx_lm with "
        f"batches of {settings['batch']} x {settings['width']} at most. Tokens/s are loss-bearing ones, medians of rounds.",
        "",
        f"![Tokens a second and peak memory]({result['name']}.svg)",
        "",
        "| model | side | tokens/s | min to max | to the better mlx_lm | peak footprint | MLX peak | J / 1000 tokens | rounds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["summary"]:
        lines.append("| " + " | ".join(_cells_of(row)) + " |")
    lines += [""]
    lines += [f"- {model['name']}: {_kind(model)}" for model in result["models"]]
    lines += [f"- Not measured: {reason}." for reason in result["skipped"]]
    if result["energy"]["unavailable"]:
        lines += [f"- No energy: {result['energy']['unavailable']}."]
    return "\n".join(lines) + "\n"


def _cells_of(row: dict[str, Any]) -> list[str]:
    speed = row["loss_tokens_per_second"]
    if speed:
        figures = [f"{speed['median']:.1f}", f"{speed['min']:.1f} to {speed['max']:.1f}"]
    else:
        figures = [_table_text(row["failed"] or "not measured"), ""]
    ratio = row["to_the_better_mlx_lm"]
    energy = row["joules_per_1000_loss_tokens"]
    return [
        _table_text(row["model"]),
        row["side"],
        *figures,
        "" if ratio is None else f"{ratio:.2f}",
        _gib(row["peak_footprint_bytes"]),
        _gib(row["peak_mlx_bytes"]),
        "" if energy is None else f"{energy:.1f}",
        str(speed["rounds"]) if speed else "0",
    ]


def _kind(model: dict[str, Any]) -> str:
    kind = "random weights of this shape" if model["weights"] == "random" else "its own weights"
    kind += f", revision {model['revision']}" if model["revision"] else ""
    return f"{kind}, {model['bytes'] / GIB:.2f} GB"


def _battery(machine: dict[str, Any]) -> str:
    words = {True: "on battery", False: "on mains", None: "none"}[machine["on_battery"]]
    return words + (", low power mode" if machine["low_power_mode"] else "")


def _gib(size: int | None) -> str:
    return "" if not size else f"{size / GIB:.2f} GB"


def _table_text(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def picture(result: dict[str, Any]) -> str:
    """Bars of tokens a second and of peak footprint for every model and side, as SVG that reads in light and dark."""
    rows = result["summary"]
    fastest = max((row["loss_tokens_per_second"] or {"median": 0})["median"] for row in rows) or 1
    largest = max(row["peak_footprint_bytes"] or 0 for row in rows) or 1
    label, speeds, peaks, length = 12, 190, 470, 190
    parts = [
        f'<text x="{speeds}" y="20" class="title">tokens/s (more is better)</text>',
        f'<text x="{peaks}" y="20" class="title">peak memory (less is better)</text>',
    ]
    top = 24
    for row in rows:
        if row["side"] == SIDES[0]:
            top += 26
            name = row["model"].rpartition("/")[2]
            parts.append(f'<text x="{label}" y="{top}" class="title">{escape(name)}</text>')
            top += 4
        top += 20
        kind, speed = _CLASSES[row["side"]], row["loss_tokens_per_second"]
        parts.append(f'<text x="{label}" y="{top}">{escape(row["side"])}</text>')
        if speed:
            width = max(2.0, length * speed["median"] / fastest)
            parts.append(_bar(speeds, top, width, kind, f"{speed['median']:,.0f}"))
        else:
            words = "out of memory" if row["out_of_memory"] else "failed" if row["failed"] else "not measured"
            parts.append(f'<text x="{speeds}" y="{top}" class="failed">{words}</text>')
        if row["peak_footprint_bytes"]:
            width = max(2.0, length * row["peak_footprint_bytes"] / largest)
            parts.append(_bar(peaks, top, width, kind, _gib(row["peak_footprint_bytes"])))
    style = (
        "text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.failed{font-style:italic}"
        ".ours{fill:#2f855a}.theirs{fill:#a0aec0}.checked{fill:#718096}"
        "@media(prefers-color-scheme:dark){text{fill:#eee}.ours{fill:#48bb78}}"
    )
    title = escape(f"Training throughput and peak memory on {result['machine']['chip']}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 {top + 16}" role="img" aria-label="{title}">\n'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(x: int, y: int, width: float, kind: str, words: str) -> str:
    return (
        f'<rect x="{x}" y="{y - 12}" width="{width:.0f}" height="15" class="{kind}"/>'
        f'<text x="{x + width + 6:.0f}" y="{y}">{words}</text>'
    )
