"""Greedy answers to many prompts at once, and a memory of the base's.

A prompt is read by itself, so that this is the same sum whatever else is asked; then the caches of many are joined
(mlx-lm's batched ones, padded on the left) and all answers grow by a token at a time. On a CPU prompts, and then halves of
the batch, are shared among CPU streams. Where weights become floats for every product, one batch is written by
all streams together, a block of outputs each: making the floats is most of that work, and costs the same for any number
of prompts. So batches are as large as keys and values fit into what the budget has left.

In a batch sums over keys are grouped otherwise than alone, so that an answer may differ where two tokens are equally likely to
the last bits: of 112 prompts of 24 to 120 tokens, asked together and one by one for 24 tokens of SmolLM2-135M in float32, no
answer differed. Cost: reading at about the speed of `Engine.row_losses`; a written token that of reading the weights, or of
making their floats (4 bits: 500 million a second and core), once a batch. Those 112 took 63 CPU seconds together, 284 alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate.complete import Beginning, only_beginnings, rest_of, stop_ids
from mlx_gardener.platform.footprint import process_footprint_bytes

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.engine import Engine
    from mlx_gardener.model import BaseModel

#: Tokens of a prompt that are read at once.
READ_AT_ONCE = 512
#: Memory for keys and values where no engine says what the budget has left.
_CACHE_BYTES = 256 * 2**20
#: Share of the budget that is used, and prompts at once: more bring nothing where products are dense.
_USED, _MOST_AT_ONCE = 0.9, 128
#: Answers that are done are taken out of a batch when so many of it are: taking out copies all keys and values.
_DONE_SHARE = 0.25
#: One written token costs about so many that are read; for progress only.
_READ_PER_WRITTEN = 6


@dataclass(frozen=True)
class Answer:
    """What a model wrote; ``stopped`` when it ended by itself, with an end-of-text or another marker."""

    text: str
    stopped: bool
    ids: tuple[int, ...]

    def to_json(self) -> list[Any]:
        """As JSON types."""
        return [self.text, self.stopped, list(self.ids)]

    @classmethod
    def from_json(cls, kept: Any) -> Answer | None:
        """What `to_json` gave; None for anything else."""
        try:
            text, stopped, ids = kept
            return cls(str(text), bool(stopped), tuple(int(token) for token in ids))
        except (TypeError, ValueError):
            return None


@dataclass
class _Written:
    """An answer so far; ``at`` is its place among all."""

    at: int
    prompt: Sequence[int]
    begins: str
    beginning: Beginning
    read: int = 0
    counted: int = 0
    ids: list[int] = field(default_factory=list)
    answer: Answer | None = None


@dataclass
class _Group:
    """Answers that grow together on one stream: ``rows`` by their places, with the caches and last tokens of all."""

    stream: Any
    rows: list[_Written]
    caches: list[Any]
    tokens: mx.array  # (rows,)


def generate_many(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    engine: Engine | None = None,
    begins: Sequence[str] = (),
    is_enough: Callable[[str], bool] | None = None,
    on_answer: Callable[[int, Answer], None] = lambda at, answer: None,
    tell: Callable[[float], None] = lambda share: None,
    interrupt: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """The greedy answer to each prompt, in their order; the same in any company but for ties (see above).

    Args:
        base: with or without an adapter attached.
        prompts: token ids, none of them empty.
        max_new_tokens: at most this many a prompt.
        engine: the base's, for its operations, CPU streams and budget; without one, one stream and MLX's own operations.
        begins: text that each answer has to begin with, and is given out without; nothing where there are none.
        is_enough: asked with an answer's text so far; ends that answer early.
        on_answer: told the place of a prompt and its answer as soon as that is done.
        tell: told the share done, 0 to 1, after every piece of a prompt and every token.
        interrupt: asked as often; may raise.

    Raises:
        ModelError: a prompt is empty.
    """
    import mlx.core as mx

    if not all(prompts):
        raise ModelError("There is nothing to complete from.", next_step="Give some code before the place.")
    # Of a blank there are some ten thousand ids, which answers share.
    beginnings = {text: Beginning(base.tokenizer, text) for text in {"", *begins}}
    rows = [
        _Written(at, prompt, text, copy(beginnings[text]))
        for at, (prompt, text) in enumerate(zip(prompts, begins or [""] * len(prompts), strict=True))
    ]
    # Longest first: what meets in a batch is of about the same length, and little is padded.
    order = sorted(rows, key=lambda row: -len(row.prompt))
    kept_tokens = max_new_tokens + max((len(base.tokenizer.encode(text)) for text in {*begins}), default=0)
    todo = sum(len(row.prompt) - 1 + _READ_PER_WRITTEN * max_new_tokens for row in rows)

    def pulse() -> None:
        interrupt()
        written = sum(max_new_tokens if row.answer else row.counted for row in rows)
        tell(min(1.0, (sum(row.read for row in rows) + _READ_PER_WRITTEN * written) / todo))

    stops = stop_ids(base.tokenizer)
    start = 0
    while start < len(order):
        mx.clear_cache()
        size = _rows_at_once(base, engine, len(order[start].prompt), kept_tokens)
        batch = order[start : start + size]
        start += len(batch)
        groups = _read(base, engine, batch, kept_tokens, pulse)
        _write(base, engine, groups, max_new_tokens, stops, is_enough, on_answer, pulse)
    return [row.answer for row in rows if row.answer is not None]


def _read(
    base: BaseModel,
    engine: Engine | None,
    batch: list[_Written],
    new_tokens: int,
    pulse: Callable[[], None],
) -> list[_Group]:
    """The batch's prompts but for their last tokens in caches, in the groups that they are written in."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    streams: list[Any] = list(engine.streams) if engine is not None and engine.streams else [None]
    caches = [make_prompt_cache(base.model) for _ in batch]
    for start in range(0, len(batch), len(streams)):
        beside = list(zip(streams, batch[start:], caches[start:], strict=False))
        with engine.reading(len(beside)) if engine is not None else nullcontext():
            longest = max(len(row.prompt) for _, row, _ in beside) - 1
            for at in range(0, longest, READ_AT_ONCE):
                for stream, row, cache in beside:
                    piece = list(row.prompt[at : min(at + READ_AT_ONCE, len(row.prompt) - 1)])
                    if piece:
                        with _on(stream):
                            base.model(mx.array([piece]), cache=cache)
                        row.read += len(piece)
                mx.eval([[one.state for one in cache] for _, row, cache in beside if row.read])
                pulse()
    shares = _shares(engine, streams, caches)
    return [
        _Group(
            stream,
            batch[here],
            _joined(caches, here, new_tokens),
            mx.array([row.prompt[-1] for row in batch[here]]),
        )
        for stream, here in shares
    ]


