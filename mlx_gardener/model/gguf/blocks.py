"""ggml's blocks as MLX's groups: codes are put in MLX's order, scales and biases beside them; hardly a weight is changed.

In: blocks as they are stored, uint8 of (blocks, bytes of a block). Out: packed codes, scales and biases of groups of 32
values, ``w = scale * code + bias`` (MLX's affine mode), or floats where no such groups say the same. Layouts are those of
`gguf.quants`, against whose ``dequantize`` each kind is tested:

| ggml | MLX | what is said |
|---|---|---|
| Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL | 4, 4, 5, 5, 8, 8 bits, float16 scales | exactly the same |
| Q4_K, Q5_K, Q3_K, IQ4_XS | 4, 5, 8, 8 bits, float32 scales | the same codes; to a float32's last bits |
| Q6_K, Q2_K | 8 bits, float32 scales | to half a step: 0.4 % of all in L2 (Q6_K), 0.2 % (Q2_K) |
| MXFP4 | mode mxfp4 | exactly the same |
| F32, F16, BF16 | as they are | exactly the same |

Q3_K and IQ4 fit into 8 bits because their scale times code is a whole number below 256 apart. Q6_K and Q2_K have a scale
for every 16 values, and MLX none for less than 32. So the half of a group with the larger scale of Q6_K keeps its codes,
four times as large, and the other half takes the nearest of these steps: about an eighth of the larger scale off at most.
As float16 both would be nearly exact and a Q4_K_M of 1.5B parameters too large for 4 GB, since a CPU computes in float32.
Cost: some passes over the codes with NumPy, up to two seconds a gigabyte and core for the kinds that most files are made of
(Q4_K, Q6_K). Their arrays are made once a thread and used again: a fresh page costs more than what is written on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

#: Values of a group, the least that MLX has.
GROUP = 32
#: What the 16 codes of IQ4_NL and IQ4_XS mean.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Groups:
    """Groups of `GROUP` values: ``codes`` uint8 (groups, 4 * bits), ``scales`` and ``biases`` (groups,).

    The arrays are good until the same thread repacks again.
    """

    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray | None


@dataclass(frozen=True)
class Packing:
    """How a ggml type is kept.

    Attributes:
        bits: of a code; 0 for floats.
        mode: MLX's mode of quantisation.
        stored: safetensors' name of the type of scales and biases, or of the floats.
        repack: blocks to `Groups`, or to floats (uint16 for bfloat16) of (blocks, values of a block).
    """

    bits: int
    mode: str
    stored: str
    repack: Callable[[np.ndarray], Groups | np.ndarray]


def packing_of(kind: int) -> Packing | None:
    """How the ggml type of number ``kind`` is kept; None for one that is not known here."""
    return _PACKINGS.get(kind)


_buffers = threading.local()


def _buffer(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """This thread's array of that name, with whatever was left in it."""
    import numpy as np

    size = int(np.prod(shape))
    found: np.ndarray | None = getattr(_buffers, name, None)
    if found is None or found.size < size or found.dtype != np.dtype(kind):
        found = np.empty(size, dtype=kind)
        setattr(_buffers, name, found)
    return found[:size].reshape(shape)


def _field(blocks: np.ndarray, first: int, last: int, kind: str = "u1") -> np.ndarray:
    """The bytes ``first`` to ``last`` of all blocks as values of ``kind``: (blocks, values)."""
    import numpy as np

    return np.ascontiguousarray(blocks[:, first:last]).view(kind)


def _nibbles(codes: np.ndarray, run: int) -> np.ndarray:
    """4-bit codes of runs of ``run`` bytes, low nibbles first, then the high ones, one a byte: (blocks, codes)."""
    import numpy as np

    runs = codes.reshape(len(codes), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(codes), -1)


