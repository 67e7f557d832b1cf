"""How a memory budget is used: what of the base is in memory, how many rows at once, what is computed twice.

In: facts of the model (from its files, without loading it), facts of the backend, the settings, the budget. Out: a
`Plan`. Every way that the engine knows is tried, its peak memory and its time predicted; the fastest that fits is
taken. The peak adds up parts that people understand; constants were fitted to measured peaks
(``benchmarks/memory_plan.py``). Cost: a few thousand candidates, some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.speed import TWO_CORES, Backend
from mlx_gardener.engine.tail import words_per_slice
from mlx_gardener.errors import ConfigError, MemoryBudgetError, ModelError

GIB = 1024**3
MIB = 1024**2
#: Python, MLX, BLAS buffers, tokenizer and token rows before a model is loaded.
RUNTIME_BYTES = 240 * MIB
#: Float32 copies of the adapter at the height of an update.
ADAPTER_COPIES = 5
#: Floats that one layer takes in its backward pass per position, in units of (hidden, intermediate, heads x keys,
#: width of keys and values), on one lane and on several: least squares over 12 shapes each, within 14 %.
WORK_FLOATS = {False: (15.7, 12.5, 2.9, 7.2), True: (9.6, 12.0, 2.9, 5.2)}
#: The same for scores of attention in blocks, in units of heads x block.
BLOCK_FLOATS = 3.5
#: What one more layer in the same graph adds, in units of one layer's work, with MLX's attention and with blocks.
MORE_LAYERS = {False: 0.36, True: 0.72}
#: Floats of a tail slice's logits, per position and word, for all lanes together: two slices overlap on one lane.
TAIL_FLOATS = {1: 9.0, 2: 11.0}
#: Arrays of logits' size that a slice of the vocabulary takes.
SLICE_ARRAYS = 5
#: Freed buffers kept for reuse, as a share of the work: measured, more is never filled.
CACHE_SHARE = 0.35
#: More positions at once than this bring no speed on a CPU or a GPU of a Mac mini (judgement), unless weights are read.
ENOUGH_TOKENS = 4096
#: What is left of the budget for what the formula does not know.
HEADROOM = 0.94
#: A base that is read from disk must be this much faster than one in memory to be chosen (judgement).
READING_COSTS = 0.4
#: Attention is computed in blocks of this many queries from this width on: below, MLX's own is as fast and as small.
ATTENTION_BLOCK, ATTENTION_LEAST = 128, 1024


@dataclass(frozen=True)
class Plan:
    """What the budget is used for; all figures of memory in bytes.

    Attributes:
        rows_of_width: rows per micro-batch for every row width in tokens.
        predicted_parts: weights, adapter, saved, work, cache, runtime.
        notes: what was traded for the budget, a sentence each.
        layers_per_segment: layers that are computed again at once in the backward pass.
        live_layers: last layers that are computed only once.
        tail_slice_tokens: positions whose logits are in memory at once (on each lane).
        lanes: CPU streams that the rows are shared among.
        attention_block, attention_least: queries at a time, for rows of at least so many tokens; 0 for MLX's own.
        base_weights: "dense" (in the type that is computed in), or "stored" (as quantised, or as on disk).
        dequantize: whether quantised weights become floats, block by block, before they multiply.
        streamed_layers: first layers whose weights are read from disk whenever they are needed.
        words_on_disk: whether embedding and head are read from disk too, the head in slices of the vocabulary.
        cache_bytes: freed buffers that may be kept for reuse.
        predicted_tokens_per_second: positions of a training step per second.
        layers: of the model.
    """

    rows_of_width: dict[int, int]
    budget_bytes: int
    predicted_peak_bytes: int
    predicted_parts: dict[str, int]
    notes: tuple[str, ...]
    layers_per_segment: int = 1
    live_layers: int = 0
    tail_slice_tokens: int = 128
    lanes: int = 1
    attention_block: int = 0
    attention_least: int = 0
    base_weights: str = "dense"
    dequantize: bool = False
    streamed_layers: int = 0
    words_on_disk: bool = False
    cache_bytes: int = 256 * MIB
    predicted_tokens_per_second: float = 0.0
    layers: int = 0

    def rows_for(self, width: int) -> int:
        """Rows at once of any width: as planned, or as many tokens as the narrowest planned width that is wider."""
        wider = [planned for planned in self.rows_of_width if planned >= width]
        if not wider:
            return 1
        nearest = min(wider)
        return self.rows_of_width[nearest] * nearest // width

    def smaller(self) -> Plan | None:
        """The next smaller plan, for when memory runs short after all; None when nothing is left to give.

        Computes more twice first, then takes fewer rows at once; the base stays where it is.
        """
        if self.live_layers:
            return replace(self, live_layers=self.live_layers // 2, cache_bytes=self.cache_bytes // 2)
        rows = {width: max(1, rows // 2) for width, rows in self.rows_of_width.items()}
        if rows != self.rows_of_width:
            return replace(self, rows_of_width=rows, cache_bytes=self.cache_bytes // 2)
        if self.tail_slice_tokens > 16 or self.lanes > 1 or self.layers_per_segment > 1:
            return replace(self, tail_slice_tokens=16, lanes=1, layers_per_segment=1, cache_bytes=0)
        return None

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        values = asdict(self)
        values["rows_of_width"] = {str(width): rows for width, rows in self.rows_of_width.items()}
        return values


def make_plan(
    facts: ModelFacts,
    config: TrainingConfig,
    budget_bytes: int,
    backend: Backend = TWO_CORES,
    *,
    whole: bool = False,
) -> Plan:
    """The fastest plan for training ``facts`` within ``budget_bytes``.

    Args:
        whole: the model cannot be cut: all layers are live, all logits in memory, all weights too.

    Raises:
        ConfigError: settings under ``engine`` contradict each other or the model, so that no plan is left.
        MemoryBudgetError: nothing fits; names the least budget that does.
        ModelError: a row width is longer than the model can read.
    """
    too_wide = [width for width in config.data.row_widths if width > facts.max_tokens]
    if too_wide:
        raise ModelError(
            f"The model reads at most {facts.max_tokens} tokens, but data.row_widths has {too_wide[0]}.",
            next_step="Choose smaller row_widths.",
        )
    if config.engine.base_weights == "stored" and facts.quantized_bits is None:
        raise ConfigError(
            f"{facts.name} is not quantised, so engine.base_weights cannot be stored.",
            next_step="Take engine.base_weights away, or choose a quantised base.",
        )
    usable = budget_bytes * HEADROOM
    best: Plan | None = None
    least = math.inf
    for candidate in _candidates(facts, config, budget_bytes, backend, whole=whole):
        least = min(least, candidate.predicted_peak_bytes)
        if candidate.predicted_peak_bytes <= usable and (best is None or _worth(candidate) > _worth(best)):
            best = candidate
    if math.isinf(least):
        raise ConfigError(
            f"No plan for {facts.name} agrees with all pins under engine: layers that are read from disk cannot be live, "
            "held as floats of a quantised base, or trained with lora.use_dora, and no layer can be live with "
            "engine.words_on_disk.",
            next_step="Take away engine.streamed_layers, engine.words_on_disk, engine.live_layers or "
            "engine.base_weights.",
        )
    if best is None:
        least_gib = least / HEADROOM / GIB
        raise MemoryBudgetError(
            f"{facts.name} does not train within {budget_bytes / GIB:.2f} GB: rows of {max(config.data.row_widths)} "
            f"tokens need {least_gib:.2f} GB.",
            next_step=f"Allow --budget {math.ceil(least_gib * 100) / 100:.2f}, narrow data.row_widths, "
            "or use a smaller --model.",
        )
    return replace(best, notes=tuple(_notes(best, facts, config, whole=whole)))


def _worth(plan: Plan) -> float:
    """Speed, less what reading the disk all the time costs whoever works on the machine."""
    read = (plan.streamed_layers + (plan.layers if plan.words_on_disk else 0)) / (2 * max(1, plan.layers))
    return plan.predicted_tokens_per_second * (1 - 2 * READING_COSTS * read)


def _candidates(
    facts: ModelFacts, config: TrainingConfig, budget_bytes: int, backend: Backend, *, whole: bool
) -> Iterator[Plan]:
    """Every plan worth a look, with its prediction."""
    pins, layers = config.engine, facts.layers
    widths = config.data.row_widths
    lanes = pins.lanes or backend.cores
    live_choices = _pinned(pins.live_layers, [0, layers // 4, layers // 2, 3 * layers // 4, layers])
    slices = _pinned(pins.tail_slice_tokens, [128, 64, 32, 16])
    segments = _pinned(pins.layers_per_segment, [1, 2, 4])
    if whole:
        lanes, live_choices, segments = 1, [layers], [1]
    most = max(widths[-1], config.optimizer.tokens_per_update)
    for stored, streamed, words_on_disk in _weight_choices(facts, config, backend):
        if whole and (streamed or words_on_disk):
            continue
        enough = most if streamed or stored == "stored" else min(most, max(ENOUGH_TOKENS, widths[-1]))
        rows_at_most = max(1, enough // widths[-1])
        row_choices = [pins.micro_batch_rows] if pins.micro_batch_rows else _steps(rows_at_most)
        for rows in row_choices:
            for live in live_choices:
                if live and (streamed > layers - live or words_on_disk):
                    continue  # live layers are in memory all at once, together with the head
                for slice_tokens in [rows * widths[-1]] if whole else slices:
                    for per_segment in segments:
                        if live >= layers and per_segment > 1:
                            continue
                        plan = Plan(
                            rows_of_width=_rows_of_width(rows, config),
                            budget_bytes=budget_bytes,
                            predicted_peak_bytes=0,
                            predicted_parts={},
                            notes=(),
                            layers_per_segment=min(per_segment, layers),
                            live_layers=min(live, layers),
                            tail_slice_tokens=slice_tokens,
                            lanes=lanes,
                            attention_block=ATTENTION_BLOCK
                            if pins.attention_block is None
                            else pins.attention_block,
                            attention_least=ATTENTION_LEAST if pins.attention_block is None else 0,
                            base_weights=stored,
                            dequantize=stored == "stored"
                            and facts.quantized_bits is not None
                            and not backend.multiplies_quantized,
                            streamed_layers=streamed,
                            words_on_disk=words_on_disk,
                            layers=layers,
                        )
                        yield _predicted(plan, facts, config, backend)


def _pinned(pin: int | None, choices: list[int]) -> list[int]:
    return sorted(set(choices)) if pin is None else [pin]


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to ``most``."""
    steps = {1, 2, 3, most, *(2**power for power in range(2, 12)), *(3 * 2**power for power in range(1, 11))}
    return sorted(step for step in steps if step <= most)


