"""The tracker: progress never goes backwards, callbacks can neither deadlock nor break it."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_gardener.events import Event, TrainingPhase, TrainingProgress, WarningRaised
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs import phases
from mlx_gardener.runs.progress import TrainingProgressTracker


def test_percent_never_goes_backwards_and_stays_in_its_phase() -> None:
    tracker = TrainingProgressTracker()
    assert tracker.update_progress(TrainingPhase.PREPARING_DATA, 5, "early").progress_percent == 10
    assert tracker.update_progress(TrainingPhase.PREPARING_DATA, 25, "on").progress_percent == 25
    assert tracker.update_progress(TrainingPhase.PREPARING_DATA, 12, "back").progress_percent == 25
    assert tracker.update_progress(TrainingPhase.TRAINING, 99, "far").progress_percent == 90
    assert tracker.update_progress(TrainingPhase.FAILED, 100, "broken").progress_percent == 90


def test_nothing_changes_after_the_end() -> None:
    tracker = TrainingProgressTracker()
    tracker.update_progress(TrainingPhase.CANCELLED, 0, "stopped")
    assert tracker.update_progress(TrainingPhase.TRAINING, 60, "late step").phase is TrainingPhase.CANCELLED


def test_details_are_kept_until_new_ones_come() -> None:
    tracker = TrainingProgressTracker()
    tracker.update_progress(TrainingPhase.TRAINING, 50, "a", {"loss": 2.0})
    assert tracker.update_progress(TrainingPhase.TRAINING, 51, "b").details == {"loss": 2.0}
    tracker.update_progress(
        TrainingPhase.TRAINING, 52, "c", {"loss": 1.5, "eta_seconds": 500.0, "share": 0.5}
    )
    kept = tracker.update_progress(TrainingPhase.COMPLETING, 90, "Writing the adapter").details
    assert kept == {"loss": 1.5}, "how long training had to go on says nothing of what comes after it"


def test_a_callback_may_ask_the_tracker_for_its_progress() -> None:
    """An earlier system held its lock while callbacks ran: this deadlocked."""
    tracker, answered = TrainingProgressTracker(), threading.Event()

    def asks(progress: TrainingProgress) -> None:
        if progress.message == "go":  # what it says itself comes back to it
            tracker.update_progress(TrainingPhase.TRAINING, 60, "from the callback")
            assert tracker.progress.phase is TrainingPhase.TRAINING
            answered.set()

    tracker.add_progress_callback(asks)
    tracker.update_progress(TrainingPhase.TRAINING, 50, "go")
    assert answered.wait(60)
    tracker.bus.close()


def test_a_failing_callback_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    tracker, seen = TrainingProgressTracker(), []

    def breaks(progress: TrainingProgress) -> None:
        raise RuntimeError("callback is broken")

    tracker.add_progress_callback(breaks)
    tracker.add_progress_callback(lambda progress: seen.append(progress.progress_percent))
    with caplog.at_level(logging.ERROR):
        for percent in (41, 42):
            tracker.update_progress(TrainingPhase.TRAINING, percent, "step")
        tracker.bus.close()
    assert seen == [41, 42]
    assert "callback is broken" in caplog.text


def test_many_threads_at_once_leave_rising_percents_for_every_callback() -> None:
    tracker, seen = TrainingProgressTracker(), []
    tracker.add_progress_callback(lambda progress: seen.append(progress.progress_percent))

    def update(start: int) -> None:
        for number in range(50):
            tracker.update_progress(TrainingPhase.TRAINING, 40 + start + number / 2, "step")

    threads = [threading.Thread(target=update, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker.bus.close()
    assert len(seen) == 400 and seen == sorted(seen)


def test_the_heartbeat_speaks_when_the_run_is_silent() -> None:
    tracker, seen = TrainingProgressTracker(), []
    tracker.update_progress(TrainingPhase.TRAINING, 55, "a long step")
    tracker.add_progress_callback(seen.append)
    tracker.start_heartbeat(0.1, lambda: {"memory_bytes": 123})
    deadline = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.stop_heartbeat()
    assert len(seen) >= 3
    assert {(item.progress_percent, item.message, item.details["memory_bytes"]) for item in seen} == {
        (55, "a long step", 123)
    }


def test_the_heartbeat_goes_on_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, seen = TrainingProgressTracker(), []
    tracker.update_progress(TrainingPhase.TRAINING, 55, "a long step")
    tracker.add_progress_callback(seen.append)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    tracker.start_heartbeat(0.1)
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.stop_heartbeat()
    assert len(seen) >= 2


def test_every_update_is_in_the_registry(home: Path, repository: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    record = registry.begin_training("small", {})
    tracker = TrainingProgressTracker(registry, record.id)
    tracker.update_progress(TrainingPhase.TRAINING, 61, "Step 3", {"loss": 1.25})
    elsewhere = ProjectRegistry(home).latest_training("small")
    assert elsewhere is not None
    assert (elsewhere.phase, elsewhere.percent, elsewhere.message) == (TrainingPhase.TRAINING, 61, "Step 3")
    assert elsewhere.details == {"loss": 1.25}


def test_a_registry_that_others_hold_delays_no_update_and_is_told_again_afterwards(
    home: Path, repository: Path
) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    record = registry.begin_training("small", {})
    tracker, said = TrainingProgressTracker(registry, record.id), list[str]()

    def listen(event: Event) -> None:
        if isinstance(event, WarningRaised):
            said.append(event.message)

    tracker.bus.subscribe(listen, name="listener")
    other = sqlite3.connect(home / "registry.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for step in range(20):
        assert tracker.update_progress(TrainingPhase.TRAINING, 50, f"Step {step}").message == f"Step {step}"
    other.execute("ROLLBACK")
    other.close()
    tracker.update_progress(TrainingPhase.FAILED, 0, "over")  # the last word is always tried
    assert registry.get_training(record.id).message == "over"
    tracker.bus.close()
    assert len(said) == 1 and "The training goes on" in said[0]


def test_the_heartbeat_survives_a_registry_that_others_hold(home: Path, repository: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    record = registry.begin_training("small", {})
    tracker, seen = TrainingProgressTracker(registry, record.id), []
    tracker.update_progress(TrainingPhase.TRAINING, 55, "a long step")
    tracker.add_progress_callback(seen.append)
    other = sqlite3.connect(home / "registry.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    tracker.start_heartbeat(0.1)
    deadline = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    other.execute("ROLLBACK")
    other.close()
    told = len(seen)
    while registry.get_training(record.id).message != "a long step" and time.monotonic() < deadline:
        time.sleep(0.02)
    while len(seen) == told and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.stop_heartbeat()
    assert told >= 3 and len(seen) > told


def test_a_check_that_takes_long_is_told_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float | None]] = []
    run: Any = SimpleNamespace(
        interrupt=lambda: None,
        tell=lambda phase, share, message, eta_seconds: told.append((message, eta_seconds)),
    )
    now = [100.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tell = phases._telling_of_loading(run)
    tell(0.0, "Loading")
    now[0] += 50
    tell(0.7, "Checking")
    for seconds, share in ((0.5, 0.71), (9.5, 0.775), (10.0, 0.85)):
        now[0] += seconds
        tell(share, f"Checking, {share:.0%} of it done")
    assert [message for message, _ in told] == [
        "Loading",
        "Checking",
        "Checking, 78% of it done",
        "Checking, 85% of it done",
    ]
    left = [eta for _, eta in told]
    assert left[:2] == [None, None] and left[2:] == pytest.approx([30.0, 20.0])
