"""Whether a model would write exactly an answer that is known, without writing it.

In: prompts and the answers to them. Out: for each whether greedy writing gives that answer and then ends: it does where every token of
the answer is the likeliest after those before it, and an end after the last. So an answer of three hundred tokens, a window of code,
is read in pieces instead of written one by one, and given up at the piece that first differs. An answer spelled by other tokens
than the tokenizer's own counts as wrong, in every arm alike; ties may fall otherwise than in writing (`generate` says how seldom).
Cost: reading prompt and answer once; memory for the logits of `_AT_ONCE` tokens on each CPU stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate.complete import stop_ids
from mlx_gardener.evaluate.generate import READ_AT_ONCE

if TYPE_CHECKING:
    from mlx_gardener.engine import Engine
    from mlx_gardener.model import BaseModel

#: Tokens of an answer that are read at once: each has logits over the vocabulary.
_AT_ONCE = 32


def writes_exactly(
    base: BaseModel,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    engine: Engine | None = None,
    on_found: Callable[[int, bool], None] = lambda at, right: None,
    tell: Callable[[float], None] = lambda share: None,
    interrupt: Callable[[], None] = lambda: None,
) -> list[bool]:
    """Whether each answer is what the model writes after its prompt, in their order.

    Args:
        base: with or without an adapter attached.
        asked: token ids of prompts, none of them empty, and of answers.
        engine: the base's, for its operations and CPU streams; without one, one stream and MLX's own operations.
        on_found: told the place of a prompt and whether, as soon as that is known.
        tell: told the share done, 0 to 1.
        interrupt: asked between pieces; may raise.

    Raises:
        ModelError: a prompt is empty.
    """
    import mlx.core as mx

    if not all(prompt for prompt, _ in asked):
        raise ModelError("There is nothing to go on from.", next_step="Give some code before the place.")
    streams: list[Any] = list(engine.streams) if engine is not None and engine.streams else [None]
    # Of about the same length together: all of a group are read before the next is begun.
    order = sorted(range(len(asked)), key=lambda at: -sum(map(len, asked[at])))
    found = [False] * len(asked)
    for start in range(0, len(order), len(streams)):
        group = order[start : start + len(streams)]
        with engine.reading(len(group)) if engine is not None else nullcontext():
            for at, right in zip(
                group, _read(base, [asked[at] for at in group], streams, interrupt), strict=True
            ):
                found[at] = right
                on_found(at, right)
        mx.clear_cache()
        tell((start + len(group)) / len(order))
    return found


def _read(
    base: BaseModel,
    group: Sequence[tuple[Sequence[int], Sequence[int]]],
    streams: Sequence[Any],
    interrupt: Callable[[], None],
) -> list[bool]:
    """As `writes_exactly`, for one prompt and answer a stream."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches = [make_prompt_cache(base.model) for _ in group]
    for at in range(0, max(len(prompt) for prompt, _ in group) - 1, READ_AT_ONCE):
        for (prompt, _), cache, stream in zip(group, caches, streams, strict=False):
            if piece := list(prompt[at : min(at + READ_AT_ONCE, len(prompt) - 1)]):
                with mx.stream(stream) if stream is not None else nullcontext():
                    base.model(mx.array([piece]), cache=cache)
        mx.eval(
            [
                [one.state for one in cache]
                for cache, (prompt, _) in zip(caches, group, strict=True)
                if len(prompt) > 1
            ]
        )
        interrupt()
    stops = stop_ids(base.tokenizer)
    right = [True] * len(group)
    for at in range(0, max(len(answer) for _, answer in group) + 1, _AT_ONCE):
        likeliest: dict[int, mx.array] = {}
        for number, ((prompt, answer), cache, stream) in enumerate(zip(group, caches, streams, strict=False)):
            piece = [prompt[-1], *answer][at : at + _AT_ONCE]
            if right[number] and piece:
                with mx.stream(stream) if stream is not None else nullcontext():
                    likeliest[number] = base.model(mx.array([piece]), cache=cache)[0].argmax(
                        axis=-1
                    )  # (piece,)
        mx.eval([*likeliest.values(), [[one.state for one in caches[number]] for number in likeliest]])
        for number, best in likeliest.items():
            wanted = list(group[number][1][at : at + _AT_ONCE])
            chosen: list[int] = best.tolist()  # type: ignore[assignment]
            ends = len(wanted) == len(chosen) or chosen[-1] in stops
            right[number] = chosen[: len(wanted)] == wanted and ends
        interrupt()
    return right
