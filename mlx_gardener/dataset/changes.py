"""What changed since an adapter was trained, and the split of a training that goes on from it.

A file keeps the part it was in: what an adapter has learned from never becomes a test. New files get the part that a
fresh split gives them, unless a near duplicate has one. The training part is then what is new or changed, and a share of
what is not, so that the old is not forgotten. Cost: nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_gardener.dataset.split import Split, kept_bytes
from mlx_gardener.source.records import FileRecord

#: Digits of a file's sha256 that a manifest keeps.
HASH_DIGITS = 16
#: Part of a file that an ancestor was trained on and that the repository has no more.
GONE = "gone"
_PARTS = ("train", "test", "validation")


@dataclass(frozen=True)
class Earlier:
    """The files an adapter version knows: path to (first digits of its sha256, part).

    Attributes:
        data_sha256: of the rows it was trained on.
        updates_done: of its epochs, where its time limit ended them early; 0 where there is nothing to add.
    """

    version: str
    files: dict[str, tuple[str, str]]
    data_sha256: str = ""
    updates_done: int = 0

    @classmethod
    def of_manifest(cls, version: str, manifest: dict[str, Any]) -> Earlier | None:
        """What a manifest says; None where it names no files (an import, or an early version of this program)."""
        files = manifest["data"].get("files")
        if not isinstance(files, dict) or not files:
            return None
        try:
            known = {str(path): (str(entry[0]), str(entry[1])) for path, entry in files.items()}
            return cls(version, known, str(manifest["data"].get("data_sha256")), _updates_done(manifest))
        except (TypeError, IndexError, KeyError):
            return None

    @property
    def is_unfinished(self) -> bool:
        """Whether the time limit left some of its epochs undone."""
        return self.updates_done > 0

    def is_same_as(self, split: Split) -> bool:
        """Whether ``split`` has exactly the files that the version knows, unchanged."""
        now = {record.path: record.sha256[:HASH_DIGITS] for name in _PARTS for record in getattr(split, name)}
        return now == {path: digits for path, (digits, part) in self.files.items() if part != GONE}

    def is_new(self, record: FileRecord) -> bool:
        """Whether a file is new or has changed."""
        known = self.files.get(record.path)
        return known is None or known[1] == GONE or known[0] != record.sha256[:HASH_DIGITS]


def _updates_done(manifest: dict[str, Any]) -> int:
    """How far an adapter's training came that its time limit ended; 0 for one that came to its end."""
    training = manifest.get("training", {})
    if not training.get("ended_by_time"):
        return 0
    return int(training["first_update"]) + int(training["steps"])


@dataclass(frozen=True)
class Continuation:
    """A split that goes on from an earlier one; ``whole`` has every training file, ``split`` those to learn from now."""

    whole: Split
    split: Split
    changed_files: int
    changed_share: float
    replayed_files: int


def continue_split(fresh: Split, earlier: Earlier, *, replay_share: float, seed: int) -> Continuation:
    """The split of a training that goes on from ``earlier``.

    Args:
        fresh: a split of the files as they are now.
        replay_share: of the bytes to learn from, those that have not changed; 0 to below 1.
    """
    parts: dict[str, list[FileRecord]] = {name: [] for name in _PARTS}
    clusters: dict[int, list[tuple[FileRecord, str]]] = {}
    for name in _PARTS:
        for record in getattr(fresh, name):
            clusters.setdefault(record.cluster, []).append((record, name))
    for members in clusters.values():
        known = [earlier.files[record.path][1] for record, _ in members if record.path in earlier.files]
        known = ["train" if part == GONE else part for part in known]
        part = next((name for name in _PARTS if name in known), members[0][1])
        parts[part] += [record for record, _ in members]
    sides = {name: tuple(sorted(parts[name], key=lambda record: record.path)) for name in _PARTS}
    whole = Split(sides["train"], sides["validation"], sides["test"])
    changed = [record for record in whole.train if earlier.is_new(record)]
    same = [record for record in whole.train if not earlier.is_new(record)]
    changed_bytes = sum(kept_bytes(record) for record in changed)
    wanted = changed_bytes * replay_share / (1 - replay_share)
    replayed: list[FileRecord] = []
    random.Random(seed).shuffle(same)
    for record in same:
        if sum(kept_bytes(item) for item in replayed) >= wanted:
            break
        replayed.append(record)
    total = sum(kept_bytes(record) for record in whole.train)
    train = tuple(sorted((*changed, *replayed), key=lambda record: record.path))
    return Continuation(
        whole,
        Split(train, whole.validation, whole.test),
        len(changed),
        changed_bytes / max(1, total),
        len(replayed),
    )


def known_files(split: Split, earlier: Earlier | None) -> dict[str, list[str]]:
    """What a manifest says of the files a version knows, its ancestors' included."""
    found = {
        record.path: [record.sha256[:HASH_DIGITS], name] for name in _PARTS for record in getattr(split, name)
    }
    before: Sequence[tuple[str, tuple[str, str]]] = () if earlier is None else tuple(earlier.files.items())
    gone = {
        path: [digits, GONE]
        for path, (digits, part) in before
        if part in ("train", GONE) and path not in found
    }
    return found | gone
