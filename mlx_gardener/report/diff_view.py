"""Two versions of an adapter beside each other in the terminal: what both have is compared, what one lacks is said once."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mlx_gardener.adapter.versions import VersionFacts, VersionsDiff
from mlx_gardener.report.known import measured_again
from mlx_gardener.report.story import METRICS, as_sentence, reason
from mlx_gardener.report.text import counted, safe_text

_MOST_FILES = 10
#: Told in each version's own sentence.
_INTERVAL = ("bits_per_byte_change_low", "bits_per_byte_change_high")
#: Verdicts in words; why one was rejected is its reason's to say.
_VERDICTS = {
    "promote": "it predicts your code better",
    "inconclusive": "no clear difference",
    "reject": "not put to use",
    "unmeasured": "not measured",
}


def version_line(facts: VersionFacts) -> str:
    """``v1: it helped, 1.2043 bits per byte. On 23 files ...``."""
    bits = facts.metrics.get("adapter_bits_per_byte")
    measured = "" if bits is None else f", {bits:.4f} bits per byte"
    verdict = _VERDICTS.get(facts.verdict or "unmeasured", facts.verdict)
    verdict = "it helped" if facts.verdict == "promote" and facts.answers == "better" else verdict
    told = f"{facts.version}: {verdict}{measured}. {reason({'reason': facts.reason or ''})}".rstrip()
    return told if facts.evaluated_at is None else f"{told} {measured_again(facts.evaluated_at)}"


def show_diff(console: Console, found: VersionsDiff) -> None:
    """Print a comparison."""
    first, second = found.first.version, found.second.version
    if first == second:
        console.print(safe_text(version_line(found.first)), highlight=False)
        console.print(f"{first} was named twice: it is the same version.", highlight=False)
        return
    for facts in (found.first, found.second):
        console.print(safe_text(version_line(facts)), highlight=False)
    if found.note is not None:
        console.print(as_sentence(found.note), highlight=False)
    _show_figures(console, found)
    if found.files:
        files = Table(
            "bits per byte of", first, second, "change", box=None, header_style="bold", pad_edge=False
        )
        for item in found.files[:_MOST_FILES]:
            one, two = item["first"], item["second"]
            files.add_row(safe_text(item["path"]), f"{one:.4f}", f"{two:.4f}", f"{two - one:+.4f}")
        console.print()
        console.print(files)
        if len(found.files) > _MOST_FILES:
            console.print(f"and {counted(len(found.files) - _MOST_FILES, 'file')} that changed less", highlight=False)  # fmt: skip
    _show_settings(console, found)


def _show_figures(console: Console, found: VersionsDiff) -> None:
    """The figures that differ, and always the adapters' bits per byte; those that are the same are counted."""
    known = {
        name: (one, two)
        for name, (one, two) in found.metrics.items()
        if one is not None and two is not None and name not in _INTERVAL
    }
    same = [name for name, (one, two) in known.items() if one == two and name != "adapter_bits_per_byte"]
    if not known:
        return
    versions = (found.first.version, found.second.version)
    table = Table("metric", *versions, "change", box=None, header_style="bold", pad_edge=False)
    for name, (one, two) in known.items():
        if name not in same:
            table.add_row(safe_text(_title(name)), *_written(name, one, two))
    console.print()
    console.print(table)
    if same:
        are = "are" if len(same) > 1 else "is"
        console.print(f"and {counted(len(same), 'figure')} that {are} the same", highlight=False)


def _title(name: str) -> str:
    """``adapter_bits_per_byte`` as ``adapter: bits per byte``."""
    if name == "bits_per_byte_change":
        return "adapter against base: bits per byte"
    arm, _, metric = name.partition("_")
    if metric not in METRICS:
        return name.replace("_", " ")
    title, _, less_is_better = METRICS[metric]
    return f"{arm}: {title}" + (" (less is better)" if less_is_better else "")


def _written(name: str, one: float, two: float) -> tuple[str, str, str]:
    """Both values and the change, as the metric is written elsewhere: shares as per cent, with a change in points."""
    metric = name.partition("_")[2]
    if name == "bits_per_byte_change":
        return f"{one:+.1%}", f"{two:+.1%}", f"{100 * (two - one):+.1f} points"
    if metric in METRICS and not METRICS[metric][2]:
        form = METRICS[metric][1]
        return form(one), form(two), f"{100 * (two - one):+.1f} points"
    return f"{one:.4f}", f"{two:.4f}", f"{two - one:+.4f}"


def _show_settings(console: Console, found: VersionsDiff) -> None:
    """The settings that differ; those that only one version knows, as of an imported one, are counted."""
    lacking = {found.first.version: 0, found.second.version: 0}
    for one, two in found.settings.values():
        if one is None or two is None:
            lacking[found.first.version if one is None else found.second.version] += 1
    alone = {version: count for version, count in lacking.items() if count > 5}
    shown = {
        name: (one, two)
        for name, (one, two) in found.settings.items()
        if not (one is None and found.first.version in alone)
        and not (two is None and found.second.version in alone)
    }
    if shown or alone:
        console.print("\nSettings that differ:" if shown else "")
    for name, (one, two) in shown.items():
        console.print(safe_text(f"{name}: {_value(one)} -> {_value(two)}"), highlight=False)
    for version, count in alone.items():
        settings = counted(count, "other setting" if shown else "setting")
        console.print(
            f"{settings} cannot be compared: {version} does not say how it was trained, as imported adapters do not.",
            highlight=False,
        )


def _value(value: object) -> str:
    return "not set" if value is None else str(value)