def _shares(engine: Engine | None, streams: list[Any], caches: list[list[Any]]) -> list[tuple[Any, slice]]:
    """Which rows of a batch are written together, and on which stream."""
    rows = len(caches)
    if not all(hasattr(cache, "merge") for cache in caches[0]):  # no batch of such caches
        return [(streams[row % len(streams)], slice(row, row + 1)) for row in range(rows)]
    used = 1 if _in_blocks(engine) else min(len(streams), rows)
    cuts = [rows * part // used for part in range(used + 1)]
    return [(streams[part] if used > 1 else None, slice(cuts[part], cuts[part + 1])) for part in range(used)]


def _in_blocks(engine: Engine | None) -> bool:
    """Whether all streams write one batch together."""
    return engine is not None and engine.plan.dequantize and len(engine.streams) > 1


def _joined(caches: list[list[Any]], here: slice, new_tokens: int) -> list[Any]:
    """One cache a layer for the rows ``here``; their own are let go, layer by layer."""
    import mlx.core as mx

    own = caches[here]
    if len(own) == 1:
        return own[0]
    found = []
    for layer in range(len(own[0])):
        one = own[0][layer].merge([cache[layer] for cache in own])
        if hasattr(one, "step"):
            one.step = new_tokens  # it grows once, by what will be written
        mx.eval(one.state)
        for cache in own:
            cache[layer] = None
        found.append(one)
    return found


def _write(
    base: BaseModel,
    engine: Engine | None,
    groups: list[_Group],
    max_new_tokens: int,
    stops: frozenset[int],
    is_enough: Callable[[str], bool] | None,
    on_answer: Callable[[int, Answer], None],
    pulse: Callable[[], None],
) -> None:
    """Let the answers of all groups grow until each is done."""
    import mlx.core as mx

    while groups:
        with _writing(engine, len(groups)):
            for group in groups:
                with _on(group.stream):
                    logits = base.model(group.tokens[:, None], cache=group.caches)[:, -1]  # (rows, vocab)
                    logits = only_beginnings(logits, [row.beginning for row in group.rows])
                    group.tokens = logits.argmax(axis=-1)
            mx.eval([(group.tokens, [cache.state for cache in group.caches]) for group in groups])
        for group in groups:
            tokens: list[int] = group.tokens.tolist()  # type: ignore[assignment]  # (rows,)
            for row, token in zip(group.rows, tokens, strict=True):
                if row.answer is None:
                    _take(row, token, base, max_new_tokens, stops, is_enough)
                    if row.answer is not None:
                        on_answer(row.at, row.answer)
            _leave_out_done(group)
        groups = [group for group in groups if group.rows]
        pulse()


def _writing(engine: Engine | None, streams: int) -> AbstractContextManager[None]:
    if engine is None:
        return nullcontext()
    return engine.reading(streams, in_blocks=_in_blocks(engine) and streams == 1)


def _take(
    row: _Written,
    token: int,
    base: BaseModel,
    max_new_tokens: int,
    stops: frozenset[int],
    is_enough: Callable[[str], bool] | None,
) -> None:
    """One more token of an answer, which may end it."""
    stopped = token in stops
    if not stopped:
        row.ids.append(token)
        row.counted += row.beginning.take(token)
    text = rest_of(base.tokenizer, row.ids, row.begins)
    enough = not stopped and is_enough is not None and is_enough(text)
    if stopped or enough or row.counted >= max_new_tokens:
        row.answer = Answer(text, stopped, tuple(row.ids))


def _leave_out_done(group: _Group) -> None:
    """Take answers that are done out of the batch, once they are many."""
    import mlx.core as mx

    alive = [at for at, row in enumerate(group.rows) if row.answer is None]
    if not alive:
        group.rows, group.caches = [], []
    elif len(group.rows) - len(alive) >= max(1, _DONE_SHARE * len(group.rows)):
        with _on(group.stream):
            for cache in group.caches:
                cache.filter(alive)
                mx.eval(cache.state)
            group.tokens = group.tokens[mx.array(alive)]
        group.rows = [group.rows[at] for at in alive]


def _on(stream: Any) -> Any:
    import mlx.core as mx

    return mx.stream(stream) if stream is not None else nullcontext()


def _rows_at_once(base: BaseModel, engine: Engine | None, prompt_tokens: int, new_tokens: int) -> int:
    """Prompts whose keys and values fit into what the budget has left, by the sizes in the model's config."""
    config = base.config.get("text_config", base.config)
    heads = int(config.get("num_attention_heads") or 1)
    kept = int(config.get("num_key_value_heads") or heads)
    hidden = int(config.get("hidden_size") or 1)
    width = int(config.get("head_dim") or hidden // heads)
    layers = int(config.get("num_hidden_layers") or len(base.model.layers))
    token_bytes = 2 * layers * kept * max(1, width) * base.dtype.size
    row_bytes = token_bytes * (prompt_tokens + new_tokens)
    if engine is None:
        return max(1, min(_MOST_AT_ONCE, _CACHE_BYTES // row_bytes))
    vocab = int(config.get("vocab_size") or 1)
    read = min(READ_AT_ONCE, prompt_tokens)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    # A piece of a prompt on each stream: states, the wide layer's, scores with their softmax.
    work = 4 * read * (10 * hidden + 4 * inner + 3 * heads * prompt_tokens) * max(1, len(engine.streams))
    left = _USED * engine.plan.budget_bytes - engine.plan.cache_bytes - process_footprint_bytes() - work
    # Logits twice; and while caches are joined or grow, a layer's are there twice.
    row_bytes += 2 * 4 * vocab + 2 * row_bytes // max(1, layers)
    return max(1, min(_MOST_AT_ONCE, int(left // row_bytes)))


def prompt_key(prompt: Sequence[int], max_new_tokens: int, begins: str = "") -> str:
    """The name among those of a base and a kind of the answer to a prompt, which has to begin with a text."""
    return hashlib.sha256(json.dumps([max_new_tokens, list(prompt), begins]).encode()).hexdigest()[:32]
