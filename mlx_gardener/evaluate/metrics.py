"""Figures that can be compared across tokenizers, and scores of single answers; how sure they are is for `statistics`."""

from __future__ import annotations

import math
import re


def bits_per_byte(loss_sum: float, source_bytes: int) -> float:
    """Bits the model needs for each byte of source: loss in nats over ln 2, over the bytes that it covers."""
    return loss_sum / math.log(2) / max(1, source_bytes)


def edit_similarity(first: str, second: str) -> float:
    """1 for equal texts, 0 for ones with nothing in common: the normalised Levenshtein similarity."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(first, second))


def identifiers(text: str) -> set[str]:
    """The names in ``text``."""
    return set(re.findall(r"[^\W\d]\w*", text))


def identifier_f1(answer: str, target: str, defined: frozenset[str]) -> float | None:
    """F1 of the repository's own names in an answer against those in the target; None where the target has none.

    Args:
        defined: names that the repository defines.
    """
    wanted = identifiers(target) & defined
    if not wanted:
        return None
    written = identifiers(answer) & defined
    return 2 * len(wanted & written) / (len(wanted) + len(written))


def parses(text: str, language: str) -> bool:
    """Whether tree-sitter reads ``text`` without an error, and without unusual effort; True for languages without a grammar."""
    from mlx_gardener.source.languages import GRAMMARS, parse

    if language not in GRAMMARS:
        return True
    tree = parse(text.encode(), language)
    return tree is not None and not tree.root_node.has_error
