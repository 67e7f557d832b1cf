"""Hidden states that wait on disk for the backward pass."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_gardener.engine.states import States
from mlx_gardener.errors import TrainingError
from tests.engine.zoo import batch, engine, tiny_model, with_adapters


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_arrays_come_back_to_the_bit(dtype: mx.Dtype, tmp_path: Path) -> None:
    mx.random.seed(0)
    first = mx.random.normal((2, 5, 3)).astype(dtype)
    second = mx.random.normal((2, 3, 4)).astype(dtype).swapaxes(1, 2)  # not as it lies in memory
    with States(on_disk=True, directory=tmp_path / "made when it is needed") as states:
        states[0, 0], states[3, 1] = first, second
        states.put_away((0, 0))
        states.put_away((3, 1))
        for _ in range(2):
            assert states[0, 0].dtype == dtype and mx.array_equal(states[0, 0], first)
            assert mx.array_equal(states[3, 1], second)
        states.drop((0, 0))
        with pytest.raises(KeyError):
            states[0, 0]
    assert not list((tmp_path / "made when it is needed").iterdir()), "nothing is left behind"


def test_in_memory_they_stay_as_they_are() -> None:
    states, array = States(), mx.ones((2, 2))
    states[0, 0] = array
    states.put_away((0, 0))
    assert states[0, 0] is array


@pytest.mark.parametrize("settings", [{}, {"kept_layers": 2}, {"tile_tokens": 10, "cpu_streams": 2}], ids=str)
@pytest.mark.parametrize("model_type", ["qwen2", "gemma4_text", "nanbeige"])
def test_gradients_are_the_same_to_the_bit(model_type: str, settings: dict[str, Any]) -> None:
    model = tiny_model(model_type)
    weights = with_adapters(model)
    expected = engine(model, **settings).loss_and_gradients(weights, batch(), seed=0)
    found = engine(model, states_on_disk=True, **settings).loss_and_gradients(weights, batch(), seed=0)
    assert found.loss_sum == expected.loss_sum
    assert all(mx.array_equal(value, expected.gradients[name]) for name, value in found.gradients.items())


def test_few_of_them_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    weights = with_adapters(model)
    most = 0
    original = States.put_away

    def noted(states: States, key: tuple[int, int]) -> None:
        nonlocal most
        original(states, key)
        most = max(most, len(states._here))

    monkeypatch.setattr(States, "put_away", noted)
    engine(model, states_on_disk=True).loss_and_gradients(weights, batch(), seed=0)
    assert most == 0
    engine(model).loss_and_gradients(weights, batch(), seed=0)
    assert most == 3  # of four layers, but for the topmost one's


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = tiny_model("llama")
    weights = with_adapters(model)
    cut = engine(model, states_on_disk=True)
    cut.scratch_dir = tmp_path / "file" / "cache"
    with pytest.raises(TrainingError, match=r"cannot be written to .*cache") as caught:
        cut.loss_and_gradients(weights, batch(), seed=0)
    assert "space" in caught.value.next_step


@pytest.mark.parametrize("floats", [300, 3000], ids=["less than a buffer", "more than one"])
def test_a_disk_that_becomes_full_is_named_and_leaves_no_file(floats: int, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(TrainingError, match="cannot be written"),
        States(on_disk=True, directory=tmp_path) as states,
    ):
        states[0, 0] = mx.ones((floats,))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            states.put_away((0, 0))
        finally:
            try:
                states.drop_all()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
