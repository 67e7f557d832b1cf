"""Every kind of block says in MLX what it says in ggml."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Kind

from mlx_gardener.model.gguf.blocks import Groups, packing_of

#: Where the float16 scales of a block are.
_HALVES = {
    Kind.Q4_0: (0,),
    Kind.Q4_1: (0, 2),
    Kind.Q5_0: (0,),
    Kind.Q5_1: (0, 2),
    Kind.Q8_0: (0,),
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
    Kind.MXFP4: (),
}
#: Kinds whose scales are for fewer values than MLX has in a group: how far off all weights are in L2.
_ROUNDED = {Kind.Q6_K: 4.5e-3, Kind.Q2_K: 3e-3}


def random_blocks(kind: Kind, count: int, seed: int = 5) -> np.ndarray:
    """Blocks of every bit pattern but for their scales, which are of a model's size: uint8 (count, bytes)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for place in _HALVES[kind]:
        scales = rng.normal(0, 0.01, (count, 1)).astype(np.float16)  # negative ones too
        blocks[:, place : place + 2] = scales.view(np.uint8)
    if kind == Kind.MXFP4:
        blocks[:, 0] = rng.integers(100, 135, count)
    return blocks


def as_floats(kind: Kind, blocks: np.ndarray) -> np.ndarray:
    """What MLX makes of the repacked blocks."""
    packing = packing_of(kind)
    assert packing is not None
    found = packing.repack(blocks)
    if not isinstance(found, Groups):
        assert packing.bits == 0
        return found.astype(np.float32).reshape(-1)
    words = mx.array(np.ascontiguousarray(found.codes).view(np.uint32))
    scales = mx.array(found.scales)[:, None]
    biases = None if found.biases is None else mx.array(found.biases)[:, None].astype(mx.float32)
    if packing.mode == "affine":
        assert found.scales.dtype == {"F16": np.float16, "F32": np.float32}[packing.stored]
        scales = scales.astype(mx.float32)
    made = mx.dequantize(words, scales, biases, group_size=32, bits=packing.bits, mode=packing.mode)
    return np.array(made.astype(mx.float32)).reshape(-1)


@pytest.mark.parametrize("kind", _HALVES, ids=lambda kind: kind.name)
def test_repacked_blocks_say_what_ggml_says(kind: Kind) -> None:
    blocks = random_blocks(kind, 97)
    wanted = quants.dequantize(blocks.reshape(-1), kind).reshape(-1)
    found = as_floats(kind, blocks)
    if kind in _ROUNDED:
        assert np.linalg.norm(found - wanted) < _ROUNDED[kind] * np.linalg.norm(wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.MXFP4])
def test_what_gguf_quantised_itself_comes_back_the_same(kind: Kind) -> None:
    weights = np.random.default_rng(1).normal(0, 0.05, (16, 128)).astype(np.float32)
    packed = quants.quantize(weights, kind)
    found = as_floats(kind, packed.reshape(-1, GGML_QUANT_SIZES[kind][1]))
    np.testing.assert_array_equal(found, quants.dequantize(packed, kind).reshape(-1))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_floats_stay_as_they_are(kind: Kind) -> None:
    weights = np.random.default_rng(2).normal(0, 0.05, (8, 32)).astype(np.float32)
    packed = np.ascontiguousarray(quants.quantize(weights, kind)).view(np.uint8)
    packing = packing_of(kind)
    assert packing is not None and packing.bits == 0
    found = packing.repack(packed.reshape(-1, GGML_QUANT_SIZES[kind][1]))
    assert isinstance(found, np.ndarray)
    assert found.tobytes() == packed.tobytes() and packing.stored == kind.name


def test_the_half_of_a_group_with_the_larger_scale_of_q6_k_is_exact() -> None:
    blocks = random_blocks(Kind.Q6_K, 400)
    blocks[:4, 192:208] = np.array([127, -127, -128, 127, 0, 0, 5, 0] * 2, dtype=np.int8).view(np.uint8)
    wanted = quants.dequantize(blocks.reshape(-1), Kind.Q6_K).reshape(-1, 2, 16)
    found = as_floats(Kind.Q6_K, blocks).reshape(-1, 2, 16)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * blocks[:, 208:].view(np.float16).astype(
        np.float32
    )
    steps = np.abs(scales.reshape(-1, 2))
    larger = steps.argmax(axis=1)
    rows = np.arange(len(larger))
    np.testing.assert_allclose(found[rows, larger], wanted[rows, larger], rtol=3e-6, atol=1e-9)
    off = np.abs(found - wanted)[rows, 1 - larger].max(axis=1)
    code = steps.max(axis=1) / 4  # a third in the few groups whose halves have opposite signs and like scales
    assert (off <= 4 / 3 * code * (1 / 2 + 1 / 16) + 1e-6).all()
    assert np.mean(off <= code * (1 / 2 + 1 / 16) + 1e-6) > 0.95


def test_kinds_that_nobody_compared_are_not_known() -> None:
    for kind in (Kind.IQ2_XXS, Kind.IQ1_S, Kind.TQ1_0, Kind.NVFP4, Kind.F64, Kind.I8, Kind.Q8_1):
        assert packing_of(kind) is None
