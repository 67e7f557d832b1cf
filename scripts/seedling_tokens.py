"""The seedling's tokenizer, and the endless row of tokens it learns from.

In: the corpus' JSON lines. Out: ``tokenizer.json`` (byte-level BPE, 8192 tokens) and ``stream.bin`` (uint16 token ids,
documents one after the other). Cost: ten seconds for the tokenizer, about one minute per 25 million tokens.

The pre-tokenisation is the one Qwen2 publishes (single digits, runs of spaces, letters with one mark in front), so that
every runtime that knows Qwen2 tokenises this model right; the markers are spelled as in Qwen2.5-Coder. Text that looks
like a marker stays text: documents are encoded with special tokens switched off, and the markers are put in as ids.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seedling_corpus import Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MARKERS = (
    "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
VOCABULARY = 8192

#: Share of the training tokens per language; languages not named share what is left by their size.
SHARES = {
    "python": 0.50, "javascript": 0.08, "typescript": 0.08, "rust": 0.06, "go": 0.06, "c": 0.04, "cpp": 0.03,
    "java": 0.04, "ruby": 0.03, "php": 0.03, "kotlin": 0.012, "swift": 0.01, "csharp": 0.01, "markdown": 0.014,
}  # fmt: skip

_PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FIM_PIECE_CHARS = (600, 1200, 1200, 2400, 4800)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Learn a byte-level BPE with the seven markers as ids 0-6."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def text_encoder(tokenizer_file: Path) -> Tokenizer:
    """A tokenizer that treats markers in the text as text: no input can produce a marker's id."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    return tokenizer


def sample_for_tokenizer(documents: Iterable[Document], seed: int, chars: int = 30_000_000) -> list[str]:
    """Texts in the training mixture's language shares, `chars` characters in all."""
    taken, texts = 0, []
    for document in mixture(documents, seed):
        texts.append(document.text)
        taken += len(document.text)
        if taken >= chars:
            break
    return texts


def mixture(documents: Iterable[Document], seed: int) -> Iterator[Document]:
    """Every document once, shuffled, languages interleaved by `SHARES` for as long as each lasts."""
    chance = random.Random(seed)
    queues: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        queues[document.language].append(document)
    for queue in queues.values():
        chance.shuffle(queue)
    given = dict.fromkeys(queues, 0)
    while queues:  # the language that is furthest behind its share comes next
        language = min(queues, key=lambda name: given[name] / SHARES.get(name, 0.004))
        document = queues[language].pop()
        given[language] += len(document.text)
        if not queues[language]:
            del queues[language]
        yield document


def pieces(text: str, chance: random.Random) -> list[str]:
    """Cut a document at line ends into pieces that fit an editor's window."""
    result, start = [], 0
    while start < len(text):
        end = start + chance.choice(_FIM_PIECE_CHARS)
        end = len(text) if end >= len(text) else text.find("\n", end) + 1 or len(text)
        result.append(text[start:end])
        start = end
    return result


def split_middle(text: str, chance: random.Random) -> tuple[str, str, str]:
    """Cut prefix, middle, suffix: half at random characters, half the rest of a line or a few whole lines."""
    kind = chance.random()
    if kind < 0.5:
        first, second = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
        if kind < 0.25:  # a short span, as an editor mostly asks for
            second = min(second, first + chance.randrange(1, 120))
    else:
        first = chance.randrange(len(text) + 1)
        second = first
        for _ in range(1 if kind < 0.8 else chance.randrange(2, 8)):
            end = text.find("\n", min(second + 1, len(text)))
            second = end if end >= 0 else len(text)
    return text[:first], text[first:second], text[second:]


def render(document: Document, chance: random.Random) -> list[str | int]:
    """One document as text parts and marker ids: header or not, left to right or as fill-in-the-middle pieces."""
    eot, prefix_id, middle_id, suffix_id, _, repo_id, file_id = range(len(MARKERS))
    header: list[str | int] = []
    if chance.random() < 0.3:
        header = [repo_id, f"{document.repo}\n", file_id, f"{document.path}\n"]
    if chance.random() >= 0.5:
        return [*header, document.text, eot]
    out: list[str | int] = []
    for piece in pieces(document.text, chance):
        prefix, middle, suffix = split_middle(piece, chance)
        out += [*header, prefix_id, prefix, suffix_id, suffix, middle_id, middle, eot]
    return out


def write_stream(
    documents: Iterable[Document],
    tokenizer_file: Path,
    target: Path,
    tokens: int,
    seed: int,
    say: Callable[[str], None],
) -> int:
    """Write `tokens` token ids (uint16) to `target`, passing over the corpus as often as that takes; returns the count.

    Every pass draws its own order and its own fill-in-the-middle cuts from (seed, pass).
    """
    import numpy as np

    encoder = text_encoder(tokenizer_file)
    corpus = list(documents)
    if not corpus:
        raise ValueError("the corpus is empty: run the fetch step first")
    written, number, sizes = 0, 0, defaultdict(int)
    part = target.with_suffix(".part")
    with part.open("wb") as out:
        while written < tokens:
            chance = random.Random(f"{seed}/{number}")
            batch: list[Document] = []
            for document in _and_end(mixture(corpus, seed + number)):
                if document is not None:
                    batch.append(document)
                if (document is None or len(batch) == 512) and batch:
                    rendered = [part for item in batch for part in render(item, chance)]
                    encoded = iter(
                        encoder.encode_batch(
                            [p for p in rendered if isinstance(p, str)], add_special_tokens=False
                        )
                    )
                    ids = [i for p in rendered for i in ([p] if isinstance(p, int) else next(encoded).ids)]
                    np.asarray(ids, dtype=np.uint16).tofile(out)
                    written += len(ids)
                    for item in batch:
                        sizes[item.language] += len(item.text)
                    batch = []
                    say(f"pass {number}: {written:,} tokens")
                    if written >= tokens:
                        break
            number += 1
    part.rename(target)
    total = sum(sizes.values())
    facts = {
        "tokens": written,
        "passes": number,
        "seed": seed,
        "shares": {k: round(v / total, 4) for k, v in sizes.items()},
    }
    target.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return written


def _and_end(documents: Iterable[Document]) -> Iterator[Document | None]:
    yield from documents
    yield None
