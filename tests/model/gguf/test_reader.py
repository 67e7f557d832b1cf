"""A header's claims are compared with the file before they are used: whatever they are, the answer is a sentence."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf import gguf_facts, gguf_file, is_gguf, read_gguf
from mlx_gardener.model.gguf.reader import read_header, shards_of
from tests.model.gguf.files import entry, header, pair, text, tiny_model, write_gguf

STRING, LIST, UINT32, UINT8, FLOAT32, BOOL = 8, 9, 4, 0, 6, 7
ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def listed(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def padded(data: bytes, more: bytes) -> bytes:
    """Tensors' bytes after a header, at the next multiple of 32."""
    return data + b"\0" * (-len(data) % 32) + more


SOUND = padded(
    header(
        [
            ARCHITECTURE,
            pair("a", UINT32, struct.pack("<I", 7)),
            pair("b", LIST, listed(FLOAT32, 2, b"\0" * 8)),
        ],
        [entry("x", (32, 4), 0, 0), entry("y", (64, 2), 8, 512)],
    ),
    b"\1" * (512 + 136),
)


def refused(tmp_path: Path, data: bytes) -> str:
    file = tmp_path / "bad.gguf"
    file.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        gguf_facts(file)
    assert "'bad.gguf'" in caught.value.message and caught.value.next_step
    return caught.value.message


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(SOUND)
    found = read_header(tmp_path / "sound")
    assert found.architecture == "llama" and found.metadata["a"] == 7 and list(found.metadata["b"]) == [0, 0]
    assert found.tensors["x"].shape == (4, 32) and found.tensors["y"].row_bytes == 68
    assert found.read(found.tensors["y"], 1, 2).tolist() == [[1] * 68]
    found.close()


@pytest.mark.parametrize("length", range(0, len(SOUND), 7))
def test_a_file_that_is_cut_off_anywhere_is_refused(length: int, tmp_path: Path) -> None:
    refused(tmp_path, SOUND[:length])


HUGE = 2**62
HOSTILE: dict[str, tuple[bytes, str]] = {
    "no GGUF": (b"PK\3\4" + SOUND[4:], "does not begin as a GGUF file"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "version 1": (header([], [], version=1), "version 1"),
    "big-endian": (header([], [], version=0x03000000), "big-endian"),
    "too many keys": (header([ARCHITECTURE], [], pairs=HUGE), "keys"),
    "more keys than there are": (header([ARCHITECTURE], [], pairs=2), "ends within its header"),
    "too many tensors": (header([ARCHITECTURE], [], tensors=HUGE), "tensors"),
    "a long key": (header([struct.pack("<Q", HUGE) + b"a"], [], pairs=1), "key of"),
    "a long text": (header([pair("a", STRING, struct.pack("<Q", HUGE))], []), "ends within its header"),
    "a key of no UTF-8": (header([pair(b"\xff\xfe", UINT32, b"\0" * 4)], []), "no UTF-8"),
    "a text of no UTF-8": (header([pair("a", STRING, text(b"\xff\xfe"))], []), "a is no UTF-8"),
    "a token beyond the end": (
        header([pair("tokenizer.ggml.tokens", LIST, listed(STRING, 2, text("a") + struct.pack("<Q", 9) + b"b"))], []),
        "ends within its header",
    ),
    "a token of 2 MB": (
        header([pair("tokenizer.ggml.tokens", LIST, listed(STRING, 1, text(b"a" * 2**21)))], []),
        "tokenizer.ggml.tokens of 2097152 bytes",
    ),
    "an unknown type": (header([pair("a", 77, b"\0" * 8)], []), "unknown type 77"),
    "a list of lists": (header([pair("a", LIST, listed(LIST, 1, listed(UINT8, 0)))], []), "list of lists"),
    "a long list of numbers": (header([pair("a", LIST, listed(UINT32, HUGE))], []), "no room"),
    "a long list of texts": (header([pair("a", LIST, listed(STRING, HUGE))], []), "no room"),
    "a list's long text": (
        header([pair("a", LIST, listed(STRING, 1, struct.pack("<Q", HUGE)))], []),
        "ends within its header",
    ),
    "a key twice": (header([ARCHITECTURE, ARCHITECTURE], []), "twice"),
    "an alignment of 3": (header([pair("general.alignment", UINT32, struct.pack("<I", 3))], []), "alignment is 3"),
    "an alignment of 0": (header([pair("general.alignment", UINT32, b"\0" * 4)], []), "alignment is 0"),
    "an alignment of text": (header([pair("general.alignment", STRING, text("32"))], []), "alignment is 32"),
    "a long name": (header([], [entry("x" * 300, (32,), 0, 0)]), "name of 300 bytes"),
    "no dimensions": (header([], [entry("x", (), 0, 0)]) + b"\0" * 64, "0 dimensions"),
    "many dimensions": (header([], [text("x") + struct.pack("<I", 2**31) + b"\0" * 64]), "dimensions"),
    "a size of 0": (header([], [entry("x", (32, 0), 0, 0)]), "shape 32 x 0"),
    "huge sizes": (header([], [entry("x", (HUGE, HUGE, HUGE), 0, 0)]), "shape"),
    "an unknown kind": (header([], [entry("x", (32,), 999, 0)]), "ggml type 999"),
    "half a block": (header([], [entry("x", (40,), 8, 0)]), "in blocks of 32"),
    "beyond the end": (padded(header([], [entry("x", (32,), 0, 2**40)]), b"\0" * 128), "where the file ends"),
    "too large": (padded(header([], [entry("x", (32, 2**20), 0, 0)]), b"\0" * 128), "where the file ends"),
    "an offset that wraps": (
        padded(header([], [entry("x", (32,), 0, 2**64 - 32)]), b"\0" * 128), "where the file ends"),
    "between its places": (padded(header([], [entry("x", (8,), 0, 4)]), b"\0" * 64), "between its places"),
    "one upon another": (
        padded(header([], [entry("x", (32,), 0, 0), entry("y", (32,), 0, 64)]), b"\0" * 256), "upon another"),
    "a tensor twice": (
        padded(header([], [entry("x", (32,), 0, 0), entry("x", (32,), 0, 128)]), b"\0" * 256), "twice"),
    "shards that are not there": (
        header([pair("split.count", 2, struct.pack("<H", 3))], []), "one of 3 shards, and its name does not"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_claim_that_is_not_true_is_named(case: str, tmp_path: Path) -> None:
    data, what = HOSTILE[case]
    assert what in refused(tmp_path, data)


def test_a_token_of_no_utf8_is_named_when_the_vocabulary_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(header([pair("tokenizer.ggml.tokens", LIST, listed(STRING, 1, text(b"\xc3")))], []))
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.tokens that is no UTF-8"):
        read_gguf(file, tmp_path / "bases")


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from(["", "a", "é" * 200, "<|fim_prefix|>", "x" * 3000, "[SUFFIX]", "<|fim_prefix|> "]),
        max_size=400,
    )
)
def test_what_is_wanted_of_a_vocabulary_is_found_without_reading_it(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str]
) -> None:
    """Also where a token begins in one piece of the file and ends in another, and where texts of other lists are alike."""
    file = tmp_path_factory.mktemp("words") / "words.gguf"
    listed_tokens = listed(STRING, len(tokens), b"".join(text(token) for token in tokens))
    other = pair("tokenizer.ggml.merges", LIST, listed(STRING, 1, text("[PREFIX]")))
    file.write_bytes(header([ARCHITECTURE, pair("tokenizer.ggml.tokens", LIST, listed_tokens), other], []))
    wanted = frozenset({"<|fim_prefix|>", "[SUFFIX]", "[PREFIX]"})
    assert read_header(file).metadata["tokenizer.ggml.tokens"] == tokens
    found = read_header(file, wanted).metadata["tokenizer.ggml.tokens"]
    assert found == sorted(wanted & set(tokens))


