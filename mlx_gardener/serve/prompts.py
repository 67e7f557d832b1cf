"""Requests as prompts: raw text, the trained form with a file's path and a FIM span, and chats by the model's template.

A raw prompt is read as the client wrote it, markers as markers, like every server does. Editors such as Zed write their
infill prompts so: one that is nothing else takes the trained form, with code of the repository before it. Everywhere else text
is text, whatever it spells. No more of a text becomes tokens than a model can read: a token in memory costs some hundred bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlx_gardener.evaluate.complete import (
    CHARACTERS_PER_TOKEN,
    PREFIX_TOKENS,
    SUFFIX_TOKENS,
    CaretPrompt,
    caret_prompt,
    edge_tokens,
)
from mlx_gardener.model.tokens import header_text
from mlx_gardener.retrieval import with_context
from mlx_gardener.retrieval.context import most_in_front
from mlx_gardener.serve.bodies import CompletionBody, InfillBody
from mlx_gardener.serve.generation import Limits
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.worker import BadRequestError

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel, CodeTokenizer

#: Makes the prompts: of a base, in so many tokens, within limits, with code in front.
Prepare = Callable[["BaseModel", int, Limits, Lookup], list[CaretPrompt]]
#: Characters before the FIM span that are put together.
_PREFIX_CHARACTERS = CHARACTERS_PER_TOKEN * PREFIX_TOKENS
#: Long texts are counted in pieces of so many characters.
_PIECE_CHARACTERS = 2**14


@dataclass(frozen=True)
class Sides:
    """What stands around the caret in a request of the trained form; ``suffix`` is None where it goes on left to right."""

    prefix: str
    suffix: str | None
    path: str

    def in_repository(self, lookup: Lookup) -> Sides:
        """The same with the file's path as the repository has it."""
        return replace(self, path=lookup.path_from_root(self.path))

    def leaves_out(self, tokenizer: CodeTokenizer) -> bool:
        """Whether the base has no markers to be shown what follows: it goes on from what stands before, as `complete` does."""
        return bool(self.suffix) and tokenizer.markers is None

    def prompt(self, tokenizer: CodeTokenizer, most: int | None = None) -> CaretPrompt:
        """What the base is shown of them: at most so many tokens of each; as many as evidence shows where that is None."""
        return caret_prompt(
            tokenizer,
            self.prefix,
            self.shown_suffix(tokenizer),
            self.path,
            prefix_tokens=most or PREFIX_TOKENS,
            suffix_tokens=most or SUFFIX_TOKENS,
        )

    def shown_suffix(self, tokenizer: CodeTokenizer) -> str | None:
        """``suffix`` for a base that has markers to be shown it."""
        return None if tokenizer.markers is None else self.suffix


def sides_of(body: CompletionBody) -> Sides | None:
    """What `completion_prompts` makes a prompt of; None where it takes the prompts as they were written."""
    if body.suffix is None and not body.file:
        return None
    assert isinstance(body.prompt, str)
    return Sides(body.prompt, body.suffix, body.file)


def sides_of_infill(body: InfillBody) -> Sides:
    """What `infill_prompt` makes a prompt of."""
    before = body.input_prefix[-_PREFIX_CHARACTERS:] + body.prompt[-_PREFIX_CHARACTERS:]
    return Sides(before, body.input_suffix, body.path or body.filename or "")


def completion_prompts(
    body: CompletionBody, base: BaseModel, room: int, limits: Limits, lookup: Lookup
) -> list[CaretPrompt]:
    """The prompts of ``/v1/completions``; one of the trained form has code of the repository in front.

    Args:
        room: tokens that prompt and answer may have together.
        lookup: finds that code.

    Raises:
        BadRequestError: one is empty or too long.
    """
    if (sides := sides_of(body)) is None:
        return raw_prompts(body.prompts(), base, room, limits, lookup)
    sides = sides.in_repository(lookup)
    tokenizer, own = base.tokenizer, sides.prompt(base.tokenizer)
    room -= len(tokenizer.encode(own.begins))
    most = most_in_front(own.ids, room - limits.max_tokens)
    front = lookup.in_front(
        tokenizer, sides.path, sides.prefix, sides.shown_suffix(tokenizer), own=own.ids, most_tokens=most
    )
    lookup.goes_to(sides.path, sides.prefix, sides.suffix)
    return [_fitting(replace(own, ids=with_context(own.ids, front, tokenizer)), room, limits)]


