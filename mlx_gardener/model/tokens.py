"""Source text to token ids and back, with the markers of the model kept apart from the text.

`CodeTokenizer.encode` never yields a control token: ``<|fim_prefix|>`` written in a source file is nine ordinary
pieces of text, whatever the tokenizer would make of it. Markers are put in by id. Built on `tokenizers` alone, so it costs
tens of milliseconds and no model.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import ModelError
from mlx_gardener.model.pieces import spelling_of_pieces
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import (
    MAX_JSON_BYTES,
    parse_json,
    read_bytes,
    read_head,
    read_json,
    refuse_pointer,
)

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

#: Spellings of (prefix, suffix, middle) by family, from the models' own tokenizers; order is prefix-suffix-middle
#: unless said otherwise. Qwen2.5-Coder and CodeGemma, StarCoder2 and Granite, DeepSeek-Coder, Codestral, Code Llama, Seed-Coder.
_FIM_SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "PSM"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "PSM"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "PSM"),  # noqa: RUF001  full-width bars, as spelled
    ("[PREFIX]", "[SUFFIX]", "", "SPM"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>", "PSM"),
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", "SPM"),
)
_END_SPELLINGS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "</s>",
    "<eos>",
    "<|im_end|>",
    "<[end▁of▁sentence]>",
)
_REPO_SPELLINGS = ("<|repo_name|>", "<repo_name>", "<reponame>")
_FILE_SPELLINGS = ("<|file_sep|>", "<file_sep>", "<|file_separator|>")
#: Seed-Coder's; StarCoder has a token of that name, too, in another form.
_SEED_FILE = "<filename>"
#: What tokenizers write before their vocabulary: some hundred added tokens of 200 bytes each.
_HEAD_BYTES = 2**20
#: What `knows_fim` looks for.
FIM_TEXTS = frozenset(text for row in _FIM_SPELLINGS for text in row[:3] if text)
_MARKERS = FIM_TEXTS | {*_REPO_SPELLINGS, *_FILE_SPELLINGS}
#: Characters of the caret's line that follow the marker of the middle.
_MOST_OF_LINE = 400
_CONTROL = re.compile(r"<[|｜].*[|｜]>|</?s>|<(unk|pad|bos|eos|mask)>|\[(PREFIX|SUFFIX|MIDDLE|INST|/INST)\]")  # noqa: RUF001


@dataclass(frozen=True)
class FimMarkers:
    """Token ids of the fill-in-the-middle format. ``middle`` is None where the format has no such marker.

    ``order`` is "PSM" (prefix, suffix, middle; Bavarian et al. 2022, arXiv:2207.14255) or "SPM" (suffix first).
    """

    prefix: int
    suffix: int
    middle: int | None
    end: int
    order: str

    def prompt(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """What a model is shown before it writes the middle."""
        middle = [] if self.middle is None else [self.middle]
        if self.order == "SPM":
            return [self.suffix, *suffix, self.prefix, *prefix, *middle]
        return [self.prefix, *prefix, self.suffix, *suffix, *middle]

    def middle_from(self, prefix: str) -> int:
        """Where in ``prefix`` (characters) the last line begins, which is the middle's, in prompts and in training.

        A key then changes the end of a prompt alone, and what a model writes is whole lines. Its end, and so all is the prefix's, in
        a format that has the middle right behind the prefix, and where the line is very long.
        """
        line = prefix.rfind("\n") + 1
        is_middle = self.order == "PSM" and self.middle is not None and len(prefix) - line <= _MOST_OF_LINE
        return line if is_middle else len(prefix)

    def split(self, ids: list[int]) -> tuple[list[int], list[int]] | None:
        """The prefix and the suffix of which `prompt` makes ``ids``; None where it does not."""
        second = self.prefix if self.order == "SPM" else self.suffix
        if ids.count(second) != 1:
            return None
        at, end = ids.index(second), len(ids) - (self.middle is not None)
        parts = [ids[1:at], ids[at + 1 : end]]
        prefix, suffix = reversed(parts) if self.order == "SPM" else parts
        marks = {self.prefix, self.suffix, self.middle, self.end}
        is_whole = self.prompt(prefix, suffix) == ids and marks.isdisjoint([*prefix, *suffix])
        return (prefix, suffix) if is_whole else None


@dataclass(frozen=True)
class CodeTokenizer:
    """A model's tokenizer, for source code.

    Attributes:
        eos_id: ends a document.
        pad_id: fills rows; never a target.
        bos_id: opens a document where the model wants one, else None.
        markers: the fill-in-the-middle format; None for models that have none.
        repo_id, file_id: open a repository and a file in it, where the model has such tokens.
        vocab_size: number of ids.
        fingerprint: sha256 of what decides an encoding; the token cache's key.
    """

    eos_id: int
    pad_id: int
    bos_id: int | None
    markers: FimMarkers | None
    repo_id: int | None
    file_id: int | None
    vocab_size: int
    fingerprint: str
    _plain: Tokenizer = field(repr=False)
    _full: Tokenizer = field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` as plain text: no control token, no beginning or end marker.

        Raises:
            ModelError: the vocabulary has no way to spell it.
        """
        with _damage_named("The tokenizer cannot encode this text"):
            return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_with_markers(self, text: str) -> list[int]:
        """Token ids of ``text`` with control tokens read as such where it spells them; for prompts that clients wrote whole.

        Raises:
            ModelError: the vocabulary has no way to spell it.
        """
        with _damage_named("The tokenizer cannot encode this text"):
            return list(self._full.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """`encode` of several texts, on all cores."""
        with _damage_named("The tokenizer cannot encode these texts"):
            return [list(found.ids) for found in self._plain.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text that ``ids`` spell; control tokens are spelled out, broken UTF-8 becomes U+FFFD."""
        return str(self._full.decode(ids, skip_special_tokens=False))

    def last_word(self, text: str) -> str:
        """The end of ``text`` that tokens do not reach into from before: a word with the mark or blank that its first token may hold.

        That is the last piece of the tokenizer's own splitting, which it makes tokens of one by one; SentencePiece's may be lines, in
        which tokens begin with blanks. "" where it splits nothing, or would not spell the word as it stands there.
        """
        splitter, normalizer = self._plain.pre_tokenizer, self._plain.normalizer
        if splitter is None:
            return ""
        with _damage_named("The tokenizer cannot split this text"):
            normal = text if normalizer is None else normalizer.normalize_str(text)
            # Gemma's splits at blanks, of which its normalizer leaves none.
            pieces = splitter.pre_tokenize_str(normal if len(normal) == len(text) else text)
        word = text[pieces[-1][1][0] :] if pieces else ""
        if behind := re.search(r"(?<=\S) +\S*$", word):
            word = behind[0]
        return word if b"".join(map(self.spelling, self.encode(word))) == word.encode() else ""

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes of source text that each id spells, shape (vocab_size,), int32; 0 for control tokens."""
        import numpy as np

        return np.array([len(spelled) for spelled in self._spellings], dtype=np.int32)

    @cached_property
    def _spellings(self) -> list[bytes]:
        """What each id spells; b"" for control tokens."""
        found = [b""] * self.vocab_size
        spells = spelling_of_pieces(self._plain)
        for piece, index in self._plain.get_vocab(with_added_tokens=False).items():
            if index < self.vocab_size:
                found[index] = spells(piece)
        for index, token in self._full.get_added_tokens_decoder().items():
            if index < self.vocab_size:
                control = _is_control(token.content, token.special)
                found[index] = b"" if control else token.content.encode()
        return found

    @cached_property
    def _by_spelling(self) -> list[int]:
        """The ids that spell something, by what they spell."""
        return sorted(
            filter(self._spellings.__getitem__, range(self.vocab_size)), key=self._spellings.__getitem__
        )

    def spelling(self, index: int) -> bytes:
        """What an id spells: UTF-8, perhaps a part of a character; b"" for control tokens. The first call takes some 0.2 s."""
        return self._spellings[index]

    def beginnings(self, text: bytes) -> list[int]:
        """The ids that what goes on with ``text`` may begin with: those that spell it or more, and the first of its own tokens.

        Not any that spell a part of it: a blank alone is likelier than a word of a blank and letters, and is hardly ever followed by
        them. Of blanks the last may belong to the word behind them. Within a character, of which there is no token, those that spell
        most of it. [] where nothing spells its first byte.
        """
        if not text:
            return []

        def among(text: bytes, key: Callable[[int], bytes]) -> list[int]:
            ends = (cut(self._by_spelling, text, key=key) for cut in (bisect_left, bisect_right))
            return self._by_spelling[slice(*ends)]

        found = among(text, lambda index: self._spellings[index][: len(text)])
        own = text.decode(errors="ignore")
        for part in (own, own[:-1] if own.endswith(" ") else ""):
            for first in self.encode(part)[:1]:
                if text.startswith(self._spellings[first]) and first not in found and self._spellings[first]:
                    found.append(first)
        parts = (among(text[:size], self.spelling) for size in range(len(text), 0, -1))
        return found or next(filter(None, parts), [])


def header_text(tokenizer: CodeTokenizer, path: str) -> str:
    """How a file's path is told: bare after the model's file marker, as a comment for models without one."""
    shown = path.encode(errors="replace").decode()
    return f"{shown}\n" if tokenizer.file_id is not None else f"# {shown}\n"


@contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Turn what the tokenizers library raises for a damaged file into a `ModelError`.

    That is a bare ``Exception``, or a panic of its Rust code, which is not even an ``Exception``.
    """
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelError(f"{what} ({error}).", next_step="Fetch the model again.") from error
        raise


def is_marker(content: str) -> bool:
    """Whether a token is spelled as one of the markers of a repository, a file or fill-in-the-middle that are known here."""
    return content in _MARKERS


def _is_control(content: str, special: bool) -> bool:
    return special or is_marker(content) or _CONTROL.fullmatch(content) is not None


def knows_fim(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary has the fill-in-the-middle markers of a family that is known here."""
    return _markers(dict.fromkeys(tokens, 0), 0) is not None


def folder_knows_fim(path: Path) -> bool | None:
    """`knows_fim` of the model in the directory ``path``, from the head of its tokenizer.json; None where that is no such file.

    Added tokens stand before the vocabulary in what the tokenizers library writes; where they do not, the whole is read.
    """
    file = path / "tokenizer.json"
    try:
        head = read_head(file, _HEAD_BYTES).decode(errors="ignore")
        start = head.find('"added_tokens"')
        try:
            added, _ = json.JSONDecoder().raw_decode(head, head.index("[", start))
        except (ValueError, RecursionError):
            added = read_json(file)["added_tokens"]
        return knows_fim(str(token["content"]) for token in added)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_tokenizer(path: Path) -> CodeTokenizer:
    """The tokenizer of the model in the directory ``path``; no weights are read.

    Raises:
        ModelError: there is no readable ``tokenizer.json``, or it has no end-of-text token.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    with _damage_named(f"The tokenizer.json of the model {path.name!r} is damaged"):
        try:
            raw = read_bytes(file, max_bytes=MAX_JSON_BYTES)
        except OSError as error:
            raise ModelError(
                f"The model {path.name!r} has no readable tokenizer.json ({error.strerror}).",
                next_step="Use a model with a fast tokenizer, or fetch it again.",
            ) from error
        refuse_pointer(file.name, raw)
        parsed = parse_json(raw)
        full = Tokenizer.from_str(raw.decode())
        added = {token["content"]: token["id"] for token in parsed.get("added_tokens", [])}
        plain_json = parsed | {
            "added_tokens": [
                token
                for token in parsed.get("added_tokens", [])
                if not _is_control(token["content"], token["special"])
            ],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        plain = Tokenizer.from_str(json.dumps(plain_json))
    settings = _read_settings(path)
    named = {**full.get_vocab(with_added_tokens=False), **added}
    end = _first(named, (_token_text(settings.get("eos_token")), *_END_SPELLINGS))
    if end is None:
        raise ModelError(
            f"The tokenizer of {path.name!r} names no end-of-text token.",
            next_step="Add eos_token to its tokenizer_config.json, or choose another model.",
        )
    pad = _first(named, (_token_text(settings.get("pad_token")), "<|fim_pad|>"))
    bos = _first(named, (_token_text(settings.get("bos_token")),)) if settings.get("add_bos_token") else None
    # For fill-in-the-middle the text's end marker is meant, also where chats end otherwise.
    text_end = _first(added, _END_SPELLINGS)
    return CodeTokenizer(
        eos_id=end if text_end is None else text_end,
        pad_id=end if pad is None else pad,
        bos_id=bos,
        markers=_markers(added, end if text_end is None else text_end),
        repo_id=_first(added, _REPO_SPELLINGS),
        file_id=_first(added, (*_FILE_SPELLINGS, _SEED_FILE if "<[fim-prefix]>" in added else None)),
        vocab_size=max(full.get_vocab(with_added_tokens=True).values()) + 1,
        fingerprint=hashlib.sha256(json.dumps(plain_json, sort_keys=True).encode()).hexdigest(),
        _plain=plain,
        _full=full,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    file = path / "tokenizer_config.json"
    if not file.exists():
        return {}
    try:
        settings = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The tokenizer_config.json of {path.name!r} is damaged ({reason_of(error)}).",
            next_step="Fetch the model again.",
        ) from error
    return dict(settings) if isinstance(settings, dict) else {}


def _token_text(value: Any) -> str | None:
    """A token of tokenizer_config.json, which spells some as text and some as objects."""
    return value.get("content") if isinstance(value, dict) else value


def _first(ids: dict[str, int], spellings: tuple[str | None, ...]) -> int | None:
    return next((ids[text] for text in spellings if text is not None and text in ids), None)


def _markers(added: dict[str, int], end: int) -> FimMarkers | None:
    for prefix, suffix, middle, order in _FIM_SPELLINGS:
        if prefix in added and suffix in added and (not middle or middle in added):
            return FimMarkers(added[prefix], added[suffix], added[middle] if middle else None, end, order)
    return None
