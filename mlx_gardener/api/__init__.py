"""The same as `TrainingPipeline` for scripts and notebooks: functions over one shared pipeline, and `train`.

`train` blocks until the adapter is there and returns a `TrainingResult` that displays itself in a notebook, and completes,
is evaluated and exported (`mlx_gardener.api.commands`); `watch_training` gives events to ``async for``. See docs/python.md.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.api.commands import Completion, complete, evaluate_adapter, export, settings_of
from mlx_gardener.config import ArmName, RetrievalWish, TrainingConfig
from mlx_gardener.errors import TrainingError
from mlx_gardener.events import Event, MemoryMeasured, StepCompleted, TrainingProgress
from mlx_gardener.platform.arguments import checked
from mlx_gardener.platform.files import existing_directory
from mlx_gardener.registry import project_name_for
from mlx_gardener.runs.manager import TrainingPipeline, completed_training
from mlx_gardener.runs.progress import ProgressCallback
from mlx_gardener.runs.result import RunResult

if TYPE_CHECKING:
    from mlx_gardener.adapter.exports import Export
    from mlx_gardener.evaluate.registered import Evaluation
    from mlx_gardener.report.live import LiveView
    from mlx_gardener.report.notebook import NotebookView

_pipeline: TrainingPipeline | None = None
_pipeline_lock = threading.Lock()


@checked
def get_training_pipeline(config: TrainingConfig | None = None) -> TrainingPipeline:
    """The pipeline that the module-level functions share; made on first use.

    Args:
        config: settings of the trainings that it starts from now on; those it has, at first the defaults, when None.
    """
    global _pipeline
    with _pipeline_lock:
        if _pipeline is None:
            _pipeline = TrainingPipeline(config)
        elif config is not None:
            _pipeline.use(config)
        return _pipeline


@checked
def start_project_training(project_name: str, progress_callback: ProgressCallback | None = None) -> str:
    """`TrainingPipeline.start_training` of the shared pipeline."""
    return get_training_pipeline().start_training(project_name, progress_callback)


@checked
def get_project_training_progress(project_name: str) -> TrainingProgress | None:
    """`TrainingPipeline.get_training_progress` of the shared pipeline."""
    return get_training_pipeline().get_training_progress(project_name)


@checked
def is_project_training_active(project_name: str) -> bool:
    """`TrainingPipeline.is_training_active` of the shared pipeline."""
    return get_training_pipeline().is_training_active(project_name)


@checked
def cancel_project_training(project_name: str) -> bool:
    """`TrainingPipeline.cancel_training` of the shared pipeline."""
    return get_training_pipeline().cancel_training(project_name)


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns: the adapter and how it was made; displays itself in a notebook.

    ``events`` are those of memory over time, where `train` saw them.
    """

    project: str
    adapter_version: str
    directory: Path
    metrics: dict[str, Any]
    evidence: dict[str, Any]
    training: dict[str, Any]
    events: tuple[Event, ...] = ()

    def __repr__(self) -> str:
        """Short, and without the directory: notebooks keep it beside the display, and notebooks are shared."""
        return f"<TrainingResult {self.project} {self.adapter_version}: {self.evidence['verdict']}>"

    def complete(
        self,
        prefix: str,
        suffix: str | None = None,
        *,
        path: str = "",
        with_adapter: bool = True,
        max_tokens: int = 48,
        retrieval: RetrievalWish | None = None,
    ) -> Completion:
        """`complete` with this adapter."""
        return complete(
            self.project,
            prefix,
            suffix,
            path=path,
            version=self.adapter_version,
            with_adapter=with_adapter,
            max_tokens=max_tokens,
            retrieval=retrieval,
        )

    def evaluate(
        self,
        *,
        control: str | None = None,
        tasks: int | None = None,
        thorough: bool = False,
        arms: Sequence[ArmName] | None = None,
        on_progress: Callable[[float, str], None] | None = None,
    ) -> Evaluation:
        """`evaluate_adapter` of this adapter."""
        return evaluate_adapter(
            self.project,
            self.adapter_version,
            control=control,
            tasks=tasks,
            thorough=thorough,
            arms=arms,
            on_progress=on_progress,
        )

    def export(
        self,
        destination: str | Path | None = None,
        form: str = "mlx",
        *,
        base: str | None = None,
        bits: int | None = None,
        dtype: str = "auto",
        quantise: str | None = None,
        create: str | None = None,
    ) -> Export:
        """`export` of this adapter."""
        return export(
            self.project,
            destination,
            form,
            version=self.adapter_version,
            base=base,
            bits=bits,
            dtype=dtype,
            quantise=quantise,
            create=create,
        )

    def _repr_html_(self) -> str:
        from mlx_gardener.report.notebook import result_html

        return result_html(self)


