"""mlx_gardener: a repository goes in, a LoRA adapter that knows that repository comes out.

The public names are imported lazily, so that ``import mlx_gardener`` costs milliseconds. Three things are done at import,
all on Linux only: a fast BLAS is opened, as MLX's CPU wheels carry a reference BLAS (about 5 GFLOP/s on two cores), and
a faster library only takes its place when it is opened *before* ``mlx.core`` (see `mlx_gardener.platform.blas`); the
allocator is told to give freed buffers back at once, before it gets used to large ones (`mlx_gardener.platform.heap`); and
MLX to order its graphs so that CPU streams compute side by side (`mlx_gardener.platform.graph_order`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_gardener.platform.blas import preload as _preload_blas
from mlx_gardener.platform.graph_order import order_by_breadth as _order_by_breadth
from mlx_gardener.platform.heap import return_freed_buffers as _return_freed_buffers
from mlx_gardener.platform.version import __version__

_preload_blas()
_return_freed_buffers()
_order_by_breadth()

_PUBLIC = {
    "Base": "mlx_gardener.engine.bases",
    "Completion": "mlx_gardener.api.commands",
    "PlanResult": "mlx_gardener.api.commands",
    "ScanResult": "mlx_gardener.api.commands",
    "TrainingResult": "mlx_gardener.api",
    "cancel_project_training": "mlx_gardener.api",
    "complete": "mlx_gardener.api.commands",
    "evaluate_adapter": "mlx_gardener.api.commands",
    "export": "mlx_gardener.api.commands",
    "get_project_training_progress": "mlx_gardener.api",
    "get_training_pipeline": "mlx_gardener.api",
    "is_project_training_active": "mlx_gardener.api",
    "models": "mlx_gardener.api.commands",
    "plan": "mlx_gardener.api.commands",
    "scan": "mlx_gardener.api.commands",
    "start_project_training": "mlx_gardener.api",
    "train": "mlx_gardener.api",
    "watch_training": "mlx_gardener.api",
    "TrainingPipeline": "mlx_gardener.runs.manager",
    "DataConfig": "mlx_gardener.config",
    "EngineConfig": "mlx_gardener.config",
    "EvaluationConfig": "mlx_gardener.config",
    "LoraConfig": "mlx_gardener.config",
    "ThrottlingConfig": "mlx_gardener.config",
    "OptimizerConfig": "mlx_gardener.config",
    "ParallelConfig": "mlx_gardener.config",
    "TrainingConfig": "mlx_gardener.config",
    "load_config": "mlx_gardener.config",
    "CheckpointWritten": "mlx_gardener.events",
    "DataPrepared": "mlx_gardener.events",
    "Evaluated": "mlx_gardener.events",
    "Event": "mlx_gardener.events",
    "EventBus": "mlx_gardener.events",
    "EventCallback": "mlx_gardener.events",
    "MemoryMeasured": "mlx_gardener.events",
    "PlanChosen": "mlx_gardener.events",
    "ProgressChanged": "mlx_gardener.events",
    "StepAdvanced": "mlx_gardener.events",
    "StepCompleted": "mlx_gardener.events",
    "TimePlanned": "mlx_gardener.events",
    "TrainingEnded": "mlx_gardener.events",
    "TrainingPhase": "mlx_gardener.events",
    "TrainingProgress": "mlx_gardener.events",
    "WarningRaised": "mlx_gardener.events",
    "ProgressCallback": "mlx_gardener.runs.progress",
    "TrainingProgressTracker": "mlx_gardener.runs.progress",
    "TrainingDataPreparator": "mlx_gardener.dataset",
    "ChunkType": "mlx_gardener.source",
    "CodeChunk": "mlx_gardener.source",
    "CodePreprocessor": "mlx_gardener.source",
    "Scan": "mlx_gardener.source",
    "PeftManager": "mlx_gardener.adapter",
    "Export": "mlx_gardener.adapter.exports",
    "Plan": "mlx_gardener.engine",
    "Evaluation": "mlx_gardener.evaluate.registered",
    "AdapterRecord": "mlx_gardener.registry",
    "Project": "mlx_gardener.registry",
    "ProjectRegistry": "mlx_gardener.registry",
    "TrainingRecord": "mlx_gardener.registry",
    "TrainingStatus": "mlx_gardener.registry",
    "AdapterError": "mlx_gardener.errors",
    "ConfigError": "mlx_gardener.errors",
    "DataError": "mlx_gardener.errors",
    "GardenerError": "mlx_gardener.errors",
    "MemoryBudgetError": "mlx_gardener.errors",
    "ModelError": "mlx_gardener.errors",
    "RegistryError": "mlx_gardener.errors",
    "TimeLimitError": "mlx_gardener.errors",
    "TrainingCancelledError": "mlx_gardener.errors",
    "TrainingError": "mlx_gardener.errors",
    "TrainingInterruptedError": "mlx_gardener.errors",
    "TrainingTimeoutError": "mlx_gardener.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


#: Public names by their earlier ones, which are understood until 0.3.
_RENAMED = {"NeighbourConfig": "ThrottlingConfig"}


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use."""
    if name in _RENAMED:
        import warnings

        warnings.warn(f"{name} is called {_RENAMED[name]} now.", FutureWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mlx_gardener' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:  # what type checkers and editors see; the same names as _PUBLIC
    from mlx_gardener.adapter import PeftManager as PeftManager
    from mlx_gardener.adapter.exports import Export as Export
    from mlx_gardener.api import TrainingResult as TrainingResult
    from mlx_gardener.api import cancel_project_training as cancel_project_training
    from mlx_gardener.api import get_project_training_progress as get_project_training_progress
    from mlx_gardener.api import get_training_pipeline as get_training_pipeline
    from mlx_gardener.api import is_project_training_active as is_project_training_active
    from mlx_gardener.api import start_project_training as start_project_training
    from mlx_gardener.api import train as train
    from mlx_gardener.api import watch_training as watch_training
    from mlx_gardener.api.commands import Completion as Completion
    from mlx_gardener.api.commands import PlanResult as PlanResult
    from mlx_gardener.api.commands import ScanResult as ScanResult
    from mlx_gardener.api.commands import complete as complete
    from mlx_gardener.api.commands import evaluate_adapter as evaluate_adapter
    from mlx_gardener.api.commands import export as export
    from mlx_gardener.api.commands import models as models
    from mlx_gardener.api.commands import plan as plan
    from mlx_gardener.api.commands import scan as scan
    from mlx_gardener.config import DataConfig as DataConfig
    from mlx_gardener.config import EngineConfig as EngineConfig
    from mlx_gardener.config import EvaluationConfig as EvaluationConfig
    from mlx_gardener.config import LoraConfig as LoraConfig
    from mlx_gardener.config import OptimizerConfig as OptimizerConfig
    from mlx_gardener.config import ParallelConfig as ParallelConfig
    from mlx_gardener.config import ThrottlingConfig as ThrottlingConfig
    from mlx_gardener.config import TrainingConfig as TrainingConfig
    from mlx_gardener.config import load_config as load_config
    from mlx_gardener.dataset import TrainingDataPreparator as TrainingDataPreparator
    from mlx_gardener.engine import Plan as Plan
    from mlx_gardener.engine.bases import Base as Base
    from mlx_gardener.errors import AdapterError as AdapterError
    from mlx_gardener.errors import ConfigError as ConfigError
    from mlx_gardener.errors import DataError as DataError
    from mlx_gardener.errors import GardenerError as GardenerError
    from mlx_gardener.errors import MemoryBudgetError as MemoryBudgetError
    from mlx_gardener.errors import ModelError as ModelError
    from mlx_gardener.errors import RegistryError as RegistryError
    from mlx_gardener.errors import TimeLimitError as TimeLimitError
    from mlx_gardener.errors import TrainingCancelledError as TrainingCancelledError
    from mlx_gardener.errors import TrainingError as TrainingError
    from mlx_gardener.errors import TrainingInterruptedError as TrainingInterruptedError
    from mlx_gardener.errors import TrainingTimeoutError as TrainingTimeoutError
    from mlx_gardener.evaluate.registered import Evaluation as Evaluation
    from mlx_gardener.events import CheckpointWritten as CheckpointWritten
    from mlx_gardener.events import DataPrepared as DataPrepared
    from mlx_gardener.events import Evaluated as Evaluated
    from mlx_gardener.events import Event as Event
    from mlx_gardener.events import EventBus as EventBus
    from mlx_gardener.events import EventCallback as EventCallback
    from mlx_gardener.events import MemoryMeasured as MemoryMeasured
    from mlx_gardener.events import PlanChosen as PlanChosen
    from mlx_gardener.events import ProgressChanged as ProgressChanged
    from mlx_gardener.events import StepAdvanced as StepAdvanced
    from mlx_gardener.events import StepCompleted as StepCompleted
    from mlx_gardener.events import TimePlanned as TimePlanned
    from mlx_gardener.events import TrainingEnded as TrainingEnded
    from mlx_gardener.events import TrainingPhase as TrainingPhase
    from mlx_gardener.events import TrainingProgress as TrainingProgress
    from mlx_gardener.events import WarningRaised as WarningRaised
    from mlx_gardener.registry import AdapterRecord as AdapterRecord
    from mlx_gardener.registry import Project as Project
    from mlx_gardener.registry import ProjectRegistry as ProjectRegistry
    from mlx_gardener.registry import TrainingRecord as TrainingRecord
    from mlx_gardener.registry import TrainingStatus as TrainingStatus
    from mlx_gardener.runs.manager import TrainingPipeline as TrainingPipeline
    from mlx_gardener.runs.progress import ProgressCallback as ProgressCallback
    from mlx_gardener.runs.progress import TrainingProgressTracker as TrainingProgressTracker
    from mlx_gardener.source import ChunkType as ChunkType
    from mlx_gardener.source import CodeChunk as CodeChunk
    from mlx_gardener.source import CodePreprocessor as CodePreprocessor
    from mlx_gardener.source import Scan as Scan
