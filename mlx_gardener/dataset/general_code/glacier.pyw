"""Melting of a glacier, day by day: snow falls, ice melts, and what melts runs into a lake below."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Day:
    """What a weather station saw in a day."""

    number: int
    degrees: float
    snow_mm: float

    @classmethod
    def from_row(cls, row: dict[str, str]) -> "Day":
        try:
            return cls(int(row["day"]), float(row["degrees"]), float(row["snow"] or 0))
        except (KeyError, ValueError) as error:
            raise ValueError(f"not a day of weather: {row!r}") from error


@dataclass
class Lake:
    capacity: float
    level: float = 0.0
    spilled: list[tuple[int, float]] = field(default_factory=list)

    def take(self, day: int, water: float) -> None:
        self.level += water
        if self.level > self.capacity:
            self.spilled.append((day, self.level - self.capacity))
            self.level = self.capacity


class Glacier:
    def __init__(self, ice_mm: float, *, melt_per_degree: float = 4.5) -> None:
        if ice_mm < 0:
            raise ValueError("there is no negative ice")
        self.ice_mm = ice_mm
        self.melt_per_degree = melt_per_degree

    def live_through(self, day: Day) -> float:
        """What melts in a day, in millimetres of water."""
        self.ice_mm += day.snow_mm
        if day.degrees <= 0:
            return 0.0
        melted = min(self.ice_mm, day.degrees * self.melt_per_degree)
        self.ice_mm -= melted
        return melted


def read_days(path: Path) -> Iterator[Day]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from map(Day.from_row, csv.DictReader(file))


def run(glacier: Glacier, lake: Lake, days: Iterable[Day]) -> dict[str, float]:
    total = 0.0
    for day in sorted(days, key=lambda item: item.number):
        water = glacier.live_through(day)
        lake.take(day.number, water)
        total += water
    return {"melted": total, "ice": glacier.ice_mm, "level": lake.level, "spilled": sum(spill for _, spill in lake.spilled)}
