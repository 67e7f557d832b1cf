"""One answer: token ids in, pieces of text out, stopped where the client or the model wants it.

Prompts are read in the same blocks as offline (`evaluate.complete.PREFILL_TOKENS`). The keys and values of the blocks a
project's last prompt had in common with this one are kept, so an editor's growing prefix is not read again; what is
computed from there on is the same operations on the same numbers, so answers do not depend on what was asked before.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_gardener.evaluate.complete import (
    PREFILL_TOKENS,
    stop_ids,
    whole_characters,
    without_breaks,
    written_ids,
)

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel

#: Prompts whose keys and values are kept, over all projects.
_KEPT_PROMPTS = 8


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 takes the likeliest; ``seed`` None draws anew every time."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Limits:
    """Where an answer ends.

    Attributes:
        max_tokens: at the latest.
        stops: before any of these texts.
        max_seconds: after so much writing, once a line is complete (llama.cpp's ``t_max_predict_ms``).
        least_indent: before a line, not the first one, that is indented by fewer characters (its ``n_indent``).
        typed_breaks: so many line breaks were typed that the prompt leaves to the model (`evaluate.complete.typed_breaks`).
        as_fits: whether fewer tokens than ``max_tokens`` will do, where prompt and answer would not fit the model.
    """

    max_tokens: int
    stops: tuple[str, ...] = ()
    max_seconds: float | None = None
    least_indent: int = 0
    as_fits: bool = False
    typed_breaks: int = 0


@dataclass(frozen=True)
class TokenScore:
    """A written token with its log-probability and the likeliest ones, (text, log-probability), best first."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that is written for good; ``scores`` are of the tokens since the last piece, where they were asked for."""

    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Ending:
    """Why an answer ended ("stop", "length" or "time") and what it took.

    ``stopped_by`` is the stop text that was met, "" for the model's own end. Times in milliseconds.
    """

    reason: str
    stopped_by: str
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    prompt_ms: float
    written_ms: float


class PromptCaches:
    """Keys and values of recent prompts, by the model that read them (a base's identity and an adapter's)."""

    def __init__(self, kept: int = _KEPT_PROMPTS) -> None:
        self._kept = kept
        self._found: OrderedDict[tuple[str, str], tuple[list[int], list[Any]]] = OrderedDict()

    def take(self, key: tuple[str, str], prompt: list[int], model: Any) -> tuple[list[Any], int]:
        """A cache that has read the first blocks of ``prompt``, and how many tokens these are; it is the caller's now."""
        from mlx_lm.models.cache import make_prompt_cache

        read, cache = self._found.pop(key, ([], []))
        common = 0
        for ours, theirs in zip(read, prompt, strict=False):
            if ours != theirs:
                break
            common += 1
        # Whole blocks that both prompts were, or will be, read in: the last token is always read alone.
        blocks = min(common, len(read) - 1, len(prompt) - 1) // PREFILL_TOKENS
        if blocks < 1:
            return make_prompt_cache(model), 0
        for layer in cache:
            layer.trim(layer.offset - blocks * PREFILL_TOKENS)
        return cache, blocks * PREFILL_TOKENS

    def keep(self, key: tuple[str, str], prompt: list[int], cache: list[Any]) -> None:
        """Keep what a prompt's reading left, where it can be cut back to whole blocks."""
        from mlx_lm.models.cache import KVCache

        if len(prompt) > PREFILL_TOKENS and all(type(layer) is KVCache for layer in cache):
            self._found[key] = (prompt, cache)
            while len(self._found) > self._kept:
                self._found.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        self._found.clear()

    @property
    def size_bytes(self) -> int:
        """What they take."""
        return sum(layer.nbytes for _, cache in self._found.values() for layer in cache)


def answer(
    base: BaseModel,
    prompt: list[int],
    sampling: Sampling,
    limits: Limits,
    *,
    caches: PromptCaches,
    key: tuple[str, str],
    top_scores: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Piece | Ending]:
    """Pieces of text, then one `Ending`.

    Args:
        prompt: at least one token.
        key: whose keys and values may be used again: the base's identity and the adapter's.
        top_scores: so many likeliest tokens are told for each; None tells no scores.
        check: called between blocks of the prompt and between tokens; may raise to stop.
    """
    import mlx.core as mx

    cache, read = caches.take(key, prompt, base.model)
    if sampling.temperature > 0:
        # Always: neither another request's seed nor what an error in it left behind may decide this answer.
        mx.random.seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
    start = time.perf_counter()
    first = 0.0
    ids: list[int] = []
    waiting: list[TokenScore] = []
    given, reason, stopped_by = 0, "length", ""
    text = ""
    steps = written_ids(
        base,
        prompt[read:],
        max_new_tokens=limits.max_tokens,
        stops=stop_ids(base.tokenizer),
        sampler=_sampler(sampling),
        begins=base.tokenizer.line_breaks if limits.typed_breaks else (),
        cache=cache,
        on_prompt=check,
    )
    try:
        for token, logprobs in steps:
            check()
            first = first or time.perf_counter()
            ids.append(token)
            text = without_breaks(base.tokenizer.decode(ids), limits.typed_breaks)
            if top_scores is not None and (text or not limits.typed_breaks):
                waiting.append(_score(base, token, logprobs, top_scores))
            end_at, stopped_by = _end_of(text, limits)
            if end_at is not None:
                text, reason = text[:end_at], "stop"
                break
            until = _certain(text, limits)
            if until > given:
                yield Piece(text[given:until], tuple(waiting))
                given, waiting = until, []
            late = limits.max_seconds is not None and time.perf_counter() - first > limits.max_seconds
            if late and "\n" in text:
                reason = "time"
                break
        else:
            reason = "length" if len(ids) >= limits.max_tokens else "stop"
    finally:
        steps.close()  # type: ignore[attr-defined]
    caches.keep(key, prompt, cache)
    end = time.perf_counter()
    text = whole_characters(text)
    if len(text) > given or waiting:
        yield Piece(text[given:], tuple(waiting))
    yield Ending(
        reason,
        stopped_by,
        len(prompt),
        read,
        len(ids),
        1000 * ((first or end) - start),
        1000 * (end - (first or end)),
    )


def _end_of(text: str, limits: Limits) -> tuple[int | None, str]:
    """Where ``text`` has to end, and the stop text that is there; None where it may go on."""
    found = [(text.find(stop), stop) for stop in limits.stops if stop in text]
    if limits.least_indent:
        at = text.find("\n")
        while at >= 0:
            indent = re.match(r"[ \t]*", text[at + 1 :])
            rest = text[at + 1 + (indent.end() if indent else 0) :]
            if rest and rest[0] not in "\r\n" and indent is not None and indent.end() < limits.least_indent:
                found.append((at, ""))
                break
            at = text.find("\n", at + 1)
    return min(found, default=(None, ""), key=lambda pair: pair[0] if pair[0] is not None else 0)


def _certain(text: str, limits: Limits) -> int:
    """How many characters cannot change or be cut off: a character may be half written, a stop or indent half seen."""
    until = len(whole_characters(text))
    for stop in limits.stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                until = min(until, len(text) - length)
                break
    if limits.least_indent and (blank := re.search(r"\n\s*$", text)):
        until = min(until, blank.start())
    return until


def _sampler(sampling: Sampling) -> Callable[[mx.array], mx.array] | None:
    if sampling.temperature <= 0:
        return None
    from mlx_lm.sample_utils import make_sampler

    def choose(logprobs: mx.array) -> mx.array:
        # mlx-lm refuses to choose from all there are; that is no choice of the best ones at all.
        top_k = sampling.top_k if sampling.top_k < logprobs.shape[-1] else 0
        sampler = make_sampler(
            temp=sampling.temperature, top_p=sampling.top_p, min_p=sampling.min_p, top_k=top_k
        )
        chosen: mx.array = sampler(logprobs)
        return chosen

    return choose


def _score(base: BaseModel, token: int, logprobs: mx.array, top: int) -> TokenScore:
    import mlx.core as mx
    import numpy as np

    values = np.array(logprobs.astype(mx.float32))
    best = np.argsort(-values, kind="stable")[:top].tolist()
    return TokenScore(
        base.tokenizer.decode([token]),
        float(values[token]),
        tuple((base.tokenizer.decode([index]), float(values[index])) for index in best),
    )
