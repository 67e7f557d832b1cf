"""A worker's death is explained and mended; whoever asked for the training may die too."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_gardener import TrainingPhase, TrainingPipeline
from mlx_gardener.errors import TrainingError
from mlx_gardener.events import Event, StepCompleted, TrainingEnded, WarningRaised
from mlx_gardener.platform.processes import module_command
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.registry.database import BUSY_TIMEOUT_SECONDS
from mlx_gardener.runs.interrupt import Interrupt
from mlx_gardener.runs.job import LOG_NAME, Job
from mlx_gardener.runs.journal import JOURNAL_NAME, read_journal
from mlx_gardener.runs.recovery import RESULT_NAME, Resume
from mlx_gardener.runs.supervisor import describe_death
from mlx_gardener.runs.worker import only_worker
from tests.support.commands import gardener, gardener_here, train_flags
from tests.support.trainings import (
    WAIT,
    endless,
    is_alive,
    standing_still,
    steps_done,
    tiny_settings,
    until,
    worker_of,
)
from tests.support.watchdog import INTERACTIVITY
from tests.survival.memory_cgroup import memory_cgroup
from tests.survival.storm import CGROUP_BYTES, fault


def warnings_of(pipeline: TrainingPipeline) -> list[str]:
    return [event.message for event in pipeline.follow("small") if isinstance(event, WarningRaised)]


def warnings_so_far(pipeline: TrainingPipeline) -> list[str]:
    return [event.message for event in events_so_far(pipeline) if isinstance(event, WarningRaised)]


def events_so_far(pipeline: TrainingPipeline) -> list[Event]:
    record = pipeline.registry.latest_training("small")
    assert record is not None
    return read_journal(record.run_dir / JOURNAL_NAME, Job.read(record.run_dir).journal_offset)[0]


def wait(pipeline: TrainingPipeline) -> TrainingPhase:
    return pipeline.wait_for_training_completion("small", timeout=WAIT).phase


#: A checkpoint after every step.
SAVING = {"checkpoint_interval_seconds": 1e-6}
#: A training of a second or two that comes to its end; what is measured of its adapter is not what a test here looks at.
SHORT = {
    **SAVING,
    "optimizer.max_steps": 16,
    "optimizer.epochs": 50,
    "evaluation.arms": [],
}


@pytest.fixture
def saving_pipeline(tiny_model_dir: Path, repository: Path, known_home: Path) -> TrainingPipeline:
    """Its trainings only end when somebody ends them: how fast a step is decides nothing."""
    made = TrainingPipeline(endless(tiny_model_dir, **SAVING))
    made.registry.register_project("small", repository)
    return made


def train_on_and_cancel(pipeline: TrainingPipeline) -> None:
    done = steps_done(pipeline)
    until(lambda: steps_done(pipeline) > done + 1, "two more steps")
    pipeline.cancel_training("small")
    assert wait(pipeline) is TrainingPhase.CANCELLED, pipeline.registry.latest_training("small")


def test_a_worker_that_died_is_replaced_and_that_is_said_and_by_a_gentler_one_after_the_gpu_watchdog_of_macos(
    saving_pipeline: TrainingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog with what real Macs left in the log, since there is none here; the second time with a smaller plan too."""
    pipeline = saving_pipeline
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    percents: list[float] = []
    pipeline.start_training("small", lambda progress: percents.append(progress.progress_percent))
    deaths, done = ((signal.SIGSEGV, ""), (signal.SIGABRT, INTERACTIVITY), (signal.SIGABRT, INTERACTIVITY)), 0
    for at, (number, words) in enumerate(deaths):
        until(lambda done=done: steps_done(pipeline) >= done + 2, "two more steps")
        victim = worker_of(pipeline, "small")
        environment = psutil.Process(victim).environ()
        assert environment.get("AGX_RELAX_CDM_CTXSTORE_TIMEOUT") == ("1" if at == 2 else None)
        assert environment["MLX_MAX_OPS_PER_BUFFER"] == "7", "what somebody has set stays"
        assert environment.get("MLX_MAX_MB_PER_BUFFER") == ("10" if at == 2 else None)
        record = pipeline.registry.latest_training("small")
        assert record is not None
        with (record.run_dir / LOG_NAME).open("a") as log:
            log.write(words)
        os.kill(victim, number)
        until(lambda victim=victim: not is_alive(victim), "its death")
        done = steps_done(pipeline)
    train_on_and_cancel(pipeline)
    told = [message for message in warnings_of(pipeline) if "last checkpoint" in message]
    assert len(told) == 3 and all(number.name in told[at] for at, (number, _) in enumerate(deaths)), told
    assert ["GPU watchdog" in one for one in told] == [False, True, True]
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in told[1]
    assert ["a plan for less memory" in one for one in told] == [False, False, True]
    steps = [event.step for event in pipeline.follow("small") if isinstance(event, StepCompleted)]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1)), steps
    assert len(steps) <= len(set(steps)) + 2 * len(deaths), "only the step under way is done again"
    assert percents == sorted(percents)


