"""Completions: a prompt as the model was trained to see it, and greedy generation by mlx-lm."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
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
#: Characters of a word that are left to the model at most.
_MOST_LEFT = 64
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


@dataclass(frozen=True)
class CaretPrompt:
    """What a model is shown of a place in a file, and what its answer has to begin with there.

    Tokens hold whole words, with the blank before them, and line breaks with the indentation behind them. A prompt that ends where
    the caret stands ends within one, and is none that training showed. So the last word is left to the model ("token healing", as in
    github.com/guidance-ai/guidance): ``ids`` end before it, the answer has to begin with it, and is given out without it (`rest_of`).

    Attributes:
        ids: the prompt.
        begins: the end of the prefix that ``ids`` do not spell.
    """

    ids: list[int]
    begins: str = ""


def caret_prompt(
    tokenizer: CodeTokenizer,
    prefix: str,
    suffix: str | None,
    path: str,
    *,
    prefix_tokens: int = PREFIX_TOKENS,
    suffix_tokens: int = SUFFIX_TOKENS,
) -> CaretPrompt:
    """`build_prompt` for a caret that may stand anywhere; raises as it does.

    What is typed of the caret's line follows the marker of the middle where the format allows it (`FimMarkers.middle_from`).
    Text without path and suffix is taken as it is.
    """
    begins = left_to_write(tokenizer, prefix, suffix, path)
    before = prefix[: len(prefix) - len(begins)]
    line = (
        len(before) if suffix is None or tokenizer.markers is None else tokenizer.markers.middle_from(before)
    )
    ids = build_prompt(
        tokenizer, before[:line], suffix, path, prefix_tokens=prefix_tokens, suffix_tokens=suffix_tokens
    )
    return CaretPrompt(ids + tokenizer.encode(before[line:]), begins)


def left_to_write(tokenizer: CodeTokenizer, prefix: str, suffix: str | None, path: str) -> str:
    """The end of a prefix that is left to the model (see `CaretPrompt`); "" where all of it is shown."""
    if suffix is None and not path:
        return ""
    end = prefix[-4 * _MOST_LEFT :]
    if suffix is not None:  # a span's tokens begin anew
        end = end[end.rfind("\n") + 1 :]
    word = tokenizer.last_word(end)
    return word if len(word) <= _MOST_LEFT else ""


class Beginning:
    """What an answer still has to begin with."""

    def __init__(self, tokenizer: CodeTokenizer, text: str) -> None:
        self._tokenizer = tokenizer
        self._left = text.encode()
        self._ids = tokenizer.beginnings(self._left)

    @property
    def ids(self) -> list[int]:
        """The tokens that may come next; [] where any may."""
        return self._ids

    def take(self, token: int) -> bool:
        """Note what was written; whether that is more than had to be, and so a part of the answer."""
        if not self._ids:
            return True
        spelled = self._tokenizer.spelling(token)
        done = not self._left.startswith(spelled)
        self._left = b"" if done else self._left[len(spelled) :]
        self._ids = [] if done else self._tokenizer.beginnings(self._left)
        return done

    def along(self, tokens: Sequence[int]) -> list[Beginning]:
        """Itself, and what there is after each of ``tokens``, up to one that may not come next."""
        found = [self]
        for token in tokens:
            if found[-1].ids and token not in found[-1].ids:
                break
            found.append(copy(found[-1]))
            found[-1].take(token)
        return found


def rest_of(tokenizer: CodeTokenizer, ids: Sequence[int], begins: str) -> str:
    """What ``ids``, which spell ``begins`` and more, or a part of it, say beyond it."""
    text = tokenizer.decode(list(ids))
    if begins and ids and len(tokenizer.decode([ids[0]]).encode()) < len(tokenizer.spelling(ids[0])):
        text = f" {text}"  # SentencePiece's decoders leave out a blank that a text begins with
    return text[len(begins) :]


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
        is_enough: asked with the text so far, once for each token that counts; ends the generation early.

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
    place = caret_prompt(tokenizer, prefix, suffix, path)
    prompt = with_context(place.ids, context, tokenizer)
    if not prompt:
        raise DataError(
            "There is nothing to go on with: no text before the place.",
            next_step="Give at least a character.",
        )
    ids: list[int] = []
    text = ""
    for token, _ in written_ids(base, prompt, max_new_tokens=max_new_tokens, begins=place.begins):
        ids.append(token)
        text = rest_of(tokenizer, ids, place.begins)
        if is_enough is not None and (text or not place.begins) and is_enough(text):
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


def only_beginnings(logits: mx.array, beginnings: Sequence[Beginning]) -> mx.array:
    """``logits``, (rows, vocab), with -inf for what a row may not go on with."""
    import mlx.core as mx

    if not any(beginning.ids for beginning in beginnings):
        return logits
    rows = []
    for row, beginning in enumerate(beginnings):
        if beginning.ids:
            ids = mx.array(beginning.ids)
            kept = mx.full(logits.shape[1:], -mx.inf, dtype=logits.dtype)
            kept[ids] = logits[row][ids]
            rows.append(kept)
        else:
            rows.append(logits[row])
    return mx.stack(rows)


def _begin_with(beginning: Beginning) -> Callable[[mx.array, mx.array], mx.array]:
    """Lets an answer begin as it has to, as mlx-lm's processors of logits do."""
    is_first = True

    def only(tokens: mx.array, logits: mx.array) -> mx.array:  # tokens: those before; logits: (1, vocab)
        nonlocal is_first
        if not is_first and beginning.ids:
            beginning.take(int(tokens[-1]))
        is_first = False
        return only_beginnings(logits, [beginning])

    return only


def written_ids(
    base: BaseModel,
    prompt: list[int],
    *,
    max_new_tokens: int,
    stops: frozenset[int] | None = None,
    begins: str = "",
    sampler: Callable[[mx.array], mx.array] | None = None,
    cache: list[Any] | None = None,
    on_prompt: Callable[[], None] | None = None,
) -> Iterator[tuple[int, mx.array]]:
    """Token ids that the model writes after ``prompt``, each with the log-probabilities it was chosen from, (vocab,).

    Args:
        stops: tokens that end it and are not given out; `stop_ids` when None.
        begins: text that they have to begin with; tokens that spell no more than a part of it do not count.
        sampler: chooses from log-probabilities, (1, vocab); the likeliest when None.
        cache: mlx-lm's prompt cache that has read what comes before ``prompt``; a fresh one when None.
        on_prompt: called after each block of the prompt; may raise to stop.
    """
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    ends = stop_ids(base.tokenizer) if stops is None else stops
    beginning, count = Beginning(base.tokenizer, begins), 0
    steps = generate_step(
        mx.array(prompt),
        base.model,
        max_tokens=max_new_tokens and max_new_tokens + len(begins.encode()),
        sampler=sampler,
        logits_processors=[_begin_with(Beginning(base.tokenizer, begins))] if begins else None,
        prompt_cache=cache,
        prefill_step_size=PREFILL_TOKENS,
        prompt_progress_callback=None if on_prompt is None else lambda *_: on_prompt(),
    )
    for token, logprobs in steps:
        if int(token) in ends:
            break
        count += beginning.take(int(token))
        yield int(token), logprobs
        if count == max_new_tokens:
            break
