"""Between updates: the budget is kept, the machine's owner comes first, and the adapter does not notice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_gardener.config import ThrottlingConfig
from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.errors import TrainingCancelledError
from mlx_gardener.model import load_base
from mlx_gardener.platform.power import PowerState
from mlx_gardener.platform.pressure import MemoryPressure
from mlx_gardener.training import throttling
from mlx_gardener.training.throttling import CALM_UPDATES, BudgetPassedError, Throttle


class Footprints:
    """Sees what the world says."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def highest_bytes(self) -> int:
        return self._world.footprint

    def begin_again(self) -> None:
        """Nothing is remembered here."""


class World:
    """What the throttle sees, and what it did."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, **settings: bool) -> None:
        self.engine, self.said, self.saved, self.waits = engine, [], 0, 0
        self.footprint, self.level, self.battery, self.heat = 10, "normal", False, "nominal"
        self.clock = 1e6
        self.display: bool | None = False
        monkeypatch.setattr(throttling, "FootprintWatch", lambda: Footprints(self))
        monkeypatch.setattr(throttling, "memory_pressure", lambda: MemoryPressure(self.level, 1, 2))
        monkeypatch.setattr(throttling, "power_state", lambda: PowerState(on_battery=self.battery))
        monkeypatch.setattr(throttling, "thermal_state", lambda: self.heat)
        monkeypatch.setattr(throttling, "display_is_on", lambda: self.display)
        monkeypatch.setattr(
            throttling, "time", SimpleNamespace(sleep=self._sleep, monotonic=lambda: self.clock)
        )
        self.said: list[str]
        self.watch = Throttle(
            engine,
            ThrottlingConfig(**settings),
            100,
            warn=self.said.append,
            save=self._save,
            interrupt=self._interrupt,
        )
        self.cancelled = False

    def _save(self) -> None:
        self.saved += 1

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.waits += 1
        if self.waits == 3:
            self.level, self.battery, self.heat, self.display = "normal", False, "nominal", False

    def _interrupt(self) -> None:
        if self.cancelled:
            raise TrainingCancelledError("stopped")


@pytest.fixture
def engine(tiny_model_dir: Path) -> Engine:
    base = load_base(str(tiny_model_dir))
    return Engine(base.model, Plan({64: 4}, 100, 0, PredictedParts(), (), kept_layers=2), dtype=base.dtype)


def test_above_the_budget_the_plan_shrinks_and_grows_back_when_memory_is_calm(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, first = World(engine, monkeypatch), engine.plan
    world.footprint = 101
    world.watch.between_updates()
    assert engine.plan.kept_layers == 1 and "of 0.00 GB" in world.said[0]
    world.footprint = 50
    for _ in range(CALM_UPDATES):
        world.watch.between_updates()
    assert engine.plan == first and "calm" in world.said[1]


def test_a_budget_that_is_passed_within_an_update_ends_it_while_a_smaller_plan_is_left(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine, monkeypatch)
    world.watch.between_segments()
    world.footprint = 101
    with pytest.raises(BudgetPassedError, match="the process took"):
        world.watch.between_segments()
    while world.watch.shrink("it must"):
        pass
    said = len(world.said)
    world.watch.between_segments()
    world.watch.between_segments()
    assert len(world.said) == said + 1 and "smallest plan" in world.said[-1]


def test_plans_shrink_to_an_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    world, plans = World(engine, monkeypatch), []
    while world.watch.shrink("it must"):
        plans.append(engine.plan)
    assert (
        plans[-1].rows_of_width == {64: 1}
        and plans[-1].kept_layers == 0
        and plans[-1].loss_slice_tokens == 16
    )
    assert len(plans) < 10


@pytest.mark.parametrize(
    ("settings", "state", "reason"),
    [
        ({}, {"level": "critical"}, "short of memory"),
        ({"pause_on": ["battery"]}, {"battery": True}, "battery"),
        ({"pause_on": ["heat"]}, {"heat": "serious"}, "hot"),
        ({"pause_on": ["display"]}, {"display": True}, "a display is on"),
    ],
)
def test_it_waits_with_a_checkpoint_and_goes_on(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, bool],
    state: dict[str, object],
    reason: str,
) -> None:
    world = World(engine, monkeypatch, **settings)
    for name, value in state.items():
        setattr(world, name, value)
    world.watch.between_updates()
    assert (world.saved, world.waits) == (1, 3)
    assert world.watch.waited_seconds == world.clock - 1e6 > 0
    assert reason in world.said[0] and "goes on" in world.said[1]


def test_it_waits_for_nothing_where_nothing_is_listed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine, monkeypatch, pause_on=[])
    world.level, world.battery, world.heat, world.display = "critical", True, "critical", True
    world.watch.between_updates()
    assert (world.saved, world.waits, world.said) == (0, 0, [])


def test_a_machine_that_does_not_tell_of_its_display_is_not_waited_for_and_that_is_said_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine, monkeypatch, pause_on=["display"])
    world.display = None
    for _ in range(3):
        world.watch.between_updates()
        world.clock += 60
    assert (
        world.waits == 0 and len(world.said) == 1 and "does not tell whether a display is on" in world.said[0]
    )


@pytest.mark.parametrize(
    "state", [{"battery": True}, {"heat": "critical"}, {"level": "warning"}, {"display": True}]
)
def test_it_does_not_wait_for_what_it_was_not_asked_to(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, state: dict[str, object]
) -> None:
    world = World(engine, monkeypatch)
    for name, value in state.items():
        setattr(world, name, value)
    world.watch.between_updates()
    assert (world.saved, world.waits, world.said) == (0, 0, [])


def test_a_waiting_training_can_be_cancelled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(engine, monkeypatch)
    world.level, world.cancelled = "critical", True
    with pytest.raises(TrainingCancelledError):
        world.watch.between_updates()
    assert world.saved == 1


def test_a_slow_update_waits_between_its_segments_and_keeps_its_plan(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, plan = World(engine, monkeypatch), engine.plan
    world.level = "critical"
    world.watch.between_segments()
    assert world.waits == 0  # it looks every two seconds, not at every segment
    world.clock += 3
    world.watch.between_segments()
    assert (world.saved, world.waits) == (1, 3) and "short of memory" in world.said[0]
    assert engine.plan is plan


def test_within_an_update_caches_are_dropped_above_the_budget_and_the_plan_stays(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    world, plan = World(engine, monkeypatch), engine.plan
    mx.clear_cache()
    freed = mx.zeros((2**20,)) + 1
    mx.eval(freed)
    del freed
    world.watch.between_segments()
    assert mx.get_cache_memory() >= 2**22
    world.footprint = 101
    with pytest.raises(BudgetPassedError):
        world.watch.between_segments()
    assert mx.get_cache_memory() == 0 and engine.plan is plan and not world.said


def test_a_smaller_plan_also_tells_mlx_to_allocate_less_ahead(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    world = World(engine, monkeypatch)
    assert world.watch.shrink("a test wants it")
    assert mx.set_memory_limit(2**40) == engine.plan.active_limit_bytes < engine.plan.budget_bytes
