"""A scan in the terminal: what would be trained on, what was dropped by which rule, and where secrets stand.

In: `source.Scan`, for `scan` and `train --dry-run`; the report takes `RULES` too. Out: lines on a console. Cost: nothing, but for
the choice of the best chunks where there are more than a training takes.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_gardener.report.text import counted, file_size, safe_text
from mlx_gardener.source.records import Dropped, FileRecord, Scan

#: Rules of `source.filters`, in words.
RULES = {
    "binary": "binary", "generated": "generated", "vendored": "written elsewhere", "lock_file": "lock file",
    "minified": "minified", "too_large": "too large", "too_many_lines": "too many lines", "long_line": "a very long line",
    "long_mean_line": "long lines on average", "few_alphanumeric": "hardly any letters or digits",
    "few_alphabetic": "hardly any letters", "encoded_wall": "encoded data", "not_utf8": "not UTF-8 or marked UTF-16",
    "unreadable": "cannot be read", "symlink": "link to another file here", "symlink_outside": "link out of the repository",
    "symlink_broken": "link to nothing", "symlink_loop": "link in a circle", "submodule": "sub-module",
    "deleted_during_scan": "deleted meanwhile", "secret": "looks like a secret", "exact_duplicate": "exact duplicate",
    "low_quality": "low quality", "excluded": "excluded by settings", "empty": "empty", "data": "data, not code",
    "over_maximum": "over max_training_chunks",
    "special_file": "no plain file", "secret_in_name": "a secret in its name", "many_secrets": "full of secrets or their names",
}  # fmt: skip


def show_kept_lines(console: Console, stretches: list[dict[str, Any]]) -> None:
    """Print ``path:first-last`` of every stretch of lines that would be kept."""
    console.print("\nLines kept:")
    for stretch in stretches:
        console.print(
            f"  {safe_text(stretch['path'])}:{stretch['start_line']}-{stretch['end_line']}", soft_wrap=True
        )


def show_scan(console: Console, scan: Scan, most_chunks: int | None = None) -> None:
    """Print a scan.

    Args:
        most_chunks: that a training takes (``max_training_chunks``), the best ones; all where None.
    """
    kept = sum(record.size_bytes for record in scan.files)
    console.print(f"{safe_text(scan.name)}: {counted(scan.files_seen, 'file')}, {file_size(scan.bytes_seen)}")
    console.print(
        f"Kept {counted(len(scan.files), 'file')} ({file_size(kept)}) with {scan.chunks_kept:,} of "
        f"{counted(scan.chunks_found, 'chunk')} (a function, a class, or what lies between); read in {scan.seconds:.1f} s\n"
    )
    over = _over_maximum(scan, most_chunks)
    if over.count:
        console.print(
            f"A training uses the best {most_chunks:,} of these {counted(scan.chunks_kept, 'chunk')} (max_training_chunks)."
        )
    for note in scan.notes:
        console.print(f"Note: {note}")
    languages = Table("language", "files", "chunks", "size", box=None, header_style="bold", pad_edge=False)
    for name, counts in sorted(scan.languages.items(), key=lambda item: -item[1]["bytes"]):
        languages.add_row(name, str(counts["files"]), str(counts["chunks"]), file_size(counts["bytes"]))
    console.print(languages)
    found = scan.dropped | ({"over_maximum": over} if over.count else {})
    if found:
        dropped = Table(
            "dropped because", "count", "size", "for example", box=None, header_style="bold", pad_edge=False
        )
        for rule, item in sorted(found.items(), key=lambda pair: -pair[1].bytes):
            examples = ", ".join(safe_text(place) for place in item.examples[:2])
            dropped.add_row(
                RULES.get(rule, rule), counted(item.count, item.unit), file_size(item.bytes), examples
            )
        console.print()
        console.print(dropped)
    console.print(f"\n{_duplicates(scan)}")
    if scan.secrets:
        console.print(
            f"\nPossible secrets in {counted(len(scan.secrets), 'place')}; the chunks around them are left out:"
        )
        for secret in scan.secrets[:20]:
            console.print(f"  {safe_text(secret.path)}:{secret.line}  {secret.kind}")
        if len(scan.secrets) > 20:
            console.print(f"  and {len(scan.secrets) - 20} more (--json lists all)")


def _over_maximum(scan: Scan, most_chunks: int | None) -> Dropped:
    """The chunks that are good enough, and that a training leaves out as there are better ones."""
    from mlx_gardener.dataset.prepare import select_best

    if most_chunks is None or scan.chunks_kept <= most_chunks:
        return Dropped("chunks")
    used, count = select_best(scan.files, most_chunks)
    size = sum(_chunk_bytes(record) for record in scan.files) - sum(_chunk_bytes(record) for record in used)
    whole = {record.path for record in scan.files} - {record.path for record in used}
    return Dropped("chunks", count, size, sorted(whole))


def _chunk_bytes(record: FileRecord) -> int:
    """Of the chunks of a file that were kept; what lies between them is not counted."""
    return sum(chunk.end_byte - chunk.start_byte for chunk in record.chunks)


def _duplicates(scan: Scan) -> str:
    """What became of text that is there more than once."""
    if not scan.exact_duplicates and not scan.near_duplicate_clusters:
        return "Duplicates: none."
    exact = f"{counted(scan.exact_duplicates, 'exact one')} left out"
    near = counted(scan.near_duplicate_clusters, "group")
    return (
        f"Duplicates: {exact}; {near} of files that are nearly the same, each kept together, so that no test file has a "
        "twin among the training files."
    )
