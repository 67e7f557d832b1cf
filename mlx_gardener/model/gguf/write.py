"""The model folder that a GGUF file is written as: config.json, model.safetensors, tokenizer files.

In: a header whose claims were checked. Out: the folder, written beside and renamed. Every tensor is taken in parts of some
250,000 values, by as many threads as there are cores up to four, each part read, repacked and written at its place: memory
is a few megabytes a thread whatever the size of the model, but for the rows of one matrix of queries, which change places.
Cost: six seconds of processor time a gigabyte of Q4_K_M, its sha256 and the tokenizer among them, shared by the threads; what
is written is sent to the disk meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.model.gguf.architectures import Placed, model_config, placed_tensors, row_order
from mlx_gardener.model.gguf.blocks import GROUP, Groups, Packing, packing_of
from mlx_gardener.model.gguf.reader import Gguf, block_size, kind_name
from mlx_gardener.model.gguf.settings import NotReadableError
from mlx_gardener.model.gguf.tokenizer import read_tokenizer

if TYPE_CHECKING:
    import numpy as np

#: Values of a part: what is made of them stays in a core's own cache.
_PART = 2**18
_THREADS = 4
#: Bytes of the source after which what was made of them is sent to the disk.
_ON_ITS_WAY = 2**27
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "U32": 4}


@dataclass(frozen=True)
class _Array:
    """An array of the weight file: safetensors' type, shape, and where it begins (bytes after the header)."""

    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _WIDTHS[self.kind]

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] * _WIDTHS[self.kind]


@dataclass(frozen=True)
class Layout:
    """What is written: arrays by name, tensors with their packing, and their quantisation for config.json."""

    arrays: dict[str, _Array]
    tensors: tuple[tuple[Placed, Packing], ...]
    quantization: dict[str, Any] | None

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.bytes for array in self.arrays.values())


def layout_of(gguf: Gguf) -> Layout:
    """What a file is written as; nothing of it but its header is read.

    Raises:
        NotReadableError: as `placed_tensors`, or a tensor's type is not known here; names it.
    """
    tensors: list[tuple[Placed, Packing]] = []
    wanted: list[tuple[str, str, tuple[int, ...]]] = []
    for placed in placed_tensors(gguf):
        packing = packing_of(placed.tensor.kind)
        if packing is None or (packing.bits and len(placed.tensor.shape) == 1):
            raise NotReadableError(
                f"its tensor {placed.tensor.name!r} is of the type {kind_name(placed.tensor.kind)}, which is not read here"
            )
        tensors.append((placed, packing))
        wanted += _arrays_of(placed, packing)
    arrays: dict[str, _Array] = {}
    offset = 0
    for name, kind, shape in sorted(
        wanted, key=lambda array: -_WIDTHS[array[1]]
    ):  # each begins where its type may
        arrays[name] = _Array(kind, shape, offset)
        offset += arrays[name].bytes
    return Layout(arrays, tuple(tensors), _quantization(tensors))


def _arrays_of(placed: Placed, packing: Packing) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, type, shape) of what a tensor becomes."""
    *outer, width = placed.tensor.shape
    if not packing.bits:
        yield placed.name, "F32" if placed.shift else packing.stored, placed.tensor.shape
        return
    module = placed.name.removesuffix(".weight")
    yield placed.name, "U32", (*outer, width * packing.bits // 32)
    yield f"{module}.scales", packing.stored, (*outer, width // GROUP)
    if packing.mode == "affine":
        yield f"{module}.biases", packing.stored, (*outer, width // GROUP)


def _quantization(tensors: list[tuple[Placed, Packing]]) -> dict[str, Any] | None:
    """config.json's entry: what most modules have, and by name what the others have, as mlx-lm has mixed widths."""
    kinds = {
        placed.name.removesuffix(".weight"): (packing.bits, packing.mode)
        for placed, packing in tensors
        if len(placed.tensor.shape) > 1
    }
    counted = Counter(kind for kind in kinds.values() if kind[0])
    if not counted:
        return None
    (usual, _), *_ = counted.most_common(1)
    found: dict[str, Any] = _entry(usual)
    return found | {
        module: _entry(kind) if kind[0] else False for module, kind in kinds.items() if kind != usual
    }


def _entry(kind: tuple[int, str]) -> dict[str, Any]:
    return {"group_size": GROUP, "bits": kind[0], "mode": kind[1]}


