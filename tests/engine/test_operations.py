"""Attention in blocks against MLX's own: outputs and gradients, for every kind of mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.engine.operations import (
    Operations,
    blockwise_attention,
    operations,
)
from mlx_gardener.engine.products import dequantized_gather, dequantized_matmul
from mlx_gardener.model import load_base
from tests.engine.zoo import batch

ROWS, WIDTH = 2, 96
_AT = np.arange(WIDTH)
CAUSAL = _AT[:, None] >= _AT[None]
WINDOW = CAUSAL & (_AT[:, None] < _AT[None] + 10)
IDS = np.stack([np.repeat(np.arange(4), 24), np.repeat(np.arange(3), 32)])
DOCUMENTS = (IDS[:, :, None] == IDS[:, None, :])[:, None]  # (rows, 1, width, width)

CASES = {
    "none": (None, None, None),
    "causal": ("causal", None, CAUSAL),
    "window": (mx.array(WINDOW), None, WINDOW),
    "added": (mx.where(mx.array(WINDOW), 0.0, -1e9), None, WINDOW),
    "documents": ("causal", IDS, CAUSAL & DOCUMENTS),
    "documents and window": (mx.array(WINDOW), IDS, WINDOW & DOCUMENTS),
}


@pytest.mark.parametrize("block", [1, 40, 96])
@pytest.mark.parametrize("case", CASES)
def test_blocks_give_what_mlx_gives(case: str, block: int) -> None:
    mask, ids, reference = CASES[case]
    mx.random.seed(0)
    queries, keys = mx.random.normal((ROWS, 8, WIDTH, 16)), mx.random.normal((ROWS, 2, WIDTH, 16))
    values, outer = mx.random.normal((ROWS, 2, WIDTH, 24)), mx.random.normal((ROWS, 8, WIDTH, 24))

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        seen = None if reference is None else mx.array(reference)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=seen)

    def blocks(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return blockwise_attention(q, k, v, scale=0.25, mask=mask, block=block, document_ids=ids)

    expected, found = (mx.vjp(one, [queries, keys, values], [outer]) for one in (plain, blocks))
    for one, other in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert mx.abs(one - other).max().item() < 1e-5


def test_the_operations_of_mlx_come_back_after_an_error() -> None:
    before = mx.fast.scaled_dot_product_attention, mx.quantized_matmul, mx.gather_qmm
    with (
        pytest.raises(ValueError, match="broken"),
        operations(Operations(attention_block=4, dequantize=True)),
    ):
        assert mx.fast.scaled_dot_product_attention is not before[0]
        raise ValueError("broken")
    assert before == (mx.fast.scaled_dot_product_attention, mx.quantized_matmul, mx.gather_qmm)


def test_documents_of_a_row_can_be_kept_apart(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    given = batch()
    given.document_ids[:, 12:] = 2
    given.loss_mask[:] = False
    given.loss_mask[:, 13:15] = True  # targets of the second document only
    apart = Engine(
        base.model,
        Plan({23: 2}, 0, 0, PredictedParts(), (), cpu_streams=2),
        dtype=base.dtype,
        per_document=True,
    )
    together = Engine(base.model, Plan({23: 2}, 0, 0, PredictedParts(), ()), dtype=base.dtype)
    first = apart.row_losses(given), together.row_losses(given)
    given.tokens[:, 2:10] = 9  # of the first document
    second = apart.row_losses(given), together.row_losses(given)
    assert second[0] == pytest.approx(first[0], rel=1e-6)
    assert second[1] != pytest.approx(first[1], rel=1e-4)


@pytest.mark.parametrize("mask", ["causal", None])
@pytest.mark.parametrize("documents", [False, True])
def test_attention_without_a_gradient_is_the_same(mask: str | None, documents: bool) -> None:
    mx.random.seed(2)
    queries, keys, values = (mx.random.normal((2, heads, 11, 8)) for heads in (4, 2, 2))
    ids = np.repeat([[1] * 6 + [2] * 5], 2, axis=0) if documents else None
    with_gradient, without = (
        blockwise_attention(
            queries, keys, values, scale=0.3, mask=mask, block=4, document_ids=ids, forward_only=forward_only
        )
        for forward_only in (False, True)
    )
    assert mx.array_equal(with_gradient, without)


def test_a_product_shared_among_streams_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    mx.random.seed(3)
    packed = mx.quantize(mx.random.normal((200, 64)), group_size=32, bits=4)
    x = mx.random.normal((8, 1, 64))
    settings: dict[str, Any] = {"group_size": 32, "bits": 4}
    streams = tuple(mx.new_stream(mx.cpu) for _ in range(3))
    monkeypatch.setattr("mlx_gardener.engine.products.DEQUANTIZED_BLOCK", 64 * 30)  # 13 blocks of 16
    alone = dequantized_matmul(x, *packed, **settings)
    shared = dequantized_matmul(x, *packed, streams=streams, **settings)
    assert mx.array_equal(alone, shared)
    expected = mx.quantized_matmul(x, *packed, transpose=True, **settings)
    assert mx.abs(shared - expected).max().item() < 1e-4


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(
    ("inputs", "outputs", "blocks"),
    [
        (64, 200, [(48, 64)] * 4 + [(8, 64)]),
        (
            192,
            70,
            [(70, 32)] * 6,
        ),  # by inputs: by outputs each block would give an array as large as the gradient
    ],
)
def test_the_gradient_of_a_product_by_floats_is_that_of_the_product(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, blocks: list[tuple[int, int]], bits: int
) -> None:
    mx.random.seed(3)
    packed = mx.quantize(mx.random.normal((outputs, inputs)), group_size=32, bits=bits)
    facts: dict[str, Any] = {"group_size": 32, "bits": bits}
    x, cotangent = mx.random.normal((2, 5, inputs)), mx.random.normal((2, 5, outputs))
    expected = cotangent @ mx.dequantize(*packed, **facts)
    monkeypatch.setattr("mlx_gardener.engine.products.DEQUANTIZED_BLOCK", 64 * 48)
    plain, made = mx.dequantize, list[tuple[int, ...]]()

    def noting(*arrays: Any, **facts: Any) -> mx.array:
        made.append((found := plain(*arrays, **facts)).shape)
        return found

    def call(x: mx.array) -> mx.array:
        product = dequantized_matmul(x, *packed, **facts)
        made.clear()
        return product

    monkeypatch.setattr(mx, "dequantize", noting)
    (found,) = mx.vjp(call, [x], [cotangent])[1]
    assert made == blocks
    assert mx.abs(found - expected).max().item() <= 1e-5 * mx.abs(expected).max().item()


@pytest.mark.parametrize("what", ["zeros_like", "dequantize"])
def test_gradients_are_computed_on_the_stream_of_what_they_are_of(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ran on MLX's default stream, so that those of several CPU streams waited for one thread."""
    mx.random.seed(4)
    stream, seen = mx.new_stream(mx.cpu), list[mx.Stream]()
    packed = mx.quantize(mx.random.normal((64, 32)), group_size=32, bits=4)
    queries, plain = mx.random.normal((1, 2, 8, 32)), getattr(mx, what)

    def noting(*arrays: Any, **facts: Any) -> mx.array:
        seen.append(mx.default_stream(mx.default_device()))
        return plain(*arrays, **facts)

    monkeypatch.setattr(mx, what, noting)

    def call(x: mx.array) -> mx.array:
        with mx.stream(stream):
            if what == "dequantize":
                return dequantized_matmul(x, *packed, group_size=32, bits=4)
            return blockwise_attention(x, x, x, scale=0.2, mask="causal", block=4)

    shape = (1, 2, 8, 64) if what == "dequantize" else queries.shape
    mx.eval(mx.vjp(call, [queries], [mx.ones(shape)]))
    assert len(seen) >= (2 if what == "dequantize" else 1) and all(one == stream for one in seen)


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_handful_of_tokens_read_by_packed_weights_say_the_same_as_many_by_floats(
    rows: int, bits: int
) -> None:
    mx.random.seed(1)
    packed, scales, biases = mx.quantize(mx.random.normal((300, 128)), 64, bits)
    x = mx.random.normal((rows, 1, 128))
    asked: list[tuple[int, ...]] = []

    def mlx_product(x: mx.array, *args: Any, **facts: Any) -> mx.array:
        asked.append(x.shape)
        return mx.quantized_matmul(x, *args, **facts)

    facts = {"transpose": True, "group_size": 64, "bits": bits}
    found = dequantized_matmul(x, packed, scales, biases, packed=mlx_product, **facts)
    assert bool(asked) == (rows <= 4)
    floats = mx.dequantize(packed, scales, biases, group_size=64, bits=bits)
    assert mx.allclose(found, x @ floats.T, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 16, 17])
