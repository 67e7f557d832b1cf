"""A GGUF file's header: what it says of itself and of its tensors, each claim compared with the file before it is used.

In: a path; of a model in shards (``-00001-of-00003.gguf``) any of them. Out: a `Gguf`, whose tensors are read by rows.
Layout: the GGUF specification (ggml-org/ggml, docs/gguf.md); types and block sizes are those of the `gguf` package. Its
own reader is not used: it keeps two arrays for every element of a list (some 600,000 of them for a vocabulary of 152,000
tokens, 9 s and 500 MB; without end where a hostile file has lists of bytes), and makes arrays of what no one has checked.
Cost: the header is read once, 0.1 s for that vocabulary, 0.04 s where its texts are not wanted; tensors are read
with ``pread``, so that a file that is cut off
meanwhile is an error and no crash. Memory: what a vocabulary takes; lists that nobody needs are passed over.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlx_gardener.platform.untrusted import open_regular, refuse_pointer

if TYPE_CHECKING:
    import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
#: Far above any model's; what is kept of a header is then some tens of megabytes at the most.
_MOST_PAIRS, _MOST_TENSORS, _MOST_SHARDS = 2**16, 2**17, 1000
_MOST_TEXT, _MOST_ITEMS, _MOST_NAME = 2**20, 2**21, 256
_MOST_VALUES = 2**40
#: Types of metadata by their number: struct's letter, bytes. 8 is a string, 9 a list.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
#: Bytes that are read at once of a list of texts.
_PIECE = 2**18
#: Lists of text that are kept; all others are of no use here.
_TEXT_LISTS = frozenset({"tokenizer.ggml.tokens", "tokenizer.ggml.merges"})
_LENGTH = struct.Struct("<Q")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is. ``shape`` has the outputs first, as MLX has it; ``kind`` is ggml's number of its type."""

    name: str
    kind: int
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int

    @property
    def rows(self) -> int:
        """Rows, of all experts where there are several."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.bytes // self.rows


@dataclass(frozen=True)
class Gguf:
    """What a file, or all shards of a model, says: scalars, texts and needed lists by key, tensors by name."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    bytes: int
    _open: dict[Path, BinaryIO] = field(default_factory=dict, repr=False)

    @property
    def architecture(self) -> str:
        """``general.architecture``; empty where the file names none."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value of ``ARCHITECTURE.key``."""
        return self.metadata.get(f"{self.architecture}.{key}", otherwise)

    def read(self, tensor: Tensor, first: int, last: int) -> np.ndarray:
        """The rows ``first`` to ``last`` (exclusive) as they are stored: uint8 of (rows, bytes of a row).

        Raises:
            ValueError: the file became shorter.
        """
        import numpy as np

        stream = self._open.get(tensor.file)
        if stream is None:
            stream = self._open.setdefault(tensor.file, open_regular(tensor.file))
        size, parts = (last - first) * tensor.row_bytes, []
        at = tensor.offset + first * tensor.row_bytes
        while size:
            part = os.pread(stream.fileno(), size, at)
            if not part:
                raise ValueError(f"{tensor.file.name} became shorter while it was read")
            parts.append(part)
            size, at = size - len(part), at + len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(data, dtype=np.uint8).reshape(last - first, tensor.row_bytes)

    def close(self) -> None:
        """Close the files that were read."""
        for stream in self._open.values():
            stream.close()
        self._open.clear()


