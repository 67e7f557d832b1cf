"""From scanned chunks to batches: split, examples, tokens and their cache, rows.

In: a repository's `Scan`. Out: `PreparedData`: packed training rows, and left-to-right rows of the validation and test
parts in which every kept source byte is a target exactly once. Cost: tokenising, once per content (the cache).
"""

from mlx_gardener.dataset.assertions import AssertionTask, asked_values, assertion_tasks, first_value
from mlx_gardener.dataset.changes import Earlier
from mlx_gardener.dataset.edit_rows import EditTask, edit_tasks
from mlx_gardener.dataset.prepare import PreparedData, TrainingDataPreparator
from mlx_gardener.dataset.rows import Batch, RowSet
from mlx_gardener.dataset.split import Split, split_files
from mlx_gardener.dataset.summary import DataSummary
from mlx_gardener.dataset.tasks import (
    FimTask,
    NextLineTask,
    Place,
    asked_lines,
    continuation_places,
    cross_file_tasks,
    fim_tasks,
    names_defined,
    next_line_tasks,
)

__all__ = [
    "AssertionTask",
    "Batch",
    "DataSummary",
    "Earlier",
    "EditTask",
    "FimTask",
    "NextLineTask",
    "Place",
    "PreparedData",
    "RowSet",
    "Split",
    "TrainingDataPreparator",
    "asked_lines",
    "asked_values",
    "assertion_tasks",
    "continuation_places",
    "cross_file_tasks",
    "edit_tasks",
    "fim_tasks",
    "first_value",
    "names_defined",
    "next_line_tasks",
    "split_files",
]