def test_a_worker_that_keeps_dying_at_the_same_place_is_given_up_and_its_run_can_go_on(
    endless_pipeline: TrainingPipeline,
) -> None:
    pipeline = endless_pipeline
    pipeline.start_training("small")
    until(lambda: steps_done(pipeline) >= 1, "a step")
    for _ in range(2):  # without a new checkpoint in between
        victim = worker_of(pipeline, "small")
        os.kill(victim, signal.SIGKILL)
        until(lambda victim=victim: not is_alive(victim), "its death")
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.FAILED and "signal 9" in end.message
    record = pipeline.registry.latest_training("small")
    assert record is not None and "signal 9" in record.message and "logs small" in record.message
    assert not pipeline.is_training_active("small")
    assert isinstance(list(pipeline.follow("small"))[-1], TrainingEnded)
    pipeline.resume_training("small")
    until(lambda: pipeline.get_training_progress("small").phase is TrainingPhase.TRAINING, "training again")  # type: ignore[union-attr]
    pipeline.cancel_training("small")
    assert pipeline.wait_for_training_completion("small", timeout=WAIT).phase is TrainingPhase.CANCELLED


def test_a_worker_that_runs_out_of_address_space_is_replaced_with_a_plan_for_less_memory(
    saving_pipeline: TrainingPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = saving_pipeline
    # With one thread, as tests have it, arrays that were freed may do for all that follows; products on all cores map more.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pipeline.start_training("small")
    until(lambda: steps_done(pipeline) >= 2, "two steps")
    worker = worker_of(pipeline, "small")
    # No further mapping is granted from here on, also where a validation gives back what steps keep for reuse.
    size = psutil.Process(worker).memory_info().vms - 2**30
    resource.prlimit(worker, resource.RLIMIT_AS, (size, size))
    told = " ".join(until(lambda: warnings_so_far(pipeline), "a warning"))
    assert "memory ran out" in told or "memory that could not be had" in told, told
    train_on_and_cancel(pipeline)


def test_a_worker_that_the_kernel_kills_for_memory_is_replaced_and_that_is_said(
    saving_pipeline: TrainingPipeline,
) -> None:
    pipeline = saving_pipeline
    with memory_cgroup(CGROUP_BYTES) as procs:
        if procs is None:
            pytest.skip("no memory cgroup can be made here")
        pipeline.start_training("small")
        until(lambda: steps_done(pipeline) >= 2, "two steps")
        procs.write_text(str(worker_of(pipeline, "small")))  # what it takes from here on is counted
        told = " ".join(until(lambda: warnings_so_far(pipeline), "a warning"))
        assert "signal 9 (SIGKILL): memory ran out" in told and "a plan for less memory" in told, told
        train_on_and_cancel(pipeline)


def test_the_time_limit_counts_the_time_of_earlier_workers(saving_pipeline: TrainingPipeline) -> None:
    registry = saving_pipeline.registry
    training = registry.begin_training("small", {})
    interrupt = Interrupt(registry, training.id, 1.0, seconds_used=59.9)
    with pytest.raises(TrainingError, match="time limit of 1 minutes"):
        until(lambda: interrupt(), "its time is over")
    registry.finish_training(training.id, TrainingStatus.FAILED, "done with it", {})


def test_the_time_limit_does_not_count_what_a_base_takes_to_be_fetched(
    saving_pipeline: TrainingPipeline,
) -> None:
    registry = saving_pipeline.registry
    training = registry.begin_training("small", {})
    interrupt = Interrupt(registry, training.id, 1.0, seconds_used=59.0)
    try:
        with interrupt.clock_stands():
            used = interrupt.clock.used_seconds()
            time.sleep(1.5)  # longer than what is left
            interrupt()
            assert interrupt.clock.used_seconds() == used
        assert interrupt.clock.used_seconds() >= used
        with pytest.raises(TrainingError, match="time limit of 1 minutes"):
            until(lambda: interrupt(), "its time is over")
    finally:
        interrupt.close()
        registry.finish_training(training.id, TrainingStatus.FAILED, "done with it", {})


def test_a_worker_whose_supervisor_dies_stops_with_a_checkpoint(endless_pipeline: TrainingPipeline) -> None:
    pipeline = endless_pipeline
    pipeline.start_training("small")
    until(lambda: steps_done(pipeline) >= 2, "two steps")
    worker = worker_of(pipeline, "small")
    record = pipeline.registry.latest_training("small")
    assert record is not None and record.pid is not None
    os.kill(record.pid, signal.SIGKILL)
    until(lambda: not is_alive(worker), "the worker's end")
    assert wait(pipeline) is TrainingPhase.FAILED
    assert any((record.run_dir / "checkpoints").glob("step-*"))


@pytest.mark.usefixtures("known_home")
def test_a_worker_whose_supervisor_died_while_it_was_starting_trains_nothing(
    tiny_model_dir: Path, repository: Path, tmp_path: Path
) -> None:
    """It took whoever was its parent then for its supervisor, trained to the end, and registered beside the next training."""
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir))
    pipeline.registry.register_project("small", repository)
    with fault(tmp_path / "fault.json", "orphan"):
        pipeline.start_training("small")
        assert wait(pipeline) is TrainingPhase.FAILED
    record = pipeline.registry.latest_training("small")
    assert record is not None
    until(lambda: not _works_in(record.run_dir), "the end of the worker that is left")
    assert "watched over the training is gone" in (record.run_dir / LOG_NAME).read_text()
    assert not pipeline.registry.list_adapters("small")
    pipeline.start_training("small")
    assert wait(pipeline) is TrainingPhase.COMPLETED
    assert [adapter.version for adapter in pipeline.registry.list_adapters("small")] == ["v1"]


