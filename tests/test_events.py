"""The bus: typed events travel as JSON, and no subscriber can slow or break a run."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from mlx_gardener.events import (
    Event,
    EventBus,
    ProgressChanged,
    StepCompleted,
    TrainingEnded,
    TrainingPhase,
    WarningRaised,
    event_from_json,
)


def step(number: int) -> StepCompleted:
    return StepCompleted(number, 10, 0.5, 2.0, 100, 1e-3, 0.4, 0.1, 1000.0, 1, 2, 3, None)


@pytest.mark.parametrize(
    "event",
    [
        step(3),
        ProgressChanged(TrainingPhase.TRAINING, 50.0, "half", {"loss": 1.5}),
        WarningRaised("mind the \n gap"),
    ],
)
def test_an_event_survives_the_way_through_json(event: Event) -> None:
    assert event_from_json(event.to_json()) == event


def test_an_unknown_event_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Nonsense"):
        event_from_json({"event": "Nonsense"})


def test_an_event_with_foreign_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="WarningRaised"):
        event_from_json({"event": "WarningRaised", "message": "x", "colour": "red"})


def test_every_subscriber_sees_every_event_in_order() -> None:
    bus, first, second = EventBus(), [], []
    bus.subscribe(first.append)
    bus.subscribe(second.append)
    events = [step(number) for number in range(200)]
    for event in events:
        bus.publish(event)
    bus.close()
    assert first == events and second == events


def test_a_failing_subscriber_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bus, seen, calls = EventBus(), [], []

    def fails(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("broken subscriber")

    bus.subscribe(fails, name="the broken one")
    bus.subscribe(seen.append)
    with caplog.at_level(logging.ERROR):
        bus.publish(step(1))
        bus.publish(step(2))
        bus.close()
    assert len(seen) == 2 and len(calls) == 2
    assert "the broken one" in caplog.text and "broken subscriber" in caplog.text


def test_publishing_does_not_wait_for_a_subscriber_that_hangs() -> None:
    bus, gate, seen = EventBus(), threading.Event(), []
    bus.subscribe(lambda event: gate.wait(300), name="hangs")
    bus.subscribe(seen.append)
    for number in range(50):
        bus.publish(step(number))
    deadline = time.monotonic() + 60
    while len(seen) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(seen) == 50, "the other subscriber has everything while the first still hangs"
    gate.set()
    bus.close()


def test_a_slow_subscriber_loses_steps_but_never_the_end() -> None:
    bus, gate, seen = EventBus(), threading.Event(), []

    def slow(event: Event) -> None:
        gate.wait(300)
        seen.append(event)

    bus.subscribe(slow, capacity=5)
    for number in range(100):
        bus.publish(step(number))
    bus.publish(WarningRaised("kept"))
    bus.publish(TrainingEnded(TrainingPhase.COMPLETED, "Done"))
    gate.set()
    bus.close()
    assert len(seen) <= 6
    assert seen[-1] == TrainingEnded(TrainingPhase.COMPLETED, "Done", timestamp=seen[-1].timestamp)
    assert any(isinstance(event, WarningRaised) for event in seen)


def test_unsubscribing_ends_the_calls() -> None:
    bus, seen = EventBus(), []
    unsubscribe = bus.subscribe(seen.append)
    bus.publish(step(1))
    unsubscribe()
    bus.publish(step(2))
    bus.close()
    assert [event.step for event in seen] == [1]
