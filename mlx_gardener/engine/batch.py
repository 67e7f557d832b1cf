"""What goes through an engine at once: rows of a batch, the adapters' weights, and the pulse of what is done meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

#: Arrays by mlx-lm's names: adapters, or their gradients.
Weights = dict[str, "mx.array"]
#: Told the share of a step's work that is done, 0 to 1, between its segments, and again within a long one; may raise to end the step.
BetweenSegments = Callable[[float], None]
#: The work of a layer's gradient, in forward passes of a layer: its weights are frozen, so that each is multiplied with once more.
BACKWARD = 1.0


class Pulse:
    """Counts the work of segments, and tells the share of it that is done.

    Args:
        whole: the work of all segments, in forward passes of a layer.
    """

    def __init__(self, tell: BetweenSegments | None, whole: float) -> None:
        self._tell, self._whole, self._done, self._share = tell, whole, 0.0, 0.0

    def __call__(self, work: float = 1.0) -> None:
        """A segment of so much ``work`` begins."""
        self._share = min(1.0, self._done / self._whole)
        self._done += work
        self.again()

    def again(self) -> None:
        """Tell the same share again, within a segment that takes long."""
        if self._tell is not None:
            self._tell(self._share)


@dataclass(frozen=True)
class MicroBatch:
    """Rows that are computed at once, from ``first_row`` of the batch on; all (rows, width)."""

    first_row: int
    tokens: np.ndarray
    loss_mask: np.ndarray
    document_ids: np.ndarray

    @property
    def loss_tokens(self) -> int:
        """Positions that are targets."""
        return int(self.loss_mask[:, 1:].sum())
