"""The loop: budgets and interruptions change nothing, the best adapter is returned, damage is noticed."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlx_gardener.dataset import Batch, PreparedData
from mlx_gardener.engine import Engine, StepResult
from mlx_gardener.errors import ModelError, TrainingCancelledError, TrainingError
from mlx_gardener.events import Evaluated, StepAdvanced, TimePlanned
from mlx_gardener.model import BaseModel
from mlx_gardener.model.lora import lora_parameters
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.platform.pressure import MemoryPressure
from mlx_gardener.training import TrainOutcome, advance, loop, throttling, time_plan
from mlx_gardener.training.checkpoint import list_checkpoints
from mlx_gardener.training.time_plan import Clock
from tests.support.loops import Recorder, Runner, same, settings, train_on


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(run: Runner, base: BaseModel) -> None:
    recorder = Recorder()
    tokens = mx.array([[7, 8, 9, 10]])
    before = base.model(tokens)
    outcome = run(settings(**{"optimizer.max_steps": 25, "optimizer.epochs": 20}), recorder=recorder)
    assert recorder.steps[-1].loss < 0.95 * recorder.steps[0].loss
    assert outcome.state.best_step > 0
    assert not lora_parameters(base.model) and mx.array_equal(before, base.model(tokens))


def test_a_validation_says_which_version_the_training_began_with(
    base: BaseModel, data: PreparedData, tmp_path: Path
) -> None:
    config = settings(**{"optimizer.max_steps": 1})
    for version in (None, "v1"):
        recorder = Recorder()
        train_on(base, replace(data, continued_from=version), config, tmp_path / "c", recorder=recorder)
        told = [event.goes_on_from for event in recorder.events if isinstance(event, Evaluated)]
        assert told and set(told) == {version or ""}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    run: Runner, undisturbed: TrainOutcome, dropout: float
) -> None:
    """mlx-lm resumes weights only: optimiser, schedule and position begin anew."""
    config = settings(**{"lora.dropout": dropout})
    whole = run(config, directory="whole") if dropout else undisturbed
    for stop in (1, 3):
        directory = f"stopped-{stop}"
        with pytest.raises(TrainingCancelledError):
            run(config, directory=directory, recorder=Recorder(stop_at=stop))
        recorder = Recorder()
        resumed = run(config, directory=directory, recorder=recorder, resume=True)
        assert [event.step for event in recorder.steps] == list(range(stop + 1, 7))
        assert same(whole, resumed)
        assert whole.state.train_losses == resumed.state.train_losses
        assert whole.state.validation == resumed.state.validation


def test_the_budget_changes_the_speed_and_not_the_result(run: Runner) -> None:
    assert same(
        run(settings(), directory="a", rows=1), run(settings(), directory="b", rows=8), tolerance=2e-4
    )


def test_the_seed_decides_everything_and_only_so_many_checkpoints_are_kept(
    run: Runner, undisturbed: TrainOutcome, tmp_path: Path
) -> None:
    assert same(undisturbed, run(settings(), directory="again"))
    assert [path.name for path in list_checkpoints(tmp_path / "again")] == ["step-00000005", "step-00000006"]
    assert not same(undisturbed, run(settings(seed=1), directory="other"))


def test_validation_is_always_the_whole_fixed_set(run: Runner, data: PreparedData) -> None:
    """mlx-lm validates on different random batches each time."""
    config = settings(
        **{"optimizer.learning_rate": 1e-12, "evaluation.patience": 100, "optimizer.max_steps": 12}
    )
    recorder = Recorder()
    run(config, recorder=recorder)
    losses = [event.loss for event in recorder.events if isinstance(event, Evaluated)]
    assert len(losses) >= 2 and max(losses) - min(losses) < 1e-6
    counted = sum(batch.loss_tokens for batch in data.validation.batches(256, seed=None))
    assert counted == data.validation.loss_tokens


def test_every_row_of_an_epoch_is_used_also_in_its_last_update(run: Runner, data: PreparedData) -> None:
    """mlx-lm drops the last accumulation window."""
    recorder = Recorder()
    run(settings(**{"optimizer.max_steps": None, "optimizer.epochs": 1.0}), recorder=recorder)
    assert len(recorder.steps) == data.train.update_count(256)
    assert sum(event.tokens for event in recorder.steps) == data.train.loss_tokens


def test_training_stops_when_validation_stops_improving_and_returns_the_best(run: Runner) -> None:
    config = settings(
        **{
            "optimizer.learning_rate": 1.0,
            "optimizer.max_steps": 400,
            "optimizer.epochs": 100,
            "evaluation.patience": 2,
            "evaluation.per_epoch": 100,
        }
    )
    recorder = Recorder()
    outcome = run(config, recorder=recorder)
    assert "did not improve for 2 evaluations" in outcome.stopped_because
    assert outcome.state.step < 400
    best = min(outcome.state.validation, key=lambda entry: entry[1])
    assert outcome.state.best_step == best[0]
    if best[0] == 0:
        assert all(
            mx.abs(v).max().item() == 0 for name, v in outcome.weights.items() if name.endswith("lora_b")
        )


def test_an_update_that_is_not_finite_is_not_applied(
    run: Runner, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Engine.loss_and_gradients, []

    def sometimes_broken(*arguments: object, **options: object) -> object:
        calls.append(1)
        result = real(*arguments, **options)  # type: ignore[arg-type]
        if len(calls) == 2:
            broken = {name: value * float("nan") for name, value in result.gradients.items()}
            return type(result)(result.loss_sum, result.tokens, broken)
        return result

    monkeypatch.setattr(Engine, "loss_and_gradients", sometimes_broken)
    recorder = Recorder()
    outcome = run(settings(), recorder=recorder)
    assert any("not finite" in message for message in recorder.warnings)
    assert outcome.state.step == 6
    assert all(mx.isfinite(value).all().item() for value in outcome.weights.values())


def test_an_update_for_which_memory_runs_out_is_done_again_with_a_smaller_plan(
    run: Runner, undisturbed: TrainOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, plans = Engine.loss_and_gradients, []

    def short_of_memory(engine: Engine, *arguments: object, **options: object) -> object:
        plans.append(engine.plan)
        if len(plans) == 2:
            raise RuntimeError(
                "[metal::malloc] Unable to allocate 4294967296 bytes."
            )  # on a CPU the process ends
        return real(engine, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "loss_and_gradients", short_of_memory)
    recorder = Recorder()
    outcome = run(settings(), recorder=recorder)
    assert plans[2] == plans[1].smaller() and outcome.state.step == undisturbed.state.step
    assert any("memory ran out in step 2" in message for message in recorder.warnings)
    assert all(
        mx.allclose(outcome.weights[name], value, atol=1e-5) for name, value in undisturbed.weights.items()
    )


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("model.layers.1.mlp.up_proj.weight", "its model.layers.1.mlp.up_proj.weight holds"),
        ("model.embed_tokens.weight", "its model.embed_tokens.weight holds"),
        ("model.norm.weight", "its model.norm.weight holds"),
    ],
)
def test_a_base_that_gives_no_numbers_is_stopped_at_the_first_validation(
    run: Runner, base: BaseModel, data: PreparedData, weight: str, words: str
) -> None:
    module: Any = base.model
    *path, leaf = weight.split(".")
    for name in path:
        module = module[int(name)] if name.isdigit() else module[name]
    module[leaf] = module[leaf] * float("nan")
    recorder = Recorder()
    with pytest.raises(ModelError, match=words):
        run(settings(), recorder=recorder)
    assert recorder.steps == [] and recorder.warnings == []


def test_a_layer_whose_numbers_grow_too_large_is_named(run: Runner, base: BaseModel) -> None:
    module: Any = base.model
    module = module.model.layers[2].mlp.down_proj
    module.weight = module.weight + 3e38
    with pytest.raises(
        ModelError, match=r"infinity before anything is trained, first in model\.layers\.2\."
    ) as caught:
        run(settings())
    assert "compute_dtype" in caught.value.next_step


def test_a_training_that_diverges_is_ended_with_advice(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gardener.training import loop

    monkeypatch.setattr(loop, "global_norm", lambda gradients: math.inf)
    with pytest.raises(TrainingError, match="3 updates in a row") as caught:
        run(settings())
    assert "learning rate" in caught.value.next_step


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    run: Runner, undisturbed: TrainOutcome, tmp_path: Path
) -> None:
    config = settings()
    with pytest.raises(TrainingCancelledError):
        run(config, directory="hurt", recorder=Recorder(stop_at=4))
    newest = list_checkpoints(tmp_path / "hurt")[-1]
    file = newest / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-3] + b"xyz")
    recorder = Recorder()
    resumed = run(config, directory="hurt", recorder=recorder, resume=True)
    assert any(newest.name in message and "sha256" in message for message in recorder.warnings)
    assert recorder.steps[0].step == 4, "the step after the checkpoint before"
    assert same(undisturbed, resumed)


def test_a_checkpoint_of_other_settings_is_refused(run: Runner) -> None:
    with pytest.raises(TrainingCancelledError):
        run(settings(), recorder=Recorder(stop_at=2))
    with pytest.raises(TrainingError, match="other settings"):
        run(settings(**{"lora.scale": 3.0}), resume=True)


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_earlier_ones(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingCancelledError):
        run(settings(), recorder=Recorder(stop_at=2))
    before = list_checkpoints(tmp_path / "checkpoints")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(TrainingError, match="No space left"):
        run(settings(), resume=True)
    assert list_checkpoints(tmp_path / "checkpoints") == before
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.endswith(".new")]


def test_a_slow_step_says_how_far_it_is(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advance, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(advance, "TELL_SECONDS", 0.0)
    recorder = Recorder()
    run(settings(**{"optimizer.max_steps": 2}), recorder=recorder)
    told = [event for event in recorder.events if isinstance(event, StepAdvanced)]
    for activity, step in (("Step", 1), ("Validation", 0)):
        shares = [event.share for event in told if (event.activity, event.step) == (activity, step)]
        assert len(shares) > 3 and shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
    assert all(event.eta_seconds is not None and event.eta_seconds >= 0 for event in told)


class Hours:
    """A clock by which every update, validation and word takes as long as the test says."""

    def __init__(self, recorder: Recorder, *, update: float, validation: float) -> None:
        self._recorder, self._update, self._validation = recorder, update, validation

    def used_seconds(self) -> float:
        validations = sum(isinstance(event, Evaluated) for event in self._recorder.events)
        return len(self._recorder.steps) * self._update + validations * self._validation

    def are_all_that_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a training see no other clock."""
        update = self._update
        monkeypatch.setattr(loop.time, "perf_counter", self.used_seconds)
        monkeypatch.setattr(
            loop._Training, "update_took", lambda self, seconds: self.update_seconds.append(update)
        )


