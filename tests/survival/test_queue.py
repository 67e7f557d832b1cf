"""Projects that wait for their training: in order, within a budget, through reboots, each trained exactly once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gardener import TrainingPipeline
from mlx_gardener.errors import RegistryError, TrainingError
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.queue_runner import QueueRunner
from mlx_gardener.runs.queue_start import ensure_runner, is_running
from tests.support.commands import gardener_here, train_flags
from tests.support.trainings import WAIT, standing_still, tiny_settings, until
from tests.survival.reboots import adapters_of, waiting, work_through

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere


@pytest.fixture
def pipeline(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingPipeline:
    """Trains in about three seconds; nobody works on the queue unless the test does."""
    monkeypatch.setattr("mlx_gardener.runs.manager.ensure_runner", lambda registry: False)
    little = {"evaluation.arms": []}
    return TrainingPipeline(tiny_settings(tiny_model_dir, checkpoint_interval_seconds=1e-6, **little))


@pytest.fixture
def quick_pipeline(pipeline: TrainingPipeline) -> TrainingPipeline:
    """The same with one update: for what is seen of when trainings begin and end."""
    optimizer = pipeline.config.optimizer.model_copy(update={"max_steps": 1})
    pipeline.use(pipeline.config.model_copy(update={"optimizer": optimizer}))
    return pipeline


def enqueue(pipeline: TrainingPipeline, repository: Path, *names: str, **settings: int) -> None:
    for name in names:
        pipeline.registry.register_project(name, repository)
        pipeline.enqueue_training(name, **settings)


def test_higher_priorities_come_first_then_first_come(pipeline: TrainingPipeline, repository: Path) -> None:
    registry = pipeline.registry
    enqueue(pipeline, repository, "one", "two")
    enqueue(pipeline, repository, "urgent", priority=5)
    assert waiting(registry) == ["urgent", "one", "two"]
    registry.queue.set_priority("two", 9)
    assert waiting(ProjectRegistry(registry.home)) == ["two", "urgent", "one"]
    assert registry.get_project("two").status is TrainingStatus.QUEUED
    with pytest.raises(TrainingError, match="in the queue already"):
        pipeline.enqueue_training("one")
    assert pipeline.cancel_training("one") and waiting(registry) == ["two", "urgent"]
    with pytest.raises(RegistryError, match="not in the queue"):
        registry.queue.set_priority("one", 1)
    registry.remove_project("urgent")
    assert waiting(registry) == ["two"]


def spans(registry: ProjectRegistry, names: list[str]) -> list[tuple[float, float]]:
    found = []
    for name in names:
        record = registry.latest_training(name)
        assert record is not None and record.status is TrainingStatus.COMPLETED, record
        found.append((record.started_at, record.finished_at or 0.0))
    return found


def test_side_by_side_within_a_budget_and_what_cannot_be_trained_is_let_go(
    quick_pipeline: TrainingPipeline, repository: Path, tmp_path: Path
) -> None:
    pipeline = quick_pipeline
    told: list[str] = []
    empty = tmp_path / "empty"
    empty.mkdir()
    enqueue(pipeline, empty, "nothing")
    enqueue(pipeline, repository, "one", "two")
    budget = 3 * pipeline.config.memory_limit_bytes
    QueueRunner(pipeline.registry, budget_bytes=budget, tell=told.append).run()
    first, second = spans(pipeline.registry, ["one", "two"])
    assert second[0] < first[1], "they should have been trained side by side"
    assert any(line.startswith("nothing: failed") for line in told)


def test_only_one_process_works_on_a_queue_and_on_one_project_at_a_time_without_a_budget(
    quick_pipeline: TrainingPipeline, repository: Path
) -> None:
    pipeline, registry = quick_pipeline, quick_pipeline.registry
    enqueue(pipeline, repository, "one", "two")
    command = [sys.executable, "-m", "mlx_gardener", "queue", "run", "--forever"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        until(lambda: is_running(registry), "the runner")
        with pytest.raises(TrainingError, match="Another process"):
            QueueRunner(registry).run()
        assert not ensure_runner(registry)
        until(lambda: not waiting(registry), "an empty queue")
        enqueue(pipeline, repository, "three")
        until(lambda: not waiting(registry), "an empty queue again")
        worker.send_signal(signal.SIGINT)
    first, second, _ = spans(registry, ["one", "two", "three"])
    assert first[1] <= second[0]
    assert worker.returncode == 130


@pytest.mark.parametrize("count", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_what_was_queued_is_trained_exactly_once_through_three_reboots(
    pipeline: TrainingPipeline, repository: Path, count: int
) -> None:
    """Ten of them also by ``benchmarks/reboots.py``, which keeps what it saw."""
    registry = pipeline.registry
    names = [f"project-{number}" for number in range(count)]
    enqueue(pipeline, repository, *names)
    met = work_through(
        registry,
        reboots=3,
        choose=random.Random(count),
        until=lambda condition, what: until(condition, what, seconds=WAIT * count),
    )
    assert len(met) == 3 and all(reboot["processes_killed"] >= 2 for reboot in met), met
    spans(registry, names)
    assert adapters_of(registry, names) == {name: ["v1"] for name in names}
    assert not registry.check()


def test_the_commands(tiny_model_dir: Path, repository: Path) -> None:
    for name in ("one", "two", "three"):
        flags = train_flags(
            tiny_model_dir, **{"evaluation.tasks": 0, "evaluation.arms": '["base","adapter"]'}
        )
        done = gardener_here("train", str(repository), "--project", name, "--queue", *flags)
        assert done.returncode == 0 and "in the queue" in done.stdout, done.stderr
    registry = ProjectRegistry()
    until(lambda: is_running(registry) and registry.active_trainings(), "the runner and a training")
    with standing_still(TrainingPipeline(registry=registry), "one"):  # the others wait for it
        assert gardener_here("queue", "first", "three").returncode == 0
        assert gardener_here("queue", "priority", "two", "-5").returncode == 0
        listed = json.loads(gardener_here("queue", "list", "--json").stdout)
        assert listed["runs"] and [row["project"] for row in listed["queue"]] == ["three", "one", "two"]
        assert gardener_here("queue", "remove", "two").returncode == 0
        missing = gardener_here("queue", "remove", "two")
        assert missing.returncode == 1 and "not in the queue" in missing.stderr
        assert gardener_here("train", str(repository), "--priority", "3").returncode == 2
    until(lambda: not waiting(registry), "an empty queue", seconds=3 * WAIT)
    spans(registry, ["one", "three"])
    until(lambda: not is_running(registry), "the runner's end")
    assert "The queue is empty" in gardener_here("queue").stdout