class _Header:
    """Reads a header from its begin to its end; whatever is longer than the file is refused before it is read."""

    def __init__(self, stream: BinaryIO, size: int, only: frozenset[str] | None = None) -> None:
        self._stream, self.at, self.size, self._only = stream, 0, size, only

    def take(self, count: int) -> bytes:
        self.skip(0, count)
        data = self._stream.read(count)
        if len(data) != count:
            raise ValueError("it ends within its header")
        self.at += count
        return data

    def skip(self, count: int, ahead: int = 0) -> None:
        """Pass over ``count`` bytes, after which ``ahead`` are to follow."""
        if count + ahead > self.size - self.at:
            raise ValueError("it ends within its header")
        if count:
            self._stream.seek(count, os.SEEK_CUR)
            self.at += count

    def number(self, letter: str) -> Any:
        """One value, little-endian."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self, most: int, what: str) -> str:
        length = self.number("Q")
        if length > most:
            raise ValueError(f"it has {what} of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise ValueError(f"it has {what} that is no UTF-8") from None

    def skip_text(self) -> None:
        self.skip(self.number("Q"))

    def value(self, key: str, kind: int) -> Any:
        """A value of metadata; None for one that nobody needs."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            length = struct.unpack("<Q", self.take(8))[0]
            if length > _MOST_TEXT:
                self.skip(length)
                return None
            try:
                return self.take(length).decode()
            except UnicodeDecodeError:
                raise ValueError(f"{key} is no UTF-8") from None
        if kind == _LIST:
            return self._list(key, self.number("I"), self.number("Q"))
        raise ValueError(f"{key} is of the unknown type {kind}")

    def _pieces(self, key: str, count: int, take: Callable[[bytes, int], tuple[int, int, int]]) -> None:
        """Read a list of texts in large pieces of the file: one by one they take four times as long.

        Args:
            take: takes from a piece the texts that are whole in it, at most so many; tells how many, where the next one
                begins, and how many bytes it needs.
        """
        begin, needed = self.at, 8
        while count:
            if needed > _MOST_TEXT + 8:
                raise ValueError(f"it has {key} of {needed - 8} bytes")
            self._stream.seek(begin)
            data = self._stream.read(max(_PIECE, needed))
            if len(data) < needed:
                raise ValueError("it ends within its header")
            taken, at, needed = take(data, count)
            count, begin = count - taken, begin + at
        self.at = begin
        self._stream.seek(begin)

    def _texts(self, key: str, count: int) -> list[str]:
        """A list of texts."""
        found: list[bytes] = []
        length_at = _LENGTH.unpack_from

        def take(data: bytes, most: int) -> tuple[int, int, int]:
            at, last, before = 0, len(data) - 8, len(found)
            while at <= last and len(found) - before < most:
                (length,) = length_at(data, at)
                end = at + 8 + length
                if end > len(data):
                    return len(found) - before, at, 8 + length
                found.append(data[at + 8 : end])
                at = end
            return len(found) - before, at, 8

        self._pieces(key, count, take)
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError:
            raise ValueError(f"it has {key} that is no UTF-8") from None

    def _texts_of(self, key: str, count: int, wanted: frozenset[str]) -> list[str]:
        """Those of ``wanted`` that are in a list of texts, none of which is cut out of the file: that takes a third of the time."""
        entries = {text: _LENGTH.pack(len(text.encode())) + text.encode() for text in wanted}
        found: set[str] = set()
        length_at = _LENGTH.unpack_from

        def take(data: bytes, most: int) -> tuple[int, int, int]:
            at, size, taken, needed = 0, len(data), 0, 8
            for taken in range(most):  # noqa: B007
                if at + 8 > size:
                    break
                end = at + 8 + length_at(data, at)[0]
                if end > size:
                    needed = end - at
                    break
                at = end
            else:
                taken = most
            found.update(text for text, entry in entries.items() if data.find(entry, 0, at) >= 0)
            return taken, at, needed

        self._pieces(key, count, take)
        return sorted(found)

    def _list(self, key: str, kind: int, count: int) -> Any:
        import numpy as np

        if kind in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[kind])
            if count * width > self.size - self.at:
                raise ValueError(f"{key} is a list of {count:,} values, which the file has no room for")
            letter = _SCALARS[kind]
            return np.frombuffer(self.take(count * width), dtype="?" if letter == "?" else f"<{letter}")
        if kind != _STRING:
            raise ValueError(f"{key} is a list of lists, or of the unknown type {kind}")
        if count * 8 > self.size - self.at:
            raise ValueError(f"{key} is a list of {count:,} texts, which the file has no room for")
        if key in _TEXT_LISTS:
            if count > _MOST_ITEMS:
                raise ValueError(f"{key} is a list of {count:,} texts")
            if self._only is None:
                return self._texts(key, count)
            return self._texts_of(key, count, self._only if key == "tokenizer.ggml.tokens" else frozenset())
        for _ in range(count):
            self.skip_text()
        return None


