"""The bytes that the pieces of a vocabulary spell: tokenizers write them down in one of two ways.

In: a tokenizer of the tokenizers library. Out: a function from a piece, as the vocabulary has it, to bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Bytes that GPT-2's mapping writes as the character of that number; the others, rising, from number 256 on
#: (bytes_to_unicode in github.com/openai/gpt-2, src/encoder.py).
_WRITTEN_AS_THEY_ARE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = (byte for byte in range(256) if byte not in _WRITTEN_AS_THEY_ARE)
_BYTE_OF = {chr(byte): byte for byte in _WRITTEN_AS_THEY_ARE} | {
    chr(256 + at): byte for at, byte in enumerate(_OTHERS)
}


def spelling_of_pieces(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    """The function that gives the bytes of a piece of this tokenizer's vocabulary."""
    decoder = json.loads(tokenizer.to_str()).get("decoder")
    return _of_byte_level if "ByteLevel" in json.dumps(decoder or {}) else _of_sentencepiece


def _of_byte_level(piece: str) -> bytes:
    """What a piece spells in which each character stands for one byte (GPT-2's mapping)."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, piece))
    except KeyError:  # none of the mapping's
        return piece.encode()


def _of_sentencepiece(piece: str) -> bytes:
    """What a piece of SentencePiece's spells."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace("▁", " ").encode()
