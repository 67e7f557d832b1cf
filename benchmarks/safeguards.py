"""What each safeguard of memory that no test can see is worth: the peak of a step with it taken out, one at a time.

    python benchmarks/safeguards.py [--rounds 2]

A model of SmolLM2-135M's shape with eight layers and random weights, rank 8, two rows of 512 tokens. Three settings, each
with a reference: *kept* (float32, activations of all layers kept), *recomputed* (the same, all layers computed again) and
*packed* (4-bit weights that become floats block by block). Where a safeguard is taken out, loss and gradients are the
same. Figures are MiB on top of what lay in memory before the step: MLX's own peak, and the process's footprint, looked at
every 10 ms. How far MLX allocates ahead depends on how busy the machine is, so the load is recorded. The other safeguards
have tests; docs/decisions.md lists all of them. Cost: some ten seconds a side on two idle cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sides import against_references, median, random_batch

SHAPE, LAYERS, ROWS, WIDTH = "smollm2-135m", 8, 2, 512
KEPT = {"kept_layers": LAYERS, "loss_slice_tokens": 64, "cpu_streams": 2}
RECOMPUTED = {**KEPT, "kept_layers": 0}
PACKED = {**RECOMPUTED, "base_weights": "stored", "dequantize": True}
#: Side: what the plan has, and what is taken out.
SIDES: dict[str, tuple[dict[str, Any], str]] = {
    "kept": (KEPT, ""),
    "kept, without MLX's limits": (KEPT, "limits"),
    "kept, without stages": (KEPT, "stages"),
    "kept, without stages and limits": (KEPT, "stages and limits"),
    "recomputed": (RECOMPUTED, ""),
    "recomputed, without MLX's limits": (RECOMPUTED, "limits"),
    "packed": (PACKED, ""),
    "packed, without order": (PACKED, "order"),
}


@contextmanager
def _without_stages() -> Iterator[None]:
    """Layers whose activations are kept, and slices of the head, as one graph that is computed at once."""
    from mlx_gardener.engine.backprop import ForwardBackward
    from mlx_gardener.engine.head_loss import HeadLoss

    replay, losses = ForwardBackward._replay, HeadLoss.losses_and_gradient

    def at_once(
        self: Any, graph: Any, tape: Any, first: int, last: int, values: Any, on_call: Any = None
    ) -> Any:
        return replay(self, graph, tape, first, last, values)

    def unsliced(self: Any, hidden: Any, on_slice: Callable[..., None] | None = None) -> Any:
        return losses(self, hidden) if on_slice is None else losses(self, hidden, lambda arrays: None)

    ForwardBackward._replay, HeadLoss.losses_and_gradient = at_once, unsliced  # type: ignore[method-assign]
    try:
        yield
    finally:
        ForwardBackward._replay, HeadLoss.losses_and_gradient = replay, losses  # type: ignore[method-assign]


@contextmanager
def _without_order() -> Iterator[None]:
    """Blocks of weights are computed whenever MLX likes."""
    import mlx.core as mx

    ordered = mx.depends
    mx.depends = lambda arrays, after: arrays
    try:
        yield
    finally:
        mx.depends = ordered


def side(name: str) -> dict[str, Any]:
    """Two steps of one side in this process; the second counts."""
    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core as mx
    from shapes import write_shape

    from mlx_gardener.config import LoraConfig, load_config
    from mlx_gardener.engine import make_plan, model_facts, prepare_engine
    from mlx_gardener.engine.speed import TWO_CORES
    from mlx_gardener.model import load_base
    from mlx_gardener.model.lora import attach_lora, lora_parameters
    from mlx_gardener.platform.footprint import FootprintWatch, process_footprint_bytes

    chosen, off = SIDES[name]
    path = write_shape(SHAPE, _directory(), bits=4 if chosen is PACKED else None, layers=LAYERS)
    pins = {name: value for name, value in chosen.items() if name != "dequantize"}
    config = load_config(
        environment={},
        overrides={
            "data.sequence_lengths": [WIDTH],
            "engine.micro_batch_rows": ROWS,
            "engine.dry_run": False,
            **{f"engine.{name}": value for name, value in pins.items()},
        },
    )
    facts = model_facts(path)
    roomy = make_plan(facts, config, config.memory_limit_bytes, TWO_CORES)
    # As tight as a plan may be.
    plan = make_plan(facts, config, int(roomy.predicted_peak_bytes / 0.92) + 1, TWO_CORES)
    base = load_base(str(path), base_weights=plan.base_weights)
    engine = prepare_engine(base, plan, config, facts=facts, backend=TWO_CORES, warn=print)
    if not off.endswith("limits"):
        plan.set_limits()
    attach_lora(base.model, LoraConfig(rank=8), seed=0)
    weights, batch = lora_parameters(base.model), random_batch(ROWS, WIDTH, 8000)
    ways = {"stages": _without_stages, "stages and limits": _without_stages, "order": _without_order}
    watch = FootprintWatch()
    with ways.get(off, nullcontext)():
        for number in range(2):
            mx.clear_cache()
            mx.reset_peak_memory()
            before, taken = mx.get_active_memory(), process_footprint_bytes()
            watch.begin_again()
            result = engine.loss_and_gradients(weights, batch, seed=number)
            highest = watch.highest_bytes
    watch.close()
    return {
        "mlx_peak_mib": (mx.get_peak_memory() - before) / 2**20,
        "footprint_mib": (highest - taken) / 2**20,
        "predicted_mib": (plan.predicted_peak_bytes - plan.predicted_parts.runtime - plan.predicted_parts.weights) / 2**20,
        "loss": result.loss_sum / result.tokens,
    }  # fmt: skip


def _directory() -> Path:
    return Path(tempfile.gettempdir()) / "mlx-gardener-shapes"


def prepare() -> None:
    """Write the model's shape, as floats and quantised."""
    from shapes import write_shape

    for bits in (None, 4):
        write_shape(SHAPE, _directory(), bits=bits, layers=LAYERS)


def row(seen: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """A side's figures beside its reference's."""
    figures: dict[str, Any] = {}
    for what in ("mlx_peak", "footprint"):
        mib = median(seen, f"{what}_mib")
        figures |= {
            f"{what}_mib": round(mib),
            f"{what}_ratio": round(mib / median(reference, f"{what}_mib"), 2),
        }
    return figures


if __name__ == "__main__":
    against_references(__file__, tuple(SIDES), side, row, prepare)()