def read_header(path: Path, only: frozenset[str] | None = None) -> Gguf:
    """The header of a GGUF file and, where it is one of several shards, of all of them.

    Args:
        only: of the vocabulary only which of these tokens it has, and no merges; None for all of both.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is none, or a claim is not true; says which.
    """
    found = _read_one(path, only)
    count = found.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return found
    files = shards_of(path)
    if len(files) != count:
        raise ValueError(f"it says that it is one of {count} shards, and its name does not")
    if missing := next((file for file in files if not file.is_file()), None):
        raise ValueError(f"its shard {missing.name} is not beside it")
    parts = [_read_one(file, only) for file in files]
    tensors: dict[str, Tensor] = {}
    for part, file in zip(parts, files, strict=True):
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise ValueError(f"{file.name} has the tensor {min(twice)!r} of another shard again")
        tensors |= part.tensors
    wanted = parts[0].metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise ValueError(f"its {count} shards hold {len(tensors)} tensors, and say {wanted}")
    return Gguf(files, parts[0].metadata, tensors, sum(part.bytes for part in parts))


def shards_of(path: Path) -> tuple[Path, ...]:
    """The file itself, or all shards of which its name says that it is one (``-00002-of-00003.gguf``)."""
    match = _SHARD.fullmatch(path.name)
    if match is None or not 1 <= int(match[3]) <= _MOST_SHARDS:
        return (path,)
    return tuple(
        path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}")
        for number in range(1, int(match[3]) + 1)
    )


def _read_one(path: Path, only: frozenset[str] | None) -> Gguf:
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _Header(stream, size, only)
        start = header.take(min(size, len(_MAGIC)))
        if start != _MAGIC:
            refuse_pointer(path.name, start + header.take(min(size - len(start), 64)))
            raise ValueError("it does not begin as a GGUF file does")
        version = header.number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise ValueError("its numbers are big-endian" if swapped else f"it is of version {version}")
        tensor_count, pair_count = header.number("Q"), header.number("Q")
        if pair_count > _MOST_PAIRS or pair_count * 13 > size:
            raise ValueError(f"it says that it has {pair_count:,} keys")
        if tensor_count > _MOST_TENSORS or tensor_count * 32 > size:
            raise ValueError(f"it says that it has {tensor_count:,} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = header.text(2**16, "a key")
            if key in metadata:
                raise ValueError(f"it has the key {key!r} twice")
            metadata[key] = header.value(key, header.number("I"))
        metadata = {key: value for key, value in metadata.items() if value is not None}
        claims = [_claim(header) for _ in range(tensor_count)]
        return Gguf((path,), metadata, _placed(claims, header.at, metadata, path, size), size)


def _claim(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, kind, offset) as a tensor's entry says."""
    name = header.text(_MOST_NAME, "a tensor's name")
    dimensions = header.number("I")
    if not 1 <= dimensions <= 4:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = tuple(header.number("Q") for _ in range(dimensions))
    if not all(shape) or math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"{name} has the shape {' x '.join(map(str, shape))}")
    return name, shape[::-1], header.number("I"), header.number("Q")


def _placed(
    claims: list[tuple[str, tuple[int, ...], int, int]],
    end: int,
    metadata: dict[str, Any],
    path: Path,
    size: int,
) -> dict[str, Tensor]:
    """The tensors with their places in the file, each inside it and none upon another."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise ValueError(f"its general.alignment is {alignment}")
    start = -(-end // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in claims:
        block, block_bytes = block_size(kind, name)
        if shape[-1] % block:
            raise ValueError(f"{name} has rows of {shape[-1]} values, in blocks of {block}")
        count = math.prod(shape) // block * block_bytes
        if offset % alignment or start + offset + count > size:
            raise ValueError(f"{name} is said to lie where the file ends, or between its places")
        if name in tensors:
            raise ValueError(f"it has the tensor {name!r} twice")
        tensors[name] = Tensor(name, kind, shape, path, start + offset, count)
    free = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < free:
            raise ValueError(f"{tensor.name} lies upon another tensor")
        free = tensor.offset + tensor.bytes
    return tensors


def block_size(kind: int, name: str) -> tuple[int, int]:
    """(values, bytes) of a block of the ggml type of number ``kind``.

    Raises:
        ValueError: there is no such type; ``name`` is the tensor that says so.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        return GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise ValueError(f"{name} is of the ggml type {kind}, which is not known here") from None


def kind_name(kind: int) -> str:
    """ggml's name of a type."""
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(kind).name
