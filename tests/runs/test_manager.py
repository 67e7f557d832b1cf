"""Whole runs on a tiny real model: started, watched, cancelled, killed, resumed; nothing of ours is mocked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import mlx_gardener
from mlx_gardener import TrainingPhase, TrainingPipeline, TrainingProgress
from mlx_gardener.engine import measured_backend
from mlx_gardener.errors import TrainingError, TrainingTimeoutError
from mlx_gardener.events import Event, EventBus, StepAdvanced, StepCompleted, TimePlanned, TrainingEnded
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.context import Run
from mlx_gardener.runs.job import Resume
from mlx_gardener.runs.progress import TrainingProgressTracker
from mlx_gardener.training.parallel import Ranks
from mlx_gardener.training.time_plan import Clock
from tests.support.repositories import write_repository
from tests.support.trainings import (
    WAIT,
    endless,
    steps_done,
    tiny_settings,
    until,
    worker_of,
)

#: Of what an adapter is worth, bits per byte alone.
BITS_PER_BYTE = {"evaluation.arms": ["base", "adapter"], "evaluation.tasks": 0}


@pytest.fixture
def pipeline(tiny_model_dir: Path, repository: Path, known_home: Path) -> TrainingPipeline:
    made = TrainingPipeline(tiny_settings(tiny_model_dir))
    made.registry.register_project("small", repository)
    return made


def test_a_repository_becomes_a_registered_adapter(pipeline: TrainingPipeline, home: Path) -> None:
    settings = pipeline.config.throttling.model_copy(update={"low_priority": True})
    pipeline.use(pipeline.config.model_copy(update={"throttling": settings}))
    seen: list[TrainingProgress] = []
    training_id = pipeline.start_training("small", seen.append)
    assert training_id and pipeline.is_training_active("small")
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    assert (end.phase, end.progress_percent) == (TrainingPhase.COMPLETED, 100.0), end.message
    assert not pipeline.is_training_active("small")

    percents = [progress.progress_percent for progress in seen]
    assert percents == sorted(percents)
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == [
        TrainingPhase.INITIALIZING,
        TrainingPhase.PREPARING_DATA,
        TrainingPhase.STARTING_TRAINING,
        TrainingPhase.TRAINING,
        TrainingPhase.COMPLETING,
        TrainingPhase.COMPLETED,
    ]
    figures = {"loss", "tokens_per_second", "memory_bytes", "peak_bytes", "budget_bytes"}
    told = [progress.details for progress in seen]
    first = next(at for at, details in enumerate(told) if "loss" in details)
    assert [details for details in told[first:] if not figures <= set(details)] == [], "none goes again"
    steps = [event for event in pipeline.follow("small") if isinstance(event, StepCompleted)]
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert (end.details["step"], end.details["loss"]) == (6, pytest.approx(steps[-1].loss))

    elsewhere = ProjectRegistry(home)
    record = elsewhere.latest_training("small")
    assert record is not None and record.status is TrainingStatus.COMPLETED
    assert "priority: nice " in (record.run_dir / "worker.log").read_text(), "others come first"
    adapter = elsewhere.get_adapter("small")
    names = {path.relative_to(adapter.directory).as_posix() for path in adapter.directory.rglob("*")}
    assert {
        "mlx/adapters.safetensors",
        "mlx/adapter_config.json",
        "peft/adapter_model.safetensors",
        "peft/adapter_config.json",
        "manifest.json",
        "README.md",
        "report.html",
    } <= names
    manifest = json.loads((adapter.directory / "manifest.json").read_text())
    assert manifest["metrics"] == record.result["metrics"]
    text = "".join(
        (adapter.directory / name).read_text()
        for name in ("manifest.json", "README.md", "mlx/adapter_config.json", "peft/adapter_config.json")
    )
    assert str(home.parent) not in text, "no local absolute path leaves the machine with an adapter"


def test_a_training_on_a_new_machine_imports_little(trained_cache: Path) -> None:
    first, *_ = sorted(trained_cache.with_name("trained-home").glob("projects/small/runs/*/worker.log"))
    log = first.read_text()
    assert "mlx_lm.tokenizer_utils" in log and "transformers.utils" not in log, (
        "tests/platform/test_lean_imports.py"
    )


def test_the_trained_adapter_knows_the_repository_better_than_its_base_and_a_failing_callback_changes_nothing(
    pipeline: TrainingPipeline, tiny_model_dir: Path
) -> None:
    def breaks(progress: TrainingProgress) -> None:
        raise RuntimeError("broken callback")

    config = tiny_settings(
        tiny_model_dir,
        **{
            "optimizer.max_steps": 30,
            "optimizer.epochs": 30,
            "optimizer.learning_rate": 0.02,
            **BITS_PER_BYTE,
        },
    )
    better = TrainingPipeline(config, registry=pipeline.registry)
    better.start_training("small", breaks)
    end = better.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.COMPLETED, end.message
    record = better.registry.latest_training("small")
    assert record is not None
    metrics = record.result["metrics"]
    assert metrics["adapter_bits_per_byte"] < 0.9 * metrics["base_bits_per_byte"]
    learned = measured_backend(better.registry.home / "cache")
    # Memory is not asked for: a plan that foretold it to a thousandth has nothing to learn.
    assert learned.speed_scale != 1, "the next plan knows how this run went"


def test_an_unknown_project_is_an_error_that_offers_a_near_name(pipeline: TrainingPipeline) -> None:
    with pytest.raises(TrainingError, match="smal") as caught:
        pipeline.start_training("smal")
    assert "small" in str(caught.value)


def test_a_project_never_trained_has_no_progress(pipeline: TrainingPipeline) -> None:
    assert pipeline.get_training_progress("small") is None
    assert pipeline.cancel_training("small") is False
    with pytest.raises(TrainingError, match="nothing to resume"):
        pipeline.resume_training("small")


@pytest.mark.usefixtures("known_home")
def test_the_time_limit_ends_a_run_with_a_registered_adapter_and_the_next_one_adds_to_it(
    tiny_model_dir: Path, repository: Path
) -> None:
    """An earlier system never read its timeout; another threw away what was trained when it struck."""
    pipeline = TrainingPipeline(endless(tiny_model_dir, training_timeout_minutes=1.0, **BITS_PER_BYTE))
    pipeline.registry.register_project("small", repository)
    pipeline.start_training("small")
    until(lambda: steps_done(pipeline) >= 1, "a step")
    worker = worker_of(pipeline, "small")
    os.kill(worker, signal.SIGSTOP)  # time goes on all the same, and costs nobody else any
    time.sleep(max(0.0, 36 - (time.time() - psutil.Process(worker).create_time())))  # 18 are kept for the end
    os.kill(worker, signal.SIGCONT)
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.COMPLETED, end.message
    plans = [event.plan for event in pipeline.follow("small") if isinstance(event, TimePlanned)]
    assert plans and plans[0]["limit_seconds"] == pytest.approx(60)
    record = pipeline.registry.latest_training("small")
    assert record is not None
    told = record.result["training"]
    assert told["ended_by_time"] and 0 < told["steps"] < told["time_plan"]["all_updates"]
    first = pipeline.registry.get_adapter("small")
    assert record.result["adapter_version"] == first.version
    assert "bits_per_byte_change" in first.metrics

    again = TrainingPipeline(
        endless(
            tiny_model_dir, **{"training_timeout_minutes": 0.0, "optimizer.max_steps": 3, **BITS_PER_BYTE}
        )
    )
    again.start_training("small")
    end = again.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.COMPLETED, end.message
    record = again.registry.latest_training("small")
    assert record is not None
    added = record.result["training"]
    assert added["parent"] == first.version and added["first_update"] == told["steps"]
    assert added["validation"][0]["bits_per_byte"] == pytest.approx(
        min(seen["bits_per_byte"] for seen in told["validation"]), rel=0.2
    )


@pytest.mark.usefixtures("known_home")
def test_a_limit_that_is_over_before_the_first_update_is_an_error(
    tiny_model_dir: Path, repository: Path
) -> None:
    pipeline = TrainingPipeline(endless(tiny_model_dir, training_timeout_minutes=0.001))
    pipeline.registry.register_project("small", repository)
    pipeline.start_training("small")
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.FAILED and "time limit of 0.001 minutes" in end.message
    record = pipeline.registry.latest_training("small")
    assert record is not None and "Traceback" not in (record.run_dir / "worker.log").read_text()
    assert not pipeline.registry.list_adapters("small")


@pytest.mark.usefixtures("known_home")
def test_a_run_that_is_cancelled_while_it_is_measured_ends_registered(
    tiny_model_dir: Path, repository: Path
) -> None:
    settings = {"evaluation.tasks": 60, "evaluation.time_share": 10, "evaluation.max_new_tokens": 200}
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir, **settings))
    pipeline.registry.register_project("small", repository)
    pipeline.start_training("small")

    def is_measured() -> bool:
        progress = pipeline.get_training_progress("small")
        return progress is not None and "next lines" in progress.message

    until(is_measured, "an evaluation")
    assert pipeline.cancel_training("small")
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.CANCELLED and "v1 is registered" in end.message, end.message
    adapter = pipeline.registry.get_adapter("small")
    manifest = json.loads((adapter.directory / "manifest.json").read_text(encoding="utf-8"))
    assert "Not measured, as it was cancelled" in manifest["evidence"]["notes"][-1]
    assert manifest["evidence"]["verdict"] != "unmeasured"
    assert pipeline.unfinished_training("small") is None, "the next training is a new one"


@pytest.mark.usefixtures("known_home")
def test_a_training_of_an_earlier_version_goes_on_with_the_settings_it_had(
    tiny_model_dir: Path, repository: Path
) -> None:
    without = TrainingPipeline(endless(tiny_model_dir, **{"data.edit_share": 0}))
    registry = without.registry
    registry.register_project("small", repository)
    config = without.config.model_dump(mode="json") | {"continue_from": "never", "checkpoints_kept": 2}
    for name in ("edit_share", "general_share", "retrieval_share"):
        del config["data"][name]
    config["evaluation"]["forgetting_limit"] = 0.1
    last = registry.begin_training("small", config)
    (last.run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)
    registry.finish_training(last.id, TrainingStatus.CANCELLED, "cancelled", {})

    assert without.unfinished_training("small") is not None, "it knew no edits"
    with_edits = TrainingPipeline(endless(tiny_model_dir), registry=registry)
    assert with_edits.unfinished_training("small") is None, "these are other rows"
    with_edits.resume_training("small")
    with_edits.cancel_training("small")
    with_edits.wait_for_training_completion("small", timeout=WAIT)
    record = registry.latest_training("small")
    assert record is not None and record.id != last.id and record.config["data"]["edit_share"] == 0


def test_two_projects_train_at_the_same_time_and_each_only_once_at_a_time_across_processes(
    endless_pipeline: TrainingPipeline, tmp_path: Path
) -> None:
    pipeline = endless_pipeline
    pipeline.registry.register_project("other", write_repository(tmp_path / "other", modules=10))
    with pipeline.training_context("small"), pipeline.training_context("other"):
        assert set(pipeline.get_active_trainings()) == {"small", "other"}
        with pytest.raises(TrainingError, match="already"):
            pipeline.start_training("small")
        code = (
            "import sys\nfrom mlx_gardener import TrainingPipeline, TrainingError\n"
            "pipeline = TrainingPipeline()\n"
            "print(pipeline.is_training_active('small'), sorted(pipeline.get_active_trainings()))\n"
            "try:\n    pipeline.start_training('small')\nexcept TrainingError as error:\n    print(error)\n"
        )
        elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert elsewhere.stdout.startswith("True ['other', 'small']\n") and "already" in elsewhere.stdout
        # Waiting has a limit, and the training goes on.
        with pytest.raises(TrainingTimeoutError, match="goes on"):
            pipeline.wait_for_training_completion("small", timeout=0.05)
        assert pipeline.is_training_active("small")
        until(lambda: steps_done(pipeline) and steps_done(pipeline, "other"), "a step in both")
    assert pipeline.get_active_trainings() == {} and not pipeline.is_training_active("small")


@pytest.mark.usefixtures("known_home")
def test_train_blocks_and_returns_a_result_that_displays_itself(
    tiny_model_dir: Path, repository: Path
) -> None:
    events: list[object] = []
    result = mlx_gardener.train(repository, config=tiny_settings(tiny_model_dir), on_event=events.append)
    assert result.project == "repository" and (result.directory / "manifest.json").exists()
    assert sum(isinstance(event, StepCompleted) for event in events) == 6
    assert "<svg" in result._repr_html_()
    with pytest.raises(mlx_gardener.ConfigError, match="colour"):
        mlx_gardener.train(repository, colour="green")


def test_no_room_takes_the_place_of_a_public_name() -> None:
    import pkgutil

    rooms = {room.name for room in pkgutil.iter_modules(mlx_gardener.__path__)}
    assert not rooms & set(mlx_gardener.__all__)


@pytest.mark.usefixtures("known_home")
def test_the_events_can_be_awaited(
    tiny_model_dir: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener import api

    monkeypatch.setattr(api, "_pipeline", TrainingPipeline(tiny_settings(tiny_model_dir)))
    mlx_gardener.get_training_pipeline().registry.register_project("small", repository)
    mlx_gardener.start_project_training("small")
    assert mlx_gardener.is_project_training_active("small")

    async def watch() -> list[object]:
        return [event async for event in mlx_gardener.watch_training("small")]

    events = asyncio.run(watch())
    assert isinstance(events[-1], TrainingEnded) and events[-1].phase is TrainingPhase.COMPLETED
    progress = mlx_gardener.get_project_training_progress("small")
    assert progress is not None and progress.phase is TrainingPhase.COMPLETED
    assert mlx_gardener.cancel_project_training("small") is False


@pytest.mark.parametrize("activity", ["Step", "Validation"])
def test_part_of_a_slow_step_moves_the_progress(
    home: Path, repository: Path, tiny_model_dir: Path, activity: str
) -> None:
    registry, config = ProjectRegistry(home), tiny_settings(tiny_model_dir)
    project = registry.register_project("small", repository)
    record = registry.begin_training("small", {})
    bus = EventBus()
    run = Run(
        training_id=record.id,
        project=project,
        config=config,
        directory=record.run_dir,
        resume=Resume.NEVER,
        smaller_plan=False,
        registry=registry,
        bus=bus,
        tracker=TrainingProgressTracker(registry, record.id, bus=bus),
        interrupt=lambda: None,
        ranks=Ranks(),
        clock=Clock(),
    )
    run.tell(TrainingPhase.TRAINING, 0.0, "Training")
    before = registry.get_training(record.id).percent
    written: list[Event] = []

    def write_slowly(event: Event) -> None:
        time.sleep(0.2 if isinstance(event, StepCompleted) else 0.0)
        written.append(event)

    bus.subscribe(write_slowly)
    whole = StepCompleted(2, 10, 0.2, 1.0, 8, 1e-3, 1.0, 1.0, 8.0, 1, 1, 2)
    run.publish(whole)
    assert whole in written, "before its checkpoint, after which it is not done again"
    run.publish(StepAdvanced(activity, 3, 10, 0.5, 4.0))
    bus.close()
    after = registry.get_training(record.id)
    assert after.percent > before and after.details["share"] == 0.5
    where = {"Step": "Step", "Validation": "Validation at step"}[activity]
    assert after.message == f"{where} 3 of 10, 50% of it done"
