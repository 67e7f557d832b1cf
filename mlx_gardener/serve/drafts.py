"""The same greedy answer in fewer steps: what stood in the prompt before is guessed to come again, and several tokens are checked
at once.

In: a prompt and a `Reading` of its beginning. Out: its greedy answer, token for token what `evaluate.complete.written_ids` writes.
Drafts are prompt lookup's (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): what followed the last tokens where they
stood before, in the file, in retrieved code, or in the last answer at this place, of which somebody has typed a part. The model reads
a draft in one step and says after each of its tokens which comes next; tokens count up to the first that it would not have written.

A sum over several tokens, or after keys and values that were read in other pieces, may differ from offline's in its last bits: by
some millionths of the largest logit in float32. A choice that is closer than `_CLOSE` of it is therefore not made here: the answer
is computed again from where the prompt was last read as offline reads it, and goes on from there. Of trained models' answers that
are few. In bfloat16 and float16 nearly every answer has such a choice, so there all is computed as offline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_gardener.evaluate.complete import (
    PREFILL_TOKENS,
    Beginning,
    only_beginnings,
    stop_ids,
    written_ids,
)
from mlx_gardener.serve.prompt_caches import Reading

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel, CodeTokenizer

#: Logits this close to each other, as a share of the largest, are for offline's sums to tell apart.
_CLOSE = 1e-4
#: Tokens of a prompt that are read at once where blocks are not offline's: a client that leaves is noticed after so many.
_READ_AT_ONCE = 64
#: Tokens that have to stand alike for what follows to be a draft, and that are compared at most.
_LEAST_ALIKE, _MOST_ALIKE = 2, 12
#: Longest draft, and the first.
_MOST_DRAFTED, _FIRST_DRAFTED = 16, 8
#: Tokens before the caret that are kept with an answer.
_KEPT_BEFORE = 64


@dataclass
class Steps:
    """What an answer took: passes through the model that wrote tokens, tokens that were drafted, and drafted ones that were right."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    again: bool = False