def write_folder(gguf: Gguf, layout: Layout, folder: Path, tell: Callable[[int, int], None]) -> str:
    """Write the model into ``folder``, which is there and empty.

    Returns:
        The file's sha256; of shards, that of all their bytes one after the other.

    Raises:
        NotReadableError: as `read_tokenizer`.
        OSError, ValueError: a file cannot be read or written, or the source became shorter.
    """
    config = model_config(gguf) | ({"quantization": layout.quantization} if layout.quantization else {})
    weights, total = folder / "model.safetensors", sum(placed.tensor.bytes for placed, _ in layout.tensors)
    start = _write_header(weights, layout)
    descriptor = os.open(weights, os.O_WRONLY)
    workers = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "gguf")
    disk, sent = ThreadPoolExecutor(1, "gguf-disk"), list[Future[None]]()
    try:
        writer = _Writer(gguf, layout, descriptor, start)
        digest = workers.submit(sha256_of, gguf.files)
        jobs: list[Future[int]] = [
            workers.submit(writer.write, placed, packing, first, last)
            for placed, packing in layout.tensors
            for first, last in _parts(placed)
        ]
        tokenizer, settings, ids = read_tokenizer(gguf, config["vocab_size"])
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        _write_json(folder / "tokenizer_config.json", settings)
        _write_json(folder / "config.json", config | ids)
        done = 0
        for job in as_completed(jobs):
            done += job.result()
            tell(done, total)
            if done // _ON_ITS_WAY > len(sent):  # the disk works while the rest is made, not only afterwards
                sent.append(disk.submit(os.fsync, descriptor))
        for one in sent:
            one.result()  # the system tells a failure once
        os.fsync(descriptor)
        return digest.result()
    finally:
        workers.shutdown(cancel_futures=True)
        disk.shutdown(cancel_futures=True)
        os.close(descriptor)
        gguf.close()


def sha256_of(files: tuple[Path, ...]) -> str:
    """sha256 of the bytes of all files, one after the other.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    part = memoryview(bytearray(2**18))  # the same for all: a new page costs more than hashing it
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(part):
                digest.update(part[:count])
    return digest.hexdigest()


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_header(file: Path, layout: Layout) -> int:
    """Begin a weight file of the right size; where its arrays begin."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    for name, array in layout.arrays.items():
        place = [array.offset, array.offset + array.bytes]
        header[name] = {"dtype": array.kind, "shape": list(array.shape), "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        start = stream.tell()
        stream.truncate(start + layout.bytes)
    return start


def _parts(placed: Placed) -> Iterator[tuple[int, int]]:
    """Rows of a tensor that are taken at once; all of one whose rows change places."""
    rows, width = placed.tensor.rows, placed.tensor.shape[-1]
    step = rows if placed.heads else max(1, _PART // width)
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


class _Writer:
    """Writes tensors into an open weight file; for many threads at once."""

    def __init__(self, gguf: Gguf, layout: Layout, descriptor: int, start: int) -> None:
        self._gguf, self._arrays = gguf, layout.arrays
        self._descriptor, self._start = descriptor, start

    def write(self, placed: Placed, packing: Packing, first: int, last: int) -> int:
        """Read, repack and write the rows ``first`` to ``last`` (exclusive); their bytes in the source."""
        stored = self._gguf.read(placed.tensor, first, last)  # uint8 (rows, bytes)
        if len(placed.tensor.shape) == 1:
            self._put(placed.name, 0, _vector(placed, packing, stored))
        elif placed.heads:
            order = row_order(placed.tensor.rows, placed.heads)
            step = max(1, _PART // placed.tensor.shape[-1])
            for at in range(0, len(order), step):
                self._repack(placed, packing, at, stored[order[at : at + step]])
        else:
            self._repack(placed, packing, first, stored)
        return stored.nbytes

    def _repack(self, placed: Placed, packing: Packing, first: int, stored: np.ndarray) -> None:
        import numpy as np

        _, block_bytes = block_size(placed.tensor.kind, placed.name)
        with np.errstate(all="ignore"):  # a damaged scale is no number; a training says where it met it
            found = packing.repack(stored.reshape(-1, block_bytes))
        if not isinstance(found, Groups):
            self._put(placed.name, first, found)
            return
        module = placed.name.removesuffix(".weight")
        self._put(placed.name, first, found.codes)
        self._put(f"{module}.scales", first, found.scales)
        if found.biases is not None:
            self._put(f"{module}.biases", first, found.biases)

    def _put(self, name: str, row: int, values: np.ndarray) -> None:
        import numpy as np

        array = self._arrays[name]
        data = np.ascontiguousarray(values).data.cast("B")
        at = self._start + array.offset + row * array.row_bytes
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data, at = data[written:], at + written


def _vector(placed: Placed, packing: Packing, stored: np.ndarray) -> np.ndarray:
    """A norm or a bias."""
    import numpy as np

    _, value_bytes = block_size(placed.tensor.kind, placed.name)
    values = packing.repack(stored.reshape(-1, value_bytes))
    assert isinstance(values, np.ndarray)
    values = values.reshape(-1)
    if placed.heads:
        values = values[row_order(len(values), placed.heads)]
    if not placed.shift:
        return values
    if packing.stored == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) + np.float32(placed.shift)
