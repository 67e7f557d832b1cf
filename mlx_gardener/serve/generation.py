"""One answer: token ids in, pieces of text out, stopped where the client or the model wants it.

What recent prompts began with alike is not read again (`serve.prompt_caches`), and the likeliest answer is written several tokens at a
time where drafts are right (`serve.drafts`); neither changes an answer, so answers do not depend on what was asked before.
What is drawn, or told with scores, is computed as offline does, from the blocks that offline reads.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_gardener.evaluate.complete import (
    Beginning,
    CaretPrompt,
    rest_of,
    stop_ids,
    whole_characters,
    written_ids,
)
from mlx_gardener.serve.drafts import Steps, drafted_ids
from mlx_gardener.serve.prompt_caches import Key, PromptCaches, Reading

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel


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
        as_fits: whether fewer tokens than ``max_tokens`` will do, where prompt and answer would not fit the model.
    """

    max_tokens: int
    stops: tuple[str, ...] = ()
    max_seconds: float | None = None
    least_indent: int = 0
    as_fits: bool = False


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

    ``stopped_by`` is the stop text that was met, "" for the model's own end. Times in milliseconds. ``decode_steps`` are passes
    through the model that wrote tokens; ``drafted_tokens`` were checked in them, of which ``accepted_tokens`` were right.
    """

    reason: str
    stopped_by: str
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    prompt_ms: float
    written_ms: float
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


def answer(
    base: BaseModel,
    prompt: CaretPrompt,
    sampling: Sampling,
    limits: Limits,
    *,
    caches: PromptCaches,
    key: Key,
    top_scores: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Piece | Ending]:
    """Pieces of text, then one `Ending`.

    Args:
        prompt: at least one token, and what the answer begins with, which is not given out.
        key: whose keys and values may be used again: the base's identity and the adapter's.
        top_scores: so many likeliest tokens are told for each; None tells no scores.
        check: called between blocks of the prompt and between tokens; may raise to stop.
    """
    import mlx.core as mx

    as_offline = base.dtype != mx.float32 or sampling.temperature > 0 or top_scores is not None
    begins = prompt.begins
    reading = caches.take(key, prompt.ids, base.model, exactly=as_offline)
    # A cache that forgets, such as a sliding window's, cannot take back what was drafted; and is never kept.
    as_offline |= not reading.can_be_cut
    read = len(reading.ids)
    passes = Steps()
    if sampling.temperature > 0:
        # Always: neither another request's seed nor what an error in it left behind may decide this answer.
        mx.random.seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
    start = time.perf_counter()
    first = 0.0
    ids: list[int] = []
    waiting: list[TokenScore] = []
    beginning, counted = Beginning(base.tokenizer, begins), 0
    given, reason, stopped_by = 0, "length", ""
    text = ""
    if as_offline:
        steps = _as_offline(base, prompt, reading, limits, _sampler(sampling), passes, check)
    else:
        steps = _drafted(base, prompt, reading, limits, passes, check)
    try:
        for token, logprobs in steps:
            check()
            first = first or time.perf_counter()
            ids.append(token)
            is_beyond = beginning.take(token)
            counted += is_beyond
            text = rest_of(base.tokenizer, ids, begins)
            if top_scores is not None and logprobs is not None and is_beyond:
                told = text if begins and counted == 1 else None
                waiting.append(_score(base, token, logprobs, top_scores, told))
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
            reason = "length" if counted >= limits.max_tokens else "stop"
    finally:
        # Also of an answer that nobody waits for any more: the next keystroke's prompt begins alike.
        steps.close()
        caches.keep(key, reading)
    end = time.perf_counter()
    text = whole_characters(text)
    if len(text) > given or waiting:
        yield Piece(text[given:], tuple(waiting))
    yield Ending(
        reason,
        stopped_by,
        len(prompt.ids),
        read,
        counted,
        1000 * ((first or end) - start),
        1000 * (end - (first or end)),
        passes.passes,
        passes.drafted,
        passes.accepted,
    )


#: Token ids with the log-probabilities they were chosen from, where these are known.
_Tokens = Generator["tuple[int, mx.array | None]", None, None]


def _as_offline(
    base: BaseModel,
    prompt: CaretPrompt,
    reading: Reading,
    limits: Limits,
    sampler: Callable[[mx.array], mx.array] | None,
    passes: Steps,
    check: Callable[[], None],
) -> _Tokens:
    """Tokens as `written_ids` computes them behind whole blocks; notes in ``reading`` what was read, also where it is left early."""
    computed = written_ids(
        base,
        prompt.ids[len(reading.ids) :],
        max_new_tokens=limits.max_tokens,
        stops=stop_ids(base.tokenizer),
        sampler=sampler,
        begins=prompt.begins,
        cache=reading.cache,
        on_prompt=check,
    )
    try:
        for token, logprobs in computed:
            passes.passes += 1
            yield token, logprobs
    finally:
        computed.close()  # type: ignore[attr-defined]
        reading.settle(prompt.ids)


def _drafted(
    base: BaseModel,
    prompt: CaretPrompt,
    reading: Reading,
    limits: Limits,
    passes: Steps,
    check: Callable[[], None],
) -> _Tokens:
    for token in drafted_ids(
        base,
        prompt.ids,
        reading,
        max_new_tokens=limits.max_tokens,
        begins=prompt.begins,
        steps=passes,
        check=check,
    ):
        yield token, None


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


def _score(base: BaseModel, token: int, logprobs: mx.array, top: int, told: str | None = None) -> TokenScore:
    """A token with the likeliest that may stand there, each without what was typed of it: of it only ``told`` is given out."""
    import mlx.core as mx
    import numpy as np

    values = np.array(logprobs.astype(mx.float32))
    best = [index for index in np.argsort(-values, kind="stable")[:top].tolist() if values[index] > -np.inf]
    text = base.tokenizer.decode([token])
    typed = 0 if told is None else max(0, len(text) - len(told))
    return TokenScore(
        text[typed:],
        float(values[token]),
        tuple((base.tokenizer.decode([index])[typed:], float(values[index])) for index in best),
    )