def _works_in(run_dir: Path) -> bool:
    """Whether any process was started with a run's directory."""
    return any(
        str(run_dir) in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    )


def test_a_supervisor_that_comes_after_its_training_was_closed_trains_nothing(
    tiny_model_dir: Path, repository: Path
) -> None:
    """Who asked for it was killed before it could say whose it is, and the next one took it for dead."""
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir))
    registry = pipeline.registry
    registry.register_project("small", repository)
    record = registry.begin_training("small", pipeline.config.model_dump(mode="json"))
    Job(record.id, "small", record.config, Resume.NEVER, 0).write(record.run_dir)
    registry.finish_training(record.id, TrainingStatus.FAILED, "Its process ended without a word.", {})
    late = subprocess.run(
        module_command("mlx_gardener.runs.supervisor", str(record.run_dir)), capture_output=True, text=True
    )
    assert late.returncode == 1 and "closed before it was begun" in late.stderr
    assert not registry.list_adapters("small")


def test_a_shutdown_ends_a_training_with_a_checkpoint(endless_pipeline: TrainingPipeline) -> None:
    pipeline = endless_pipeline
    pipeline.start_training("small")
    until(lambda: steps_done(pipeline) >= 2, "two steps")
    record = pipeline.registry.latest_training("small")
    assert record is not None and record.pid is not None
    assert psutil.Process(record.pid).memory_info().rss < 100e6, "a supervisor costs little"
    assert not isinstance(next(pipeline.follow("small", from_now=True)), TrainingEnded)
    os.kill(record.pid, signal.SIGTERM)
    assert wait(pipeline) is TrainingPhase.FAILED
    assert "asked the training to end" in str(pipeline.get_training_progress("small"))
    assert any((record.run_dir / "checkpoints").glob("step-*"))


