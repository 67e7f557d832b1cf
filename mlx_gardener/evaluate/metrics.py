"""Figures that can be compared across tokenizers, and how sure they are; plain functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence


def bits_per_byte(loss_sum: float, source_bytes: int) -> float:
    """Bits the model needs for each byte of source: loss in nats over ln 2, over the bytes that it covers."""
    return loss_sum / math.log(2) / max(1, source_bytes)


def paired_change(
    base: Sequence[float], adapter: Sequence[float], sizes: Sequence[int], *, seed: int, rounds: int = 2000
) -> tuple[float, float, float]:
    """(change, low, high) of the adapter's total against the base's, as a fraction, with its 95 % interval.

    Args:
        base, adapter: loss of each file under either.
        sizes: bytes of each file; files without any are left out.
        seed: of the bootstrap, which draws whole files with replacement (Efron 1979), so that lines of one file
            do not count as independent.
    """
    import numpy as np

    keep = np.array([size > 0 for size in sizes])
    first, second = np.array(base)[keep], np.array(adapter)[keep]
    change = float(second.sum() / first.sum() - 1)
    drawn = np.random.default_rng(seed).integers(0, len(first), (rounds, len(first)))
    changes = second[drawn].sum(axis=1) / first[drawn].sum(axis=1) - 1
    low, high = np.quantile(changes, (0.025, 0.975))
    return change, float(low), float(high)


def edit_similarity(first: str, second: str) -> float:
    """1 for equal texts, 0 for ones with nothing in common: the normalised Levenshtein similarity."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(first, second))
