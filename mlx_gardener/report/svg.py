"""Small pictures as inline SVG, without scripts: lines over time, intervals, bars of parts.

Text is in the colour of the surrounding text and lines in CSS variables with fallbacks that are seen on white and on
black, so a picture fits a page, a notebook and, by `standalone`, a file of its own. Every picture has a title that
says in words what it shows. Pictures are 400 units wide: 13 units of text stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from mlx_gardener.report.story import kept_step
from mlx_gardener.report.text import safe_text

Series = tuple[str, str, Sequence[tuple[float, float]]]  # (name, colour, points)
WIDTH = 400
#: Colours by name: (fallback, on light, on dark); on their backgrounds each has a contrast of at least 4.5.
COLOURS = {
    "green": ("#1d9168", "#0b6e4b", "#4fc79a"),
    "orange": ("#c8681f", "#a2480c", "#f0a067"),
    "blue": ("#4479d6", "#2459b8", "#8ab4f8"),
    "teal": ("#1f8f94", "#0f6a6d", "#5fcdd1"),
    "purple": ("#a45bc0", "#7d3599", "#d49bea"),
    "red": ("#d9534a", "#b3261e", "#ff8f86"),
    "yellow": ("#99800f", "#745f00", "#dcc04a"),
    "grey": ("#808080", "#5f6368", "#a8adb3"),
}
_CHARACTER = 6.9  # units of a character of the text, on average
_MOST_POINTS = 400
_LINES = {
    "": 'stroke-width="2"',
    "dashed": 'stroke-width="2" stroke-dasharray="6 4"',
    "faint": 'stroke-width="1" opacity=".45"',
}


def colour(name: str) -> str:
    """CSS for a colour of `COLOURS`, with its fallback."""
    return f"var(--mg-{name}, {COLOURS[name][0]})"


def variables(*, dark: bool) -> str:
    """CSS that sets the colours' variables for a light or a dark background."""
    return "".join(f"--mg-{name}:{shades[2 if dark else 1]};" for name, shades in COLOURS.items())


def standalone(svg: str) -> str:
    """A picture of this room as a file of its own, that follows the reader's light or dark."""
    style = (
        f"<style>svg{{{variables(dark=False)}color:#1f2328;background:#fff}}"
        f"@media (prefers-color-scheme:dark){{svg{{{variables(dark=True)}color:#e6edf3;background:#0d1117}}}}</style>"
    )
    svg = str(svg)  # Markup would escape the style
    end = svg.index(">") + 1
    return svg[:end] + style + svg[end:] + "\n"