def raw_prompts(
    prompts: list[str | list[int]], base: BaseModel, room: int, limits: Limits, lookup: Lookup
) -> list[CaretPrompt]:
    """Prompts that are written whole; raises as `completion_prompts`.

    One that is an infill prompt in the model's own markers and nothing else, as editors spell it, is shown as any caret is; where it
    is asked alone, with code of the repository in front.
    """
    tokenizer = base.tokenizer
    found = []
    for prompt in prompts:
        left = room
        if isinstance(prompt, str):
            ids = _bounded(tokenizer.encode_with_markers, prompt, room)
            bos = tokenizer.bos_id
            ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
            asked = _infill_sides(ids, tokenizer)
            own = CaretPrompt(ids) if asked is None else asked.prompt(tokenizer, len(ids))
            left -= len(tokenizer.encode(own.begins))
            if asked is not None and len(prompts) == 1:
                most = most_in_front(own.ids, left - limits.max_tokens)
                front = lookup.in_front(
                    tokenizer, "", asked.prefix, asked.suffix, own=own.ids, most_tokens=most
                )
                own = replace(own, ids=with_context(own.ids, front, tokenizer))
        else:
            own = CaretPrompt(list(prompt))
            if not all(0 <= token < tokenizer.vocab_size for token in prompt):
                raise BadRequestError(f"prompt: token ids are from 0 to {tokenizer.vocab_size - 1}.")
        found.append(_fitting(own, left, limits))
    return found


def _infill_sides(ids: list[int], tokenizer: CodeTokenizer) -> Sides | None:
    """What stands before and after the caret of an infill prompt, of no named file; None for any other prompt."""
    own = ids if tokenizer.bos_id is None else ids[1:]
    parts = None if tokenizer.markers is None else tokenizer.markers.split(own)
    if parts is None or not {tokenizer.file_id, tokenizer.repo_id}.isdisjoint(own):
        return None
    before, after = map(tokenizer.decode, parts)
    return Sides(before, after, "")


def infill_prompt(
    body: InfillBody, base: BaseModel, room: int, limits: Limits, lookup: Lookup
) -> list[CaretPrompt]:
    """The prompt of the trained form, with the client's pieces of other files in front, and what ``lookup`` finds before these.

    Raises:
        BadRequestError: there is no room.
    """
    tokenizer, sides = base.tokenizer, sides_of_infill(body).in_repository(lookup)
    own = sides.prompt(tokenizer)
    room -= len(tokenizer.encode(own.begins))
    most = most_in_front(own.ids, room - limits.max_tokens)
    extra: list[int] = []
    for piece in reversed(body.input_extra):
        if len(extra) >= most:
            break
        marker = [] if tokenizer.file_id is None else [tokenizer.file_id]
        name = lookup.path_from_root(piece.filename[:4096])
        header = tokenizer.encode(header_text(tokenizer, name)) if name else []
        extra = [*marker, *header, *edge_tokens(tokenizer.encode, piece.text, most, last=True), *extra]
    extra = extra[-most:] if most else []
    front = lookup.in_front(
        tokenizer,
        sides.path,
        sides.prefix,
        sides.shown_suffix(tokenizer),
        own=own.ids,
        sent=extra,
        most_tokens=most,
    )
    lookup.goes_to(sides.path, sides.prefix, sides.suffix)
    return [_fitting(replace(own, ids=with_context(own.ids, front, tokenizer)), room, limits)]


def chat_prompt(text: str, base: BaseModel, room: int, limits: Limits) -> list[CaretPrompt]:
    """The prompt of a chat that the model's template has written out (`serve.chats`).

    Raises:
        BadRequestError: it is empty or too long.
    """
    ids = _bounded(base.tokenizer.encode_with_markers, text, room)
    return [_fitting(CaretPrompt(ids), room, limits)]


def _bounded(encode: Callable[[str], list[int]], text: str, room: int) -> list[int]:
    """Token ids of a text, unless it is far too long: that shows after a part of it."""
    at = tokens = 0
    while len(text) - at > _PIECE_CHARACTERS:
        tokens += len(encode(text[at : at + _PIECE_CHARACTERS]))
        at += _PIECE_CHARACTERS
        if tokens > 2 * room:  # a cut may make two tokens of one, here and there
            raise BadRequestError(
                f"The prompt has more than {tokens} tokens; {room} are possible together with the answer.",
                next_step="Send less.",
            )
    return encode(text)


def _fitting(prompt: CaretPrompt, room: int, limits: Limits) -> CaretPrompt:
    ids = prompt.ids
    if not ids:
        raise BadRequestError("The prompt is empty.")
    tokens = min(1, limits.max_tokens) if limits.as_fits else limits.max_tokens
    if len(ids) + tokens > room:
        raise BadRequestError(
            f"The prompt has {len(ids)} tokens and {tokens} are to be written; {room} are possible together.",
            next_step="Send less, or ask for fewer tokens.",
        )
    return prompt
