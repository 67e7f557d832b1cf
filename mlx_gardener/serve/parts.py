"""What a server is made of: the parts that its handlers share, together and alive for as long as it runs.

In: the registry and settings. Out: `Parts`, for `app`, `mcp`, `lsp` and the web page. Cost: a thread that computes, one that looks
after indexes, and one that looks at files where use is counted; bases are loaded when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.catalog import Catalog
from mlx_gardener.serve.in_use import InUse
from mlx_gardener.serve.indexes import Indexes
from mlx_gardener.serve.intake import Intake
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import Worker


@dataclass(frozen=True)
class Parts:
    """The parts of one server.

    Attributes:
        catalog: what can be asked for.
        indexes: what code is retrieved from.
        worker: computes.
        intake: makes jobs of requests for it.
    """

    registry: ProjectRegistry
    settings: ServeSettings
    metrics: Metrics
    catalog: Catalog
    indexes: Indexes
    worker: Worker
    intake: Intake


@contextmanager
def running(registry: ProjectRegistry, settings: ServeSettings) -> Iterator[Parts]:
    """The parts of a server, which work while the block runs; what stays of answers is counted where that is asked for."""
    metrics, catalog = Metrics(), Catalog(registry, settings.projects)
    with ExitStack() as ends:
        indexes = Indexes(registry, settings.retrieval, metrics)
        ends.callback(indexes.stop)
        in_use = None
        if settings.evidence_in_use:
            in_use = InUse(registry, catalog, settings.compare, metrics)
            in_use.start()
            ends.callback(in_use.stop)
        worker = Worker(
            registry,
            budget_bytes=settings.budget_bytes,
            max_queued=settings.max_queued,
            max_queued_seconds=settings.max_queued_seconds,
            max_context_tokens=settings.max_context_tokens,
            metrics=metrics,
            in_use=in_use,
        )
        worker.start()
        ends.callback(worker.stop)
        intake = Intake(catalog, settings, metrics, indexes, in_use)
        yield Parts(registry, settings, metrics, catalog, indexes, worker, intake)
