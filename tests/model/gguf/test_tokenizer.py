"""The tokenizer that is made of a file's metadata gives the ids of the one that the model had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from mlx_gardener.errors import ModelError
from mlx_gardener.model import load_tokenizer, seedling_path
from mlx_gardener.model.gguf import gguf_facts
from mlx_gardener.model.gguf.reader import read_header
from mlx_gardener.model.gguf.tokenizer import _SPLITS, read_tokenizer
from tests.model.gguf.files import TEXTS, read, write_vocabulary


def test_there_are_texts_enough() -> None:
    assert len(set(TEXTS)) >= 200


def test_the_seedlings_tokenizer_comes_back(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "v.gguf", seedling_path(), "qwen2")
    wanted, found = load_tokenizer(seedling_path()), read(file, tmp_path / "read")
    for text in TEXTS:
        if "\u0301" in text or "\u030a" in text:
            continue  # Qwen's own composes characters first, the seedling's does not
        assert found.encode(text) == wanted.encode(text), text
        assert found.encode_with_markers(text) == wanted.encode_with_markers(text), text
        assert found.decode(found.encode(text)) == wanted.decode(wanted.encode(text))
    assert found.markers == wanted.markers and found.markers is not None
    assert (found.eos_id, found.repo_id, found.file_id) == (wanted.eos_id, wanted.repo_id, wanted.file_id)
    assert (found.byte_lengths == wanted.byte_lengths).all()
    settings = json.loads((tmp_path / "read" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages }}" and settings["add_bos_token"] is False


def test_markers_that_a_file_calls_ordinary_words_are_markers(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "v.gguf", seedling_path(), "qwen2", marker_kind=1)
    found = read(file, tmp_path / "read")
    assert found.markers == load_tokenizer(seedling_path()).markers and gguf_facts(file).has_fim_markers
    assert len(found.encode("<|fim_prefix|>")) > 1 and len(found.encode_with_markers("<|fim_prefix|>")) == 1


@pytest.mark.parametrize(
    ("split", "text", "parts"),
    [
        ("qwen2", "a 1234\n\nb", ["a", "Ġ", "1", "2", "3", "4", "ĊĊ", "b"]),
        ("llama-bpe", "a 1234\n\nb", ["a", "Ġ", "123", "4", "ĊĊ", "b"]),
        ("smaug-bpe", "a 1234\n\nb", ["a", "Ġ", "123", "4", "ĊĊ", "b"]),
        ("gpt-4o", "fooBar 1234", ["foo", "Bar", "Ġ", "123", "4"]),
        ("tekken", "fooBar 1234", ["foo", "Bar", "Ġ", "1", "2", "3", "4"]),
        ("starcoder", "a 1234\n\nb", ["a", "Ġ", "1", "2", "3", "4", "Ċ", "Ċ", "b"]),
        ("smollm", "a 1234x", ["a", "Ġ", "1", "2", "3", "4", "x"]),
        ("refact", "a 12", ["a", "Ġ", "1", "2"]),
        ("gpt-2", "a 1234\n\nb", ["a", "Ġ1234", "Ċ", "Ċ", "b"]),
        ("seed-coder", "a; \n12", ["a", ";", "ĠĊ", "1", "2"]),
        ("deepseek-coder", "a 12\n\nb(", ["a", "Ġ", "1", "2", "Ċ", "Ċ", "b", "("]),
    ],
)
def test_text_is_split_as_the_vocabulary_was_trained(
    split: str, text: str, parts: list[str], tmp_path: Path
) -> None:
    file = write_vocabulary(tmp_path / "v.gguf", seedling_path(), split)
    tokenizer, _, _ = read_tokenizer(read_header(file), 2**20)
    assert [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == parts


def test_every_split_can_be_built(tmp_path: Path) -> None:
    for split in _SPLITS:
        file = write_vocabulary(tmp_path / f"{split}.gguf", seedling_path(), split)
        tokenizer, settings, _ = read_tokenizer(read_header(file), 2**20)
        text = "x = [1, 22, 333]  # three\n"
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
        assert settings["add_bos_token"] is (
            split in ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
        )


def vocabulary(tmp_path: Path, **changes: Any) -> Path:
    """A file with a small SentencePiece vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "c", "1", "2", "▁a", "ab", "▁ab", "abc", "▁abc", "12", "▁▁", "<FIM>"]
    pieces += ["d", "e", "f", "de", "ef", "gh", "hi", "g", "h", "i"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 13, 4, *[1] * 10]
    scores = [0.0] * 259 + [-float(rank) for rank in range(14)]
    scores += [-50.0, -51.0, -52.0, -20.0, -21.0, -31.0, -30.0, -53.0, -54.0, -55.0]
    architecture = changes.pop("architecture", "llama")
    if architecture == "gemma2":
        pieces = [piece.replace("▁▁", "  ") for piece in pieces]
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", architecture)
    writer.add_tokenizer_model(changes.pop("model", "llama"))
    if "pre" in changes:
        writer.add_tokenizer_pre(changes.pop("pre"))
    writer.add_token_list(changes.pop("tokens", pieces))
    writer.add_token_scores(changes.pop("scores", scores))
    writer.add_token_types(changes.pop("kinds", kinds))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(changes.pop("prefix", True))
    assert not changes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return tmp_path / "spm.gguf"