def picture(parts: Sequence[str], *, title: str, height: float, width: float = WIDTH) -> str:
    """``<svg>`` around ``parts``."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'style="display:block;width:100%;max-width:{width * 1.3:g}px;height:auto;'
        f'font:13px system-ui,sans-serif" fill="currentColor"><title>{escape(safe_text(title))}</title>'
        + "".join(parts)
        + "</svg>"
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", bold: bool = False) -> str:
    """A line of text with its baseline at ``y``."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(safe_text(content))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = "currentColor", more: str = "") -> str:
    """A straight line; ``more`` are further attributes."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{stroke}" {more}/>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` round numbers (1, 2 or 5 times a power of ten) between ``low`` and ``high``."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = power * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [at * step for at in range(first, last + 1)]


def labelled(values: Sequence[float], *, times: float = 1, sign: str = "") -> list[tuple[float, str]]:
    """Each of `ticks` with its number (``times`` it), to as many decimals as it takes to tell them apart."""
    step = min((abs(times * (b - a)) for a, b in pairwise(values)), default=0.0)
    decimals = min(12, max(0, -math.floor(math.log10(step) + 1e-9))) if step > 0 else 3
    shown = [f"{times * value:{sign},.{decimals}f}" for value in values]
    zero = f"{0:{sign},.{decimals}f}"
    return [
        (value, "0" if label in (zero, zero.replace("+", "-"), f"-{zero}") else label)
        for value, label in zip(values, shown, strict=True)
    ]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite points; of more than a few hundred, the mean of each stretch."""
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) <= _MOST_POINTS:
        return points
    edges = [round(at * len(points) / _MOST_POINTS) for at in range(_MOST_POINTS + 1)]
    parts = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    height: int = 230,
    zero: bool = False,
    mark: float | None = None,
) -> str:
    """A chart of one or more series; "" when none has a point.

    Args:
        series: name, colour of `COLOURS` (with "-dashed" or "-faint" behind it for such a line) and (x, y) points of each.
        title: what it shows, in words.
        zero: whether the y axis begins at 0.
        mark: x of a vertical line.
    """
    drawn = [(name, shade, thinned(points)) for name, shade, points in series]
    drawn = [one for one in drawn if one[2]]
    points = [point for _, _, some in drawn for point in some]
    if not points:
        return ""
    places, legend_height = _legend([name for name, _, _ in drawn])
    left, right, top, bottom = 48, 12, legend_height + 20, 36
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    y_low = 0.0 if zero else y_low - 0.05 * (y_high - y_low)
    y_high += 0.05 * (y_high - y_low) or 1.0
    x_span = (x_high - x_low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / x_span * (WIDTH - left - right),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    parts = [text(4, legend_height + 10, y_label)]
    for value, label in labelled(ticks(y_low, y_high)):
        _, y = place(x_low, value)
        parts += [
            line(left, y, WIDTH - right, y, more='opacity=".2"'),
            text(left - 6, y + 4, label, anchor="end"),
        ]
    for value, label in labelled(ticks(x_low, x_high, 6)):
        x, y = place(value, y_low)
        parts += [line(x, y, x, y + 4, more='opacity=".5"'), text(x, y + 16, label, anchor="middle")]
    parts.append(text((left + WIDTH - right) / 2, height - 5, x_label, anchor="middle"))
    if mark is not None:
        x, _ = place(mark, y_low)
        parts.append(line(x, top, x, height - bottom, more='stroke-dasharray="2 3" opacity=".7"'))
    for (name, shade, some), (x, y) in zip(drawn, places, strict=True):
        shade, _, kind = shade.partition("-")
        style = f'style="stroke:{colour(shade)};fill:none" stroke-linejoin="round" {_LINES[kind]}'
        if len(some) == 1:
            cx, cy = place(*some[0])
            parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5" style="fill:{colour(shade)}"/>')
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*point) for point in some))
        parts.append(f'<polyline points="{path}" {style}/>')
        parts += [f'<path d="M{x:.1f} {y - 4:.1f}h16" {style}/>', text(x + 21, y, name)]
    return picture(parts, title=title, height=height)


def _legend(names: Sequence[str]) -> tuple[list[tuple[float, float]], float]:
    """Where the names of series stand, in as many rows as they need, and the rows' height."""
    x, y = 4.0, 14.0
    places = []
    for name in names:
        width = 36 + _CHARACTER * len(name)
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + 17
        places.append((x, y))
        x += width
    return places, y + 8


def interval_plot(
    rows: Sequence[tuple[str, str, float, float, float]],
    *,
    title: str,
    values: Sequence[str],
    better_below: bool,
    per_cent: str = "%",
) -> str:
    """Changes with their intervals around zero; "" when there are none.

    Args:
        rows: name, what it is against, change, low and high, as fractions.
        title: what it shows, in words.
        values: each row's change as text.
        better_below: whether a negative change is the better one; colours and the words below the axis follow.
        per_cent: the unit of the axis' numbers, which are hundred times the fractions.
    """
    if not rows:
        return ""
    longest = max(max(len(name), len(f"against {against}")) for name, against, *_ in rows)
    left, right, top, step, bottom = min(200.0, max(100.0, 12 + 6.4 * longest)), 14, 8, 40, 38
    height = top + step * len(rows) + bottom
    low = min(0.0, *(row[3] for row in rows))
    high = max(0.0, *(row[4] for row in rows))
    margin = 0.06 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    end = height - bottom
    parts = []
    for at, label in labelled(ticks(low, high, 5), times=100, sign="+"):
        x = x_of(at)
        parts += [
            line(x, top, x, end, more='opacity=".15"'),
            text(x, end + 15, label, anchor="middle"),
        ]
    parts.append(line(x_of(0), top, x_of(0), end, more='stroke-width="1.5"'))
    better, worse = ("← better", "worse →") if better_below else ("← worse", "better →")
    parts += [
        text(left, end + 32, better),
        text(WIDTH - right, end + 32, worse, anchor="end"),
        text(left - 10, end + 15, per_cent, anchor="end"),
    ]
    for number, ((name, against, change, from_, to), value) in enumerate(zip(rows, values, strict=True)):
        y = top + step * number + 15
        good = to < 0 if better_below else from_ > 0
        bad = from_ > 0 if better_below else to < 0
        shade = colour("green" if good else "red" if bad else "grey")
        middle = min(max(x_of(change), left + 3.7 * len(value)), WIDTH - right - 3.7 * len(value))
        parts += [
            text(0, y - 2, name, bold=True),
            text(0, y + 13, f"against {against}"),
            line(x_of(from_), y + 5, x_of(to), y + 5, stroke=shade, more='stroke-width="3"'),
            f'<circle cx="{x_of(change):.1f}" cy="{y + 5:.1f}" r="5" style="fill:{shade}"/>',
            text(middle, y - 4, value, anchor="middle"),
        ]
    return picture(parts, title=title, height=height)


