"""Figures of use: what stayed of the completions that were offered, by version, and base against adapter where chance chose.

In: a project's offers (`evaluate.offers`). Out: `InUse`, as JSON types, tables of `report` and the page have it. A line has *stayed*
where it stands in its file oftener than before it was offered, whoever typed it; the first line of an offer is what an editor shows
at the least. Base and adapter are compared on requests that chance gave to either (``serve.compare``), by file. Cost: milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.errors import RegistryError
from mlx_gardener.evaluate.offers import (
    LOOKS,
    MOST_DAYS,
    Offer,
    Offered,
    OfferStore,
    Seen,
    line_hash,
    offered_lines,
    path_inside,
    salt_of,
)
from mlx_gardener.evaluate.statistics import rate_change
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry import AdapterRecord, ProjectRegistry
from mlx_gardener.registry.names import IN_USE_NAME

#: Of the lines beside the caret that are kept until the answer is there.
_MOST_CHARACTERS = 2000
#: What is told of an offer at a look: whether its first line stayed, and the share of all its lines.
MEASURES = {"first_line": "first line stayed", "lines": "lines stayed"}


@dataclass(frozen=True)
class Stayed:
    """What stayed of offers ``minutes`` later, as shares."""

    minutes: int
    offers: int
    first_line: float
    lines: float


@dataclass(frozen=True)
class Survival:
    """What a version (``arm`` "adapter"), or its base in its place, offered, and what stayed."""

    offered: Offered
    stayed: tuple[Stayed, ...]


@dataclass(frozen=True)
class InUseChange:
    """Adapter against base on requests that chance chose between them: a difference of shares with its 95 % interval, by file."""

    version: str
    minutes: int
    measure: str
    base: float
    adapter: float
    change: float
    low: float
    high: float
    files: int
    base_offers: int
    adapter_offers: int


@dataclass(frozen=True)
class InUse:
    """All figures of a project's use; empty where nothing was kept."""

    survival: tuple[Survival, ...] = ()
    changes: tuple[InUseChange, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "kept_days": MOST_DAYS,
            "versions": [
                {**asdict(item.offered), "stayed": [asdict(one) for one in item.stayed]}
                for item in self.survival
            ],
            "comparisons": [asdict(change) for change in self.changes],
        }


def in_use_directory(registry: ProjectRegistry, project: str) -> Path:
    """Where a project's offers are."""
    return registry.project_directory(project) / IN_USE_NAME


def offer_store(registry: ProjectRegistry, project: str) -> OfferStore:
    """A project's offers.

    Raises:
        OSError: the home's key for hashes can be neither read nor made.
    """
    return OfferStore(in_use_directory(registry, project), salt_of(registry.home))


@dataclass(frozen=True)
class Place:
    """Where an answer goes: the file as the client names it, and its line before and after the caret."""

    path: str
    before: str
    after: str

    @classmethod
    def at(cls, path: str, before: str, after: str | None) -> Place:
        """The place between two texts."""
        head, tail = before[-_MOST_CHARACTERS:], (after or "")[:_MOST_CHARACTERS]
        return cls(path, head.rpartition("\n")[2], tail.partition("\n")[0])


@dataclass(frozen=True)
class Answered:
    """An answer, as `keep_answer` takes it.

    Attributes:
        record: the version that was asked; ``arm``, ``retrieval`` and ``drawn`` as in `offers.Offer`.
        at: when, seconds since the epoch.
        whole: whether it ended by itself.
    """

    record: AdapterRecord
    arm: str
    retrieval: bool
    drawn: bool
    at: float
    latency_ms: float
    place: Place
    text: str
    whole: bool


def keep_answer(registry: ProjectRegistry, answer: Answered) -> bool | None:
    """Keep an answer as an offer; False where it says nothing new, None where its file is none of the repository's.

    Raises:
        OSError: it cannot be written.
        RegistryError: there is no such project any more, or the registry cannot be read.
    """
    project = answer.record.project
    root = registry.get_project(project).path
    path = path_inside(root, answer.place.path) if answer.place.path else None
    if path is None or any(
        path == gone or path.startswith(f"{gone}/") for gone in registry.forgotten_paths(project)
    ):
        return None
    lines = offered_lines(answer.place.before, answer.text, answer.place.after, whole=answer.whole)
    if not lines:
        return False
    salt = salt_of(registry.home)
    offer = Offer(
        answer.at,
        answer.record.version,
        answer.arm,
        answer.retrieval,
        answer.drawn,
        len(answer.text),
        answer.latency_ms,
        path,
        tuple(line_hash(salt, line) for line in lines),
    )
    return OfferStore(in_use_directory(registry, project), salt).add(offer, root)


def read_in_use(registry: ProjectRegistry, project: str, *, seed: int = 0) -> InUse:
    """A project's figures of use, after the looks that are due.

    Raises:
        RegistryError: there is no such project, or what was kept cannot be read.
    """
    root = registry.get_project(project).path
    if not in_use_directory(registry, project).is_dir():
        return InUse()
    try:
        store = offer_store(registry, project)
        store.look(root, time.time())
        return figures(store.offered(), store.seen(), seed=seed)
    except OSError as error:
        raise RegistryError(
            f"What is known of the use of {project!r} cannot be read ({reason_of(error)}).",
            next_step="Look at the rights of the home, or try again when the server is idle.",
        ) from error


def figures(offered: Sequence[Offered], seen: Sequence[Seen], *, seed: int = 0) -> InUse:
    """Figures of what was offered and what was seen of it; the newest version first, an adapter before its base."""
    ordered = sorted(offered, key=lambda item: (_number(item.version), item.arm == "adapter"), reverse=True)
    survival = tuple(
        Survival(
            item,
            tuple(
                _stayed(minutes, some)
                for minutes in LOOKS
                if (some := _of(seen, item.version, item.arm, minutes))
            ),
        )
        for item in ordered
    )
    changes = [
        change
        for version in dict.fromkeys(item.version for item in ordered)
        for minutes in LOOKS
        for measure in MEASURES
        if (change := _change(seen, version, minutes, measure, seed)) is not None
    ]
    return InUse(survival, tuple(changes))


def _of(seen: Sequence[Seen], version: str, arm: str, minutes: int) -> list[Seen]:
    return [one for one in seen if (one.version, one.arm, one.minutes) == (version, arm, minutes)]


def _stayed(minutes: int, some: Sequence[Seen]) -> Stayed:
    lines = sum(one.lines for one in some)
    return Stayed(
        minutes,
        len(some),
        sum(one.first for one in some) / len(some),
        sum(one.stayed for one in some) / lines,
    )


def _change(seen: Sequence[Seen], version: str, minutes: int, measure: str, seed: int) -> InUseChange | None:
    sides = [[one for one in _of(seen, version, arm, minutes) if one.drawn] for arm in ("base", "adapter")]
    if not all(sides):
        return None
    values = [
        [float(one.first) if measure == "first_line" else one.stayed / one.lines for one in side]
        for side in sides
    ]
    files = [[one.file.hex() for one in side] for side in sides]
    found = rate_change((values[0], files[0]), (values[1], files[1]), seed=seed)
    before, after = (sum(side) / len(side) for side in values)
    return InUseChange(
        version, minutes, measure, before, after, found.change, found.low, found.high, found.files, len(sides[0]), len(sides[1])
    )  # fmt: skip


def _number(version: str) -> int:
    digits = version.removeprefix("v")
    return int(digits) if digits.isdigit() else 0
