"""Peak memory and speed of a plan, before anything is loaded.

The peak adds up parts that people understand: weights, adapter, what is saved from the forward pass, the work of one
segment or of head and loss, freed buffers, the runtime. Sizes follow from shapes; constants were fitted to measured peaks
(``benchmarks/memory_plan.py``). The speed is that of `engine.step_time`, more where freed buffers are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.head_loss import slice_rows
from mlx_gardener.engine.plan import AS_FORETOLD, MIB, Plan, PredictedParts, Scales
from mlx_gardener.engine.speed import Backend
from mlx_gardener.engine.step_time import tokens_per_second

#: Python, MLX, BLAS buffers, tokenizer and token rows before a model is loaded.
RUNTIME_BYTES = 150 * MIB
#: Float32 copies of the adapter at the height of an update.
ADAPTER_COPIES = 5
#: Floats that one layer takes in its backward pass per position, in units of (hidden, intermediate, heads x keys,
#: width of keys and values), on one CPU stream and on several: least squares over 12 shapes each, within 14 %.
WORK_FLOATS = {False: (15.7, 12.5, 2.9, 7.2), True: (9.6, 12.0, 2.9, 5.2)}
#: The share of that where weights become floats block by block: their products wait for each other.
CHAINED = 0.75
#: The same for scores of attention in blocks, in units of heads x block.
BLOCK_FLOATS = 3.5
#: Floats per position of a layer in tiles, on top of what a tile takes at once: while MLP and while attention is differentiated,
#: in units of hidden. Measured on two shapes with tiles of 64 to 1,024 of 1,024 and 2,048 positions: within 7 %.
TILED_FLOATS = (16.0, 17.5)
#: Of hidden states that go to disk so many are in memory: the embedding's, and those on their way to the file and back.
STATES_AT_ONCE = 3
#: What a layer keeps whose activations are kept, in units of one layer's work: SmolLM2-135M, all 30 layers kept, takes 0.97
#: of what this says at 4 rows of 512 tokens (MLX's attention), and 1.00 at 2 rows of 1,024 (in blocks).
KEPT_SHARE = 0.43
#: Floats of a slice's logits, per position and token of the vocabulary, for all CPU streams together: two slices overlap on one.
TAIL_FLOATS = {1: 9.0, 2: 11.0}
#: Arrays of logits' size that a slice of the vocabulary takes.
SLICE_ARRAYS = 5
#: What freed buffers add to the peak where a step keeps as many as it finds use for, as shares of what is saved and kept, and of what
#: is worked on: least squares over SmolLM2-135M's shape with 2, 4 and 30 layers, rows of 256 to 1,024, within 60 MB. One row of
#: 2,048 in blocks of queries of growing sizes takes twice that, which `Plan.bound_cache` cuts.
KEPT_BUFFERS_SHARES = 0.1, 0.47
#: How much longer a step takes without them: every array is fresh memory then, which the system clears page by page. SmolLM2-135M,
#: rows of 512 to 2,048: 1.28 to 1.45 (``benchmarks/kept_buffers.py``). On a GPU a judgement.
FRESH_MEMORY_COSTS = {"cpu": 0.35, "metal": 0.05, "cuda": 0.05}
#: Freed buffers where there is no room for that, as a share of the work.
CACHE_SHARE = 0.1
#: Shares of the budget that a plan may use by the formula alone, and after a dry run; the rest is for what they miss: with
#: SmolLM2-135M, all layers kept, a training took 1.07 of what its dry run foretold.
HEADROOM, MARGIN = 0.92, 0.94


@dataclass(frozen=True)
class Measured:
    """What a memory dry run saw (`engine.dry_run`).

    Attributes:
        fixed_bytes: footprint between two steps: runtime, base as it is kept in memory, one copy of the adapter.
        adapter_bytes: one copy of the adapter in float32.
        scales: what a micro-batch took, as shares of what the formulas say for this backend.
        highest_bytes: the footprint's peak so far: loading and the checks.
    """

    fixed_bytes: int
    adapter_bytes: int
    scales: Scales
    highest_bytes: int


def predicted(
    plan: Plan,
    facts: ModelFacts,
    config: TrainingConfig,
    backend: Backend,
    *,
    measured: Measured | None = None,
    scales: Scales | None = None,
) -> Plan:
    """The plan with its memory and its speed; with what was ``measured`` in the place of what can only be estimated.

    Args:
        scales: what was seen of the same base, kept elsewhere; what the backend knows of it where None.
    """
    scales = (scales or backend.scales) if measured is None else measured.scales
    parts = _memory_parts(plan, facts, config, backend, scales)
    if measured is not None:
        parts = _corrected(parts, measured)
    if plan.keeps_buffers:
        of_kept, of_work = KEPT_BUFFERS_SHARES
        cache = int(of_kept * (parts.saved + parts.live) + of_work * parts.work)
    else:
        left = plan.budget_bytes * HEADROOM - parts.peak_bytes
        cache = int(max(0, min(left, CACHE_SHARE * parts.work)))
    parts = replace(parts, cache=cache, check=max(0, parts.check - cache))
    speed = scales.speed * tokens_per_second(plan, facts, backend)
    if plan.keeps_buffers:
        speed *= 1 + FRESH_MEMORY_COSTS[backend.kind]
    return replace(
        plan,
        cache_bytes=cache,
        predicted_parts=parts,
        predicted_peak_bytes=parts.peak_bytes,
        predicted_tokens_per_second=speed,
        predicted_forward_tokens_per_second=speed * backend.forward_share,
        speed_from=backend.speed_from,
        scales=scales,
    )


def least_budget_bytes(plan: Plan, measured: Measured | None = None) -> float:
    """The least budget under which ``plan`` is taken: what is foretold with room for error, what was seen already without.

    Args:
        plan: as `predicted` gave it, with the same ``measured``.
    """
    if measured is None:
        return plan.predicted_peak_bytes / HEADROOM
    foretold = plan.predicted_peak_bytes - plan.predicted_parts.check
    return max(foretold / MARGIN, measured.highest_bytes)


def _corrected(parts: PredictedParts, measured: Measured) -> PredictedParts:
    """The parts with what lay in memory between steps."""
    base = measured.fixed_bytes - measured.adapter_bytes
    weights = min(parts.weights, base)
    adapter = ADAPTER_COPIES * measured.adapter_bytes
    found = replace(parts, weights=weights, adapter=adapter, runtime=base - weights, check=0)
    return replace(found, check=max(0, measured.highest_bytes - found.peak_bytes))


def _float_bytes(config: TrainingConfig, backend: Backend) -> int:
    """Bytes of a number that is computed with."""
    if config.engine.compute_dtype == "auto":
        return 4 if backend.kind == "cpu" else 2
    return 4 if config.engine.compute_dtype == "float32" else 2


@dataclass(frozen=True)
class WorkParts:
    """What a micro-batch takes on top of the weights, bytes.

    Attributes:
        saved: hidden states kept at the borders of layers that are computed again.
        products: outputs of products kept of some of these but the topmost, whose own are a part of its work.
        live: activations kept of the other layers.
        layer: the backward pass of a layer that is computed again; ``live`` is gone by then.
        tail: head and loss, or the topmost layer's backward pass, while ``live`` is there.
        buffers: weights that are read or turned into floats for a moment, in a layer or in the LM head.
    """

    saved: float
    products: float
    live: float
    layer: float
    tail: float
    buffers: float

    @property
    def peak(self) -> float:
        """All that is there at once, at most."""
        return self.saved + self.products + self.buffers + max(self.layer, self.live + self.tail)


def work_parts(
    plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend, scales: Scales | None = None
) -> WorkParts:
    """What a micro-batch of ``plan`` takes, of the width that takes most."""
    return _heaviest(plan, facts, config, backend, scales)[1]


def heaviest_width(plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend) -> int:
    """The sequence length whose micro-batch takes most memory: not always the longest, as that one's attention is in blocks."""
    return _heaviest(plan, facts, config, backend, None)[0]