def test_sentencepiece_merges_follow_from_scores(tmp_path: Path) -> None:
    tokenizer, settings, ids = read_tokenizer(read_header(vocabulary(tmp_path)), 300)
    assert tokenizer.encode("abc 12").tokens == ["▁abc", "▁", "12"]
    assert tokenizer.encode("b").tokens == ["▁", "b"]
    assert tokenizer.encode("def").tokens == ["▁", "de", "f"]  # whose pair has the higher score
    assert tokenizer.encode("ghi").tokens == ["▁", "g", "hi"]
    assert tokenizer.encode("é\n").tokens == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert tokenizer.encode("a<FIM>b").tokens == ["▁a", "<FIM>", "▁", "b"]
    assert tokenizer.decode(tokenizer.encode("abc 12 é").ids) == "abc 12 é"
    assert settings["add_bos_token"] is True and settings["bos_token"] == "<s>"
    assert ids == {"bos_token_id": 1, "eos_token_id": 2}


def test_gemma_has_no_space_ahead_and_spells_runs_of_spaces_as_spaces(tmp_path: Path) -> None:
    file = vocabulary(tmp_path, architecture="gemma2", prefix=False)
    tokenizer, _, _ = read_tokenizer(read_header(file), 300)
    assert tokenizer.encode("abc  a").tokens[0] == "abc"
    assert "▁▁" in tokenizer.encode("b  b").tokens
    assert tokenizer.decode(tokenizer.encode("b  b").ids) == "b  b"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": "bert"}, "kind 'bert'"),
        ({"model": "gpt2"}, "does not say how its tokenizer splits text"),
        ({"model": "gpt2", "pre": "poro-chat"}, "splits text as 'poro-chat', which is not known here"),
        ({"model": "gpt2", "pre": "qwen2"}, "no merges"),
        ({"tokens": ["a", "b", "a"]}, "a token twice"),
        ({"scores": [0.0]}, "fewer scores than tokens"),
        ({"kinds": [1]}, "fewer types of tokens"),
    ],
)
def test_a_tokenizer_that_is_not_understood_is_refused_by_name(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=what):
        read_tokenizer(read_header(vocabulary(tmp_path, **changes)), 300)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="283 tokens, and a table of 100"):
        read_tokenizer(read_header(vocabulary(tmp_path)), 100)


def test_merges_of_unknown_words_are_refused(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "v.gguf", seedling_path(), "qwen2")
    data = file.read_bytes()
    file.write_bytes(data.replace("Ġ t".encode(), b"\x00\x00 t", 1))
    with pytest.raises(ValueError, match="tokenizer is damaged"):
        read_tokenizer(read_header(file), 2**20)


def test_the_error_a_user_sees_has_a_next_step(tmp_path: Path) -> None:
    from mlx_gardener.model import choose_model
    from tests.model.gguf.files import tiny_model, write_gguf

    model, config = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config)
    file.write_bytes(file.read_bytes().replace(b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0qwen9"))
    with pytest.raises(ModelError, match="splits text as 'qwen9'") as caught:
        choose_model(str(file))
    assert "docs/gguf.md" in caught.value.next_step
