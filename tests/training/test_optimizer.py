"""Schedule, optimisers and clipping are what their names say."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_gardener.config import OptimizerConfig
from mlx_gardener.training.optimizer import (
    flatten_state,
    global_norm,
    learning_rate_at,
    make_optimizer,
    recommended_learning_rate,
    unflatten_state,
)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_warms_up_then_follows_its_schedule(schedule: str) -> None:
    config = OptimizerConfig(schedule=schedule)
    rates = [learning_rate_at(step, 100, 1.0, config) for step in range(1, 101)]
    assert rates[:5] == sorted(rates[:5]) and 0 < rates[0] < 0.2
    assert rates[5] == pytest.approx(1.0)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    halfway = {"cosine": 0.55, "linear": 0.55, "constant": 1.0}[schedule]
    assert rates[52] == pytest.approx(halfway, abs=0.02)


def test_one_step_has_a_rate() -> None:
    assert learning_rate_at(1, 1, 0.5, OptimizerConfig()) > 0


def test_wider_bases_get_smaller_rates() -> None:
    rates = [recommended_learning_rate(hidden) for hidden in (64, 256, 576, 896, 1536, 4096)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(2.5e-3, rel=0.01) and rates[4] == 8e-4
    assert 2e-4 < rates[5] < 3e-4


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "adafactor", "muon"])
def test_every_optimiser_lowers_a_loss(name: str) -> None:
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.0))
    mx.random.seed(0)
    target = mx.random.normal((8, 4))
    weights = {"w": mx.zeros((8, 4))}
    optimizer.init(weights)

    def loss(values: dict[str, mx.array]) -> mx.array:
        return mx.square(values["w"] - target).mean()

    first = loss(weights).item()
    for _ in range(60):
        optimizer.learning_rate = mx.array(0.05)
        weights = optimizer.apply_gradients(mx.grad(loss)(weights), weights)
    assert loss(weights).item() < 0.7 * first


def test_adamw_takes_the_step_of_the_paper() -> None:
    """The first bias-corrected step has length lr whatever the gradient (Kingma and Ba 2015)."""
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.0))
    weights = {"w": mx.array([1.0, -2.0])}
    optimizer.init(weights)
    optimizer.learning_rate = mx.array(0.01)
    moved = optimizer.apply_gradients({"w": mx.array([3.0, -0.001])}, weights)["w"]
    assert mx.allclose(moved, mx.array([0.99, -1.99]), atol=1e-5).item()


def test_the_norm_is_taken_over_all_gradients_together() -> None:
    assert global_norm({"a": mx.array([3.0]), "b": mx.array([[4.0]])}) == pytest.approx(5.0)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "adafactor", "muon"])
def test_a_restored_optimiser_takes_the_same_next_step(name: str) -> None:
    config = OptimizerConfig(name=name)
    weights = {"model.layers.0.q.lora_a": mx.ones((4, 2)), "model.layers.0.q.lora_b": mx.ones((2, 3))}
    gradients = {key: 0.1 * mx.ones_like(value) for key, value in weights.items()}
    first = make_optimizer(config)
    first.init(weights)
    for _ in range(3):
        first.learning_rate = mx.array(0.01)
        weights = first.apply_gradients(gradients, weights)
    second = make_optimizer(config)
    second.init(weights)
    second.state = unflatten_state(flatten_state(first.state))
    for optimizer in (first, second):
        optimizer.learning_rate = mx.array(0.02)
    one, two = first.apply_gradients(gradients, weights), second.apply_gradients(gradients, weights)
    assert all(mx.array_equal(one[key], two[key]) for key in weights)
