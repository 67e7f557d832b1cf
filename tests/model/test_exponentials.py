"""Exponentials that are ours give what MLX's give, and so do their gradients."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, llama

from mlx_gardener.model import load_base
from mlx_gardener.model.exponentials import by_power, exp, softmax_parts, swiglu
from mlx_gardener.platform import device


@pytest.mark.parametrize("low", [-1.0, -30.0, -87.0])
def test_e_to_the_x_is_as_exact_as_mlx_s(low: float) -> None:
    x = mx.random.uniform(low, 1.0, (1000,), key=mx.random.key(1))
    true = np.exp(np.array(x, dtype=np.float64))

    def off(found: mx.array) -> float:
        return float(np.abs(np.array(found, dtype=np.float64) / true - 1).max())

    assert off(exp(x)) <= 1.1 * off(mx.exp(x)) + 1e-7
    assert mx.array_equal(exp(mx.array([-mx.inf, -200.0, 0.0, mx.inf])), mx.array([0.0, 0.0, 1.0, mx.inf]))
    (value,), (gradient,) = mx.vjp(exp, [x], [mx.full(x.shape, 2.0)])
    assert mx.allclose(gradient, 2 * value)
    assert exp(x.astype(mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_softmax_in_parts_is_a_softmax(dtype: mx.Dtype) -> None:
    scores = (mx.random.normal((3, 5, 40), key=mx.random.key(2)) * 8).astype(dtype)
    weights, divisor, log_sums = softmax_parts(scores)
    assert weights.dtype == dtype and log_sums.dtype == mx.float32
    assert mx.allclose(weights / divisor, mx.softmax(scores, axis=-1, precise=True), rtol=1e-5, atol=1e-6)
    expected = mx.logsumexp(scores.astype(mx.float32), axis=-1, keepdims=True)
    assert mx.allclose(log_sums, expected, rtol=1e-5 if dtype == mx.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_swiglu_and_its_gradients_are_mlx_lm_s(dtype: mx.Dtype) -> None:
    extremes = [-200.0, -89.0, -1e-9, 0.0, 1e-9, 89.0, 200.0]
    drawn = mx.random.normal((1, 2, 50), key=mx.random.key(3)) * 10
    gate = mx.concatenate([drawn.flatten(), mx.array(extremes)]).astype(dtype)
    x, above = (mx.random.normal(gate.shape, key=mx.random.key(number)).astype(dtype) for number in (4, 5))
    ours, theirs = (mx.vjp(one, [gate, x], [above]) for one in (swiglu, activations.swiglu))
    for found, expected in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert found.dtype == dtype and mx.isfinite(found).all()
        assert mx.allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_a_gpu_beside_an_x86_processor_takes_mlx_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the processor had been asked first decided for the GPU, too."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(activations, "swiglu", lambda gate, x: mx.full(x.shape, 7.0))
    given = mx.ones((3,))
    for kind, by_powers in (("cpu", True), ("cuda", False), ("cpu", True)):
        monkeypatch.setattr(device, "backend", lambda kind=kind: kind)
        assert by_power() is by_powers
        assert (swiglu(given, given)[0].item() == 7.0) is not by_powers


def test_models_compute_by_it_where_it_is_faster(tiny_model_dir: Path) -> None:
    load_base(str(tiny_model_dir))
    assert llama.swiglu is (swiglu if by_power() else activations.swiglu)
