"""The pictures of the docs, drawn by the project's own code: ``.venv/bin/python scripts/make_pictures.py RUN``.

In: RUN, an adapter's directory as a training left it, with its ``manifest.json``, whose loss and evidence are drawn;
without it only the pictures that need no run are made. Out: SVG files in docs/pictures that follow the reader's light or
dark. Cost: a second.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from plan_table import recorded_facts  # noqa: E402

from mlx_gardener.config import TrainingConfig  # noqa: E402
from mlx_gardener.engine import make_plan  # noqa: E402
from mlx_gardener.errors import MemoryBudgetError  # noqa: E402
from mlx_gardener.report.html import interval_plots  # noqa: E402
from mlx_gardener.report.plan_view import PART_COLOURS, PARTS  # noqa: E402
from mlx_gardener.report.story import changes  # noqa: E402
from mlx_gardener.report.svg import colour, line, loss_chart, picture, standalone, text  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
GIB = 1024**3
_MODEL = "qwen2.5-coder-1.5b"
_BUDGETS = (2, 3, 4, 6, 8)


def box(x: float, y: float, width: float, label: str, shade: str, *, height: float = 30) -> str:
    """A rounded box with a label in its middle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="none" '
        f'style="stroke:{colour(shade)}" stroke-width="2"/>'
        + text(x + width / 2, y + height / 2 + 4, label, anchor="middle")
    )


def arrow(x1: float, y1: float, x2: float, y2: float, shade: str = "grey") -> str:
    """A line with a head at its end; horizontal or vertical."""
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    head = f"M{x2} {y2}l{-6 * dx + 4 * dy} {-6 * dy + 4 * dx}l{-8 * dy} {-8 * dx}z"
    return line(x1, y1, x2, y2, stroke=colour(shade)) + f'<path d="{head}" style="fill:{colour(shade)}"/>'


def plan_bars() -> str:
    """What budgets from 2 to 8 GB are used for, by the planner, for one model's shape."""
    facts = recorded_facts(ROOT / "tests" / "engine" / "model_configs" / f"{_MODEL}.json")
    rows, used = [], []
    for budget in _BUDGETS:
        try:
            rows.append((budget, make_plan(facts, TrainingConfig(), budget * GIB)))
        except MemoryBudgetError:
            rows.append((budget, None))
    scale = 520 / max(_BUDGETS)
    left, y, parts = (
        60.0,
        30.0,
        [text(0, 14, f"What a budget is used for: {_MODEL} at 4 bits, on two cores", bold=True)],
    )
    for budget, plan in rows:
        parts.append(text(0, y + 17, f"{budget} GB"))
        x = left
        for name, size in ({} if plan is None else asdict(plan.predicted_parts)).items():
            if size:
                width = size / GIB * scale
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="24" '
                    f'style="fill:{colour(PART_COLOURS[name])}"/>'
                )
                x += width
                used.append(name)
        parts.append(
            f'<rect x="{left}" y="{y}" width="{budget * scale:.1f}" height="24" fill="none" stroke="currentColor"/>'
        )
        told = "refused" if plan is None else f"{plan.predicted_tokens_per_second:,.0f} tokens/s"
        parts.append(text(left + budget * scale + 8, y + 17, told))
        y += 34
    for number, name in enumerate(dict.fromkeys(name for name in PARTS if name in used)):
        x, row = (0, 340)[number % 2], y + 14 + 20 * (number // 2)
        parts.append(
            f'<rect x="{x}" y="{row - 10}" width="12" height="12" style="fill:{colour(PART_COLOURS[name])}"/>'
        )
        parts.append(text(x + 20, row, PARTS[name]))
    title = f"The plan's parts for budgets of {', '.join(map(str, _BUDGETS))} GB"
    return picture(parts, title=title, height=y + 80, width=700)


def step_picture() -> str:
    """How one step goes through a model that is cut into segments."""
    names = ["embedding", "layer 1", "layer 2", "layer 3", "head + loss"]
    parts = [
        text(0, 14, "One step, segment by segment", bold=True),
        text(0, 46, "forward"),
        text(0, 156, "backward"),
    ]
    x, width, gap = 80.0, 96.0, 24.0
    for number, name in enumerate(names):
        at = x + number * (width + gap)
        middle = at + width / 2
        parts.append(box(at, 26, width, name, "purple" if number == 4 else "blue"))
        if number < 4:
            parts.append(arrow(at + width, 41, at + width + gap - 2, 41, "blue"))
        if 0 < number < 4:
            parts += [
                box(at, 82, width, "input kept", "yellow", height=24),
                arrow(middle, 56, middle, 80, "yellow"),
                arrow(middle, 106, middle, 134, "yellow"),
                box(at, 136, width, "recompute", "orange"),
                box(at, 194, width, "LoRA gradient", "green", height=24),
                arrow(middle, 166, middle, 192, "green"),
            ]
        if number == 4:
            parts += [
                arrow(middle, 56, middle, 134, "purple"),
                box(at, 136, width, "slice by slice", "purple"),
            ]
        if number > 1:
            parts.append(arrow(at, 151, at - gap + 2, 151, "orange"))
    parts += [
        text(
            0,
            246,
            "Only the inputs of layers are kept. On the way back each layer is recomputed with its own",
        ),
        text(
            0,
            264,
            "graph, gives its gradients and is freed, so memory holds one layer at work instead of all.",
        ),
    ]
    title = "Forward through the layers keeping only their inputs; backward layer by layer, each recomputed"
    return picture(parts, title=title, height=276, width=680)


def write(name: str, svg: str, directory: Path = PICTURES) -> None:
    """One picture as a file of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.svg"
    file.write_text(standalone(svg), encoding="utf-8")
    print(file)


def main(arguments: list[str]) -> None:
    """All pictures, or those that need no run."""
    write("memory-plan", plan_bars())
    write("step", step_picture())
    if arguments:
        from mlx_gardener.adapter.manifest import read_manifest

        manifest = read_manifest(Path(arguments[0]))
        write("loss", loss_chart(manifest["training"]))
        plots = interval_plots(changes(manifest["evidence"]))
        if plots:
            write("intervals", plots[0][1])


if __name__ == "__main__":
    main(sys.argv[1:])
