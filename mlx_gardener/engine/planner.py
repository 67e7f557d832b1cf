"""How a memory budget is used: what of the base is in memory, how many rows at once, what is recomputed.

In: facts of the model (from its files, without loading it), facts of the backend, the settings, the budget. Out: a
`Plan`. Every way that the engine knows is tried, its peak memory and its time predicted (`engine.predict`); the fastest
that fits is taken. Cost: a few thousand candidates, some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from mlx_gardener.config import GIB, TrainingConfig
from mlx_gardener.engine.attention import ATTENTION_LEAST, BLOCK, SMALL_BLOCK, attention_ways
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan, PredictedParts, Scales, notes_of
from mlx_gardener.engine.predict import FRESH_MEMORY_COSTS, Measured, least_budget_bytes, predicted
from mlx_gardener.engine.speed import TWO_CORES, Backend
from mlx_gardener.errors import ConfigError, MemoryBudgetError, ModelError

#: Most tokens of a micro-batch (or one row) that are tried while the base is in memory as floats: larger ones are no faster on a
#: CPU or a Mac mini's GPU (judgement). Weights that are read or unpacked in every pass cost less per token the more tokens there are.
ENOUGH_TOKENS = 4096
#: Taken off the speed of a plan, as a factor 1 - READING_COSTS, where all layers are read from disk in every pass (judgement); twice
#: that where embedding and head are, too, and of fewer layers their share. `_worth` compares plans by what is left.
READING_COSTS = 0.4
#: How many numbers of layers on disk are tried, evenly spread: the best of them has at most about a twelfth of the layers more there
#: than the budget asks for.
STREAMED_STEPS = 12
#: `longest_row` answers in multiples of so many tokens.
ROW_STEP = 256
#: From this row length (tokens) on, a longer row always takes more memory, so that bisection finds the longest. A shorter one may take
#: more than a longer one, for which attention in blocks, or tiles, have begun.
_LONGER_TAKES_MORE = 2 * ATTENTION_LEAST
#: What is tried of (tile_tokens, attention_block), the fastest first. Tile: how many tokens of all rows projections and MLP of a
#: recomputed layer take at a time, 0 for all at once. Block: how many queries attention takes at a time.
TILES = ((0, BLOCK), (1024, BLOCK), (512, BLOCK), (256, BLOCK), (128, SMALL_BLOCK))


def make_plan(
    facts: ModelFacts,
    config: TrainingConfig,
    budget_bytes: int,
    backend: Backend = TWO_CORES,
    *,
    whole: bool = False,
    measured: Measured | None = None,
    scales: Scales | None = None,
    states_on_disk: bool = True,
) -> Plan:
    """The fastest plan for training ``facts`` within ``budget_bytes``.

    Args:
        whole: for a model that cannot be cut into segments (`engine.call_graph`): nothing is recomputed, sliced or read from disk,
            so activations, logits and weights are all in memory at once.
        measured: what a dry run saw, with the base where the settings pin it.
        scales: what another dry run of the same base saw.
        states_on_disk: whether hidden states may wait on disk where nothing else fits.

    Raises:
        ConfigError: settings under ``engine`` contradict each other or the model, so that no plan is left.
        MemoryBudgetError: nothing fits; names the least budget that does.
        ModelError: a sequence length is more than the model can read.
    """
    too_wide = [width for width in config.data.sequence_lengths if width > facts.max_tokens]
    if too_wide:
        raise ModelError(
            f"The model reads at most {facts.max_tokens} tokens, but data.sequence_lengths has {too_wide[0]}.",
            next_step="Choose smaller sequence_lengths.",
        )
    if config.engine.base_weights == "stored" and facts.quantized_bits is None:
        raise ConfigError(
            f"{facts.name} is not quantised, so engine.base_weights cannot be stored.",
            next_step="Take engine.base_weights away, or choose a quantised base.",
        )
    best: Plan | None = None
    least = math.inf
    # Hidden states wear the disk: they go there when that is what makes a row fit.
    for on_disk in (False, True) if states_on_disk else (False,):
        for candidate in _candidates(
            facts,
            config,
            budget_bytes,
            backend,
            whole=whole,
            measured=measured,
            scales=scales,
            states_on_disk=on_disk,
        ):
            needed = least_budget_bytes(candidate, measured)
            least = min(least, needed)
            if needed <= budget_bytes and (
                best is None or _worth(candidate, backend) > _worth(best, backend)
            ):
                best = candidate
        if best is not None:
            break
    if math.isinf(least):
        raise ConfigError(
            f"No plan for {facts.name} agrees with all pins under engine: layers that are read from disk cannot keep their "
            "activations, be held as floats of a quantised base, or be trained with lora.use_dora, and no layer can keep "
            "its activations with engine.vocabulary_on_disk.",
            next_step="Take away engine.streamed_layers, engine.vocabulary_on_disk, engine.kept_layers or "
            "engine.base_weights.",
        )
    if best is None:
        raise too_large(facts, config, budget_bytes, least)
    return replace(best, notes=tuple(notes_of(best, facts, config, whole=whole)))


def too_large(
    facts: ModelFacts, config: TrainingConfig, budget_bytes: int, least_bytes: float
) -> MemoryBudgetError:
    """The error that names the least budget that does."""
    least_gib = least_bytes / GIB
    return MemoryBudgetError(
        f"{facts.name} does not train within {budget_bytes / GIB:.2f} GB: rows of "
        f"{max(config.data.sequence_lengths)} tokens need {least_gib:.2f} GB.",
        next_step=f"Allow --budget {math.ceil(least_gib * 100) / 100:.2f}, narrow data.sequence_lengths, "
        "or use a smaller --model.",
        least_bytes=least_bytes,
    )


def longest_row(
    facts: ModelFacts, config: TrainingConfig, budget_bytes: int, backend: Backend = TWO_CORES
) -> int:
    """The longest row in tokens, a multiple of `ROW_STEP`, that trains within a budget with these settings; 0 if none does."""

    def trains(steps: int) -> bool:
        data = config.data.model_copy(update={"sequence_lengths": (steps * ROW_STEP,)})
        try:
            make_plan(facts, config.model_copy(update={"data": data}), budget_bytes, backend)
        except MemoryBudgetError:
            return False
        return True

    most = facts.max_tokens // ROW_STEP
    fits, too_long = min(_LONGER_TAKES_MORE // ROW_STEP, most), most + 1
    if not fits or not trains(fits):
        return ROW_STEP * next((steps for steps in range(fits - 1, 0, -1) if trains(steps)), 0)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if trains(middle) else (fits, middle)
    return fits * ROW_STEP


def lighter_plan(
    plan: Plan,
    facts: ModelFacts,
    config: TrainingConfig,
    budget_bytes: int,
    backend: Backend,
    scales: Scales | None = None,
) -> Plan | None:
    """A plan with less of the base in memory than ``plan``, or as much and hidden states on disk where ``plan`` has none there.

    The fastest that fits, with hidden states in memory before those on disk; else the smallest; None if there is none.
    """

    def is_lighter(candidate: Plan) -> bool:
        weights, there = candidate.predicted_parts.weights, plan.predicted_parts.weights
        return weights < there or (candidate.states_on_disk and not plan.states_on_disk and weights == there)

    lighter = [
        candidate
        for on_disk in (False, True)
        for candidate in _candidates(
            facts,
            config,
            config.memory_limit_bytes,
            backend,
            whole=False,
            measured=None,
            scales=scales,
            states_on_disk=on_disk,
            even_slower=True,
        )
        if is_lighter(candidate)
    ]
    fitting = [candidate for candidate in lighter if least_budget_bytes(candidate) <= budget_bytes]
    best = max(
        fitting, key=lambda plan: (not plan.states_on_disk, _worth(plan, backend)), default=None
    ) or min(lighter, key=least_budget_bytes, default=None)
    return None if best is None else replace(best, notes=tuple(notes_of(best, facts, config, whole=False)))


def _worth(plan: Plan, backend: Backend) -> float:
    """What plans are compared by: predicted tokens per second, less `READING_COSTS` for weights that are read in every pass.

    Reading slows down whoever else works on the machine. Of a plan that reads, the speed counts that it had without kept buffers,
    so that no weights leave memory to make room for buffers.
    """
    read = (plan.streamed_layers + (plan.layers if plan.vocabulary_on_disk else 0)) / (
        2 * max(1, plan.layers)
    )
    speed = plan.predicted_tokens_per_second
    if read and plan.keeps_buffers:
        speed /= 1 + FRESH_MEMORY_COSTS[backend.kind]
    return speed * (1 - 2 * READING_COSTS * read)


def _candidates(
    facts: ModelFacts,
    config: TrainingConfig,
    budget_bytes: int,
    backend: Backend,
    *,
    whole: bool,
    measured: Measured | None,
    scales: Scales | None,
    states_on_disk: bool,
    even_slower: bool = False,
) -> Iterator[Plan]:
    """Every plan worth a look, with its prediction.

    Args:
        even_slower: also those that read from disk what has room in memory with everything else.
    """
    pins, layers = config.engine, facts.layers
    widths = config.data.sequence_lengths
    streams = pins.cpu_streams or backend.cores
    slices = _pinned(pins.loss_slice_tokens, [128, 64, 32, 16])
    if whole:
        streams = 1
    most, ways = (
        max(widths[-1], config.optimizer.tokens_per_update),
        list(attention_ways(backend.attention, widths)),
    )
    # (base_weights, rows, slice_tokens) that fit with everything in memory: with weights on disk these would only be slower.
    roomy = set[tuple[str, int, int]]()
    for stored, streamed, vocabulary_on_disk in _weight_choices(facts, config, backend):
        if whole and (streamed or vocabulary_on_disk):
            continue
        enough = most if streamed or stored == "stored" else min(most, max(ENOUGH_TOKENS, widths[-1]))
        rows_at_most = max(1, enough // widths[-1])
        row_choices = [pins.micro_batch_rows] if pins.micro_batch_rows else _steps(rows_at_most)
        most_kept = (
            0 if vocabulary_on_disk else layers - streamed
        )  # in memory all at once, together with the head
        for rows in row_choices:
            for slice_tokens in [rows * widths[-1]] if whole else slices:
                if (stored, rows, slice_tokens) in roomy and not even_slower:
                    continue
                plan = Plan(
                    rows_of_width=_rows_of_width(rows, config),
                    budget_bytes=budget_bytes,
                    predicted_peak_bytes=0,
                    predicted_parts=PredictedParts(),
                    notes=(),
                    loss_slice_tokens=slice_tokens,
                    cpu_streams=streams,
                    base_weights=stored,
                    dequantize=stored == "stored"
                    and facts.quantized_bits is not None
                    and not backend.multiplies_quantized,
                    streamed_layers=streamed,
                    vocabulary_on_disk=vocabulary_on_disk,
                    states_on_disk=states_on_disk,
                    layers=layers,
                )
                for leasts in ways:
                    for tiled in _in_tiles(plan, facts, leasts, whole=whole):
                        kept = _levels(tiled, facts, pins.kept_layers, most_kept, whole=whole)

                        def with_kept(level: tuple[int, int], keeps: bool, plan: Plan = tiled) -> Plan:
                            plan = replace(
                                plan, kept_layers=level[0], kept_products=level[1], keeps_buffers=keeps
                            )
                            return predicted(plan, facts, config, backend, measured=measured, scales=scales)

                        found: Plan | None = None
                        for keeps in (
                            (False,) if whole else (True, False)
                        ):  # only between segments are they bounded
                            for found in _with_most_kept(
                                partial(with_kept, keeps=keeps), kept, budget_bytes, measured
                            ):
                                yield found
                                if (
                                    found.keeps_buffers
                                    and (found.kept_layers, streamed) == (layers, 0)
                                    and least_budget_bytes(found, measured) <= budget_bytes
                                ):
                                    roomy.add((stored, rows, slice_tokens))
                        if found is not None and found.predicted_parts.live:
                            break  # what recomputed layers take is not the peak: less of it brings nothing


def _levels(
    plan: Plan, facts: ModelFacts, pin: int | None, most_kept: int, *, whole: bool
) -> list[tuple[int, int]]:
    """(layers whose activations are kept, layers whose products are), from least memory to most.

    First products, layer by layer, since they take less for the same time; then, of layers that have them, all else. Not of layers
    in tiles, which would not be in tiles then.
    """
    layers = facts.layers
    if whole:
        return [(layers, 0)]
    if pin is not None:
        return [(min(pin, layers), 0)] if min(pin, layers) <= most_kept else []
    if plan.tile_tokens or not facts.is_plain:
        return [(kept, 0) for kept in range(most_kept + 1)]
    return [(0, kept) for kept in range(layers + 1)] + [
        (kept, layers - kept) for kept in range(1, most_kept + 1)
    ]


def _in_tiles(
    plan: Plan, facts: ModelFacts, leasts: dict[int, tuple[int, int | None]], *, whole: bool
) -> Iterator[Plan]:
    """The plan with those of `TILES` that differ for its rows, and with attention in blocks from ``leasts`` on."""
    tokens = max(rows * width for width, rows in plan.rows_of_width.items())
    for tile, block in TILES:
        least, forward_least = leasts[block]
        in_blocks = max(plan.rows_of_width) >= least
        if tile and (whole or not facts.is_plain or tile >= tokens or not (in_blocks or block == BLOCK)):
            continue
        yield replace(
            plan,
            tile_tokens=tile,
            attention_block=block,
            attention_least=least,
            forward_least=forward_least,
        )


def _with_most_kept(
    with_kept: Callable[[tuple[int, int]], Plan],
    levels: list[tuple[int, int]],
    budget_bytes: int,
    measured: Measured | None,
) -> Iterator[Plan]:
    """The plan that keeps least, and the one that keeps most of those that fit."""
    if not levels:
        return
    lean = with_kept(levels[0])
    yield lean
    if len(levels) == 1 or least_budget_bytes(lean, measured) > budget_bytes:
        return
    fits, too_many = 0, len(levels)
    while too_many - fits > 1:  # every level takes more than the one before
        middle = (fits + too_many) // 2
        if least_budget_bytes(with_kept(levels[middle]), measured) <= budget_bytes:
            fits = middle
        else:
            too_many = middle
    if fits:
        yield with_kept(levels[fits])


def _pinned(pin: int | None, choices: list[int]) -> list[int]:
    return sorted(set(choices)) if pin is None else [pin]


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to ``most``."""
    steps = {1, 2, 3, most, *(2**power for power in range(2, 12)), *(3 * 2**power for power in range(1, 11))}
    return sorted(step for step in steps if step <= most)


