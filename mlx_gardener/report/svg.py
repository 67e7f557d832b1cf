"""Small pictures as inline SVG: a line chart that reads in light and dark, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Series = tuple[str, str, Sequence[tuple[float, float]]]  # (name, CSS colour, points)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    width: int = 640,
    height: int = 240,
    zero: bool = False,
) -> str:
    """A chart of one or more series.

    Args:
        series: name, colour and (x, y) points of each.
        zero: whether the y axis begins at 0.
    """
    points = [point for _, _, line in series for point in line]
    if not points:
        return ""
    left, right, top, bottom = 58, 14, 26, 34
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = (0.0 if zero else min(y for _, y in points)), max(y for _, y in points)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / x_span * (width - left - right),
            height - bottom - (y - y_low) / y_span * (height - top - bottom),
        )

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}" '
        'xmlns="http://www.w3.org/2000/svg" style="max-width:100%;height:auto;font:12px system-ui,sans-serif">'
    ]
    for step in range(5):
        value = y_low + y_span * step / 4
        _, y = place(x_low, value)
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">{value:.3g}</text>'
        )
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        x, _ = place(value, y_low)
        parts.append(
            f'<text x="{x:.1f}" y="{height - 14}" text-anchor="{anchor}" fill="currentColor">{value:g}</text>'
        )
    parts.append(
        f'<text x="{width / 2}" y="{height - 2}" text-anchor="middle" fill="currentColor">{escape(x_label)}</text>'
    )
    for number, (name, colour, line) in enumerate(series):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{left + number * 170}" y="14" fill="{colour}" font-weight="bold">{escape(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def loss_chart(training: dict[str, object]) -> str:
    """Training and validation loss of ``TrainOutcome.to_json()`` over the steps."""
    losses = [float(loss) for loss in training["train_losses"]]  # type: ignore[attr-defined]
    every = int(training.get("updates_per_loss", 1))  # type: ignore[call-overload]
    validation = [(point["step"], point["loss"]) for point in training["validation"]]  # type: ignore[attr-defined]
    series: list[Series] = [
        ("training loss", "#0a7d55", [(1 + number * every, loss) for number, loss in enumerate(losses)]),
        ("validation loss", "#c2571a", validation),
    ]
    return line_chart(series, x_label="step", y_label="loss, nats per token")
