"""What the guards need of a model: losses on other code and on validation files, and how much it knows by heart.

In: a base, with or without an adapter. Out: `Checks`, which `guards` judges. Cost: about 25,000 tokens that go forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_gardener.dataset import PreparedData, continuation_places
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.evaluate import guards
from mlx_gardener.evaluate.complete import CaretPrompt
from mlx_gardener.evaluate.measure import Bench, part_of
from mlx_gardener.evaluate.rows import make_windows, plain_rows
from mlx_gardener.evaluate.work import Work, memorisation_places
from mlx_gardener.model.tokens import header_text

#: Tokens of the validation part that its gain is taken from.
_VALIDATION_TOKENS = 8_192


@dataclass(frozen=True)
class Checks:
    """What the guards need of base and of adapter: losses on other code and on validation files, words kept by heart."""

    other: dict[str, float]
    other_bytes: int
    validation: float
    train_share: float
    held_out_share: float
    places: int


def check(
    bench: Bench,
    data: PreparedData,
    trained: Sequence[Excerpt],
    work: Work,
    widths: Sequence[int],
    *,
    of: str,
    tell: Callable[[float], None],
) -> Checks:
    """What ``bench``'s base, with what is attached to it, does where the guards look.

    Args:
        trained: what the adapter was trained on.
        work: says how much of it is looked at.
        widths: of rows, tokens.
        of: what is attached, as in `Bench.store`.
        tell: told the share done, 0 to 1.
    """
    tokenizer, config = bench.base.tokenizer, bench.config
    other = plain_rows(
        make_windows(guards.other_code(), tokenizer, work.row_tokens),
        tokenizer,
        widths,
    )
    other = other.spread(int(work.guard_share * other.total_tokens))
    losses = bench.losses(other, lambda share: tell(0.2 * share), of=of)
    size = bench.batch_tokens
    rows = data.validation.spread(int(work.guard_share * _VALIDATION_TOKENS))
    validation = 0.0
    count = rows.update_count(size)
    for done, batch in enumerate(rows.batches(size, seed=None)):
        part = part_of(lambda share: tell(0.2 + 0.2 * share), done, count)
        validation += math.fsum(bench.row_losses(batch, part, of=of))
    places_asked = round(work.guard_share * memorisation_places(config.evaluation))
    enough = places_asked >= guards.LEAST_PLACES  # fewer say nothing
    asked = places_asked if enough and bench.engine.streamed is None else 0
    shares = []
    places = 0
    for number, excerpts in enumerate((trained, data.test_excerpts)):
        found = continuation_places(
            excerpts, asked, least_rest=8 * guards.CONTINUED_TOKENS, seed=config.seed + number
        )
        opening = [index for index in (tokenizer.bos_id, tokenizer.file_id) if index is not None]
        pairs = [
            guards.prompt_and_rest(
                place, tokenizer, [*opening, *tokenizer.encode(header_text(tokenizer, place.path))]
            )
            for place in found
        ]
        answers = bench.answers(
            [CaretPrompt(shown) for shown, _ in pairs],
            kind="verbatim",
            of=of,
            max_new_tokens=guards.CONTINUED_TOKENS,
            tell=part_of(lambda share: tell(0.4 + 0.6 * share), number, 2),
        )
        shares.append(guards.verbatim_share(answers, [rest for _, rest in pairs]))
        places = len(pairs) if number == 0 else min(places, len(pairs))
    tell(1.0)
    return Checks(losses, other.source_bytes, validation, shares[0], shares[1], places)
