"""Evidence: what base and adapter did on the same unseen code, and the verdict that follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One place in an unseen file, and how base and adapter go on from it. Texts are as generated."""

    path: str
    line: int
    context: str
    expected: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Evidence:
    """Paired figures on the test part.

    ``metrics`` holds, for base and adapter: bits per byte, the share of next lines guessed exactly, and their mean edit
    similarity; and ``bits_per_byte_change`` as a fraction with its 95 % interval. ``verdict`` is "promote" when the whole
    interval is an improvement, "reject" when all of it is a loss, else "inconclusive".
    """

    metrics: dict[str, float]
    samples: tuple[Sample, ...]
    files: tuple[dict[str, Any], ...]
    next_line_tasks: int

    @property
    def verdict(self) -> str:
        """promote, inconclusive or reject."""
        if self.metrics["bits_per_byte_change_high"] < 0:
            return "promote"
        return "reject" if self.metrics["bits_per_byte_change_low"] > 0 else "inconclusive"

    @property
    def reason(self) -> str:
        """The verdict in one sentence."""
        found = self.metrics
        low, high = found["bits_per_byte_change_low"], found["bits_per_byte_change_high"]
        return (
            f"On {len(self.files)} files it never saw the adapter needs {found['bits_per_byte_change']:+.1%} bits per "
            f"byte against the base (95 % interval {low:+.1%} to {high:+.1%})."
        )

    def to_json(self, *, with_source: bool = False) -> dict[str, Any]:
        """The evidence as JSON types.

        Args:
            with_source: whether samples carry source text (context and expected line); what is written into an
                adapter's manifest leaves it out, its report has it.
        """
        hidden = () if with_source else ("context", "expected")
        samples = [
            {name: value for name, value in asdict(sample).items() if name not in hidden}
            for sample in self.samples
        ]
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "metrics": self.metrics,
            "files": list(self.files),
            "next_line_tasks": self.next_line_tasks,
            "samples": samples,
        }
