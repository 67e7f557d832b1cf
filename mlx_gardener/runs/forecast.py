"""What a training of a scanned repository would read and take, before anything is trained; and what one took, after it.

In: a scan, settings and the prepared base. Out: stretches of lines, and tokens, minutes and bytes as JSON types. Cost: twenty
files are tokenised, and one plan is made; no weights are loaded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import Engine, PreparedModel
    from mlx_gardener.model import BaseModel
    from mlx_gardener.runs.context import Run
    from mlx_gardener.runs.parent import GoingOn
    from mlx_gardener.source import Scan
    from mlx_gardener.training import TrainOutcome

#: Updates from which a training's speed says something: the first ones are slower (judgement).
STEPS_TO_LEARN_FROM = 8
#: Seconds of updates from which the speed is that of the base on this machine (judgement).
SECONDS_TO_LEARN_FROM = 60.0


def list_kept_lines(found: Scan, config: TrainingConfig) -> list[dict[str, Any]]:
    """Path, first and last line (from 1) of every stretch that training would read, whatever part it then falls into."""
    from mlx_gardener.dataset.examples import kept_lines
    from mlx_gardener.dataset.prepare import select_best
    from mlx_gardener.errors import DataError
    from mlx_gardener.source import read_source

    stretches = []
    for record in select_best(found.files, config.max_training_chunks)[0]:
        try:
            places = kept_lines(read_source(found.root, record), record)
        except DataError:
            continue  # it changed since, and training would leave it out too
        stretches += [{"path": record.path, "start_line": first, "end_line": last} for first, last in places]
    return stretches


def estimate_training(
    found: Scan, config: TrainingConfig, model: PreparedModel, going_on: GoingOn | None = None
) -> dict[str, Any]:
    """Tokens (measured on a sample of files), minutes and peak memory of a training on ``found``.

    Args:
        going_on: what it goes on from (`parent.foretell_parent`), where it does.

    Raises:
        MemoryBudgetError: the model does not fit the budget.
    """
    from mlx_gardener.dataset.edit_rows import edits_ahead
    from mlx_gardener.errors import DataError
    from mlx_gardener.model import load_tokenizer
    from mlx_gardener.model.package_index import packaged
    from mlx_gardener.report.text import counted
    from mlx_gardener.source import read_source

    tokenizer = load_tokenizer(model.path)
    sample = sorted(found.files, key=lambda record: record.sha256)[:20]
    texts = []
    for record in sample:
        try:
            texts.append(read_source(found.root, record).text)
        except DataError:
            continue  # it changed since; the others are sample enough
    size = sum(len(text.encode()) for text in texts)
    ratio = sum(len(ids) for ids in tokenizer.encode_many(texts)) / size if size else 1 / 3.5
    chunk_bytes = sum(counts["bytes"] for counts in found.languages.values())
    kept = min(1.0, config.max_training_chunks / max(1, found.chunks_kept))
    tokens = int(chunk_bytes * ratio * kept)
    plan = model.plan(config)
    speed = plan.predicted_tokens_per_second
    train_share = 1 - config.data.validation_fraction - config.data.test_fraction
    # What stands before a place is shown once more, and retrieved code is in front.
    train_share /= 1 - min(0.75, config.data.retrieval_share)
    train_share /= 1 - config.data.general_share
    if going_on is not None:
        train_share *= going_on.share
    edits = edits_ahead(found.root, config, tokenizer, tokens * train_share)
    epoch = max(1.0, tokens * train_share + edits["tokens"])
    trained = epoch * config.optimizer.epochs
    if going_on is not None and going_on.updates_left:
        trained = going_on.updates_left * config.optimizer.tokens_per_update
    if config.optimizer.max_steps is not None:
        trained = min(trained, config.optimizer.max_steps * config.optimizer.tokens_per_update)
    fitting = config.learning_seconds * speed
    in_limit, update = min(trained, fitting), config.optimizer.tokens_per_update
    is_other = packaged(model.choice.name) is not None and not model.choice.is_here
    other = " by the embedded model's tokenizer" if is_other else ""
    return {
        "model": model.choice.name,
        "model_reason": model.choice.reason,
        "tokens": tokens,
        "tokens_from": f"counted in {counted(len(texts), 'file')}{other}"
        if size
        else "3.5 bytes a token assumed",
        "tokens_per_second": round(speed, 1),
        "speed_from": plan.speed_from,
        "chunks_kept": found.chunks_kept,
        "chunks_used": min(found.chunks_kept, config.max_training_chunks),
        "pass_tokens": int(epoch),
        "edits": edits,
        "epochs": round(trained / epoch, 3),
        "epochs_in_limit": round(in_limit / epoch, 3),
        "updates": math.ceil(trained / update),
        "updates_in_limit": max(
            1, math.ceil(trained / update) if in_limit == trained else int(in_limit / update)
        ),
        "trained_tokens": int(trained),
        "minutes": round(trained / speed / 60, 3),
        "limit_minutes": config.training_timeout_minutes,
        "is_tested": bool(config.evaluation.arms),
        "peak_bytes": plan.predicted_peak_bytes,
    }


def learn_from(
    run: Run, base: BaseModel, engine: Engine, outcome: TrainOutcome, peak_bytes: int, others_share: float
) -> None:
    """Remember what the training took, so that the next forecast is nearer the truth.

    Not of a resumed one: a part of it was done when the machine may have been another, or as busy as nobody knows.
    """
    from mlx_gardener.engine import keep_training, known_backend, learn, model_facts
    from mlx_gardener.engine.speed import speed_alone

    if outcome.is_resumed:
        return
    plan, state, cache = engine.plan, outcome.state, run.registry.home / "cache"
    facts = model_facts(base.path)
    backend = known_backend(cache, facts)
    speed = state.positions / max(1e-9, state.seconds) / run.ranks.size
    if state.seconds >= SECONDS_TO_LEARN_FROM:
        foretold = plan.predicted_forward_tokens_per_second / plan.predicted_tokens_per_second
        seen = outcome.forward_seen
        keep_training(
            cache,
            facts,
            plan,
            backend,
            tokens_per_second=speed,
            forward_share=foretold if seen is None else seen / run.ranks.size / speed,
            busy=others_share,
        )
    if state.step >= STEPS_TO_LEARN_FROM and not backend.knows_base:
        parts = plan.predicted_parts
        rest = parts.weights + parts.adapter + parts.saved
        learn(
            cache,
            work=(peak_bytes - rest) / max(1, parts.live + parts.work),
            speed=speed_alone(speed, others_share, backend.kind) / plan.predicted_tokens_per_second,
        )