def _heaviest(
    plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend, scales: Scales | None
) -> tuple[int, WorkParts]:
    found = {
        width: _work_of_width(plan, facts, config, backend, scales or AS_FORETOLD, width, rows)
        for width, rows in plan.rows_of_width.items()
    }
    return max(found.items(), key=lambda item: item[1].peak)


def _work_of_width(
    plan: Plan,
    facts: ModelFacts,
    config: TrainingConfig,
    backend: Backend,
    scales: Scales,
    width: int,
    rows: int,
) -> WorkParts:
    size, tokens = _float_bytes(config, backend), rows * width
    layer = tokens * size * _work_floats(plan, facts, backend, width)
    lean = tokens * size * _tiled_floats(plan, facts, backend, width, tokens) if plan.tile_tokens else layer
    if plan.by_shards:
        rows = min(slice_rows(tokens), facts.vocab)
        logits = 4.0 * rows * (SLICE_ARRAYS * tokens + 3 * facts.hidden)
    else:
        logits = 4 * facts.vocab * plan.loss_slice_tokens * TAIL_FLOATS[2 if plan.cpu_streams > 1 else 1]
        logits *= max(1.0, plan.cpu_streams / 2)
    product = tokens * size * _product_floats(plan, facts, width) if plan.kept_products else 0.0
    again = lean * (CHAINED if plan.dequantize else 1.0) if plan.kept_layers < facts.layers else 0.0
    top = layer * (1 - KEPT_SHARE) if plan.kept_layers else 0.0
    return WorkParts(
        saved=tokens * facts.hidden * size * (2 + _states_in_memory(plan, facts)),
        products=product * (plan.kept_products - 1),
        live=scales.live * backend.work_scale * layer * KEPT_SHARE * plan.kept_layers,
        layer=scales.layer * backend.work_scale * again,
        tail=scales.tail * backend.work_scale * max(logits, top) + product,
        buffers=_weight_bytes(plan, facts, size)[1],
    )


