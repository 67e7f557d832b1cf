"""e^x and SwiGLU that take an x86 processor a third of the time: MLX's were 29 % of an evaluation there.

MLX 0.32.4 computes a float32 exponential on x86 with ten calls of the C library's fused multiply-add, 12 ns each on the machine of
`benchmarks/exponentials.py`; that library's power takes 4 ns, with the same error (1.8e-6 at most down to e^-35, as both round
x log2 e). On Apple's processors MLX computes several at once, and GPUs do anyway: there MLX's own is taken.

In: arrays. Out: the same as `mx.exp` and mlx-lm's ``swiglu`` give, to float tolerance. SwiGLU is written as the
line that touches it where it is asked for, so that MLX's gradient of it is the line's and makes no second exponential; a second
derivative after the gate is therefore 0, and nothing here asks for one. Cost: for its gradient SwiGLU keeps two arrays beside
what goes in and comes out, one fewer than mlx-lm's.
"""

from __future__ import annotations

import math
import platform
import sys
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from mlx_gardener.platform import device

if TYPE_CHECKING:
    import mlx.core as mx

_LOG2_E = math.log2(math.e)


def by_power() -> bool:
    """Whether powers are the faster exponentials on the device that is the default now."""
    return device.backend() == "cpu" and platform.machine().lower() in ("x86_64", "amd64")


def exp(x: mx.array) -> mx.array:
    """e^x, elementwise, of x's type."""
    import mlx.core as mx

    return _exp()(x) if x.dtype == mx.float32 and by_power() else mx.exp(x)


def softmax_parts(scores: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """A softmax over the last axis in parts, so that whoever sums over it divides sums only.

    Returns:
        (weights, what they are to be divided by, float32 logarithms of the sums of e^scores): of the scores' shape, and the latter
        two with 1 in the last axis's place.
    """
    import mlx.core as mx

    highest = mx.stop_gradient(scores.max(axis=-1, keepdims=True))
    if scores.dtype == mx.float32:
        weights = exp(scores - highest)
        sums = weights.sum(axis=-1, keepdims=True)
        return weights, sums, highest + mx.log(sums)
    weights = mx.softmax(scores, axis=-1, precise=True)  # which sums in float32
    at_highest = weights.max(axis=-1, keepdims=True).astype(mx.float32)  # 1 / sum
    return weights, mx.ones_like(highest), highest.astype(mx.float32) - mx.log(at_highest)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """SiLU(gate) x, elementwise, of arrays of one shape, as mlx-lm's function of that name."""
    import mlx.core as mx
    from mlx_lm.models import activations

    if by_power() and gate.dtype == x.dtype == mx.float32 and gate.shape == x.shape:
        return _swiglu()(gate, x)
    return activations.swiglu(gate, x)


def use_in_models() -> None:
    """Let the modules of mlx-lm's models that are imported compute SwiGLU by `swiglu`, for this process, where that is faster."""
    if not by_power():
        return
    from mlx_lm.models import activations

    for name, module in list(sys.modules.items()):
        is_model = name.startswith("mlx_lm.models.") and module is not activations
        if is_model and getattr(module, "swiglu", None) is activations.swiglu:
            module.swiglu = swiglu  # type: ignore[attr-defined]


@cache
def _exp() -> Any:
    import mlx.core as mx

    @partial(mx.compile, shapeless=True)
    def power(x: mx.array) -> mx.array:
        return mx.power(2.0, x * _LOG2_E)

    return power


@cache
def _swiglu() -> Any:
    import mlx.core as mx

    @partial(mx.compile, shapeless=True)
    def linear(gate: mx.array, x: mx.array) -> mx.array:
        here = mx.stop_gradient(gate)
        sigmoid = 1 / (1 + mx.power(2.0, here * -_LOG2_E))
        silu = here * sigmoid
        return x * (silu + (gate - here) * (sigmoid + silu * (1 - sigmoid)))

    return linear