def test_two_workers_never_write_in_the_same_run(tmp_path: Path) -> None:
    with only_worker(tmp_path):
        with pytest.raises(TrainingError, match="Another worker"), only_worker(tmp_path, wait_seconds=0.2):
            pass
    with only_worker(tmp_path, wait_seconds=0.2):
        pass


@pytest.mark.parametrize(
    ("code", "out_of_memory", "words"),
    [
        (-9, False, ["signal 9 (SIGKILL)", "by hand, or"]),
        (-9, True, ["signal 9 (SIGKILL)", "memory ran out"]),
        (-6, False, ["signal 6 (SIGABRT)", "library"]),
        (-11, False, ["signal 11 (SIGSEGV)"]),
        (-34, False, ["signal 34"]),
        (1, True, ["exit code 1", "memory ran out"]),
        (3, False, ["exit code 3"]),
    ],
)
def test_a_death_is_told_in_words(code: int, out_of_memory: bool, words: list[str]) -> None:
    told = describe_death(code, out_of_memory=out_of_memory)
    assert all(word in told for word in words), told


def test_a_cancelled_training_keeps_a_checkpoint_and_the_same_command_goes_on_while_others_begin_anew(
    endless_pipeline: TrainingPipeline, tiny_model_dir: Path, repository: Path
) -> None:
    """An earlier system flipped the status while its thread trained on."""
    pipeline = endless_pipeline

    def started(starter: TrainingPipeline, *, fresh: bool = False) -> tuple[int, TrainingRecord]:
        """The first step of a training, which is cancelled after its next one, and how that one ended."""
        starter.start_training("small", fresh=fresh)
        steps = (event for event in starter.follow("small") if isinstance(event, StepCompleted))
        first = next(steps).step
        until(lambda: steps_done(starter) >= first + 1, "another step")
        assert starter.cancel_training("small") is True
        assert wait(starter) is TrainingPhase.CANCELLED
        record = starter.registry.latest_training("small")
        assert record is not None and record.status is TrainingStatus.CANCELLED
        assert record.pid is None or not is_alive(record.pid), "the worker process is gone"
        return first, record

    step, first = started(pipeline)
    assert step == 1 and any((first.run_dir / "checkpoints").iterdir())
    assert not pipeline.registry.list_adapters("small")
    stopped_at = steps_done(pipeline)
    assert pipeline.unfinished_training("small") is not None
    assert TrainingPipeline(endless(tiny_model_dir, seed=5)).unfinished_training("small") is None
    step, second = started(TrainingPipeline(endless(tiny_model_dir, training_timeout_minutes=7)))
    assert step == stopped_at + 1, "it goes on with the next step, not from the beginning"
    assert second.run_dir == first.run_dir

    (repository / "core" / "new.py").write_text("def entirely_new(value):\n    return value * 17\n" * 3)
    step, changed = started(pipeline)
    assert step == 1 and any("has changed since" in told for told in warnings_of(pipeline))
    assert any((changed.run_dir / "checkpoints.old").glob("step-*"))
    step, fresh = started(pipeline, fresh=True)
    assert step == 1 and fresh.run_dir != changed.run_dir


