"""Prompts for one completion: of long texts only what is shown becomes tokens."""

from __future__ import annotations

from mlx_gardener.evaluate.complete import edge_tokens
from mlx_gardener.model import load_tokenizer, seedling_path


def test_no_more_of_a_text_becomes_tokens_than_is_shown() -> None:
    encode, read = load_tokenizer(seedling_path()).encode, list[int]()

    def reading(text: str) -> list[int]:
        read.append(len(text))
        return encode(text)

    code = "".join(f"def area_{number}(width):\n    return width * {number}\n\n" for number in range(2000))
    whole = encode(code)
    assert edge_tokens(reading, code, 640, last=True) == whole[-640:]
    assert edge_tokens(reading, code, 192, last=False) == whole[:192]
    assert len(read) == 2 and max(read) < 6000
    assert edge_tokens(reading, code, 0, last=True) == []
    assert edge_tokens(reading, "x = 1\n", 640, last=True) == encode("x = 1\n")
    blanks = " " * 500_000  # tokens of many characters: more is read, and not all of it
    assert edge_tokens(reading, blanks, 640, last=True) == encode(blanks[-64_000:])[-640:]
    assert max(read) == 4 * 5120