def _rows_of_width(rows: int, config: TrainingConfig) -> dict[int, int]:
    """As many positions of every width as ``rows`` of the widest have."""
    if config.engine.micro_batch_rows is not None:
        return dict.fromkeys(config.data.sequence_lengths, rows)
    widest = config.data.sequence_lengths[-1]
    most = max(widest, config.optimizer.tokens_per_update)
    return {width: max(1, min(rows * widest, most) // width) for width in config.data.sequence_lengths}


def _weight_choices(
    facts: ModelFacts, config: TrainingConfig, backend: Backend
) -> Iterator[tuple[str, int, bool]]:
    """("dense" or "stored", streamed layers, vocabulary on disk): from everything in memory to everything read."""
    pins, layers = config.engine, facts.layers
    quantized = facts.quantized_bits is not None
    kinds = ["dense", "stored"] if quantized else ["dense"]
    if quantized and backend.multiplies_quantized:
        kinds = ["stored"]
    if pins.base_weights != "auto":
        kinds = [pins.base_weights] if quantized or pins.base_weights == "dense" else ["dense"]
    steps = range(0, layers, max(1, layers // STREAMED_STEPS))
    few = range(max(0, layers - 3), layers)  # one layer of a large model is much of a small budget
    streamed = _pinned(pins.streamed_layers, [*steps, *few, layers])
    if config.lora.use_dora:  # DoRA looks at the norms of all weights in every step
        streamed = [count for count in streamed if not count]
    for kind in kinds:
        for count in streamed:
            if count and kind == "dense" and quantized:
                continue  # floats are not what lies on disk
            if pins.vocabulary_on_disk is not None:
                yield kind, min(count, layers), pins.vocabulary_on_disk
                continue
            yield kind, min(count, layers), False
            if count in few or count >= layers:  # a layer may fit where the vocabulary does not
                yield kind, min(count, layers), True