def test_a_worker_that_died_after_registering_does_not_register_again(trained_home: Path) -> None:
    """Killed between the registry's commit and its last word, a run used to leave the same adapter twice."""
    pipeline = TrainingPipeline(registry=ProjectRegistry(trained_home))
    record = pipeline.registry.latest_training("small")
    assert record is not None and (record.run_dir / RESULT_NAME).exists()
    again = pipeline.registry.begin_training("small", record.config, run_dir=record.run_dir)
    pipeline.registry.finish_training(again.id, TrainingStatus.FAILED, "as if it had died", {})
    pipeline.resume_training("small")
    assert wait(pipeline) is TrainingPhase.COMPLETED
    after = pipeline.registry.latest_training("small")
    assert after is not None and after.result == record.result
    assert [adapter.version for adapter in pipeline.registry.list_adapters("small")] == ["v1"]


@pytest.mark.usefixtures("known_home")
def test_a_terminal_that_is_closed_loses_nothing_and_others_can_look_on(
    tiny_model_dir: Path, repository: Path
) -> None:
    flags = train_flags(tiny_model_dir, **SHORT)
    command = [sys.executable, "-m", "mlx_gardener", "train", str(repository), "--project", "small", *flags]
    terminal = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that was started under nohup hands on that the hangup is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    pipeline = TrainingPipeline()
    until(lambda: any(item.name == "small" for item in pipeline.registry.list_projects()), "the project")
    until(lambda: steps_done(pipeline) >= 2, "two steps")
    with standing_still(pipeline, "small"):
        os.killpg(terminal.pid, signal.SIGHUP)
        assert terminal.wait(WAIT) == -signal.SIGHUP
        assert pipeline.is_training_active("small")
        shown = gardener_here("status", "small", "--json")
    assert json.loads(shown.stdout)["trainings"][0]["active"] is True
    watched = gardener_here("attach", "small", "--json")
    assert watched.returncode == 0, watched.stderr
    told = [json.loads(line) for line in watched.stdout.splitlines()]
    assert [event["step"] for event in told if event["event"] == "StepCompleted"] == list(
        range(1, SHORT["optimizer.max_steps"] + 1)
    )
    assert told[-1]["event"] == "TrainingEnded" and told[-1]["phase"] == "completed"
    logged = gardener_here("logs", "small", "--lines", "3")
    assert logged.returncode == 0 and len(logged.stdout.splitlines()) == 3
    assert "Training completed: Done (v1)" in gardener_here("logs", "small").stdout


@pytest.mark.usefixtures("known_home")
def test_a_notebook_whose_kernel_is_killed_loses_nothing(tiny_model_dir: Path, repository: Path) -> None:
    from jupyter_client import KernelManager

    settings = tiny_settings(tiny_model_dir, **SHORT).model_dump(mode="json")
    kernel = KernelManager()
    kernel.start_kernel()
    try:
        client = kernel.client()
        client.start_channels()
        client.wait_for_ready(timeout=WAIT)
        client.execute(
            "import mlx_gardener\n"
            f"config = mlx_gardener.load_config(environment={{}}, overrides={settings!r})\n"
            f"mlx_gardener.train({str(repository)!r}, project='small', config=config)"
        )
        pipeline = TrainingPipeline()
        until(lambda: any(item.name == "small" for item in pipeline.registry.list_projects()), "the project")
        until(lambda: steps_done(pipeline) >= 2, "two steps")
        client.stop_channels()
        with standing_still(pipeline, "small"):
            os.killpg(kernel.provisioner.pid, signal.SIGKILL)
            until(lambda: not kernel.is_alive(), "the kernel's end")
            assert pipeline.is_training_active("small")
    finally:
        kernel.shutdown_kernel(now=True)
    assert wait(pipeline) is TrainingPhase.COMPLETED and not warnings_of(pipeline)


