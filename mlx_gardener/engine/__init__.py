"""The engine: one training step under a memory budget, and the planner that decides how it is split.

In: a base model with adapters, a batch, a plan. Out: the batch's loss and the adapters' gradients. The plan changes
speed and memory, never the result.
"""

from mlx_gardener.engine.planner import ModelFacts, Plan, make_plan, model_facts
from mlx_gardener.engine.step import StepResult, evaluate_batches, loss_and_gradients, row_losses

__all__ = [
    "ModelFacts",
    "Plan",
    "StepResult",
    "evaluate_batches",
    "loss_and_gradients",
    "make_plan",
    "model_facts",
    "row_losses",
]