def test_a_pipe_and_a_directory_are_no_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.gguf")
    assert not is_gguf(tmp_path / "pipe.gguf") and not is_gguf(tmp_path)
    with pytest.raises(ModelError, match="no plain file"):
        gguf_facts(tmp_path / "pipe.gguf")


@settings(max_examples=300)
@given(
    places=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(SOUND)),
)
def test_changed_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(SOUND)
    for at, value in places:
        data[at] = value
    file = tmp_path_factory.mktemp("changed") / "changed.gguf"
    file.write_bytes(bytes(data[: max(cut, len(SOUND) // 2)]))
    try:
        gguf_facts(file)
        read_gguf(file, file.parent / "cache")
    except ModelError as error:
        assert error.next_step
    assert not list(file.parent.glob("cache/*.v[0-9]*"))


@pytest.mark.parametrize(
    "lists",
    [
        [pair("a", LIST, listed(BOOL, 3_000_000, b"\1" * 3_000_000))],
        [pair("a", LIST, listed(STRING, 300_000, text("ab") * 300_000))],
        [pair("tokenizer.ggml.tokens", LIST, listed(UINT8, 3_000_000, b"\1" * 3_000_000))],
    ],
    ids=["numbers", "texts", "numbers where texts should be"],
)
def test_long_lists_take_no_more_memory_than_the_file(lists: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "long.gguf"
    file.write_bytes(header(lists, []))
    read_header(file)  # what is imported for it
    tracemalloc.start()
    read_header(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * file.stat().st_size


def test_more_tokens_than_any_model_has_are_refused(tmp_path: Path) -> None:
    count = 2**21 + 1
    data = header([pair("tokenizer.ggml.tokens", LIST, listed(STRING, count, b"\0" * 8 * count))], [])
    assert "texts" in refused(tmp_path, data)


def test_shards_are_one_model(tmp_path: Path) -> None:
    def shard(number: int, name: str, tensors: int = 2) -> bytes:
        pairs = [
            ARCHITECTURE,
            pair("split.no", 2, struct.pack("<H", number - 1)),
            pair("split.count", 2, struct.pack("<H", 2)),
            pair("split.tensors.count", 5, struct.pack("<i", tensors)),
        ]
        return padded(header(pairs, [entry(name, (32,), 0, 0)]), bytes([number]) * 128)

    files = shards_of(tmp_path / "m-00002-of-00002.gguf")
    assert [file.name for file in files] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    files[1].write_bytes(shard(2, "y"))
    with pytest.raises(ModelError, match=r"shard m-00001-of-00002\.gguf is not beside it"):
        gguf_facts(files[1])
    files[0].write_bytes(shard(1, "x"))
    found = read_header(files[1])
    assert found.files == files and set(found.tensors) == {"x", "y"}
    assert found.read(found.tensors["y"], 0, 1)[0, 0] == 2
    found.close()
    assert gguf_file(str(tmp_path)) == files[0]
    files[0].write_bytes(shard(1, "y"))
    with pytest.raises(ModelError, match="'y' of another shard again"):
        gguf_facts(files[0])
    files[0].write_bytes(shard(1, "x", tensors=3))
    with pytest.raises(ModelError, match="hold 2 tensors, and say 3"):
        gguf_facts(files[0])


def test_a_file_that_gets_shorter_while_it_is_read_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.model.gguf import write

    model, config = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config)
    header_written = write._write_header

    def cut(*arguments: object) -> int:
        with file.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)
        return header_written(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "_write_header", cut)
    with pytest.raises(ModelError, match="became shorter while it was read"):
        read_gguf(file, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".reading.lock"]