def _packed_nibbles(blocks: np.ndarray, first: int, last: int, run: int) -> np.ndarray:
    """The bytes ``first`` to ``last`` of all blocks as `_nibbles`, two a byte as MLX has them: (blocks, codes / 2)."""
    import numpy as np

    count = len(blocks)
    pairs = _buffer("pairs", (count, last - first), "u1")
    np.copyto(pairs, blocks[:, first:last])
    pairs = pairs.view("<u2").reshape(count, -1, run // 2)
    half, other = (_buffer(name, pairs.shape, "<u2") for name in ("half", "other"))
    bytes_ = _buffer("bytes", pairs.shape, "u1")
    packed = _buffer("packed", (count, pairs.shape[1], 2, run // 2), "u1")
    runs = packed.view(f"V{run // 2}")[..., 0]  # (blocks, runs, 2): a run is copied at once
    for place in (0, 1):
        np.bitwise_and(pairs if place == 0 else np.right_shift(pairs, 4, out=half), 0x0F0F, out=half)
        np.bitwise_or(half, np.right_shift(half, 4, out=other), out=half)
        np.copyto(bytes_, half, casting="unsafe")  # the low byte: both codes
        runs[..., place] = bytes_.view(runs.dtype)[..., 0]
    return packed.reshape(count, -1)


def _packed_fives(codes: np.ndarray) -> np.ndarray:
    """5-bit codes, one a byte, as one stream of bits: (blocks, codes * 5 / 8)."""
    import numpy as np

    eights = codes.reshape(len(codes), -1, 8).astype("<u8")
    stream = eights[..., 0].copy()
    for place in range(1, 8):
        stream |= eights[..., place] << np.uint64(5 * place)
    return stream[..., None].view(np.uint8)[..., :5].reshape(len(codes), -1)


def _groups(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray | None) -> Groups:
    count = scales.size
    return Groups(
        codes.reshape(count, -1), scales.reshape(count), None if biases is None else biases.reshape(count)
    )


def _q4_0(blocks: np.ndarray) -> Groups:
    scale = _field(blocks, 0, 2, "<f2")
    return _groups(_packed_nibbles(blocks, 2, 18, 16), scale, scale * scale.dtype.type(-8))


def _q4_1(blocks: np.ndarray) -> Groups:
    return _groups(
        _packed_nibbles(blocks, 4, 20, 16), _field(blocks, 0, 2, "<f2"), _field(blocks, 2, 4, "<f2")
    )


def _q5(blocks: np.ndarray, start: int) -> np.ndarray:
    """Packed codes of Q5_0 and Q5_1, whose fifth bits begin at byte ``start``."""
    import numpy as np

    fifth = np.unpackbits(_field(blocks, start, start + 4), axis=1, bitorder="little")  # (blocks, 32)
    return _packed_fives(_nibbles(_field(blocks, start + 4, start + 20), 16) | (fifth << 4))


def _q5_0(blocks: np.ndarray) -> Groups:
    scale = _field(blocks, 0, 2, "<f2")
    return _groups(_q5(blocks, 2), scale, scale * scale.dtype.type(-16))


def _q5_1(blocks: np.ndarray) -> Groups:
    return _groups(_q5(blocks, 4), _field(blocks, 0, 2, "<f2"), _field(blocks, 2, 4, "<f2"))


def _q8_0(blocks: np.ndarray) -> Groups:
    scale = _field(blocks, 0, 2, "<f2")
    return _groups(_field(blocks, 2, 34) ^ 0x80, scale, scale * scale.dtype.type(-128))


def _scales_of_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and biases of the eight groups of a block of Q4_K or Q5_K: float32 of (blocks, 8)."""
    import numpy as np

    scale, least = (_field(blocks, at, at + 2, "<f2").astype(np.float32) for at in (0, 2))
    low, middle, high = (_field(blocks, at, at + 4) for at in (4, 8, 12))
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    return scale * scales, -least * mins


def _q4_k(blocks: np.ndarray) -> Groups:
    return _groups(_packed_nibbles(blocks, 16, 144, 32), *_scales_of_k(blocks))


def _q5_k(blocks: np.ndarray) -> Groups:
    import numpy as np

    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = ((_field(blocks, 16, 48)[:, None] >> bits) & 1).reshape(len(blocks), -1)  # (blocks, 8 x 32)
    return _groups(_packed_fives(_nibbles(_field(blocks, 48, 176), 32) | (fifth << 4)), *_scales_of_k(blocks))


def _pairs_of_bits(codes: np.ndarray) -> np.ndarray:
    """2-bit codes of runs of 32 bytes, one a byte, lowest bits first: (blocks, codes)."""
    import numpy as np

    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    return ((codes.reshape(len(codes), -1, 1, 32) >> shifts) & 3).reshape(len(codes), -1)


def _q2_k(blocks: np.ndarray) -> Groups:
    """A 255th of what a group reaches over is its step."""
    import numpy as np

    scales, (scale, least) = (
        _field(blocks, 0, 16),
        (_field(blocks, at, at + 2, "<f2").astype(np.float32) for at in (80, 82)),
    )
    codes = _pairs_of_bits(_field(blocks, 16, 80)).reshape(len(blocks), 16, 16)
    values = (scale * (scales & 15))[..., None] * codes - (least * (scales >> 4))[..., None]
    values = values.reshape(len(blocks), 8, GROUP)
    lowest = values.min(axis=2)
    step = (values.max(axis=2) - lowest) / 255
    values = (values - lowest[..., None]) / np.where(step == 0, 1, step)[..., None]
    return _groups(np.rint(values).astype(np.uint8), step, lowest)


def _q3_k(blocks: np.ndarray) -> Groups:
    import numpy as np

    scale = _field(blocks, 108, 110, "<f2").astype(np.float32)
    low, high = _field(blocks, 96, 104), _field(blocks, 104, 108)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, :, None]
    scales = np.concatenate([low & 15, low >> 4], axis=1)  # (blocks, 16)
    scales |= ((high[:, None] >> shifts) & 3).reshape(len(blocks), 16) << 4
    bits = np.arange(8, dtype=np.uint8)[None, :, None]
    third = ((_field(blocks, 0, 32)[:, None] >> bits) & 1).reshape(len(blocks), -1)  # (blocks, 256)
    codes = (_pairs_of_bits(_field(blocks, 32, 96)) | (third << 2)).astype(np.int16) - 4
    whole = codes.reshape(len(blocks), 16, 16) * (scales.astype(np.int16) - 32)[..., None]  # -124 to 128
    scale = np.repeat(scale, 8, axis=1)
    return _groups((whole + 124).astype(np.uint8), scale, scale * np.float32(-124))


def _q6_k(blocks: np.ndarray) -> Groups:
    """A quarter of the larger of two scales is the step of both halves of a group; see the module's text."""
    import numpy as np

    count = len(blocks)
    low = np.ascontiguousarray(blocks[:, :128]).reshape(count, 2, 64)
    high = (
        np.ascontiguousarray(blocks[:, 128:192]).view("<u8").reshape(count, 2, 4)
    )  # eight codes' bits at once
    codes, upper = _buffer("codes", (count, 2, 2, 64), "u1"), _buffer("upper", (count, 2, 4, 4), "<u8")
    np.bitwise_and(low, 15, out=codes[:, :, 0])
    np.right_shift(low, 4, out=codes[:, :, 1])
    for place in range(4):
        np.right_shift(high, 2 * place, out=upper[:, :, place])
    np.left_shift(np.bitwise_and(upper, 0x0303030303030303, out=upper), 4, out=upper)
    words = codes.reshape(count, -1).view("<u8").reshape(upper.shape)
    np.bitwise_or(words, upper, out=words)
    np.subtract(codes, 32, out=codes)  # -32 to 31
    scales = _field(blocks, 192, 208, "i1").astype(np.float32).reshape(count, 8, 2)
    first, second = scales[..., 0], scales[..., 1]
    larger = np.where(np.abs(first) >= np.abs(second), first, second)
    ratios = scales / np.where(larger == 0, 1, larger)[..., None]  # -1 to 1, and 1 in the larger's half
    # Of opposite signs and as large, the halves reach from -32 to 32 steps: with quarters that is one code too many.
    parts = np.where(first * second * 128 < -127 * larger * larger, np.int16(3), np.int16(4))
    # In 256ths of a code, which 16 bits just hold: exact for the larger half, a sixteenth of a code off for the other.
    times = np.rint(ratios * (256 * parts[..., None])).astype(np.int16)
    steps = _buffer("steps", (count, 8, 2, 16), "i2")
    np.multiply(codes.view("i1").reshape(steps.shape), times[..., None], out=steps)
    np.right_shift(np.add(steps, 128, out=steps), 8, out=steps)
    np.add(steps.reshape(count, 8, GROUP), (32 * parts)[..., None], out=steps.reshape(count, 8, GROUP))
    np.copyto(codes.reshape(steps.shape), steps, casting="unsafe")
    step = _field(blocks, 208, 210, "<f2").astype(np.float32) * larger
    return _groups(codes, step / parts.astype(np.float32), step * np.float32(-32))


def _meanings(codes: np.ndarray) -> np.ndarray:
    """8-bit codes for the codes of IQ4_NL: what they mean, and 128."""
    import numpy as np

    return (np.array(_IQ4, dtype=np.int16) + 128).astype(np.uint8)[codes]


def _iq4_nl(blocks: np.ndarray) -> Groups:
    scale = _field(blocks, 0, 2, "<f2")
    return _groups(_meanings(_nibbles(_field(blocks, 2, 18), 16)), scale, scale * scale.dtype.type(-128))


def _iq4_xs(blocks: np.ndarray) -> Groups:
    import numpy as np

    scale = _field(blocks, 0, 2, "<f2").astype(np.float32)
    high = _field(blocks, 2, 4, "<u2") >> (2 * np.arange(8, dtype=np.uint16)) & 3  # (blocks, 8)
    low = _field(blocks, 4, 8)
    low = np.stack([low & 15, low >> 4], axis=2).reshape(len(blocks), 8)
    scales = scale * ((low | (high << 4)).astype(np.float32) - 32)
    codes = _meanings(_nibbles(_field(blocks, 8, 136), 16))
    return _groups(codes, scales, scales * np.float32(-128))


def _mxfp4(blocks: np.ndarray) -> Groups:
    return _groups(_packed_nibbles(blocks, 1, 17, 16), _field(blocks, 0, 1), None)


def _as_is(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: blocks.view(kind)


#: By ggml's number of a type.
_PACKINGS = {
    0: Packing(0, "", "F32", _as_is("<f4")),
    1: Packing(0, "", "F16", _as_is("<f2")),
    30: Packing(0, "", "BF16", _as_is("<u2")),
    2: Packing(4, "affine", "F16", _q4_0),
    3: Packing(4, "affine", "F16", _q4_1),
    6: Packing(5, "affine", "F16", _q5_0),
    7: Packing(5, "affine", "F16", _q5_1),
    8: Packing(8, "affine", "F16", _q8_0),
    10: Packing(8, "affine", "F32", _q2_k),
    11: Packing(8, "affine", "F32", _q3_k),
    12: Packing(4, "affine", "F32", _q4_k),
    13: Packing(5, "affine", "F32", _q5_k),
    14: Packing(8, "affine", "F32", _q6_k),
    20: Packing(8, "affine", "F16", _iq4_nl),
    23: Packing(8, "affine", "F32", _iq4_xs),
    39: Packing(4, "mxfp4", "U8", _mxfp4),
}