def stacked_bar(
    parts: Mapping[str, tuple[float, str]], *, whole: float, title: str, width: float = WIDTH
) -> str:
    """Parts of a whole side by side; the rest of it is hatched by its outline only.

    Args:
        parts: size and colour by name; sizes in the unit of ``whole``.
        whole: what the bar's full length stands for; a longer sum is drawn past a line at it.
    """
    span = max(whole, sum(size for size, _ in parts.values())) or 1.0
    at, drawn = 0.0, []
    for name, (size, shade) in parts.items():
        length = size / span * width
        drawn.append(
            f'<rect x="{at:.2f}" y="1" width="{max(0.0, length):.2f}" height="26" style="fill:{colour(shade)}">'
            f"<title>{escape(safe_text(name))}</title></rect>"
        )
        at += length
    edge = whole / span * width
    drawn.append(
        f'<rect x=".5" y="1" width="{edge - 1:.2f}" height="26" fill="none" style="stroke:currentColor" opacity=".6"/>'
    )
    return picture(drawn, title=title, height=28, width=width)


def change_bar(change: float, *, most: float) -> str:
    """A change left (less) or right (more) of zero, ``most`` being what half of the bar stands for; for a cell."""
    length = 45 * min(1.0, abs(change) / most) if most > 0 else 0.0
    x = 50 - length if change < 0 else 50.0
    shade = colour("green" if change < 0 else "red")
    return (
        '<svg viewBox="0 0 100 12" width="100" height="12" aria-hidden="true">'
        f'<rect x="{x:.1f}" y="2" width="{length:.1f}" height="8" style="fill:{shade}"/>'
        '<path d="M50 0v12" style="stroke:currentColor"/></svg>'
    )


def loss_chart(training: Mapping[str, object]) -> str:
    """Training and validation loss of ``TrainOutcome.to_json()`` over the updates.

    One update's loss says more about its rows than about the model, so in front of the updates stands the mean of the
    last tenth of them.
    """
    losses = [float(loss) for loss in training["train_losses"]]  # type: ignore[attr-defined]
    every = int(training.get("updates_per_loss", 1))  # type: ignore[call-overload]
    validation = [(point["step"], point["loss"]) for point in training["validation"]]  # type: ignore[attr-defined]
    updates = [(1 + number * every, loss) for number, loss in enumerate(losses)]
    series: list[Series] = [("training", "green", updates), ("validation", "orange", validation)]
    window = len(losses) // 10
    if window > 1:
        means = [
            (updates[end - 1][0], sum(losses[end - window : end]) / window)
            for end in range(window, len(losses) + 1)
        ]
        series[:1] = [("each update", "green-faint", updates), (f"mean of {window * every}", "green", means)]
    title = "Training and validation loss over the updates"
    if losses and validation:
        title += f": training {losses[0]:.3f} to {losses[-1]:.3f}, validation {validation[0][1]:.3f} to "
        title += f"{validation[-1][1]:.3f} nats per token"
    best = kept_step(training) if "best_step" in training else -1
    mark = float(best) if losses and 0 <= best <= len(losses) * every else None
    return line_chart(series, title=title, x_label="update", y_label="nats per token", mark=mark)
