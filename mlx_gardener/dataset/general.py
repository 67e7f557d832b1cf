"""A little general code, learned again beside a repository's own, against forgetting.

In: a fixed sample of ten files in as many languages, written for this package and under its licence (`general_code`). Out: examples
of it, as of any file. The guard against forgetting is measured on another sample (`evaluate.guards.other_code`), of which nothing
is ever learned: what was learned by heart here does not help there. Cost: some thousand tokens, each at most once an epoch.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection
from importlib.resources import files

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset.examples import Example, Excerpt, make_examples
from mlx_gardener.source.languages import language_of


def general_code(*, without: Collection[str] = ()) -> list[Excerpt]:
    """The sample, by name.

    Args:
        without: sha256 of files to leave out: a repository may hold them itself, and in its test part.
    """
    found = []
    for item in sorted(
        (files("mlx_gardener.dataset") / "general_code").iterdir(), key=lambda item: item.name
    ):
        data = item.read_bytes()
        if language_of(item.name) != "text" and hashlib.sha256(data).hexdigest() not in without:
            found.append(Excerpt(item.name, language_of(item.name), data.decode()))
    return found


def general_examples(
    config: DataConfig, *, can_fill: bool, seed: int, without: Collection[str] = ()
) -> list[Example]:
    """Examples of the whole sample in an order that ``seed`` decides; arguments as of `make_examples` and `general_code`."""
    made = list(make_examples(general_code(without=without), config, can_fill=can_fill, seed=seed))
    random.Random(f"{seed}\0general").shuffle(made)
    return made
