"""The registry: projects, trainings and adapters in one SQLite database under the user's data directory.

Other programs pick adapters up from here. Safe under many threads and processes: every change is one transaction in
WAL mode, connections belong to threads, and what a dead process left behind is recognised by its process id and start time.
"""

from mlx_gardener.platform.home import default_home
from mlx_gardener.registry.names import check_project_name, project_name_for
from mlx_gardener.registry.patience import patiently
from mlx_gardener.registry.project_registry import ProjectRegistry
from mlx_gardener.registry.queue import QueueEntry, TrainingQueue
from mlx_gardener.registry.records import (
    INTERRUPTED,
    AdapterRecord,
    Garbage,
    GarbagePolicy,
    Problem,
    Project,
    TrainingRecord,
    TrainingStatus,
)

__all__ = [
    "INTERRUPTED",
    "AdapterRecord",
    "Garbage",
    "GarbagePolicy",
    "Problem",
    "Project",
    "ProjectRegistry",
    "QueueEntry",
    "TrainingQueue",
    "TrainingRecord",
    "TrainingStatus",
    "check_project_name",
    "default_home",
    "patiently",
    "project_name_for",
]
