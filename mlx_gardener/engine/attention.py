"""What attention of a shape takes on this backend, MLX's own and in blocks: measured, so that no plan rests on an assumption.

Whether a backend differentiates attention without its scores in memory, and which way is faster, differs between CPU, Metal
and CUDA and changes with MLX. So one group of heads is run forward and backward at two widths, and what it took becomes a line
over the width. In: a base's heads. Out: `Attention`, by which the planner weighs both ways; `engine.seen` keeps it per shape,
machine and version of MLX. Cost: about a second once, and under 150 MB for that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

#: From which width on attention is in blocks where it was not measured: on a CPU MLX's own way is about as fast below.
ATTENTION_LEAST = 1024
#: A width that no row has: attention is never in blocks.
NEVER = 2**31
#: Queries at a time that the planner knows: as a rule, and where memory is very short.
BLOCK, SMALL_BLOCK = 128, 32
#: Widths that are run double until one takes so long, or has so many scores.
_FIRST_WIDTH, _SECONDS, _SCORES = 256, 0.03, 8 * 1024**2
#: Heads that are run: fewer than a layer has, as all take the same.
_HEADS = 6
#: Differences of time up to this are none: two runs of the same differ as much (seen).
_TIE = 0.1
#: Floats per position, head and key that MLX's own way takes on the CPU, where the planner's constants were fitted; and those
#: per position and head of blocks: per query of the block, and per feature of a head. Both as `measure_attention` sees them.
_CPU_SCORES, _CPU_BLOCK = 3.18, (5.3, 4.2)
_ROUNDS = 2


@dataclass(frozen=True)
class Way:
    """What one way takes per position and head: (what it always takes, what each token of the row's width adds)."""

    floats: tuple[float, float]
    seconds: tuple[float, float]

    def floats_at(self, width: int) -> float:
        """Floats at once, beside what goes in and comes out."""
        return self.floats[0] + self.floats[1] * width

    def seconds_at(self, width: int) -> float:
        """Seconds for rows of this width."""
        return self.seconds[0] + self.seconds[1] * width


@dataclass(frozen=True)
class Attention:
    """What attention of one shape takes on this machine, causal.

    Attributes:
        own: MLX's, forward and backward.
        blocks: in blocks of so many queries, likewise.
        own_forward, blocks_forward: MLX's, and in blocks of `BLOCK`, where nothing is differentiated.
        head_dim: features of a head.
    """

    own: Way
    blocks: dict[int, Way]
    own_forward: Way
    blocks_forward: Way
    head_dim: int

    @property
    def scores(self) -> float:
        """What MLX's own way keeps of its scores, as a share of what it keeps on the CPU: near 0 where its gradient is fused."""
        return max(0.0, self.own.floats[1]) / _CPU_SCORES

    def block_share(self, block: int) -> float:
        """What blocks take, as a share of what they take on the CPU."""
        per_query, per_feature = _CPU_BLOCK
        return self.blocks[block].floats_at(1024) / (per_query * block + per_feature * self.head_dim)

    def blocks_time(self, block: int, width: int) -> float:
        """How many times as long blocks take as MLX's own way."""
        return _ratio(self.blocks[block], self.own, width)

    def is_faster(self, block: int, width: int) -> bool:
        """Whether blocks are clearly faster than MLX's own way."""
        return self.blocks_time(block, width) < 1

    def takes_less(self, block: int, width: int) -> bool:
        """Whether blocks take less memory than MLX's own way."""
        return self.blocks[block].floats_at(width) < self.own.floats_at(width)

    def forward_time(self, width: int) -> float:
        """The same where nothing is differentiated."""
        return _ratio(self.blocks_forward, self.own_forward, width)

    def forward_least(self, least: int, block: int) -> int:
        """From which width on attention is in blocks where nothing is differentiated: where that is faster, or takes less memory
        than a training step has for twice its rows, which is in blocks of ``block`` from ``least`` on."""
        for width in (2**power for power in range((2 * block).bit_length() - 1, 24)):
            in_training = (self.blocks[block] if width >= least else self.own).floats_at(width)
            if self.forward_time(width) < 1 or 2 * self.own_forward.floats_at(width) > in_training:
                return width
        return NEVER

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "blocks": {str(block): asdict(way) for block, way in self.blocks.items()}}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Attention:
        """What `to_json` gave.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: it did not.
        """
        return cls(
            own=_way(told["own"]),
            blocks={block: _way(told["blocks"][str(block)]) for block in (BLOCK, SMALL_BLOCK)},
            own_forward=_way(told["own_forward"]),
            blocks_forward=_way(told["blocks_forward"]),
            head_dim=int(told["head_dim"]),
        )  # fmt: skip


def _way(told: dict[str, Any]) -> Way:
    (fixed, added), (start, slope) = told["floats"], told["seconds"]
    return Way((float(fixed), float(added)), (float(start), float(slope)))


def _ratio(one: Way, other: Way, width: int) -> float:
    ratio = one.seconds_at(width) / max(1e-12, other.seconds_at(width))
    return 1.0 if abs(ratio - 1) <= _TIE else ratio


