"""What a training of a scanned repository would read and take, before anything is trained.

In: a scan, settings and the chosen base. Out: stretches of lines, and tokens, minutes and bytes as JSON types. Cost: twenty
files are tokenised, and one plan is made; no weights are loaded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import ModelFacts
    from mlx_gardener.model import ModelChoice
    from mlx_gardener.source import Scan


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
    found: Scan, config: TrainingConfig, choice: ModelChoice, path: Path, facts: ModelFacts
) -> dict[str, Any]:
    """Tokens (measured on a sample of files), minutes and peak memory of a training on ``found``.

    Args:
        path, facts: of the chosen model, from `engine.look_ahead`.

    Raises:
        MemoryBudgetError: the model does not fit the budget.
    """
    from mlx_gardener.engine import known_backend, make_plan
    from mlx_gardener.errors import DataError
    from mlx_gardener.model import load_tokenizer
    from mlx_gardener.model.package_index import packaged
    from mlx_gardener.registry import default_home
    from mlx_gardener.source import read_source
    from mlx_gardener.training.time_plan import OTHER_SHARE, VALIDATION_SHARE

    tokenizer = load_tokenizer(path)
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
    plan = make_plan(facts, config, config.memory_limit_bytes, known_backend(default_home() / "cache", facts))
    speed = plan.predicted_tokens_per_second
    train_share = 1 - config.data.validation_fraction - config.data.test_fraction
    trained = tokens * train_share * config.optimizer.epochs
    if config.optimizer.max_steps is not None:
        trained = min(trained, config.optimizer.max_steps * config.optimizer.tokens_per_update)
    epoch = max(1.0, tokens * train_share)
    limit = config.training_timeout_minutes * 60 or math.inf
    fitting = (1 - OTHER_SHARE) * (1 - VALIDATION_SHARE) * limit * speed
    other = " by the embedded model's tokenizer" if packaged(choice.name) and not choice.is_here else ""
    return {
        "model": choice.name,
        "model_reason": choice.reason,
        "tokens": tokens,
        "tokens_from": f"counted in {len(texts)} files{other}" if size else "3.5 bytes a token assumed",
        "tokens_per_second": round(speed, 1),
        "speed_from": plan.speed_from,
        "epochs": round(trained / epoch, 3),
        "epochs_in_limit": round(min(trained, fitting) / epoch, 3),
        "trained_tokens": int(trained),
        "minutes": round(trained / speed / 60, 3),
        "limit_minutes": config.training_timeout_minutes,
        "peak_bytes": plan.predicted_peak_bytes,
    }
