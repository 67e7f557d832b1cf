"""Evidence in the terminal: the verdict, base against adapter, and what each would have written."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_gardener.report.text import safe_lines, safe_text

_VERDICTS = {
    "promote": ("It helped.", "bold green"),
    "inconclusive": ("No clear difference.", "bold yellow"),
    "reject": ("It did not help; the adapter is kept but not activated.", "bold red"),
}
_ROWS = (
    ("bits per byte (lower is better)", "bits_per_byte", "{:.4f}"),
    ("next line exactly right", "next_line_exact", "{:.1%}"),
    ("next line, similarity", "next_line_similarity", "{:.1%}"),
    ("own names in next line, F1", "identifier_f1", "{:.1%}"),
    ("hole exactly right", "fim_exact", "{:.1%}"),
    ("filled hole parses", "fim_parse_ok", "{:.1%}"),
    ("stops by itself", "stop_rate", "{:.1%}"),
)


def show_evidence(console: Console, evidence: dict[str, Any]) -> None:
    """Print ``Evidence.to_json(with_source=True)``."""
    headline, style = _VERDICTS[evidence["verdict"]]
    console.print()
    console.print(Text(headline, style=style))
    console.print(evidence["reason"])
    metrics = evidence["metrics"]
    arms = evidence.get("arms") or _two_arms(metrics)
    table = Table(
        "on code it never saw",
        *(safe_text(arm["title"]) for arm in arms),
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for title, name, form in _ROWS:
        values = [arm["metrics"].get(name) for arm in arms]
        if any(value is not None for value in values):
            table.add_row(title, *("" if value is None else form.format(value) for value in values))
    console.print()
    console.print(table)
    console.print(_bars(metrics["base_bits_per_byte"], metrics["adapter_bits_per_byte"]))
    for guard in evidence.get("guards", ()):
        style = "green" if guard["passed"] else "bold red"
        told = "passed" if guard["passed"] else "FAILED"
        console.print(Text.assemble(f"{guard['name']} ", (told, style), f": {safe_text(guard['reason'])}"))
    if evidence.get("power") is not None:
        console.print(evidence["power"]["note"])
    console.print()
    for sample in evidence["samples"]:
        _show_sample(console, sample)


def _two_arms(metrics: dict[str, float]) -> list[dict[str, Any]]:
    """Base and adapter of evidence that was written before there were more arms."""
    return [
        {
            "title": name,
            "metrics": {
                key.removeprefix(f"{name}_"): value
                for key, value in metrics.items()
                if key.startswith(f"{name}_")
            },
        }
        for name in ("base", "adapter")
    ]


def _bars(base: float, adapter: float) -> Text:
    """Bits per byte of both as bars; shorter is better."""
    longest = max(base, adapter)
    text = Text("\n")
    for name, value, style in (("base   ", base, "red"), ("adapter", adapter, "green")):
        text.append(f"{name} ")
        text.append("█" * round(50 * value / longest), style=style)
        text.append(f" {value:.3f} bits per byte\n")
    return text


def _show_sample(console: Console, sample: dict[str, Any]) -> None:
    console.print(Text(f"{safe_text(sample['path'])}, line {sample['line']}", style="bold"))
    for name, style in (("context", "dim"), ("expected", "cyan"), ("base", "red"), ("adapter", "green")):
        if sample.get(name) is None:
            continue
        for number, line in enumerate(safe_lines(sample[name]).split("\n")):
            label = name if number == 0 else ""
            console.print(
                Text.assemble(f"  {label:9}", (line, style)), no_wrap=True, overflow="ellipsis", crop=True
            )
    console.print()