def _rows_of_width(rows: int, config: TrainingConfig) -> dict[int, int]:
    """As many positions of every width as ``rows`` of the widest have."""
    if config.engine.micro_batch_rows is not None:
        return dict.fromkeys(config.data.row_widths, rows)
    widest = config.data.row_widths[-1]
    most = max(widest, config.optimizer.tokens_per_update)
    return {width: max(1, min(rows * widest, most) // width) for width in config.data.row_widths}


def _weight_choices(
    facts: ModelFacts, config: TrainingConfig, backend: Backend
) -> Iterator[tuple[str, int, bool]]:
    """("dense" or "stored", streamed layers, words on disk): from everything in memory to everything read."""
    pins, layers = config.engine, facts.layers
    quantized = facts.quantized_bits is not None
    kinds = ["dense", "stored"] if quantized else ["dense"]
    if quantized and backend.multiplies_quantized:
        kinds = ["stored"]
    if pins.base_weights != "auto":
        kinds = [pins.base_weights] if quantized or pins.base_weights == "dense" else ["dense"]
    streamed = _pinned(pins.streamed_layers, [0, layers // 4, layers // 2, 3 * layers // 4, layers])
    if config.lora.use_dora:  # DoRA looks at the norms of all weights in every step
        streamed = [count for count in streamed if not count]
    for kind in kinds:
        for count in streamed:
            if count and kind == "dense" and quantized:
                continue  # floats are not what lies on disk
            if pins.words_on_disk is not None:
                yield kind, min(count, layers), pins.words_on_disk
                continue
            yield kind, min(count, layers), False
            if count >= layers:
                yield kind, layers, True


def _predicted(plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend) -> Plan:
    """The plan with its memory and its speed."""
    parts = _memory_parts(plan, facts, config, backend)
    left = plan.budget_bytes * HEADROOM - sum(parts.values())
    cache = int(max(0, min(left, CACHE_SHARE * parts["work"])))
    parts["cache"] = cache
    speed = _tokens_per_second(plan, facts, config, backend)
    return replace(
        plan,
        cache_bytes=cache,
        predicted_parts=parts,
        predicted_peak_bytes=sum(parts.values()),
        predicted_tokens_per_second=speed,
    )


def _float_bytes(config: TrainingConfig, backend: Backend) -> int:
    """Bytes of a number that is computed with."""
    if config.engine.compute_dtype == "auto":
        return 4 if backend.kind == "cpu" else 2
    return 4 if config.engine.compute_dtype == "float32" else 2


def _memory_parts(plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend) -> dict[str, int]:
    size = _float_bytes(config, backend)
    several = plan.lanes > 1
    work = saved = 0.0
    for width, rows in plan.rows_of_width.items():
        tokens = rows * width
        layer = tokens * size * _work_floats(plan, facts, width)
        more = MORE_LAYERS[_in_blocks(plan, width)]
        at_once = (
            layer * (1 + more * (plan.layers_per_segment - 1)) if plan.live_layers < facts.layers else 0.0
        )
        live_forward = layer * more * plan.live_layers
        logits = 4 * facts.vocab * plan.tail_slice_tokens * TAIL_FLOATS[2 if several else 1]
        logits *= max(1.0, plan.lanes / 2)
        if plan.words_on_disk:
            words = min(words_per_slice(tokens), facts.vocab)
            logits = 4.0 * words * (SLICE_ARRAYS * tokens + 3 * facts.hidden)
        live = max(live_forward + logits, live_forward + layer * (1 - more)) if plan.live_layers else logits
        kept = (
            tokens * facts.hidden * size * (2 + (facts.layers - plan.live_layers) / plan.layers_per_segment)
        )
        if kept + max(at_once, live) > saved + work:
            saved, work = kept, max(at_once, live)
    weights, buffers = _weight_bytes(plan, facts, size)
    return {
        "weights": int(weights),
        "adapter": _adapter_bytes(facts, config),
        "saved": int(saved),
        "work": int(work + buffers),
        "cache": 0,
        "runtime": RUNTIME_BYTES,
    }


def _in_blocks(plan: Plan, width: int) -> bool:
    """Whether attention of rows of this width is computed in blocks."""
    return bool(plan.attention_block) and width >= max(plan.attention_least, plan.attention_block + 1)


def _work_floats(plan: Plan, facts: ModelFacts, width: int) -> float:
    """Floats per position that one layer takes at once in its backward pass."""
    by_hidden, by_intermediate, by_scores, by_keys = WORK_FLOATS[plan.lanes > 1]
    by_key = BLOCK_FLOATS * plan.attention_block if _in_blocks(plan, width) else by_scores * width
    return (
        by_hidden * facts.hidden
        + by_intermediate * facts.intermediate
        + by_key * facts.heads
        + by_keys * facts.key_value_width
    )


def _weight_bytes(plan: Plan, facts: ModelFacts, size: int) -> tuple[float, float]:
    """(weights in memory throughout, buffers of weights that are read or turned into floats for a moment)."""
    outside = facts.parameters - facts.layers * facts.layer_parameters
    outside_stored = max(0, facts.stored_bytes - facts.layers * facts.layer_stored_bytes)
    if plan.words_on_disk:
        outside = outside_stored = 0  # what is left are norms
    resident = facts.layers - plan.streamed_layers
    if plan.base_weights == "stored" and facts.quantized_bits is not None:
        # On the CPU the scales and biases of each group of 64 weights are float32 in memory, float16 on disk.
        wider = (facts.quantized_bits / 8 + 1 / 8) / (facts.quantized_bits / 8 + 1 / 16) if size == 4 else 1.0
        weights = wider * (outside_stored + resident * facts.layer_stored_bytes)
        layer = wider * facts.layer_stored_bytes
    else:
        weights = max(0, outside) * size + resident * facts.layer_parameters * size
        layer = float(facts.layer_parameters * size)
    buffers = 0.0
    if plan.streamed_layers:
        buffers += plan.layers_per_segment * (
            layer + facts.layer_stored_bytes
        )  # this segment's and the next one's
    if plan.dequantize:
        buffers += 16 * plan.lanes * MIB
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


def _tokens_per_second(plan: Plan, facts: ModelFacts, config: TrainingConfig, backend: Backend) -> float:
    """Positions per second of a training step; good to about a factor of 1.5.

    A product costs 2 operations per weight and position (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Layers
    are passed forward and backward, and forward again where they are not live; the base's own weights need no gradient.
    """
    width = max(plan.rows_of_width)
    rows = plan.rows_of_width[width]
    tokens = rows * width
    passes = 2 * facts.layers + max(0, facts.layers - plan.live_layers)
    outside = facts.vocab * facts.hidden
    slice_share = plan.tail_slice_tokens / (plan.tail_slice_tokens + 8)
    products = 2 * (
        facts.active_parameters * passes + (3 if plan.words_on_disk else 2 / slice_share) * outside
    )
    keys = width / 2 + plan.attention_block if _in_blocks(plan, width) else width
    scores = 2 * 2 * keys * (facts.hidden) * passes * 1.5
    lanes = min(plan.lanes, rows)
    # Exponentials stand for all that is not a product: measured, a layer's other work is about twice its exp.
    exponentials = 2 * facts.vocab + passes * (2 * facts.intermediate + 1.5 * facts.heads * keys)
    seconds = (products + scores) / backend.flops_per_second
    if backend.kind == "cpu":
        seconds += exponentials / backend.exp_per_second / lanes
    else:
        seconds *= 1 + 256 / tokens
    per_micro_batch = 0.002 * passes / plan.layers_per_segment / 3
    if plan.dequantize:
        per_micro_batch += facts.layer_parameters * passes / backend.dequantize_per_second / plan.lanes
        slices = 1 if plan.words_on_disk else math.ceil(tokens / plan.tail_slice_tokens)
        per_micro_batch += 2 * outside * slices / backend.dequantize_per_second / plan.lanes
    if plan.streamed_layers or plan.words_on_disk:
        stored = plan.streamed_layers * facts.layer_stored_bytes
        if plan.words_on_disk:
            stored += max(0, facts.stored_bytes - facts.layers * facts.layer_stored_bytes)
        read = 2 * stored / backend.read_bytes_per_second
        per_micro_batch += max(0.1 * read, read - tokens * seconds)  # reading goes on while layers compute
    return tokens / (tokens * seconds + per_micro_batch)


def _notes(plan: Plan, facts: ModelFacts, config: TrainingConfig, *, whole: bool) -> Iterator[str]:
    """What was traded, in sentences."""
    pins, layers = config.engine, facts.layers
    if whole:
        yield "the model is one segment: pins of segments, slices, lanes and reading from disk have no effect"
        return
    if pins.micro_batch_rows is not None:
        yield f"{pins.micro_batch_rows} rows at a time, pinned by engine.micro_batch_rows"
    for name in ("layers_per_segment", "live_layers", "tail_slice_tokens", "lanes", "streamed_layers"):
        if getattr(pins, name) is not None:
            yield f"{name.replace('_', ' ')}: {getattr(pins, name)}, pinned by engine.{name}"
    if plan.streamed_layers:
        yield (
            f"the weights of {plan.streamed_layers} of {layers} layers are read from disk in every pass, "
            "because the base does not fit"
        )
    if plan.words_on_disk:
        yield "embedding and head are read from disk too, the head in slices of the vocabulary"
    if plan.dequantize:
        yield "weights stay quantised in memory and become floats block by block: this backend multiplies only floats fast"
    if plan.live_layers >= layers:
        yield "all layers are computed once: the whole step is one graph"
    elif plan.live_layers:
        yield f"{layers - plan.live_layers} of {layers} layers are computed twice, to keep the budget"
    else:
        yield f"all {layers} layers are computed twice, to keep the budget"
    if plan.attention_block and max(plan.rows_of_width) >= plan.attention_least:
        yield f"attention in blocks of {plan.attention_block} queries for rows of {plan.attention_least} tokens or more"