@pytest.mark.usefixtures("known_home")
def test_a_detached_training_says_that_it_goes_on_and_can_be_cancelled_from_elsewhere(
    tiny_model_dir: Path, repository: Path
) -> None:
    flags = train_flags(tiny_model_dir, **{"optimizer.max_steps": 1_000_000, "optimizer.epochs": 100})
    flags += ["--set", "evaluation.patience=10000"]
    command = ("train", str(repository), "--project", "small", "--detach", *flags)
    started = gardener(*command, "--json")
    assert started.returncode == 0 and not started.stderr, started.stderr
    told_at_start = {"project": "small", "started": True, "goes_on": False, "from_version": None}
    assert json.loads(started.stdout) == told_at_start
    pipeline = TrainingPipeline()
    until(lambda: steps_done(pipeline) >= 2, "two steps")

    def told(*words: str) -> Any:
        return json.loads(gardener_here(*words, "small", "--json").stdout)

    state = told("status")["trainings"][0]
    assert state["active"] is True and state["is_training"] is True
    cancelled = {"project": "small", "status": "cancelled", "phase": "cancelled"}
    assert cancelled.items() <= told("cancel").items()
    assert told("status")["trainings"][0]["active"] is False
    assert "is not being trained" in told("cancel")["error"]["message"]
    again = gardener_here(*command)
    goes_on = "Going on with the unfinished training of small in the background"
    assert again.returncode == 0 and goes_on in again.stdout, again.stderr
    stopped = gardener_here("cancel", "small")
    assert stopped.returncode == 0 and "cancelled" in stopped.stdout, stopped.stderr
    ended = gardener_here("attach", "small")
    assert ended.returncode == 1 and "cancelled" in ended.stderr


def test_logs_show_no_escape_codes(endless_pipeline: TrainingPipeline) -> None:
    registry = endless_pipeline.registry
    record = registry.begin_training("small", {})
    (record.run_dir / LOG_NAME).write_bytes(b"red \x1b[31mfile.py\n")
    registry.finish_training(record.id, TrainingStatus.FAILED, "no", {})
    shown = gardener_here("logs", "small")
    assert shown.returncode == 0 and "\x1b" not in shown.stdout and "file.py" in shown.stdout


def test_a_supervisor_imports_little() -> None:
    dear = "{'pydantic', 'asyncio', 'numpy', 'mlx_gardener.config'}"  # more than all the rest that it imports
    code = f"import sys, mlx_gardener.runs.supervisor; print({dear} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


@pytest.mark.usefixtures("known_home")
def test_a_registry_that_others_hold_ends_no_training(tiny_model_dir: Path, repository: Path) -> None:
    """Held from its worker's start until after it wanted to register its adapter; its worker is not started again."""
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir, progress_update_interval=0.2))
    pipeline.registry.register_project("small", repository)
    pipeline.start_training("small")
    worker_of(pipeline, "small")  # its supervisor has claimed it by now
    other = sqlite3.connect(pipeline.registry.home / "registry.sqlite3", isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    (adapters := pipeline.registry.project_directory("small") / "adapters").mkdir(parents=True, exist_ok=True)
    until(lambda: (adapters / "v1").exists(), "the adapter in its place")
    time.sleep(BUSY_TIMEOUT_SECONDS + 3)
    assert pipeline.is_training_active("small")
    other.execute("ROLLBACK")
    other.close()
    assert wait(pipeline) is TrainingPhase.COMPLETED
    assert [adapter.version for adapter in pipeline.registry.list_adapters("small")] == ["v1"]
    told = warnings_of(pipeline)
    assert any("The training goes on" in message for message in told)
    assert not any(message.startswith("The worker process") for message in told), told