def _memory_parts(
    plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend, scales: Scales
) -> PredictedParts:
    size = _float_bytes(config, backend)
    work = work_parts(plan, facts, config, backend, scales)
    is_live_higher = work.live + work.tail > work.layer
    parts = PredictedParts(
        weights=int(_weight_bytes(plan, facts, size)[0]),
        adapter=_adapter_bytes(facts, config),
        saved=int(work.saved),
        live=int(work.products) + (int(work.live) if is_live_higher else 0),
        work=int((work.tail if is_live_higher else work.layer) + work.buffers),
        runtime=backend.runtime_bytes or RUNTIME_BYTES,
    )
    check = _check_bytes(plan, facts, size) + parts.runtime
    return replace(parts, check=max(0, int(check) - parts.peak_bytes))


def _score_floats(plan: Plan, backend: Backend, width: int) -> float:
    """Floats per position and head that attention takes for its scores."""
    seen = backend.attention
    if plan.in_blocks(width):
        known = seen is not None and plan.attention_block in seen.blocks
        share = seen.block_share(plan.attention_block) if seen is not None and known else 1.0
        return share * BLOCK_FLOATS * plan.attention_block
    return (1.0 if seen is None else seen.scores) * WORK_FLOATS[plan.cpu_streams > 1][2] * width


def _work_floats(plan: Plan, facts: ModelFacts, backend: Backend, width: int) -> float:
    """Floats per position that one layer takes at once in its backward pass."""
    by_hidden, by_intermediate, _, by_keys = WORK_FLOATS[plan.cpu_streams > 1]
    return (
        by_hidden * facts.hidden
        + by_intermediate * facts.intermediate
        + _score_floats(plan, backend, width) * facts.heads
        + by_keys * facts.key_value_width
    )


