"""How much a chunk teaches, 0 to 1, with the reasons; the same measure for every language.

The score is the product of a few factors, each 1 where nothing is wrong; the reasons name each factor that took
something, so that ``scan`` can say why a chunk was left out. Factors are judgement, made on text alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_gardener.source.records import ChunkType

_WORD = re.compile(r"[^\W\d_]{2,}")
_BRANCH = re.compile(
    r"\b(if|elif|elsif|for|foreach|while|case|when|catch|except|rescue|match|switch|guard|unless)\b|&&|\|\||\?"
)
#: What a kind of chunk is worth by itself: imports and bare constants teach little about how code is written.
_KIND_WORTH = {ChunkType.IMPORT: 0.6, ChunkType.VARIABLE: 0.85, ChunkType.COMMENT: 0.75}


@dataclass(frozen=True)
class Quality:
    """A score from 0 to 1, and the factors below 1 that made it."""

    score: float
    reasons: dict[str, float]


def quality_of(content: str, chunk_type: ChunkType, *, parse_error: bool = False) -> Quality:
    """Score a chunk's text."""
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    words = _WORD.findall(content)
    letters = sum(map(len, words))
    visible = max(1, sum(map(len, content.split())))
    factors = {
        "kind": _KIND_WORTH.get(chunk_type, 1.0),
        "short": min(1.0, 0.4 + 0.065 * len(words)),
        "long": min(1.0, 400 / max(1, len(lines))),
        "repetitive": min(1.0, 1.6 * len(set(lines)) / max(1, len(lines))),
        "few_words": min(1.0, 2.5 * letters / visible),
        "same_words": 1.0 if len(words) < 40 else min(1.0, 6.0 * len(set(words)) / len(words)),
        "parse_error": 0.7 if parse_error else 1.0,
    }
    score = 1.0
    for factor in factors.values():
        score *= factor
    return Quality(round(score, 4), {name: round(value, 3) for name, value in factors.items() if value < 1.0})


def complexity_of(content: str) -> float:
    """Branching per line, squashed to 0..1: branches / (branches + 10) over McCabe-style decision words."""
    branches = len(_BRANCH.findall(content))
    return round(branches / (branches + 10), 4)
