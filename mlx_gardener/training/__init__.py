"""Training: epochs of updates, validation, early stopping, checkpoints. In: base, data, plan. Out: the best adapter."""

from mlx_gardener.training.loop import train
from mlx_gardener.training.outcome import TrainOutcome

__all__ = ["TrainOutcome", "train"]
