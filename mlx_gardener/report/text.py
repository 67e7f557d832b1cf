"""Text from a repository or model, made safe and short for a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from mlx_gardener.platform.sizes import GIB


def safe_text(text: str) -> str:
    """``text`` with every control character and lone surrogate spelled out, so that it cannot steer a terminal."""
    return "".join(character if character.isprintable() else _spelled(character) for character in text)


def safe_lines(text: str) -> str:
    """`safe_text` that keeps line breaks and shows tabs as spaces; for code."""
    return "\n".join(safe_text(line.expandtabs(4)) for line in text.split("\n"))


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", errors="replace").decode("ascii")


def gigabytes(size_bytes: float) -> str:
    """Bytes as GB of 2^30, as memory is sold."""
    return f"{size_bytes / GIB:.2f} GB"


def file_size(size_bytes: float) -> str:
    """Bytes as files are counted, in B, kB of 1000 or MB of 10^6: what is there is never shown as nothing."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    return f"{size_bytes / 1e3:.0f} kB" if size_bytes < 999_500 else f"{size_bytes / 1e6:.1f} MB"


def counted(count: int, noun: str) -> str:
    """``1 chunk``, ``12,345 chunks``; the noun may come in the plural, too, as the scan's units do."""
    return f"{count:,} {noun.removesuffix('s')}{'s' * (count != 1)}"


def words(name: str) -> str:
    """A name from the inside, such as a status, as words: ``not started``."""
    return name.replace("_", " ")


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``48 s``, ``3 min 05 s``, ``2 h 10 min``; never less than none, whatever a clock says."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def pace(seconds: float) -> str:
    """What something that is done again and again takes: ``0.04 s``, ``7.5 s``, ``2 min 50 s``."""
    if seconds < 1:
        return f"{seconds:.2g} s" if seconds >= 1e-4 else "under 0.1 ms"
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def about(count: float) -> str:
    """A number that is foretold, in two digits: ``260,000``, ``1.8 million``."""
    if count >= 999_500:
        return f"{count / 1e6:.1f} million" if count < 9.95e6 else f"{count / 1e6:,.0f} million"
    digits = max(0, len(str(int(count))) - 2)
    return f"{int(round(count, -digits)):,}"


def share_of_one(share: float) -> str:
    """A share of something that is one, as per cent that is never shown as none: ``0.4 %``, ``47 %``."""
    if share >= 0.1:
        return f"{share:.0%}".replace("%", " %")
    return f"{100 * share:.1f} %" if share >= 0.0005 else "under 0.1 %"


def ago(timestamp: float) -> str:
    """How long ago a moment was (seconds since the epoch); one that lies ahead, since a clock was set back, is just now."""
    seconds = time.time() - timestamp
    return f"{duration(seconds)} ago" if seconds >= 1 else "just now"


def parent_told(summary: Mapping[str, Any]) -> str:
    """Which version a training goes on from, and with what (`DataSummary.continued_from`); "" for one that begins anew."""
    found = summary.get("continued_from")
    if not found:
        return ""
    version = found["version"]
    if "updates_done" in found:
        return f"Going on from {version} with the updates that its time limit left, after {counted(found['updates_done'], 'update')}"
    return f"Going on from {version} with {counted(found['changed_files'], 'file')} that changed"


def edits_told(summary: Mapping[str, Any]) -> str:
    """What a training takes from history (`DataSummary.edits`), to be said after something else; "" where none is wanted."""
    found = summary.get("edits")
    if not found:
        return ""
    if "why" in found:
        return f", no next edits ({found['why']})"
    if not found["examples"]:
        left_out = ", ".join(f"{count:,} {what}" for what, count in found["left_out"].items())
        told = f"; left out: {left_out}" * bool(left_out)
        return f", no next edits (nothing to learn from in {counted(found['commits'], 'past commit')}{told})"
    return (
        f", with {counted(found['examples'], 'next edit')} of {counted(found['commits_used'], 'commit')} "
        f"({found['no_edit_due']:,} where none is due)"
    )