@checked
def train(
    path: str | Path = ".",
    *,
    project: str | None = None,
    config: TrainingConfig | None = None,
    on_event: Callable[[Event], None] | None = None,
    fresh: bool = False,
    show_progress: bool | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train an adapter on the repository at ``path`` and wait for it.

    Args:
        path: the repository's root directory.
        project: its name in the registry; the directory's name when None.
        config: all settings; or leave it and give single ones as ``settings``.
        on_event: called with every event as it happens, on the calling thread.
        fresh: begin anew also where an unfinished training with the same settings could be gone on with.
        show_progress: draw the run while it goes on: in a notebook into the cell's output, else on standard error, as
            a panel on a terminal and as lines elsewhere. None does so unless there is an ``on_event``.
        settings: `TrainingConfig` fields (``model="seedling", lora={"rank": 8}``).

    Raises:
        ConfigError: a setting is unknown or impossible.
        DataError: the repository is not there, or gives too little to train on.
        ModelError: the base model cannot be found, fetched or used.
        MemoryBudgetError: the base does not train within the budget; ``least_bytes`` would do.
        TrainingError: the training failed, or somebody cancelled it (`TrainingCancelledError`).
        GardenerError: whatever else ended it; says why and what to do.
    """
    pipeline = TrainingPipeline(settings_of(config, settings))
    root = existing_directory(Path(path))
    name = project or project_name_for(root)
    with pipeline.registry.registering(name, root):
        pipeline.start_training(name, fresh=fresh)
    seen: list[Event] = []
    shown = on_event is None if show_progress is None else show_progress
    with _view(name) if shown else nullcontext() as view:
        try:
            for event in pipeline.follow(name):
                if isinstance(event, MemoryMeasured | StepCompleted):
                    seen.append(event)
                if view is not None:
                    _show(view, event, name)
                if on_event is not None:
                    on_event(event)
        except KeyboardInterrupt:
            pipeline.cancel_training(name)
            raise
    return training_result(pipeline, name, events=seen)


def _show(view: NotebookView | LiveView, event: Event, project: str) -> None:
    try:
        view(event)
    except Exception as error:
        raise TrainingError(
            f"The view of the training of {project!r} broke off ({type(error).__name__}: {error}); the training goes on.",
            next_step=f"`mlx-gardener attach {project}` shows it again; `train(..., show_progress=False)` goes without.",
        ) from error


def _view(project: str) -> NotebookView | LiveView:
    """What draws a run where this process is looked at."""
    from mlx_gardener.report.live import LiveView, make_console
    from mlx_gardener.report.notebook import NotebookView, in_notebook

    if in_notebook():
        return NotebookView(project=project)
    return LiveView(make_console(stderr=True), project=project)


def training_result(
    pipeline: TrainingPipeline, project_name: str, *, events: Sequence[Event] = ()
) -> TrainingResult:
    """The result of the project's latest training, with what was seen of its memory.

    Raises:
        GardenerError: what ended it early, as its worker raised it.
        TrainingError: the project is unknown or was never trained.
    """
    record = completed_training(pipeline, project_name)
    result = RunResult.from_json(record.result)
    adapter = pipeline.registry.get_adapter(project_name, result.adapter_version)
    return TrainingResult(
        project=project_name,
        adapter_version=adapter.version,
        directory=adapter.directory,
        metrics=result.metrics,
        evidence=result.evidence,
        training=result.training,
        events=tuple(events),
    )


async def watch_training(project_name: str) -> AsyncIterator[Event]:
    """The events of the project's latest training, from its start on, for ``async for``.

    Raises:
        TrainingError: there is no such project, or it was never trained.
    """
    import asyncio  # who calls it has it already, and others need not wait for it

    events = get_training_pipeline().follow(project_name)
    while (event := await asyncio.to_thread(next, events, None)) is not None:
        yield event