def _tiled_floats(plan: Plan, facts: ModelFacts, backend: Backend, width: int, tokens: int) -> float:
    """The same for a layer in tiles: while its MLP is differentiated, or its attention, whichever is more."""
    _, by_intermediate, _, by_keys = WORK_FLOATS[plan.cpu_streams > 1]
    by_key = _score_floats(plan, backend, width)
    share = min(1.0, plan.tile_tokens / tokens)
    in_mlp = TILED_FLOATS[0] * facts.hidden + by_intermediate * facts.intermediate * share
    in_attention = TILED_FLOATS[1] * facts.hidden + by_key * facts.heads + by_keys * facts.key_value_width
    return min(_work_floats(plan, facts, backend, width), max(in_mlp, in_attention))


def _product_floats(plan: Plan, facts: ModelFacts, width: int) -> int:
    """Floats per position that a layer keeps of its products, and of its attention in blocks with its sums."""
    # Where the weights' shapes were not kept: a gated layer's queries, keys, values, output, gate and up.
    gated = facts.heads * facts.features + 2 * facts.key_value_width + facts.hidden + 2 * facts.intermediate
    attention = facts.heads * (facts.features + 1) if plan.in_blocks(width) else 0
    return (facts.product_outputs or gated) + attention


def _states_in_memory(plan: Plan, facts: ModelFacts) -> int:
    """Hidden states at borders of layers that are in memory at once, beside the one that is computed and its gradient."""
    recomputed = facts.layers - plan.kept_layers
    return min(recomputed, STATES_AT_ONCE) if plan.states_on_disk else recomputed


def _check_bytes(plan: Plan, facts: ModelFacts, size: int) -> float:
    """What the check of the cut takes (`engine.verify`): of a base on disk two layers and, as a whole, what is outside.

    Each is there as stored and as computed with for a moment. Its 24 tokens are nothing beside them.
    """
    if not plan.streamed_layers:
        return 0.0
    layer, outside = _loaded_bytes(plan, facts, size)
    return 2 * layer + facts.layer_stored_bytes + outside + facts.outside_stored_bytes


def _loaded_bytes(plan: Plan, facts: ModelFacts, size: int) -> tuple[float, float]:
    """(one layer, embedding and head with what else is outside the layers) as they are in memory."""
    if plan.base_weights == "stored" and facts.quantized_bits is not None:
        # On the CPU scales and biases, and weights that are not quantised, are float32 in memory.
        if size == 4:
            return float(facts.layer_loaded_bytes), float(facts.outside_loaded_bytes)
        return float(facts.layer_stored_bytes), float(facts.outside_stored_bytes)
    return float(facts.layer_parameters * size), float(facts.outside_parameters * size)


def _weight_bytes(plan: Plan, facts: ModelFacts, size: int) -> tuple[float, float]:
    """(weights in memory throughout, buffers of weights that are read or turned into floats for a moment)."""
    layer, outside = _loaded_bytes(plan, facts, size)
    if plan.vocabulary_on_disk:
        outside = 0.0  # what is left are norms
    weights = outside + (facts.layers - plan.streamed_layers) * layer
    buffers = 0.0
    if plan.streamed_layers:
        buffers += layer + facts.layer_stored_bytes  # this layer's and the next one's
    if plan.dequantize:
        buffers += 16 * plan.cpu_streams * MIB
    return weights, buffers


def _adapter_bytes(facts: ModelFacts, config: TrainingConfig) -> int:
    # Weights, gradients, two moments, the best copy; layer by layer the fresh gradients.
    rank = config.lora.rank
    per_layer = rank * (
        4 * facts.hidden
        + 2 * facts.key_value_width
        + 2 * facts.hidden
        + 3 * (facts.hidden + facts.intermediate)
    )
    return ADAPTER_COPIES * 4 * per_layer * min(config.lora.num_layers or facts.layers, facts.layers)
