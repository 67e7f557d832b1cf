"""Completions: a prompt as the model was trained to see it, and greedy generation by mlx-lm."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import DataError, ModelError
from mlx_gardener.model.tokens import header_text
from mlx_gardener.platform.encoding import whole_text
from mlx_gardener.retrieval import with_context

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel, CodeTokenizer

#: Tokens of prefix and suffix that are shown; an editor asks with about this much.
PREFIX_TOKENS, SUFFIX_TOKENS = 640, 192
#: Characters of them that are looked at: no tokenizer's tokens are as long on average, and an editor may send megabytes.
CHARACTERS_PER_TOKEN = 100
#: Characters for each token that are read at first: code has three or four.
_CHARACTERS_AT_FIRST = 8
#: Tokens beside a cut that may be others than without it.
_NEAR_A_CUT = 64
#: Prompts are read in blocks of so many tokens, everywhere: a server that has read the first blocks of a prompt before
#: then computes what a fresh start would, operation for operation, and gives the same answer.
PREFILL_TOKENS = 256


def build_prompt(
    tokenizer: CodeTokenizer,
    prefix: str,
    suffix: str | None,
    path: str,
    *,
    prefix_tokens: int = PREFIX_TOKENS,
    suffix_tokens: int = SUFFIX_TOKENS,
) -> list[int]:
    """Token ids to complete from: the path, then left to right, or with a span where ``suffix`` is given.

    Args:
        prefix_tokens, suffix_tokens: most tokens shown from before and after the place. Where more stands before it, what is
            shown begins with a line that stays the first one while somebody types on: what was read of it stays good.

    Raises:
        ModelError: a suffix is given and the model has no fill-in-the-middle markers.
    """
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    if path:
        opening += [] if tokenizer.file_id is None else [tokenizer.file_id]
        opening += tokenizer.encode(header_text(tokenizer, path))
    before = _before(tokenizer, prefix, prefix_tokens)
    if suffix is None:
        return opening + before
    if tokenizer.markers is None:
        raise ModelError(
            "This model has no fill-in-the-middle markers.",
            next_step="Complete without what follows (--no-suffix).",
        )
    after = edge_tokens(tokenizer.encode, suffix, suffix_tokens, last=False)
    return opening + tokenizer.markers.prompt(before, after)


def _before(tokenizer: CodeTokenizer, prefix: str, count: int) -> list[int]:
    """The last tokens of a prefix, ``count`` or up to a quarter fewer: from a line that is chosen by what it says.

    Of the lines that begin in the first quarter of the last ``count`` tokens it is the one with the least hash (content-defined, as in
    Rabin's fingerprinting): the same one for a prefix that has grown, until it stands too far away.
    """
    ids = edge_tokens(tokenizer.encode, prefix, count + 1, last=True)
    if len(ids) <= count:
        return ids
    ids = ids[1:]
    text = tokenizer.decode(ids)
    head = len(tokenizer.decode(ids[: count // 4]))
    starts = [found.end() for found in re.finditer("\n", text[:head])]
    if not starts:
        return ids
    # A line alone may be one of many, such as a bracket.
    start = min(starts, key=lambda at: zlib.crc32("\n".join(text[at:].split("\n", 3)[:3]).encode()))
    return tokenizer.encode(text[start:])[-count:]


def typed_breaks(prefix: str, suffix: str | None, path: str) -> int:
    """Line breaks at the end of a prefix that goes on left to right in the trained form: as many are left to the model.

    Tokens hold a newline together with the indentation after it, so a prompt that ends with a newline is none that training showed.
    The prompt is made without (`without_breaks`), the answer has to begin with one, and is given out without those that were
    typed; next lines of evidence are asked so, too.
    """
    if suffix is not None or not path or "\r" in prefix[-2:]:
        return 0
    left = prefix.rstrip("\n")
    return len(prefix) - len(left) if left else 0


def without_breaks(text: str, breaks: int) -> str:
    """``text`` but for at most so many line breaks that it begins with."""
    return text[min(breaks, len(text) - len(text.lstrip("\n"))) :]


def edge_tokens(encode: Callable[[str], list[int]], text: str, count: int, *, last: bool) -> list[int]:
    """The last, or the first, ``count`` tokens of a text, of which no more is read than that takes.

    A token in memory costs some hundred bytes, and a character may be several of them.
    """
    size, most = _CHARACTERS_AT_FIRST * count, CHARACTERS_PER_TOKEN * count
    while count > 0:
        part = text[-size:] if last else text[:size]
        ids = encode(part)
        if len(ids) >= count + _NEAR_A_CUT or len(part) == len(text) or size >= most:
            return ids[-count:] if last else ids[:count]
        size = min(most, 4 * size)
    return []


def complete(
    base: BaseModel,
    prefix: str,
    suffix: str | None = None,
    *,
    path: str = "",
    context: Sequence[int] = (),
    max_new_tokens: int,
    is_enough: Callable[[str], bool] | None = None,
) -> str:
    """What the model writes between ``prefix`` and ``suffix``, greedily, up to its end-of-text token or any
    other marker.

    Args:
        base: with or without an adapter attached.
        prefix, suffix: halves of surrogate pairs in them, which no tokenizer spells, are read as U+FFFD.
        path: shown in front, as in training.
        context: other code that stands before it (`retrieval.code_in_front`).
        max_new_tokens: at most this many.
        is_enough: asked with the text so far; ends the generation early.

    Raises:
        DataError: there is no prefix, suffix or path at all.
        ModelError: a suffix is given and the model has no fill-in-the-middle markers.
    """
    tokenizer = base.tokenizer
    prefix, suffix, path = (
        whole_text(prefix),
        None if suffix is None else whole_text(suffix),
        whole_text(path),
    )
    breaks = typed_breaks(prefix, suffix, path)
    prefix = prefix.rstrip("\n") if breaks else prefix
    prompt = with_context(build_prompt(tokenizer, prefix, suffix, path), context, tokenizer)
    if not prompt:
        raise DataError(
            "There is nothing to go on with: no text before the place.",
            next_step="Give at least a character.",
        )
    ids: list[int] = []
    text = ""
    begins = tokenizer.line_breaks if breaks else ()
    for token, _ in written_ids(base, prompt, max_new_tokens=max_new_tokens, begins=begins):
        ids.append(token)
        text = without_breaks(tokenizer.decode(ids), breaks)
        if is_enough is not None and is_enough(text):
            break
    return whole_characters(text)


def whole_characters(text: str) -> str:
    """``text`` without a last character that is written by half: tokens spell bytes, and some end within one."""
    return text.rstrip("\ufffd")


def stop_ids(tokenizer: CodeTokenizer) -> frozenset[int]:
    """The tokens that end a completion: end of text, padding, and every marker of files, repositories and spans."""
    stops = {tokenizer.eos_id, tokenizer.pad_id, tokenizer.file_id, tokenizer.repo_id}
    if (marks := tokenizer.markers) is not None:
        stops |= {marks.prefix, marks.suffix, marks.middle, marks.end}
    return frozenset(stop for stop in stops if stop is not None)


def _first_of(begins: Sequence[int]) -> Callable[[mx.array, mx.array], mx.array]:
    """Lets the first token be one of ``begins`` alone, as mlx-lm's processors of logits do."""
    import mlx.core as mx

    is_first = True

    def only(tokens: mx.array, logits: mx.array) -> mx.array:  # logits: (1, vocab)
        nonlocal is_first
        if not is_first:
            return logits
        is_first = False
        kept = mx.full(logits.shape, -mx.inf, dtype=logits.dtype)
        places = mx.array(list(begins))
        kept[:, places] = logits[:, places]
        return kept

    return only


def written_ids(
    base: BaseModel,
    prompt: list[int],
    *,
    max_new_tokens: int,
    stops: frozenset[int] | None = None,
    begins: Sequence[int] = (),
    sampler: Callable[[mx.array], mx.array] | None = None,
    cache: list[Any] | None = None,
    on_prompt: Callable[[], None] | None = None,
) -> Iterator[tuple[int, mx.array]]:
    """Token ids that the model writes after ``prompt``, each with the log-probabilities it was chosen from, (vocab,).

    Args:
        stops: tokens that end it and are not given out; `stop_ids` when None.
        begins: tokens of which the first one is; any where there are none.
        sampler: chooses from log-probabilities, (1, vocab); the likeliest when None.
        cache: mlx-lm's prompt cache that has read what comes before ``prompt``; a fresh one when None.
        on_prompt: called after each block of the prompt; may raise to stop.
    """
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    ends = stop_ids(base.tokenizer) if stops is None else stops
    steps = generate_step(
        mx.array(prompt),
        base.model,
        max_tokens=max_new_tokens,
        sampler=sampler,
        logits_processors=[_first_of(begins)] if begins else None,
        prompt_cache=cache,
        prefill_step_size=PREFILL_TOKENS,
        prompt_progress_callback=None if on_prompt is None else lambda *_: on_prompt(),
    )
    for token, logprobs in steps:
        if int(token) in ends:
            break
        yield int(token), logprobs
