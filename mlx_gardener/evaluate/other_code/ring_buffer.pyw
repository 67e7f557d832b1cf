"""A ring buffer of readings with running statistics, for a weather station that must never allocate while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator


class RingBuffer:
    """Keeps the last ``capacity`` readings and their mean and spread."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a buffer needs room for at least one reading")
        self._slots = [0.0] * capacity
        self._next = 0
        self._filled = 0
        self._total = 0.0
        self._squares = 0.0

    def push(self, reading: float) -> float | None:
        """Store a reading; returns the one that fell out, if any."""
        if not math.isfinite(reading):
            raise ValueError(f"{reading!r} is not a temperature")
        dropped = self._slots[self._next] if self._filled == len(self._slots) else None
        if dropped is not None:
            self._total -= dropped
            self._squares -= dropped * dropped
        else:
            self._filled += 1
        self._slots[self._next] = reading
        self._total += reading
        self._squares += reading * reading
        self._next = (self._next + 1) % len(self._slots)
        return dropped

    @property
    def mean(self) -> float:
        return self._total / self._filled if self._filled else math.nan

    @property
    def deviation(self) -> float:
        if self._filled < 2:
            return 0.0
        variance = self._squares / self._filled - self.mean**2
        return math.sqrt(max(0.0, variance))

    def __len__(self) -> int:
        return self._filled

    def __iter__(self) -> Iterator[float]:
        first = (self._next - self._filled) % len(self._slots)
        for offset in range(self._filled):
            yield self._slots[(first + offset) % len(self._slots)]


def frost_warnings(readings: list[tuple[str, float]], window: int = 6, threshold: float = 0.5) -> list[str]:
    """Hours at which the mean of the last ``window`` readings came close to freezing."""
    buffer = RingBuffer(window)
    warned: list[str] = []
    for hour, celsius in readings:
        buffer.push(celsius)
        if len(buffer) == window and abs(buffer.mean) <= threshold:
            warned.append(f"{hour}: mean {buffer.mean:.1f} C, deviation {buffer.deviation:.2f}")
    return warned


def test_the_oldest_reading_falls_out() -> None:
    buffer = RingBuffer(3)
    assert [buffer.push(value) for value in (1.0, 2.0, 3.0, 4.0)] == [None, None, None, 1.0]
    assert list(buffer) == [2.0, 3.0, 4.0]
    assert math.isclose(buffer.mean, 3.0)
