"""How long a training step of a plan takes, before anything is loaded.

In: a plan, facts of the model, what the backend was measured to do. Out: positions per second. It counts products, exponentials,
and bytes that are read or become floats. Cost: microseconds.
"""

from __future__ import annotations

import math

from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan
from mlx_gardener.engine.speed import Backend

#: What tiles cost on a CPU: products of so few more rows, as it were, in every tile; bookkeeping (7 to 22 % for 1,024 to 64).
TILE_ROWS, TILE_SHARE = 10, 0.05
#: By how many rows a product seems longer where it was not measured: of a slice's logits, and of all products on a GPU (judgement).
SLICE_ROWS, GPU_ROWS = 8, 256
#: A block of queries costs the time of so many more, whatever its size (a shape with blocks of 128 and of 32).
BLOCK_ROWS = 24
#: Hidden states that go to disk are written and read; writing takes twice as long (judgement), and nothing goes on meanwhile.
STATES_PASSES = 3
#: What is computed again of a layer whose products are kept, as a share of its forward pass (judgement): norms, activation
#: functions, rotations, and the products of attention that is not in blocks.
CHEAP_SHARE = 0.15


def tokens_per_second(plan: Plan, facts: ModelFacts, backend: Backend) -> float:
    """Positions per second of a training step, with as many in rows of one width as of another.

    Good to about a factor of 2, until a training was seen on this machine.

    A product costs 2 operations per weight and position (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Layers
    are passed forward and backward, and forward again where their activations are not kept; the base's own weights need no gradient.
    """
    seconds = [
        _seconds_per_token(plan, facts, backend, width, rows) for width, rows in plan.rows_of_width.items()
    ]
    return backend.speed_scale * len(seconds) / sum(seconds)


def _seconds_per_token(plan: Plan, facts: ModelFacts, backend: Backend, width: int, rows: int) -> float:
    tokens = rows * width
    again = max(0, facts.layers - plan.kept_layers)
    passes = 2 * facts.layers + again - plan.kept_products * (1 - CHEAP_SHARE)
    outside = facts.vocab * facts.hidden
    slice_share = plan.loss_slice_tokens / (plan.loss_slice_tokens + (backend.lost_rows or SLICE_ROWS))
    products = 2 * (facts.active_parameters * passes + (3 if plan.by_shards else 2 / slice_share) * outside)
    keys, seen = float(width), backend.attention
    if plan.in_blocks(width) and seen is not None and plan.attention_block in seen.blocks:
        keys *= seen.blocks_time(plan.attention_block, width)
    elif plan.in_blocks(width):
        keys = (width / 2 + plan.attention_block) * (1 + BLOCK_ROWS / plan.attention_block)
    scores = 2 * 2 * keys * (facts.hidden) * passes * 1.5
    streams = min(plan.cpu_streams, rows)
    # Exponentials stand for all that is not a product: measured, a layer's other work is about twice its `mx.exp`.
    exponentials = 2 * facts.vocab + (2 * facts.layers + again) * (
        2 * facts.intermediate + 1.5 * facts.heads * keys
    )
    tile = min(plan.tile_tokens or tokens, tokens)
    tiles, in_tiles = (
        math.ceil(tokens / tile),
        3 * again / passes if tile < tokens else 0.0,
    )
    seconds = (products + scores) / backend.flops_per_second
    if backend.kind == "cpu":
        seconds += exponentials / backend.exp_per_second / streams
        # Of three rows on two streams one stream takes two.
        seconds *= math.ceil(rows / streams) * streams / rows
        seconds *= 1 + in_tiles * (TILE_SHARE + TILE_ROWS / tile)
    else:
        lost = backend.lost_rows or GPU_ROWS
        seconds *= 1 + lost * ((1 - in_tiles) / tokens + in_tiles / tile)
    per_micro_batch = 0.002 * passes / 3
    if plan.dequantize:
        # Every CPU stream makes floats of all weights for its rows, and each tile anew; the rows of the head are shared
        # among the streams.
        times = passes * (1 - in_tiles + in_tiles * tiles)
        per_micro_batch += facts.layer_parameters * times / backend.dequantize_per_second
        slices = 1 if plan.by_shards else math.ceil(tokens / plan.loss_slice_tokens)
        per_micro_batch += 2 * outside * slices / backend.dequantize_per_second / plan.cpu_streams
    if plan.streamed_layers or plan.vocabulary_on_disk:
        stored = plan.streamed_layers * facts.layer_stored_bytes
        if plan.vocabulary_on_disk:
            stored += facts.outside_stored_bytes
        read = 2 * stored / backend.read_bytes_per_second
        per_micro_batch += max(0.1 * read, read - tokens * seconds)  # reading goes on while layers compute
    if plan.states_on_disk:
        states = (
            tokens * facts.hidden * (4 if backend.kind == "cpu" else 2) * (facts.layers - plan.kept_layers)
        )
        per_micro_batch += STATES_PASSES * states / backend.read_bytes_per_second
    return seconds + per_micro_batch / tokens
