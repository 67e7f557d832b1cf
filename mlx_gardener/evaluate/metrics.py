"""Figures that can be compared across tokenizers, and scores of single answers; how sure they are is for `statistics`."""

from __future__ import annotations

import math


def bits_per_byte(loss_sum: float, source_bytes: int) -> float:
    """Bits the model needs for each byte of source: loss in nats over ln 2, over the bytes that it covers."""
    return loss_sum / math.log(2) / max(1, source_bytes)


def edit_similarity(first: str, second: str) -> float:
    """1 for equal texts, 0 for ones with nothing in common: the normalised Levenshtein similarity."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(first, second))
