"""Checkpoints: a training stopped anywhere goes on as if it had never stopped, whatever became of its newest files."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_gardener.dataset import PreparedData
from mlx_gardener.errors import TrainingCancelledError, TrainingError
from mlx_gardener.events import CheckpointWritten
from mlx_gardener.model import BaseModel
from mlx_gardener.training import TrainOutcome
from mlx_gardener.training.checkpoint import (
    MOST_LOSSES,
    Checkpoint,
    TrainState,
    list_checkpoints,
    load_checkpoint,
    newest_origin,
    save_checkpoint,
    set_aside,
)
from tests.support.loops import Recorder, Runner, same, settings


class StopAt(Recorder):
    """Interrupts at the n-th time the run asks whether to stop: inside a step, an evaluation, between both."""

    def __init__(self, number: int | None) -> None:
        super().__init__()
        self.asked, self._number = 0, number

    def interrupt(self) -> None:
        self.asked += 1
        if self.asked == self._number:
            raise TrainingCancelledError("stopped by the test")


EXACT = {"evaluation.per_epoch": 8, "evaluation.patience": 100, "checkpoint_interval_seconds": 1e6}


@pytest.mark.parametrize("every", [pytest.param(9, marks=pytest.mark.slow), 23])
def test_a_training_stopped_at_any_question_ends_as_the_uninterrupted_one(run: Runner, every: int) -> None:
    """A stop inside an evaluation used to lose that evaluation, and with it perhaps the best adapter."""
    config = settings(**EXACT)
    counter = StopAt(None)
    whole = run(config, directory="whole", recorder=counter)
    assert len(whole.state.validation) > 2 and counter.asked > 20

    for number in range(1, counter.asked + 1, every):
        with pytest.raises(TrainingCancelledError):
            run(config, directory=f"stop-{number}", recorder=StopAt(number))
        resumed = run(config, directory=f"stop-{number}", resume=True)
        assert resumed.state.validation == whole.state.validation, f"stopped at question {number}"
        assert resumed.state.train_losses == whole.state.train_losses
        assert resumed.state.best_step == whole.state.best_step
        assert same(whole, resumed), f"stopped at question {number}"


def stopped(run: Runner, directory: str, at: int, **more: object) -> None:
    with pytest.raises(TrainingCancelledError):
        run(settings(**more), directory=directory, recorder=Recorder(stop_at=at))


def test_a_checkpoint_from_when_more_was_a_setting_belongs_to_the_same_training(
    run: Runner, tmp_path: Path
) -> None:
    stopped(run, "now", 2, **{"evaluation.tasks": 40})
    saved = load_checkpoint(tmp_path / "now", fingerprint=_fingerprint_in(tmp_path / "now"), warn=pytest.fail)
    assert saved is not None
    then = dict(saved.origin.config)
    tested = {key: value for key, value in then["evaluation"].items() if key != "tasks"}
    then["evaluation"] = tested | {
        "next_line_tasks": 40, "fim_tasks": 8, "least_tasks": 4, "memorisation_places": 3, "forgetting_limit": 0.1,
    }  # fmt: skip
    earlier = replace(
        saved, origin=replace(saved.origin, config=then), state=replace(saved.state, fingerprint="of then")
    )
    save_checkpoint(tmp_path / "then", earlier, keep=1)
    gone_on_with = Recorder()
    run(settings(**{"evaluation.tasks": 40}), directory="then", recorder=gone_on_with, resume=True)
    steps = [event.step for event in gone_on_with.events if isinstance(event, CheckpointWritten)]
    assert steps and steps[0] > 2, "it did not begin anew"

    then["optimizer"] = then["optimizer"] | {"beta1": 0.5}
    save_checkpoint(tmp_path / "other", earlier, keep=1)
    with pytest.raises(TrainingError, match="belongs to another base model, other settings"):
        run(settings(**{"evaluation.tasks": 40}), directory="other", resume=True)


def _fingerprint_in(directory: Path) -> str:
    state = json.loads((list_checkpoints(directory)[-1] / "state.json").read_text(encoding="utf-8"))
    return str(state["body"]["state"]["fingerprint"])


def test_a_checkpoint_says_what_it_is_a_checkpoint_of(
    run: Runner, base: BaseModel, data: PreparedData, tmp_path: Path
) -> None:
    stopped(run, "told", 2)
    found = newest_origin(tmp_path / "told")
    assert found is not None
    step, origin = found
    assert (step, origin.data_sha256, origin.base_sha256) == (2, data.data_sha256, base.weights_sha256)
    assert origin.config == settings().model_dump(mode="json")
    assert origin.plan["rows_of_width"] == {"64": 2, "128": 2}


@pytest.mark.parametrize(
    "name", ["state.json", "weights.safetensors", "best.safetensors", "optimizer.safetensors"]
)
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
@pytest.mark.usefixtures("undisturbed")
def test_any_damage_to_any_file_is_noticed(
    undisturbed_directory: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """That a training goes on from the one before is seen in test_loop.py."""
    hurt = shutil.copytree(undisturbed_directory, tmp_path / "hurt")
    fingerprint = _fingerprint_in(hurt)
    file = list_checkpoints(hurt)[-1] / name
    content = file.read_bytes()
    if damage == "changed":
        digit = b'"bad_evaluations": '
        at = content.index(digit) + len(digit) if name == "state.json" else len(content) - 5
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif damage == "cut":
        file.write_bytes(content[:-7])
    else:
        file.unlink()
    warnings: list[str] = []
    found = load_checkpoint(hurt, fingerprint=fingerprint, warn=warnings.append)
    assert len(warnings) == 1 and "step-00000006 cannot be used" in warnings[0], warnings
    assert found is not None and found.state.step == 5, "the one before"


def test_the_good_checkpoint_is_kept_when_a_later_damaged_one_is_in_its_way(
    run: Runner, undisturbed: TrainOutcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept by number only, the damaged later one would have pushed out the good earlier ones."""
    monkeypatch.setattr("mlx_gardener.training.standing.CHECKPOINTS_KEPT", 4)
    stopped(run, "hurt", 5)
    for path in list_checkpoints(tmp_path / "hurt")[-3:]:
        (path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setattr("mlx_gardener.training.standing.CHECKPOINTS_KEPT", 1)
    with pytest.raises(TrainingCancelledError):
        run(settings(), directory="hurt", recorder=Recorder(stop_at=1), resume=True)
    assert [path.name for path in list_checkpoints(tmp_path / "hurt")] == ["step-00000003.1"]
    assert same(undisturbed, run(settings(), directory="hurt", resume=True))


def test_a_checkpoint_never_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one used to be deleted first: a crash right then left none."""
    one = Checkpoint(TrainState(step=4), {"a": mx.zeros(3)}, {}, {})
    other = Checkpoint(TrainState(step=4, validation=[(4, 1.0, 1.0)]), {"a": mx.ones(3)}, {}, {})
    save_checkpoint(tmp_path / "c", one, keep=1)
    good_at_every_call: list[bool] = []

    looking = False

    def look() -> None:
        """Load what a crash right now would leave, from a copy, since loading deletes half-written ones."""
        nonlocal looking
        if looking:  # copying and loading make the same calls
            return
        looking = True
        shutil.copytree(tmp_path / "c", tmp_path / "seen")
        found = load_checkpoint(tmp_path / "seen", fingerprint="", warn=lambda message: None)
        shutil.rmtree(tmp_path / "seen")
        looking = False
        good_at_every_call.append(found is not None)

    for name in ("rename", "rmdir", "unlink", "mkdir", "fsync"):
        real = getattr(os, name)

        def watched(*arguments: object, real: Callable[..., object] = real, **options: object) -> object:
            look()
            result = real(*arguments, **options)
            look()
            return result

        monkeypatch.setattr(os, name, watched)
    save_checkpoint(tmp_path / "c", other, keep=1)
    assert len(good_at_every_call) > 10 and all(good_at_every_call)
    found = load_checkpoint(tmp_path / "c", fingerprint="", warn=lambda message: None)
    assert found is not None and found.state.validation and found.weights["a"].tolist() == [1, 1, 1]
    assert len(list_checkpoints(tmp_path / "c")) == 1


def test_a_disk_that_takes_a_few_bytes_at_a_time_still_gets_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:7])

    real = Path.open

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return Slow(path, mode) if mode == "xb" else real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    weights = {"a": mx.random.normal((5, 7))}
    save_checkpoint(tmp_path, Checkpoint(TrainState(step=1), weights, {}, {}), keep=1)
    found = load_checkpoint(tmp_path, fingerprint="", warn=pytest.fail)
    assert found is not None and mx.array_equal(found.weights["a"], weights["a"])


def test_what_a_crash_left_half_written_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".step-00000007.new").mkdir()
    (tmp_path / ".step-00000007.new" / "weights.safetensors").write_bytes(b"half")
    (tmp_path / ".step-00000002.dropped").mkdir()
    assert load_checkpoint(tmp_path, fingerprint="", warn=pytest.fail) is None
    save_checkpoint(tmp_path, Checkpoint(TrainState(step=8), {"a": mx.zeros(1)}, {}, {}), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_only_as_many_as_asked_for_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, Checkpoint(TrainState(step=step), {"a": mx.zeros(1)}, {}, {}), keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{step:08d}" for step in (3, 4, 5)]


def test_all_of_a_checkpoint_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, before, fsync, rename = set[int](), set[int](), os.fsync, Path.rename

    def fsynced(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        assert not before, "renamed twice"
        before.update(synced)
        synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsynced)
    monkeypatch.setattr(Path, "rename", renamed)
    made = save_checkpoint(tmp_path, Checkpoint(TrainState(step=1), {"a": mx.zeros(1)}, {}, {}), keep=1)
    assert {path.stat().st_ino for path in (made, *made.iterdir())} <= before
    assert tmp_path.stat().st_ino in synced, "the new name itself may be lost"


def test_setting_checkpoints_aside_keeps_those_of_one_earlier_training(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "c", Checkpoint(TrainState(step=step), {"a": mx.zeros(1)}, {}, {}), keep=1)
        aside = set_aside(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert [path.name for path in list_checkpoints(aside)] == ["step-00000002"]


def test_the_losses_of_a_long_training_are_thinned_out_and_stay_in_their_places() -> None:
    """Every loss used to be kept, and written with every checkpoint: a training grew with its length."""
    state = TrainState()
    for step in range(1, 3 * MOST_LOSSES):
        state.step = step
        state.remember_loss(float(step))
        assert len(state.train_losses) <= MOST_LOSSES
    assert state.updates_per_loss == 4
    assert state.train_losses == [float(step) for step in range(1, 3 * MOST_LOSSES, 4)]
