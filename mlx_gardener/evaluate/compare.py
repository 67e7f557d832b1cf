"""Base and adapter on the same unseen code, one after the other: bits per byte, next lines, samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_gardener.adapter import LoadedAdapter, attach_adapter
from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import NextLineTask, PreparedData, next_line_tasks
from mlx_gardener.engine import Engine
from mlx_gardener.evaluate.complete import complete, next_line
from mlx_gardener.evaluate.evidence import Evidence, Sample
from mlx_gardener.evaluate.metrics import bits_per_byte, edit_similarity
from mlx_gardener.evaluate.statistics import relative_change
from mlx_gardener.source.languages import language_of

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

_CONTEXT_LINES = 8
_SAMPLE_LINES = 4


@dataclass
class _Arm:
    """What one arm (base or adapter) did: loss by file, lines and samples in the order of the tasks."""

    losses: dict[str, float]
    lines: list[str]
    samples: list[str]


def compare(
    base: BaseModel,
    adapter: LoadedAdapter,
    data: PreparedData,
    config: TrainingConfig,
    engine: Engine,
    *,
    on_progress: Callable[[float, str], None],
    interrupt: Callable[[], None],
) -> Evidence:
    """Evidence on ``data.test``; both arms see the same rows and tasks.

    Args:
        adapter: read back from its files.
        on_progress: told the share done (0 to 1) and a line for people.
        interrupt: asked between batches and tasks; may raise.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    settings = config.evaluation
    # Writing a line reads all weights for every token: not from disk.
    lines, samples = (settings.next_line_tasks, settings.samples) if engine.streamed is None else (0, 0)
    tasks = next_line_tasks(data.test_segments, lines, seed=config.seed)
    places = next_line_tasks(data.test_segments, samples, seed=config.seed + 1)
    arms = []
    contexts: list[tuple[str, AbstractContextManager[None]]] = [
        ("base", nullcontext()),
        ("adapter", attach_adapter(base, adapter)),
    ]
    for number, (name, attached) in enumerate(contexts):

        def tell(share: float, number: int = number, name: str = name) -> None:
            on_progress((number + share) / 2, f"Measuring the {name} on unseen code")

        with attached:
            arms.append(_measure(base, data, config, engine, tasks, places, tell, interrupt))
    return _evidence(arms[0], arms[1], data, tasks, places, seed=config.seed)


def _measure(
    base: BaseModel,
    data: PreparedData,
    config: TrainingConfig,
    engine: Engine,
    tasks: list[NextLineTask],
    places: list[NextLineTask],
    tell: Callable[[float], None],
    interrupt: Callable[[], None],
) -> _Arm:
    arm = _Arm({}, [], [])
    size = config.optimizer.tokens_per_update
    batches, length = data.test.batches(size, seed=None), data.test.update_count(size)
    for done, batch in enumerate(batches, start=1):
        for path, loss in zip(
            batch.paths, engine.row_losses(batch, between_segments=lambda _: interrupt()), strict=True
        ):
            arm.losses[path] = arm.losses.get(path, 0.0) + loss
        tell(0.5 * done / length)
    limit = config.evaluation.max_new_tokens
    for done, task in enumerate(tasks, start=1):
        interrupt()
        arm.lines.append(next_line(base, task.prefix, path=task.path, max_new_tokens=limit))
        tell(0.5 + 0.4 * done / len(tasks))
    for place in places:
        interrupt()
        text = complete(
            base,
            place.prefix.rstrip("\n"),
            path=place.path,
            max_new_tokens=limit,
            is_enough=lambda so_far: so_far.lstrip("\n").count("\n") >= _SAMPLE_LINES,
        )
        arm.samples.append("\n".join(text.lstrip("\n").split("\n")[:_SAMPLE_LINES]))
    tell(1.0)
    return arm


def _evidence(
    base: _Arm,
    adapter: _Arm,
    data: PreparedData,
    tasks: list[NextLineTask],
    places: list[NextLineTask],
    *,
    seed: int,
) -> Evidence:
    sizes: dict[str, int] = {}
    for batch in data.test.batches(1, seed=None):
        for path, row_bytes in zip(batch.paths, batch.row_bytes, strict=True):
            sizes[path] = sizes.get(path, 0) + int(row_bytes)
    paths = sorted(sizes)
    found = relative_change(
        [base.losses[path] for path in paths], [adapter.losses[path] for path in paths], seed=seed
    )
    total = sum(sizes.values())
    metrics = {
        "base_bits_per_byte": bits_per_byte(sum(base.losses.values()), total),
        "adapter_bits_per_byte": bits_per_byte(sum(adapter.losses.values()), total),
        "bits_per_byte_change": found.change,
        "bits_per_byte_change_low": found.low,
        "bits_per_byte_change_high": found.high,
        **_line_metrics("base", base, tasks),
        **_line_metrics("adapter", adapter, tasks),
    }
    samples = [
        Sample(
            place.path,
            place.line,
            "\n".join(place.prefix.rstrip("\n").split("\n")[-_CONTEXT_LINES:]),
            place.target,
            base.samples[number],
            adapter.samples[number],
        )
        for number, place in enumerate(places)
    ]
    files = [
        {
            "path": path,
            "language": language_of(path),
            "bytes": sizes[path],
            "base_bits_per_byte": round(bits_per_byte(base.losses[path], sizes[path]), 4),
            "adapter_bits_per_byte": round(bits_per_byte(adapter.losses[path], sizes[path]), 4),
        }
        for path in paths
    ]
    return Evidence(
        {name: round(value, 5) for name, value in metrics.items()}, tuple(samples), tuple(files), len(tasks)
    )


def _line_metrics(name: str, arm: _Arm, tasks: list[NextLineTask]) -> dict[str, float]:
    if not tasks:
        return {}
    pairs = [(line, task.target.rstrip()) for line, task in zip(arm.lines, tasks, strict=True)]
    return {
        f"{name}_next_line_exact": sum(line == target for line, target in pairs) / len(pairs),
        f"{name}_next_line_similarity": sum(edit_similarity(*pair) for pair in pairs) / len(pairs),
    }
