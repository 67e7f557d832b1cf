"""Exponentials of ours and of MLX's, in turn: processor time per number, and errors against float64.

    python benchmarks/exponentials.py

e^x, a softmax over a vocabulary, SwiGLU, and SwiGLU with its gradients, on one thread of the CPU. Written to
``results/exponentials.json``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

#: What is computed: the size that a step's arrays have, small enough for the cache of freed buffers.
SHAPE = (384, 4864)


def sides() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By what is computed: (ours, MLX's)."""
    import mlx.core as mx
    from mlx_lm.models import activations

    from mlx_gardener.model.exponentials import exp, softmax_parts, swiglu

    x, gate, above = (mx.random.normal(SHAPE, key=mx.random.key(number)) * 4 for number in range(3))
    scores = -mx.abs(x)
    mx.eval(gate, above, scores, x)

    def ours_softmax() -> mx.array:
        weights, divisor, _ = softmax_parts(x)
        return weights / divisor

    return {
        "e^x": (lambda: exp(scores), lambda: mx.exp(scores)),
        "softmax": (ours_softmax, lambda: mx.softmax(x, axis=-1)),
        "SwiGLU": (lambda: swiglu(gate, x), lambda: activations.swiglu(gate, x)),
        "SwiGLU and gradients": (
            lambda: mx.vjp(swiglu, [gate, x], [above]),
            lambda: mx.vjp(activations.swiglu, [gate, x], [above]),
        ),
    }


def highest_error(of: Callable[[Any], Any]) -> float:
    """The highest relative error of e^x between -80 and 0."""
    import mlx.core as mx
    import numpy as np

    x = mx.random.uniform(-80.0, 0.0, (100_000,), key=mx.random.key(9))
    true = np.exp(np.array(x, dtype=np.float64))
    return float(np.abs(np.array(of(x), dtype=np.float64) / true - 1).max())


@click.command()
@click.option("--rounds", default=15, show_default=True)
def main(rounds: int) -> None:
    """Measure and write the result."""
    import mlx.core as mx
    from machine import bar, describe, save, spread

    from mlx_gardener.model.exponentials import by_power, exp

    def nanoseconds(call: Callable[[], Any]) -> float:
        began = time.process_time()
        mx.eval(call())
        return (time.process_time() - began) / (SHAPE[0] * SHAPE[1]) * 1e9

    machine, found, bars = describe(), dict[str, Any](), []
    with mx.stream(mx.cpu):
        for name, (ours, theirs) in sides().items():
            mx.eval(ours(), theirs())
            seen = [(nanoseconds(ours), nanoseconds(theirs)) for _ in range(rounds)]
            ratios = spread([two / one for one, two in seen])
            found[name] = {
                "ours_ns": spread([one for one, _ in seen]),
                "mlx_ns": spread([two for _, two in seen]),
                "times_as_fast": ratios,
            }
            bars.append(
                bar(name, "MLX's", ">= 1x", f"{ratios['median']:.2f}x as fast", ratios["median"] >= 1)
            )
            click.echo(f"{name}: {found[name]}")
    errors = {"ours": highest_error(exp), "mlx": highest_error(mx.exp)}
    result = {
        "machine": machine,
        "by_power": by_power(),
        "bars": bars,
        "numbers": found,
        "highest_error_of_exp": errors,
    }
    click.echo(f"{errors} {save('exponentials', result)}")


if __name__ == "__main__":
    main()
