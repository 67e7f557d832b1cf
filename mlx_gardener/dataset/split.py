"""Train, validation and test by file: clusters of near duplicates stay on one side, sides are measured in bytes.

Where the repository has a history that tells files apart, the test part is what the latest commits added, and the validation part
what those before them did: an adapter is used on what comes later. Elsewhere the parts are drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_gardener.config import DataConfig
from mlx_gardener.errors import DataError
from mlx_gardener.source.history import Added
from mlx_gardener.source.records import FileRecord

#: Of a held-out part, the most that one file or cluster takes. On five real repositories the held-out files then weigh as
#: much as 6 to 14 files of one size, instead of 2 to 6 (total squared over the sum of squares).
_LARGEST_SHARE = 0.25
#: By time, where passing over a large new file would mean to take an old one (judgement).
_LARGEST_SHARE_BY_TIME = 0.5
#: Commits that have to have added what is held out, that it is a history and no import of everything at once (judgement).
_LEAST_COMMITS = 3


@dataclass(frozen=True)
class Split:
    """The files of each part, by path; ``since`` is the oldest commit that added a test file, None where parts were drawn."""

    train: tuple[FileRecord, ...]
    validation: tuple[FileRecord, ...]
    test: tuple[FileRecord, ...]
    since: str | None = None

    def describe(self) -> dict[str, Any]:
        """Files, bytes and the hash of the paths of each part."""
        return {name: _describe(getattr(self, name)) for name in ("train", "validation", "test")}


def _describe(files: Sequence[FileRecord]) -> dict[str, Any]:
    paths = "\0".join(record.path for record in files)
    return {
        "files": len(files),
        "bytes": sum(kept_bytes(record) for record in files),
        "paths_sha256": hashlib.sha256(paths.encode(errors="surrogateescape")).hexdigest(),
    }


def kept_bytes(record: FileRecord) -> int:
    """Bytes of a file that passed the filters."""
    return sum(chunk.end_byte - chunk.start_byte for chunk in record.chunks)


def split_files(
    files: Sequence[FileRecord],
    config: DataConfig,
    *,
    seed: int,
    added: Mapping[str, Added] | None = None,
) -> Split:
    """Split whole clusters, in an order decided by ``seed`` and the files' paths alone, or by when they were added.

    Test and validation are filled first, up to their fraction of all kept bytes, by clusters of at most a quarter of
    the part: files are what evidence counts, and one large file among small ones makes all the others count for nothing.
    Where such clusters do not fill half of it, larger ones are taken that overshoot by no more than the part itself.

    Args:
        added: what `added_files` says, for ``data.split`` "time" or "auto".

    Raises:
        DataError: there are fewer than three clusters, so that a part would be empty; or ``data.split`` is "time", and too few
            commits added files.
    """
    clusters: dict[int, list[FileRecord]] = {}
    for record in files:
        clusters.setdefault(record.cluster, []).append(record)
    if len(clusters) < 3:
        raise DataError(
            f"Only {len(clusters)} independent files passed the filters; train, validation and test need one each.",
            next_step="Train on a larger repository, or loosen the filters (see `mlx-gardener scan`).",
        )
    ordered = sorted(clusters.values(), key=lambda group: _rank(group, seed))
    if config.split != "files" and added is not None:
        by_time = _latest_first(ordered, added)
        found = _divided(by_time, files, config, largest=_LARGEST_SHARE_BY_TIME)
        commits = {added[record.path].commit for record in found.test if record.path in added}
        dated = all(record.path in added for record in (*found.test, *found.validation))
        oldest = max((entry.age for entry in added.values()), default=0)
        if dated and len(commits) >= _LEAST_COMMITS:
            last = max((added[record.path] for record in found.test), key=lambda entry: entry.age)
            if last.age < oldest:
                return replace(found, since=last.commit)
        if config.split == "time":
            raise DataError(
                "The history does not tell enough files apart to hold out the latest: too few commits added any.",
                next_step="Fetch the whole history (`git fetch --unshallow`), or set data.split to files.",
            )
    return _divided(ordered, files, config, largest=_LARGEST_SHARE)


def _latest_first(groups: Sequence[list[FileRecord]], added: Mapping[str, Added]) -> list[list[FileRecord]]:
    """Clusters by when their oldest file was added; what no commit of those looked at added comes last."""

    def age(group: list[FileRecord]) -> float:
        return max(added[record.path].age if record.path in added else math.inf for record in group)

    return sorted(groups, key=age)


def _divided(
    ordered: list[list[FileRecord]], files: Sequence[FileRecord], config: DataConfig, *, largest: float
) -> Split:
    """The parts, test and validation from the front of ``ordered``, of groups that are at most ``largest`` of a part."""
    total = sum(kept_bytes(record) for record in files)
    parts: dict[str, list[list[FileRecord]]] = {"test": [], "validation": [], "train": []}
    left = ordered
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        parts[name], left = _take(left, fraction * total, largest)
    parts["train"] = left
    if not left:  # a handful of files of the same size: training takes the largest
        parts["train"] = [max(parts["validation"] + parts["test"], key=_group_bytes)]
    sides = {
        name: tuple(sorted((record for group in groups for record in group), key=lambda record: record.path))
        for name, groups in parts.items()
    }
    return Split(sides["train"], sides["validation"], sides["test"])


def _take(
    groups: list[list[FileRecord]], wanted: float, share: float
) -> tuple[list[list[FileRecord]], list[list[FileRecord]]]:
    """Groups for about ``wanted`` bytes, at least one, and the rest."""
    taken: list[list[FileRecord]] = []
    rest = groups
    have = 0
    for largest in (wanted * share, 2 * wanted):
        if have >= wanted / 2:
            break
        left = []
        for group in rest:
            size = _group_bytes(group)
            if have < wanted and size <= largest and have + size <= 2 * wanted:
                taken.append(group)
                have += size
            else:
                left.append(group)
        rest = left
    if not taken:
        smallest = min(rest, key=_group_bytes)
        rest.remove(smallest)
        taken.append(smallest)
    return taken, rest


def _group_bytes(group: list[FileRecord]) -> int:
    return sum(kept_bytes(record) for record in group)


def _rank(group: list[FileRecord], seed: int) -> bytes:
    first = min(record.path for record in group)
    return hashlib.sha256(f"{seed}\0{first}".encode(errors="surrogateescape")).digest()
