"""How far a repository has moved since an adapter was trained on it.

In: an adapter version. Out: commits since, files that are new, changed or gone, and, when asked, bits per byte of base and
adapter on the new code. Cost: git's answer and a scan (seconds); measuring loads the base, within the budget of the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import Earlier
from mlx_gardener.dataset.changes import GONE
from mlx_gardener.dataset.split import kept_bytes
from mlx_gardener.platform.files import is_directory
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report.text import counted
from mlx_gardener.source.records import FileRecord

if TYPE_CHECKING:
    from mlx_gardener.adapter import LoadedAdapter
    from mlx_gardener.engine import Engine
    from mlx_gardener.model import BaseModel


@dataclass(frozen=True)
class Staleness:
    """What has changed in a repository since the adapter ``version`` was trained on its ``commit``.

    Attributes:
        commits_since: None without git, or where the commit is not there any more.
        new_files, changed_files, gone_files: paths, of files that a training would read today; gone ones, of what the version knows.
        stale_share: bytes of new and changed files over bytes of all files, both as a training would read them, after its filters;
            None where it is not known which files the version knows.
        new_code: when measured, bits per byte of ``base`` and ``adapter`` on new and changed files, and their ``bytes``.
        note: why nothing is known; None where it is.
    """

    version: str
    commit: str | None
    commits_since: int | None
    new_files: list[str]
    changed_files: list[str]
    gone_files: list[str]
    stale_share: float | None
    new_code: dict[str, float] | None = None
    note: str | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types."""
        return asdict(self)

    def sentence(self) -> str:
        """For people."""
        if self.note is not None:
            return f"What has changed since {self.version} was trained is not known: {self.note}"
        if not (self.new_files or self.changed_files or self.gone_files):
            commits = f" ({counted(self.commits_since, 'commit')})" if self.commits_since else ""
            return f"Since {self.version} was trained, no file has changed{commits}."
        since = "" if self.commits_since is None else f"{counted(self.commits_since, 'commit')}, "
        text = (
            f"Since {self.version} was trained: {since}{counted(len(self.new_files), 'new file')}, "
            f"{len(self.changed_files)} changed, {len(self.gone_files)} gone; "
            f"{self.stale_share or 0:.1%} of the code is not what it was trained on."
        )
        if self.new_code is not None:
            text += (
                f" On that code: {self.new_code['adapter']:.4f} bits per byte, the base {self.new_code['base']:.4f} "
                f"({self.new_code['bytes']:.0f} bytes)."
            )
        return text


def look_at(
    registry: ProjectRegistry,
    project: str,
    config: TrainingConfig,
    *,
    measure: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Staleness | None:
    """How stale the project's active adapter is; None where it has none, or its repository is gone.

    Args:
        config: filters of the scan, as files are those a training would read; and the memory budget to measure within.
        measure: also bits per byte on new and changed files.
        tell: told what is being done.

    Raises:
        AdapterError: the adapter's files are not the ones that were written.
        MemoryBudgetError: it is to be measured, and its base does not fit the budget.
        ModelError: likewise, and its base is not here.
    """
    from mlx_gardener.adapter import PeftManager
    from mlx_gardener.source import scan_repository
    from mlx_gardener.source.walk import commits_between

    found = registry.get_project(project)
    if found.active_adapter is None or not is_directory(found.path):
        return None
    adapter = PeftManager(registry).load_adapter(project)
    commit = adapter.manifest["data"].get("commit")
    since = None if not isinstance(commit, str) else commits_between(found.path, commit)
    earlier = Earlier.of_manifest(found.active_adapter, adapter.manifest)
    if earlier is None:
        note = "its manifest does not say which files it knows."
        return Staleness(found.active_adapter, commit, since, [], [], [], None, note=note)
    if tell is not None:
        tell("Reading the repository")
    scan = scan_repository(found.path, config.data, quality_threshold=config.training_data_quality_threshold)
    stale = [record for record in scan.files if earlier.is_new(record)]
    there = {record.path for record in scan.files}
    total = sum(kept_bytes(record) for record in scan.files)
    measured = None
    if measure and stale:
        if tell is not None:
            tell("Measuring on new and changed files")
        measured = _measure(registry, project, adapter, found.path, stale, config, tell)
    known = [path for path, (_, part) in earlier.files.items() if part != GONE]
    return Staleness(
        found.active_adapter,
        commit,
        since,
        [record.path for record in stale if record.path not in earlier.files],
        [record.path for record in stale if record.path in earlier.files],
        sorted(set(known) - there),
        sum(kept_bytes(record) for record in stale) / max(1, total),
        measured,
    )


def _measure(
    registry: ProjectRegistry,
    project: str,
    adapter: LoadedAdapter,
    root: Path,
    files: Sequence[FileRecord],
    config: TrainingConfig,
    tell: Callable[[str], None] | None,
) -> dict[str, float]:
    from mlx_gardener.adapter import attach_adapter
    from mlx_gardener.adapter.base import load_adapter_engine
    from mlx_gardener.source import read_source

    base, engine = load_adapter_engine(
        registry, registry.get_adapter(project), adapter, config, warn=tell or (lambda text: None)
    )
    texts = {record.path: read_source(root, record).text for record in files}
    lengths = tuple(sorted(engine.plan.rows_of_width))
    plain = bits_per_byte_of(base, engine, texts, lengths)
    with attach_adapter(base, adapter):
        adapted = bits_per_byte_of(base, engine, texts, lengths)
    return {"base": plain, "adapter": adapted, "bytes": sum(len(text.encode()) for text in texts.values())}


def bits_per_byte_of(
    base: BaseModel, engine: Engine, texts: dict[str, str], lengths: tuple[int, ...]
) -> float:
    """Bits per byte of whole texts, by path, in windows of at most the last of ``lengths`` tokens.

    Args:
        base: with or without an adapter attached.
        engine: the base's; it takes as many windows at once as its budget allows.
        lengths: of the rows that windows are put in, rising.
    """
    from mlx_gardener.dataset.examples import Excerpt
    from mlx_gardener.evaluate.metrics import bits_per_byte
    from mlx_gardener.evaluate.rows import make_windows, plain_rows

    excerpts = [Excerpt(path, "", text) for path, text in texts.items()]
    rows = plain_rows(make_windows(excerpts, base.tokenizer, lengths[-1]), base.tokenizer, lengths)
    loss, _, _ = engine.evaluate(rows.batches(engine.forward_tokens, seed=None))
    return bits_per_byte(loss, sum(len(text.encode()) for text in texts.values()))
