"""The engine: one training step under a memory budget, and the planner that decides how it is split,
with which base model there is for it.

In: a base model with adapters, a batch, a plan. Out: the batch's loss and the adapters' gradients. The plan changes
speed and memory, never the result.
"""

from mlx_gardener.engine.ahead import look_ahead
from mlx_gardener.engine.choosing import choose_base
from mlx_gardener.engine.facts import ModelFacts, facts_of, model_facts
from mlx_gardener.engine.kept import base_topic, kept_row_losses, kept_row_readings
from mlx_gardener.engine.load import load_engine
from mlx_gardener.engine.plan import Plan, PredictedParts
from mlx_gardener.engine.planner import make_plan
from mlx_gardener.engine.prepared import PreparedModel, prepare_model
from mlx_gardener.engine.seen import keep_training, known_backend
from mlx_gardener.engine.speed import Backend, learn, measured_backend
from mlx_gardener.engine.step import Engine, RowReading, StepResult
from mlx_gardener.engine.verify import prepare_engine

__all__ = [
    "Backend",
    "Engine",
    "ModelFacts",
    "Plan",
    "PredictedParts",
    "PreparedModel",
    "RowReading",
    "StepResult",
    "base_topic",
    "choose_base",
    "facts_of",
    "keep_training",
    "kept_row_losses",
    "kept_row_readings",
    "known_backend",
    "learn",
    "load_engine",
    "look_ahead",
    "make_plan",
    "measured_backend",
    "model_facts",
    "prepare_engine",
    "prepare_model",
]
