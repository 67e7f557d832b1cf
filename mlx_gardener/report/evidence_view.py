"""Evidence in the terminal: the verdict, the arms, guards, and what base and adapter would have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_gardener.report import advice, story
from mlx_gardener.report.recipe import About
from mlx_gardener.report.text import safe_lines, safe_text

#: What the columns' names mean, in short; the page has all the words.
_LEGEND = {
    "retrieval": "related code of the repository is put in front of the prompt; nothing is trained for it",
    "control": "the base with an adapter of another repository",
}
_GUARD_STYLES = {"passed": "green", "failed": "bold red"}
_STYLES = {"promote": "bold green", "inconclusive": "bold yellow", "reject": "bold red"}


def show_evidence(
    console: Console,
    evidence: dict[str, Any],
    *,
    about: About | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Print ``Evidence.to_json()``; of samples the best and the worst, with their source where it is there.

    Args:
        about: what the commands name that it says to type.
        training: ``TrainOutcome.to_json()`` where it is known.
    """
    verdict = safe_text(evidence["verdict"])
    sentence, sign = advice.headline(evidence)
    console.print()
    console.print(Text(f"{sign} {sentence}", style=_STYLES.get(verdict, "bold")))
    if reason := safe_text(story.reason(evidence)):
        console.print(Text(reason))
    for told in story.remarks(evidence):
        console.print(Text(safe_text(told)))
    for note in evidence.get("notes", ()):
        console.print(Text(safe_text(note), style="dim"))
    if evidence["metrics"]:
        _show_figures(console, evidence)
    _show_steps(console, advice.next_steps(evidence, about or About(), training=training))


def _show_steps(console: Console, steps: list[advice.Step]) -> None:
    console.print(Text("\nWhat to do now", style="bold"))
    for step in steps:
        console.print(Text(f"- {safe_text(step.text)}"))
        for command in step.commands:
            console.print(Text(f"    {safe_text(command)}"), soft_wrap=True)


def _show_figures(console: Console, evidence: dict[str, Any]) -> None:
    metrics = evidence["metrics"]
    console.print()
    console.print(_table(story.arms_table(evidence)))
    for term, told in _LEGEND.items():
        if any(term in title for title, _ in story.arms(evidence)):
            console.print(Text(f"{term}: {told}", style="dim"))
    console.print(_bars(metrics["base_bits_per_byte"], metrics["adapter_bits_per_byte"]))
    for guard in story.guards(evidence):
        console.print(
            Text.assemble(
                (f"{guard.sign} {guard.state}", _GUARD_STYLES.get(guard.state, "yellow")),
                f": {safe_text(guard.title)}. {safe_text(guard.reason)}".rstrip(),
            )
        )
    if told := advice.power(evidence):
        console.print(Text(safe_text(told), style="dim"))
    for title, samples in story.best_and_worst(evidence, most=1):
        console.print(Text(f"\n{title}", style="bold"))
        for sample in samples:
            _show_sample(console, sample)


def _table(found: story.Table) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for at, name in enumerate(found.columns):
        table.add_column(safe_text(name).replace(" + ", " +\n"), justify="right" if at else "left")
    for number, row in enumerate(found.rows):
        cells = [
            Text(safe_text(cell), style="bold" if (number, at) in found.best else "")
            for at, cell in enumerate(row)
        ]
        table.add_row(*cells)
    return table


def _bars(base: float, adapter: float) -> Text:
    """Bits per byte of both as bars; shorter is better."""
    longest = max(base, adapter) or 1.0
    text = Text("\n")
    for name, value, style in (("base   ", base, "red"), ("adapter", adapter, "green")):
        text.append(f"{name} ")
        text.append("█" * round(50 * value / longest), style=style)
        text.append(f" {value:.3f} bits per byte\n")
    return text


def _show_sample(console: Console, sample: Mapping[str, Any]) -> None:
    place = f"{safe_text(sample['path'])}, line {sample['line']}"
    how = ", ".join(
        word for word in (story.KINDS.get(sample.get("kind", ""), ""), story.similarity(sample)) if word
    )
    console.print(Text.assemble((place, "bold"), (f"  ({how})" if how else "", "dim")))
    for name, style in (("context", "dim"), ("expected", "cyan"), ("base", "red"), ("adapter", "green")):
        if sample.get(name) is None:
            continue
        shown = safe_lines(sample[name]) if sample[name].strip() else "(nothing)"
        for number, line in enumerate(shown.split("\n")):
            label = name if number == 0 else ""
            console.print(
                Text.assemble(f"  {label:9}", (line, style)), no_wrap=True, overflow="ellipsis", crop=True
            )