#: More updates than any clock here leaves time for.
LONG = settings(**{"optimizer.max_steps": None, "optimizer.epochs": 20, "checkpoint_interval_seconds": 3600})


def test_a_training_that_is_slower_than_foretold_does_fewer_updates_and_validates_its_last(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    hours = Hours(recorder, update=10.0, validation=5.0)
    hours.are_all_that_passes(monkeypatch)
    outcome = run(LONG, recorder=recorder, clock=Clock(400.0, hours.used_seconds), speed=1e4)
    plans = [event.plan for event in recorder.events if isinstance(event, TimePlanned)]
    assert plans[0]["updates"] > plans[-1]["updates"] >= outcome.state.step
    assert plans[0]["pace"]["update_seconds"] < plans[-1]["pace"]["update_seconds"] == 10.0
    assert 5 < outcome.state.step < outcome.time_plan.all_updates and outcome.ended_by_time
    assert hours.used_seconds() < 400.0
    assert outcome.state.validation[-1][0] == outcome.state.step
    assert "time limit" in outcome.stopped_because


@pytest.mark.parametrize("seconds", [70.0, 25.0])
def test_a_training_of_one_update_goes_on_where_that_one_took_less_than_was_foretold(
    run: Runner, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    recorder = Recorder()
    hours = Hours(recorder, update=seconds, validation=5.0)
    hours.are_all_that_passes(monkeypatch)
    outcome = run(LONG, recorder=recorder, clock=Clock(1000.0, hours.used_seconds), speed=0.5)
    plans = [event.plan for event in recorder.events if isinstance(event, TimePlanned)]
    assert plans[0]["updates"] == 1 and outcome.state.step > 4
    assert hours.used_seconds() < 1000.0


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_first_validation_that_is_slower_than_foretold_leaves_time_for_the_training(
    run: Runner, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """A machine under load: a validation planned for a moment would take all of the time there is."""
    passed, positions = [0.0], data.validation.total_tokens
    monkeypatch.setattr(time_plan, "LEAST_VALIDATION_TOKENS", 64)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: passed[0])
    real_forward, real_update = Engine.row_losses, Engine.loss_and_gradients

    def slow_update(engine: Engine, weights: Any, batch: Batch, **named: Any) -> StepResult:
        passed[0] += 3 * batch.tokens.size
        return real_update(engine, weights, batch, **named)

    def slow_forward(engine: Engine, batch: Batch, **named: Any) -> list[float]:
        passed[0] += batch.tokens.size
        return real_forward(engine, batch, **named)

    monkeypatch.setattr(Engine, "row_losses", slow_forward)
    monkeypatch.setattr(Engine, "loss_and_gradients", slow_update)
    recorder = Recorder()
    store = KeptValues(tmp_path / "kept") if is_kept else None
    limit = 0.9 * positions  # seconds; a validation of all positions takes more than is left for the training
    small = LONG.model_copy(
        update={"optimizer": LONG.optimizer.model_copy(update={"tokens_per_update": 128})}
    )
    outcome = run(small, recorder=recorder, clock=Clock(limit, lambda: passed[0]), speed=1e4, store=store)
    plans = [event.plan for event in recorder.events if isinstance(event, TimePlanned)]
    assert plans[1]["pace"]["source"] == "as the first validation went"
    assert plans[1]["validation_tokens"] < positions
    assert outcome.state.step > 0 and passed[0] < limit


def test_without_a_limit_nothing_is_cut(undisturbed: TrainOutcome) -> None:
    assert not undisturbed.ended_by_time and not undisturbed.time_plan.is_short
    assert undisturbed.state.step == 6


def test_what_it_waits_is_no_part_of_its_speed(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    slept, counter, clock = [0.0], time.perf_counter, time.monotonic
    recorder = Recorder()
    real, asked = recorder.interrupt, set[int]()

    def interrupt() -> None:
        real()
        asked.add(len(recorder.steps))

    def pressure() -> MemoryPressure:
        in_third = 2 in asked and len(recorder.steps) == 2
        return MemoryPressure("critical" if in_third and not slept[0] else "normal", 1, 2)

    def an_hour(_: float) -> None:
        slept[0] += 3600

    recorder.interrupt = interrupt  # type: ignore[method-assign]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: counter() + slept[0])
    there = SimpleNamespace(sleep=an_hour, monotonic=lambda: clock() + slept[0])
    monkeypatch.setattr(throttling, "time", there)
    monkeypatch.setattr(throttling, "memory_pressure", pressure)
    monkeypatch.setattr(throttling, "_LOOK_SECONDS", 0.0)
    outcome = run(settings(), recorder=recorder)
    assert slept == [3600] and outcome.state.step == 6
    assert outcome.state.seconds < 1800 and all(step.seconds < 1800 for step in recorder.steps)


@pytest.mark.parametrize(("done", "place"), [(2, "in step 3"), (0, "in the validation of step 0")])
def test_a_budget_that_the_process_passes_is_noticed_at_once(
    run: Runner, tmp_path: Path, done: int, place: str
) -> None:
    """Something else in the process takes memory on purpose; real footprints, real training."""
    from mlx_gardener.platform.footprint import process_footprint_bytes

    recorder = Recorder()
    taken: list[bytearray] = []
    real = recorder.interrupt

    def take_memory() -> None:
        real()
        if len(recorder.steps) == done and not taken and not recorder.warnings:
            taken.append(bytearray(600 * 1024**2))
            time.sleep(0.2)  # longer than the watch does between two looks
        elif recorder.warnings:
            taken.clear()

    recorder.interrupt = take_memory  # type: ignore[method-assign]
    limit = (process_footprint_bytes() + 300 * 1024**2) / 1024**3
    store = KeptValues(tmp_path / "kept")  # as every fresh training has
    outcome = run(settings(memory_limit_gb=limit), recorder=recorder, rows=4, store=store)
    assert any("GB" in text and place in text for text in recorder.warnings), recorder.warnings
    assert outcome.state.step == 6 and all(math.isfinite(step.loss) for step in recorder.steps)


def test_the_base_is_validated_once_for_all_trainings(
    run: Runner, undisturbed: TrainOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeptValues(tmp_path / "kept")
    first = run(settings(), directory="first", store=store)
    asked: list[int] = []
    real = Engine.row_losses

    def counted(engine: Engine, *args: object, **named: object) -> list[float]:
        asked.append(1)
        return real(engine, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "row_losses", counted)
    again = run(settings(), directory="again", store=store)
    with_cache = len(asked)
    asked.clear()
    run(settings(), directory="without")
    assert with_cache < len(asked)
    assert same(undisturbed, first) and same(first, again)
    assert again.state.validation == first.state.validation
    assert first.state.validation[0][1] == pytest.approx(undisturbed.state.validation[0][1])