def attention_ways(
    seen: Attention | None, widths: Sequence[int]
) -> Iterator[dict[int, tuple[int, int | None]]]:
    """For every size of blocks: from which width on attention is in blocks in a training step, and where nothing is differentiated.

    First where blocks are faster here than MLX's own way, then where they take less memory, if that is not the same.
    """
    blocks = (BLOCK, SMALL_BLOCK)
    if seen is None:
        yield dict.fromkeys(blocks, (ATTENTION_LEAST, None))
        return
    faster = {block: _from_width(widths, partial(seen.is_faster, block)) for block in blocks}
    leaner = {block: _from_width(widths, partial(seen.takes_less, block)) for block in blocks}
    for leasts in (faster, leaner) if leaner != faster else (faster,):
        yield {block: (least, seen.forward_least(least, block)) for block, least in leasts.items()}


def _from_width(widths: Sequence[int], is_so: Callable[[int], bool]) -> int:
    """The narrowest of ``widths`` from which on something is so."""
    found = NEVER
    for width in sorted(widths, reverse=True):
        if not is_so(width):
            break
        found = width
    return found


def measure_attention(heads: int, key_heads: int, head_dim: int, *, kind: str) -> Attention:
    """Run some of a layer's heads on the default device, one row of them, with one thread of BLAS as a CPU stream has.

    Args:
        heads, key_heads: of a layer.
        kind: "cpu" computes in float32 and is timed by its own processor seconds, so that others' work does not count.
    """
    import mlx.core as mx

    from mlx_gardener.engine.operations import blockwise_attention
    from mlx_gardener.platform.blas import blas_threads

    shared = max(1, heads // max(1, key_heads))  # query heads of a key head
    keys_run = min(max(1, key_heads), -(-_HEADS // shared))
    group = shared * keys_run
    dtype, scale = (mx.float32 if kind == "cpu" else mx.bfloat16), head_dim**-0.5

    def own(*arrays: mx.array) -> mx.array:
        queries, keys, values = arrays
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")

    def in_blocks(block: int, *, forward_only: bool = False) -> Callable[..., mx.array]:
        def call(*arrays: mx.array) -> mx.array:
            queries, keys, values = arrays
            return blockwise_attention(
                queries, keys, values, scale=scale, mask="causal", block=block, forward_only=forward_only
            )

        return call

    ways: dict[str, tuple[Callable[..., mx.array], bool]] = {
        "own": (own, True),
        str(BLOCK): (in_blocks(BLOCK), True),
        str(SMALL_BLOCK): (in_blocks(SMALL_BLOCK), True),
        "own forward": (own, False),
        "blocks forward": (in_blocks(BLOCK, forward_only=True), False),
    }
    seen: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ways}
    limit = mx.set_cache_limit(0)
    try:
        with blas_threads(1):
            width = _FIRST_WIDTH
            while len(seen["own"]) < 2 or (seen["own"][-1][2] < _SECONDS and group * width**2 <= _SCORES):
                arrays = _arrays(group, keys_run, width, head_dim, dtype)
                took = {
                    name: _took(call, arrays, is_trained, kind) for name, (call, is_trained) in ways.items()
                }
                for _ in range(_ROUNDS - 1):  # in turn, as whatever else the machine does comes and goes
                    for name, (call, is_trained) in ways.items():
                        floats, seconds = _took(call, arrays, is_trained, kind)
                        took[name] = min(took[name][0], floats), min(took[name][1], seconds)
                for name, (floats, seconds) in took.items():
                    seen[name].append((width, floats, seconds))
                width *= 2
    finally:
        mx.set_cache_limit(limit)
        mx.clear_cache()
    found = {name: _line_of(points[-2:], group) for name, points in seen.items()}
    return Attention(
        own=found["own"],
        blocks={block: found[str(block)] for block in (BLOCK, SMALL_BLOCK)},
        own_forward=found["own forward"],
        blocks_forward=found["blocks forward"],
        head_dim=head_dim,
    )


def _arrays(group: int, key_heads: int, width: int, head_dim: int, dtype: mx.Dtype) -> list[mx.array]:
    """Queries, keys, values and what comes back from above, of one row."""
    import mlx.core as mx

    shapes = [(1, heads, width, head_dim) for heads in (group, key_heads, key_heads, group)]
    made = [mx.random.normal(shape, key=mx.random.key(number)).astype(dtype) for number, shape in enumerate(shapes)]  # fmt: skip
    mx.eval(made)
    return made


def _took(
    call: Callable[..., mx.array], arrays: list[mx.array], is_trained: bool, kind: str
) -> tuple[float, float]:
    """(floats at once beside what goes in and comes out, seconds)."""
    import mlx.core as mx

    clock = time.process_time if kind == "cpu" else time.perf_counter
    *primals, cotangent = arrays
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    began = clock()
    if is_trained:
        outputs, gradients = mx.vjp(lambda *given: call(*given), primals, [cotangent])
        made = [*outputs, *gradients]
    else:
        made = [call(*primals)]
    mx.eval(made)
    seconds = clock() - began
    size = made[0].itemsize
    floats = (mx.get_peak_memory() - before - sum(array.nbytes for array in made)) / size
    return max(0.0, floats), seconds


def _line_of(points: list[tuple[int, float, float]], group: int) -> Way:
    """Per position and head, from two widths; nothing falls as rows become wider."""
    (narrow, *first), (wide, *second) = points
    lines = []
    for one, other in zip(first, second, strict=True):
        at_narrow, at_wide = one / (narrow * group), other / (wide * group)
        slope = max(0.0, (at_wide - at_narrow) / (wide - narrow))
        fixed = at_wide - slope * wide
        lines.append((fixed, slope) if fixed >= 0 else (0.0, at_wide / wide))
    return Way(lines[0], lines[1])