class Drafter:
    """Finds drafts in what a prompt shows, and in ``written``, the last answer there.

    Args:
        left: tokens before the caret, which the answer continues.
        others: other texts, of which each may be continued but not across its end.
    """

    _END = -1

    def __init__(self, left: list[int], others: list[list[int]]) -> None:
        self._ids: list[int] = []
        self._after: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for text in others:
            for token in [*text, self._END]:
                self.add(token)
        for token in left:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token."""
        self._ids.append(token)
        last = self._ids[-_LEAST_ALIKE:]
        if len(last) == _LEAST_ALIKE and self._END not in last:
            self._after[tuple(last)].append(len(self._ids))

    def draft(self, most: int) -> list[int]:
        """What followed where the most of the last tokens stood before, lastly; [] where nothing did."""
        ids, now = self._ids, len(self._ids)
        best, length = 0, 0
        for place in reversed(self._after.get(tuple(ids[-_LEAST_ALIKE:]), ())):
            if place == now:
                continue
            alike = _LEAST_ALIKE
            while alike < min(_MOST_ALIKE, place) and ids[place - alike - 1] == ids[now - alike - 1]:
                alike += 1
            if alike > length:
                best, length = place, alike
                if alike == _MOST_ALIKE:
                    break
        found = ids[best : best + most] if length else []
        return found[: found.index(self._END)] if self._END in found else found


def sides(prompt: list[int], tokenizer: CodeTokenizer) -> tuple[list[int], list[int]]:
    """The tokens of a prompt that stand before the caret, and the others: code in front and what follows the caret.

    What is typed of the caret's line may stand behind the marker of the middle.
    """
    marks = tokenizer.markers
    if marks is None or marks.prefix not in prompt or marks.suffix not in prompt:
        return prompt, []
    start = len(prompt) - prompt[::-1].index(marks.prefix)
    end = prompt.index(marks.suffix, start) if marks.suffix in prompt[start:] else len(prompt)
    middle = prompt.index(marks.middle, start) if marks.middle in prompt[start:] else len(prompt)
    typed = prompt[middle + 1 :]
    end = min(end, middle)
    return prompt[start:end] + typed, prompt[: start - 1] + prompt[end : middle + 1]


def guess(tokenizer: CodeTokenizer, written: list[int], left: list[int]) -> list[int]:
    """The rest of an earlier answer where ``left`` goes on with a part of it, behind the last tokens of ``left``; else []."""
    if not written or not left:
        return []
    before = left[-_MOST_ALIKE:]
    tail, known = tokenizer.decode(before), tokenizer.decode(written)
    at = known.rfind(tail) if tail.strip() else -1
    rest = known[at + len(tail) :] if at >= 0 else ""
    return [*before, *tokenizer.encode(rest)] if rest else []


def drafted_ids(
    base: BaseModel,
    prompt: list[int],
    reading: Reading,
    *,
    max_new_tokens: int,
    begins: str = "",
    steps: Steps,
    check: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """The greedy answer's token ids, up to what ends it.

    Args:
        prompt: at least one token.
        begins: text that it has to begin with, as in `written_ids`.
        reading: of a beginning of it; what is read and written since is noted in it.
        steps: is added to.
        check: called before every pass; may raise to stop.
    """
    ends = stop_ids(base.tokenizer)
    left, others = sides(prompt, base.tokenizer)
    earlier = reading.written
    drafter = Drafter(left, [*_parts(others, ends), earlier, guess(base.tokenizer, earlier, left)])
    _read(base, prompt, reading, check)
    written: list[int] = []
    beginning, count = Beginning(base.tokenizer, begins), 0
    last, most = prompt[-1], _FIRST_DRAFTED
    try:
        while count < max_new_tokens:
            check()
            draft = drafter.draft(min(most, max_new_tokens - count - 1))
            beginnings = beginning.along(draft)
            draft = draft[: len(beginnings) - 1]
            fed = [last, *draft]
            chosen, clear = _choices(base, fed, reading, beginnings)
            steps.passes += 1
            steps.drafted += len(draft)
            right = 0
            while right < len(draft) and clear[right] and chosen[right] == draft[right]:
                right += 1
            steps.accepted += right
            new = chosen[: right + clear[right]]
            reading.ids += fed[: right + 1]
            for layer in reading.cache:
                layer.trim(len(draft) - right)
            most = min(_MOST_DRAFTED, 4 + 2 * right)
            for token in new:
                if token in ends:
                    return
                written.append(token)
                drafter.add(token)
                count += beginning.take(token)
                yield token
            if not clear[right]:
                steps.again = True
                yield from _again(base, prompt, reading, written, max_new_tokens, begins, steps, check)
                return
            last = new[-1]
    finally:
        if written:
            reading.written = [*left[-_KEPT_BEFORE:], *written]


def _parts(ids: list[int], ends: frozenset[int]) -> list[list[int]]:
    """Texts between markers."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token in ends:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _read(base: BaseModel, prompt: list[int], reading: Reading, check: Callable[[], None]) -> None:
    """Read what is left of a prompt but for its last token: in offline's blocks as long as all before was."""
    import mlx.core as mx

    while (at := len(reading.ids)) < len(prompt) - 1:
        check()
        left = len(prompt) - 1 - at
        as_offline = at == reading.exact and left >= PREFILL_TOKENS
        piece = prompt[at : at + (PREFILL_TOKENS if as_offline else min(_READ_AT_ONCE, left))]
        base.model(mx.array([piece]), cache=reading.cache)
        mx.eval([layer.state for layer in reading.cache])
        reading.ids += piece
        if as_offline:
            reading.exact += PREFILL_TOKENS


def _choices(
    base: BaseModel, fed: list[int], reading: Reading, beginnings: list[Beginning]
) -> tuple[list[int], list[bool]]:
    """The likeliest token after each of those that are fed, as far as the answer has to begin so, and whether it is so by more than
    rounding."""
    import mlx.core as mx

    logits = base.model(mx.array([fed]), cache=reading.cache)[0]  # (fed, vocab)
    largest = mx.maximum(mx.abs(logits).max(axis=-1), 1.0)
    logits = only_beginnings(logits, beginnings)
    chosen = logits.argmax(axis=-1)
    best = logits.max(axis=-1)
    others = mx.where(mx.arange(logits.shape[-1]) == chosen[:, None], -mx.inf, logits)
    clear = best - others.max(axis=-1) > _CLOSE * largest
    mx.eval(chosen, clear, [layer.state for layer in reading.cache])
    return chosen.tolist(), clear.tolist()  # type: ignore[return-value]


def _again(
    base: BaseModel,
    prompt: list[int],
    reading: Reading,
    written: list[int],
    max_new_tokens: int,
    begins: str,
    steps: Steps,
    check: Callable[[], None],
) -> Iterator[int]:
    """The answer as offline computes it, from behind ``written``, which is added to."""
    reading.cut(reading.exact)
    computed = written_ids(
        base,
        prompt[reading.exact :],
        max_new_tokens=max_new_tokens,
        begins=begins,
        cache=reading.cache,
        on_prompt=check,
    )
    known = len(written)
    try:
        for number, (token, _) in enumerate(computed):
            check()
            steps.passes += 1
            if number < known:
                # Never seen: two orders of one sum that differ a hundred times more than rounding.
                assert token == written[number], "two ways to compute one answer differ by more than rounding"
                continue
            written.append(token)
            yield token
    finally:
        computed.close()  # type: ignore[attr-defined]
        reading.settle(prompt)
