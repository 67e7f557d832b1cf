"""Guards: what must not happen, however much better the held-out files went. Each is measured, has a limit and a reason.

- forgetting: bits per byte on a fixed sample of other code (`other_code`, written for this package, six languages).
- memorisation: 16 tokens continued word for word. What training files give beyond held-out files was learned by heart;
  what held-out files give beyond what the base knew of them says that they were trained on. So does a held-out file whose
  content is in the manifest's list of training files, and a gain on the test part far beyond the validation part's.
- parse_ok: filled spans that parse, adapter against base.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from mlx_gardener.dataset import Place
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.evaluate.evidence import Guard, fewer
from mlx_gardener.evaluate.generate import Answer
from mlx_gardener.evaluate.metrics import bits_per_byte
from mlx_gardener.evaluate.statistics import Change
from mlx_gardener.source.languages import language_of

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer

#: Tokens that have to follow word for word, and tokens shown before them.
CONTINUED_TOKENS, SHOWN_TOKENS = 16, 128
#: A gain on the test part of more than twice the validation part's and this much more (a fraction) is not believed.
_BELIEVED_EXCESS = 0.1
#: With fewer places a share says nothing.
LEAST_PLACES = 8
#: What a guard lets pass (judgements): a rise of bits per byte on other code, as a fraction; a share of places that are continued
#: word for word beyond what is explained; a fall of the share of filled spans that parse.
FORGETTING_LIMIT, MEMORISATION_LIMIT, PARSE_OK_LIMIT = 0.1, 0.25, 0.05


def other_code() -> list[Excerpt]:
    """The sample of other projects' code that the package ships."""
    directory = files("mlx_gardener.evaluate") / "other_code"
    return [
        Excerpt(item.name, language_of(item.name), item.read_text(encoding="utf-8"))
        for item in sorted(directory.iterdir(), key=lambda item: item.name)
        if language_of(item.name) != "text" and item.name != "__init__.py"
    ]


def forgetting(base_losses: dict[str, float], adapter_losses: dict[str, float], source_bytes: int) -> Guard:
    """Whether bits per byte on other code rose by more than `FORGETTING_LIMIT`."""
    limit = FORGETTING_LIMIT
    before = bits_per_byte(sum(base_losses.values()), source_bytes)
    after = bits_per_byte(sum(adapter_losses.values()), source_bytes)
    rise = after / before - 1
    return Guard(
        "forgetting",
        rise <= limit,
        round(rise, 5),
        limit,
        f"on other projects' code it needs {fewer(rise)} bits per byte (at most {limit:.1%} more allowed)",
    )


def prompt_and_rest(
    place: Place, tokenizer: CodeTokenizer, header: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(token ids that are shown, the `CONTINUED_TOKENS` that follow them)."""
    shown = tokenizer.encode(place.prefix)[-SHOWN_TOKENS:]
    return [*header, *shown], tokenizer.encode(place.rest[: 16 * CONTINUED_TOKENS])[:CONTINUED_TOKENS]


def verbatim_share(answers: Sequence[Answer], rests: Sequence[Sequence[int]]) -> float:
    """The share of places that were continued word for word."""
    same = [list(answer.ids) == list(rest) for answer, rest in zip(answers, rests, strict=True)]
    return sum(same) / max(1, len(same))


def memorisation(
    *,
    shares: dict[str, float],
    places: int,
    trained_on_test: Sequence[str],
    test_gain: float,
    validation_gain: float | None,
) -> Guard:
    """Whether the adapter knows files by heart, or knows those that it must not have seen.

    Args:
        shares: continued word for word, by "adapter_train", "adapter_held_out" and "base_held_out".
        places: of each kind; none where nothing was generated.
        trained_on_test: held-out files whose content was trained on, by the manifest.
        test_gain, validation_gain: bits per byte saved against the base, as fractions.
    """
    limit = MEMORISATION_LIMIT
    if trained_on_test:
        reason = f"{len(trained_on_test)} of the test files were trained on ({trained_on_test[0]})"
        return Guard("memorisation", False, 1.0, limit, reason)
    if validation_gain is not None and test_gain > 2 * max(0.0, validation_gain) + _BELIEVED_EXCESS:
        reason = (
            f"it saves {test_gain:.0%} on the test files but only {validation_gain:.0%} on the validation files, as if it "
            "had been trained on the test"
        )
        return Guard(
            "memorisation", False, round(test_gain - 2 * max(0.0, validation_gain), 5), limit, reason
        )
    if places < LEAST_PLACES:
        return Guard("memorisation", True, None, limit, "too few places were continued to judge by")
    heart = shares["adapter_train"] - shares["adapter_held_out"]
    seen = shares["adapter_held_out"] - shares["base_held_out"]
    worst = max(heart, seen)
    if worst > limit and seen >= heart:
        reason = (
            f"it continues {shares['adapter_held_out']:.0%} of the places in held-out files word for word, the base "
            f"{shares['base_held_out']:.0%}, as if they had been trained on"
        )
    else:
        reason = (
            f"it continues {shares['adapter_train']:.0%} of the places in training files word for word and "
            f"{shares['adapter_held_out']:.0%} in held-out files (at most {limit:.0%} more allowed)"
        )
    return Guard("memorisation", worst <= limit, round(worst, 5), limit, reason)


def parse_ok(change: Change | None) -> Guard:
    """Whether fewer filled spans parse than the base's: by more than `PARSE_OK_LIMIT`, and not by chance."""
    limit = PARSE_OK_LIMIT
    if change is None:
        return Guard("parse_ok", True, None, limit, "no spans were filled to judge by")
    failed = change.change < -limit and change.high < 0
    points = f"{100 * change.change:+.1f}"
    changed = "did not change" if float(points) == 0 else f"changed by {points} points"
    by_chance = "; chance explains that as well" if change.spans_zero and float(points) else ""
    return Guard(
        "parse_ok",
        not failed,
        round(change.change, 5),
        limit,
        f"the share of filled spans that parse {changed} (95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
        f"{by_chance})",
    )
