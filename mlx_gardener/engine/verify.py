"""An engine for a base, with its cut checked: segments must give what the whole graph gives, on a few tokens.

The check attaches small random adapters, takes both ways on 2 x 12 random tokens, segments with projections and MLP in tiles,
those of the upper half with kept products, and compares loss and gradients; where these are what is wrong, none are used. Where
the base is read from disk, two layers are checked, as the whole would not fit. Where they differ, or the model cannot
be cut, the model is taken whole and planned anew, and that is said. Cost: two steps on 24 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.config import LoraConfig, TrainingConfig
from mlx_gardener.engine.batch import BetweenSegments
from mlx_gardener.engine.call_graph import CannotSplit, layer_list
from mlx_gardener.engine.dry_run import after_dry_run
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.plan import Plan, notes_of
from mlx_gardener.engine.planner import make_plan
from mlx_gardener.engine.seen import keep_checked, was_checked
from mlx_gardener.engine.speed import Backend
from mlx_gardener.engine.step import Engine
from mlx_gardener.engine.stream import StreamedWeights
from mlx_gardener.errors import ModelError
from mlx_gardener.model.lora import attach_lora, detach_lora, lora_parameters

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.dataset import Batch
    from mlx_gardener.engine.vocabulary import VocabularyShards
    from mlx_gardener.model import BaseModel

#: Largest difference of a gradient, as a share of its largest entry: float32 sums in another order; bfloat16 rounds.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
#: Positions of all rows that a tile of the check has: its rows of 12 are cut into 5, 5 and 2.
_TILE = 10


class HeadNotOnDiskError(ModelError):
    """The files do not hold embedding and head in a form that can be read by rows."""


def prepare_engine(
    base: BaseModel,
    plan: Plan,
    config: TrainingConfig,
    *,
    facts: ModelFacts,
    backend: Backend,
    warn: Callable[[str], None],
    dry_run: bool = True,
    between: BetweenSegments | None = None,
    checking: BetweenSegments = lambda share: None,
    peak_before: int = 0,
    cache_dir: Path | None = None,
) -> Engine:
    """The engine for ``base`` under ``plan``, checked; with another plan where the model must be taken whole.

    Args:
        dry_run: try the plan as the settings say, and take another where it does not fit; False keeps ``plan``.
        between: called before every segment of the dry run; may raise.
        checking: told how much of the check of the cut is done, where it has to be made; may raise.
        peak_before: see `dry_run.after_dry_run`.
        cache_dir: where what was seen is kept, and looked for: that the cut is right, and what a dry run saw.
        warn: told, in a sentence, why a model is taken whole.

    Raises:
        HeadNotOnDiskError: the plan leaves embedding and head on disk, and they cannot be read from there.
        MemoryBudgetError: it must be taken whole and does not fit then.
        TrialTooLargeError: the dry run shows that nothing fits with the base where it is.
    """
    streamed = None
    if plan.streamed_layers:
        names = layer_list(base.model)[1][: plan.streamed_layers]
        streamed = StreamedWeights(base.path, base.model, dict(enumerate(names)), dtype=base.dtype)
    engine = Engine(
        base.model,
        plan,
        dtype=base.dtype,
        streamed=streamed,
        per_document=not config.data.attend_across_documents,
        scratch_dir=cache_dir,
    )
    vocabulary = _vocabulary(base, plan, facts)
    if engine.graph is not None and not was_checked(cache_dir, base):
        problem = split_problem(engine, base, vocabulary, tile_tokens=_TILE, checking=checking)
        if problem is not None:
            engine.takes_tiles = False
            problem = split_problem(engine, base, vocabulary, checking=checking)
            if problem is None:
                warn(
                    f"{base.id} is computed without tiles, which takes more memory: they would change its gradients."
                )
                facts = replace(facts, is_plain=False)
                plain = replace(plan, tile_tokens=0, kept_products=0)
                engine.plan = replace(plain, notes=tuple(notes_of(plain, facts, config, whole=False)))
        if problem is not None:
            engine.take_whole(problem)
        elif cache_dir is not None and engine.takes_tiles:
            keep_checked(cache_dir, base)
    if vocabulary is not None and engine.whole_because is None:
        vocabulary.install()
        engine.vocabulary = vocabulary
    if engine.whole_because is not None:
        engine.plan = make_plan(facts, config, config.memory_limit_bytes, backend, whole=True)
        warn(f"{base.id} is computed as one segment, which takes more memory: {engine.whole_because}.")
    if dry_run and config.engine.dry_run:
        engine.plan = after_dry_run(
            engine,
            base,
            config,
            facts=facts,
            backend=backend,
            between=between,
            peak_before=peak_before,
            cache_dir=cache_dir,
        )
    return engine


def _vocabulary(base: BaseModel, plan: Plan, facts: ModelFacts) -> VocabularyShards | None:
    """Embedding and head in shards, where the plan wants them so; not in use yet.

    Raises:
        HeadNotOnDiskError: the plan leaves them on disk, and they cannot be read from there.
    """
    if not plan.by_shards:
        return None
    from mlx_gardener.engine.vocabulary import VocabularyShards

    try:
        return VocabularyShards(
            base.model, facts.vocab, dtype=base.dtype, path=base.path if plan.vocabulary_on_disk else None
        )
    except CannotSplit as error:
        if not plan.vocabulary_on_disk:
            return None  # an unusual head: it is taken in slices of positions
        raise HeadNotOnDiskError(
            f"Embedding and head of {base.id} cannot stay on disk: {error}.",
            next_step="Set engine.vocabulary_on_disk to false and allow a larger --budget.",
        ) from error


def split_problem(
    engine: Engine,
    base: BaseModel,
    vocabulary: VocabularyShards | None = None,
    *,
    tile_tokens: int = 0,
    checking: BetweenSegments = lambda share: None,
) -> str | None:
    """What is wrong with the cut, in words; None when segments give what the whole graph gives.

    With ``vocabulary`` the segments take embedding and head in shards, the whole graph as a whole; with ``tile_tokens`` they
    take projections and MLP in tiles, but in their upper half, where they keep products. ``checking`` is told how far that is:
    the segments come first, as the whole graph, which takes about as long, says nothing meanwhile.
    """
    import mlx.core as mx

    checking(0.0)
    streamed = engine.streamed
    with _two_layers(engine) if streamed is not None else nullcontext():
        few = Engine(engine.model, replace(engine.plan, streamed_layers=0), dtype=engine.dtype)
        few.plan = replace(
            few.plan,
            kept_layers=0,
            rows_of_width={13: 2},
            attention_block=0,
            tile_tokens=tile_tokens,
            kept_products=few.calls // 2 if tile_tokens else 0,
            states_on_disk=False,
            loss_slice_tokens=8,
        )
        whole = Engine(engine.model, few.plan, dtype=engine.dtype)
        whole.take_whole("to compare")
        if few.graph is None:
            return few.whole_because
        attach_lora(engine.model, LoraConfig(rank=2), seed=1)
        try:
            mx.random.seed(2)
            weights = {
                name: value + 0.02 * mx.random.normal(value.shape)
                for name, value in lora_parameters(engine.model).items()
            }
            batch = _random_batch(base.tokenizer.vocab_size)
            with streamed.in_memory({0, 1}, ()) if streamed is not None else nullcontext():
                few.vocabulary = vocabulary
                with vocabulary.installed() if vocabulary is not None else nullcontext():
                    found = few.loss_and_gradients(
                        weights, batch, seed=0, between_segments=lambda share: checking(share / 2)
                    )
                checking(0.5)
                expected = whole.loss_and_gradients(weights, batch, seed=0)
        finally:
            detach_lora(engine.model)
    if not math.isfinite(expected.loss_sum):
        return None  # nothing to compare: the first validation will name the layer
    tolerance = TOLERANCE[str(engine.dtype).rpartition(".")[2]]
    worst = largest_difference(found.gradients, expected.gradients)
    if abs(found.loss_sum - expected.loss_sum) > tolerance * abs(expected.loss_sum) or not worst <= tolerance:
        return f"its segments differ from the whole graph (gradients by {worst:.1e} of their size)"
    return None


def largest_difference(found: dict[str, mx.array], expected: dict[str, mx.array]) -> float:
    """The largest difference of two sets of gradients, as a share of the largest entry of all."""
    import mlx.core as mx

    sizes = [mx.abs(value).max() for value in expected.values()]
    differences = [mx.abs(found[name] - value).max() for name, value in expected.items()]
    if not sizes:
        return 0.0
    share = mx.stack(differences).max() / mx.maximum(mx.stack(sizes).max(), 1e-30)
    return float(share.item())  # type: ignore[arg-type]


@contextmanager
def _two_layers(engine: Engine) -> Iterator[None]:
    """While this lasts the model has its first two layers only."""
    layers = layer_list(engine.model)[0]
    rest = layers[2:]
    del layers[2:]
    try:
        yield
    finally:
        layers.extend(rest)


def _random_batch(vocab: int) -> Batch:
    import numpy as np

    from mlx_gardener.dataset import Batch

    tokens = np.random.default_rng(3).integers(0, vocab, (2, 13)).astype(np.int32)
    mask = np.ones(tokens.shape, dtype=bool)
    mask[:, 0] = mask[1, 9:] = False
    ones = np.ones(tokens.shape, dtype=np.int32)
    return Batch(tokens, mask, ones, int(mask.sum()), 0, mask.sum(axis=1), ("", ""))
