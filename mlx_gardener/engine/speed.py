"""How fast training will be, from the machine's matrix speed and the model's size."""

from __future__ import annotations

import time

from mlx_gardener.engine.planner import ModelFacts

#: Share of the matrix speed that a training step reaches: measured 0.05 (the embedded model on two cores), since small
#: models spend their time between the products; 0.4 for wide ones is judgement.
_REACHED_SMALL, _REACHED_LARGE = 0.05, 0.4
_LARGE_HIDDEN = 896


def matrix_gflops(*, size: int = 1024, seconds: float = 0.2) -> float:
    """Multiply-adds of a float32 matrix product on the default device, in 10^9 floating-point operations per second."""
    import mlx.core as mx

    first = mx.random.normal((size, size))
    mx.eval(first @ first)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        mx.eval(first @ first)
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - started) / 1e9


def predict_tokens_per_second(facts: ModelFacts, gflops: float | None = None) -> float:
    """Positions per second of a LoRA training step; good to about a factor of two.

    A step needs about 4 operations per parameter and position: 2 forward, 2 for the gradient of the activations; the
    base's own weights need none (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, less the weight gradient).
    """
    speed = (matrix_gflops() if gflops is None else gflops) * 1e9
    share = min(1.0, facts.hidden / _LARGE_HIDDEN)
    reached = _REACHED_SMALL + (_REACHED_LARGE - _REACHED_SMALL) * share
    return speed * reached / (4 * facts.parameters)