@pytest.mark.parametrize("forward_only", [False, True])
def test_few_tokens_do_not_make_floats_of_all_experts(
    monkeypatch: pytest.MonkeyPatch, tokens: int, forward_only: bool
) -> None:
    """Four rows to each of eight experts at most: 16 tokens that pass two of them."""
    mx.random.seed(1)
    packed = mx.quantize(mx.random.normal((8, 48, 64)), 64, 4)
    x = mx.random.normal((1, tokens, 1, 1, 64))
    experts = mx.random.randint(0, 8, (1, tokens, 2))
    facts: dict[str, Any] = {"rhs_indices": experts, "transpose": True, "group_size": 64, "bits": 4}
    expected = mx.gather_qmm(x, *packed, **facts)
    made, plain = [], mx.dequantize

    def noting(*arrays: Any, **facts: Any) -> mx.array:
        made.append("")
        return plain(*arrays, **facts)

    monkeypatch.setattr(mx, "dequantize", noting)
    with operations(Operations(dequantize=True, forward_only=forward_only)):
        found = mx.gather_qmm(x, *packed, **facts)
        ordered = mx.gather_qmm(  # as mlx-lm does with many: a row for each expert that a token passes
            x.flatten(0, -3)[mx.arange(2 * tokens) // 2],
            *packed,
            **{**facts, "rhs_indices": experts.flatten()},
        )
    assert mx.allclose(found, expected, atol=1e-3)
    assert mx.allclose(ordered.reshape(expected.shape), expected, atol=1e-3)
    assert len(made) == (0 if forward_only and tokens <= 16 else 2)


def test_a_scale_that_only_gpus_know_is_not_passed_over() -> None:
    packed = mx.quantize(mx.random.normal((2, 8, 64)), 64, 4)
    with pytest.raises(ValueError, match="global scale"):
        dequantized_gather(mx.ones((1, 64)), *packed, rhs_indices=mx.array([1]), global_scale=mx.ones((2,)))
