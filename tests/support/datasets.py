"""Settings of a small dataset, and an example of a next edit."""

from __future__ import annotations

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.dataset.edits import EditExample, RecentChange

EXAMPLE = EditExample(
    "src/app.py", "c", 1, 1, "one = 1\ntwo = 2", "one = 11\ntwo = 2", "one = 11\ntwo = 22\nthree = 3", "above = 0", "below = 9",
    (RecentChange("lib.py", "", "x = 1"), RecentChange("src/app.py", "one = 1", "one = 11\n")),
)  # fmt: skip


def settings(**more: object) -> TrainingConfig:
    chosen = {
        "min_training_chunks": 5,
        "training_data_quality_threshold": 0.1,
        "data.sequence_lengths": [64, 128],
    }
    return load_config(environment={}, overrides={**chosen, **more})
