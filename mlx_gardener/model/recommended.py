"""Code models that are recommended, best first: where the hub has them, their licence, and how copies of them are known.

Budgets are those at which the planner finds room for a 4-bit base with rows of 1,024 tokens in memory (docs/plans.md). Order: the
largest first of Qwen2.5-Coder, which was made to complete within repositories (Hui et al. 2024, arXiv:2409.12186), then the
others (judgement).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Recommended:
    """A model to train on.

    Attributes:
        id: of a 4-bit conversion on the hub.
        least_gb: the least budget at which it trains without being read from disk.
        parameters: of the model, within some per cent.
        licence: as SPDX or the publisher calls it.
        is_commercial: whether the licence allows what a company does with an adapter.
        pattern: what any copy of it is called, whoever converted or packed it, in lower case.
    """

    id: str
    least_gb: float
    parameters: float
    licence: str
    is_commercial: bool
    pattern: str

    def is_of(self, name: str, parameters: int | None) -> bool:
        """Whether a model is a copy of this one: it is called so, and is as large."""
        alike = parameters is not None and 0.75 < parameters / self.parameters < 1.33
        return alike and re.search(self.pattern, name.lower()) is not None


_QWEN = r"qwen[- ]?2\.5[- ]?coder"
RECOMMENDED = (
    Recommended("mlx-community/Qwen2.5-Coder-7B-4bit", 8.0, 7.6e9, "apache-2.0", True, _QWEN),
    Recommended(
        "mlx-community/Qwen2.5-Coder-3B-4bit", 4.0, 3.1e9, "qwen-research (non-commercial)", False, _QWEN
    ),
    Recommended(
        "mlx-community/Qwen2.5-Coder-1.5B-4bit",
        3.0,
        1.54e9,
        "apache-2.0",
        True,
        _QWEN,
    ),
    Recommended("mlx-community/Qwen2.5-Coder-0.5B-4bit", 2.0, 0.49e9, "apache-2.0", True, _QWEN),
    Recommended(
        "mlx-community/starcoder2-3b-4bit", 4.0, 3.0e9, "bigcode-openrail-m", True, r"starcoder[- ]?2"
    ),
    Recommended("mlx-community/codegemma-2b-4bit", 4.0, 2.5e9, "gemma", True, r"codegemma"),
)


def rank_of(name: str, parameters: int | None) -> int | None:
    """The place of a model, or of what it is a copy of, among the recommended ones; None where it is none of them."""
    places = (
        at
        for at, one in enumerate(RECOMMENDED)
        if one.id == name.split(" ")[0] or one.is_of(name, parameters)
    )
    return next(places, None)
