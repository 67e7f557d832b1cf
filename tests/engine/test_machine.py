"""What is measured on purpose corrects forecasts: they change, and are nearer to what was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mlx_gardener.engine import Plan, machine, make_plan, measured_backend, model_facts, speed
from mlx_gardener.engine.machine import MachineMeasured, measure_machine, measured_config
from mlx_gardener.engine.predict import RUNTIME_BYTES, predicted
from mlx_gardener.engine.speed import _OF_A_BASE, TWO_CORES, Backend, machine_key, measure_lost_rows
from mlx_gardener.errors import TrainingError
from mlx_gardener.model import seedling_path
from mlx_gardener.platform.blas import BlasState
from tests.support.commands import gardener_here

FACTS = model_facts(seedling_path())


def keep(cache: Path, backend: Backend) -> None:
    speeds = {name: value for name, value in asdict(backend).items() if name not in _OF_A_BASE}
    (cache / "backend.json").write_text(json.dumps({"key": machine_key(), **speeds}))


def forecast(cache: Path) -> Plan:
    config = measured_config()
    return make_plan(FACTS, config, config.memory_limit_bytes, measured_backend(cache))


def test_a_forecast_that_was_wrong_is_nearer_after_doctor_measured_it(home: Path) -> None:
    """Trainings had taught twice the memory, and a machine of other times 40 times the speed."""
    cache = home / "cache"
    cache.mkdir(parents=True)
    wrong = replace(TWO_CORES, work_scale=2.0, speed_scale=4.0, flops_per_second=2e12, exp_per_second=1e9)
    keep(cache, wrong)
    before = forecast(cache)
    done = gardener_here("doctor", "--measure", "--json")
    found = MachineMeasured(**json.loads(done.stdout)["measured"])
    after = forecast(cache)
    # Near to it, as the command knows which way attention takes here.
    assert found.foretold_peak_bytes == pytest.approx(before.predicted_peak_bytes, rel=0.15)

    def off(plan: Plan) -> tuple[float, float]:
        bytes_off = abs(plan.predicted_peak_bytes - found.peak_bytes)
        return bytes_off, abs(plan.predicted_tokens_per_second - found.tokens_per_second)

    assert off(after)[0] < 0.5 * off(before)[0] and off(after)[1] < off(before)[1]
    assert after.predicted_peak_bytes == pytest.approx(found.peak_bytes, rel=0.15)
    assert (
        after.predicted_parts.runtime
        == found.runtime_bytes
        != before.predicted_parts.runtime
        == RUNTIME_BYTES
    )
    assert (
        set(found.flops_by_rows) == {str(rows) for rows in machine.ROWS}
        and found.lost_rows == measured_backend(cache).lost_rows
    )
    assert found.peak_bytes > found.runtime_bytes > 0


def test_products_of_few_rows_cost_what_was_measured() -> None:
    config = measured_config()
    plan = make_plan(FACTS, config, config.memory_limit_bytes, TWO_CORES)
    speeds = [
        predicted(plan, FACTS, config, replace(backend, lost_rows=lost)).predicted_tokens_per_second
        for backend in (TWO_CORES, replace(TWO_CORES, kind="metal"))
        for lost in (4.0, 400.0)
    ]
    assert speeds[0] > speeds[1] and speeds[2] > speeds[3]
    by_rows, lost = measure_lost_rows((16, 256), "cpu")
    assert set(by_rows) == {16, 256} and min(by_rows.values()) > 0 and lost >= 0


def test_steps_that_cannot_be_taken_correct_nothing_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, TWO_CORES)
    command = ["sh", "-c", "echo it broke >&2; exit 3"]
    monkeypatch.setattr(machine, "module_command", lambda *arguments: command)
    with pytest.raises(TrainingError, match="it broke"):
        measure_machine(tmp_path)
    kept = measured_backend(tmp_path)
    assert replace(kept, work_scale=1.0, speed_scale=1.0, runtime_bytes=0, lost_rows=0.0) == kept
    monkeypatch.setattr(machine, "module_command", lambda *arguments: ["true"])
    with pytest.raises(TrainingError):
        measure_machine(tmp_path)


def test_speeds_are_of_one_chip_and_one_blas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installs a fast BLAS, as is advised, had the old one's speed in every plan for ever."""
    for state in (BlasState(None, "none"), BlasState("/usr/lib/libopenblas.so.0", "opened")):
        monkeypatch.setattr("mlx_gardener.platform.blas._state", state)
        slow = replace(TWO_CORES, flops_per_second=5e9 if state.path is None else 150e9)
        monkeypatch.setattr(speed, "measure_backend", lambda slow=slow: slow)
        assert measured_backend(tmp_path) == slow == measured_backend(tmp_path)
    before = machine_key()
    monkeypatch.setattr(
        "mlx_gardener.platform.blas._state", BlasState("/home/me/lib/libopenblas.so.0", "opened")
    )
    assert machine_key() == before, "another environment with the same library"
    monkeypatch.setattr("mlx.core.device_info", lambda device: {"device_name": "another chip"})
    assert machine_key() != before and "another chip" in machine_key()


@pytest.mark.parametrize(
    ("found", "is_taken"),
    [
        ({"flops_per_second": 5e9}, True),
        ({"exp_per_second": 1e6}, True),
        ({"flops_per_second": 195e9}, False),  # as much as two measurements differ
        ({"flops_per_second": 195e9, "busy": 0.01}, False),  # and others, by chance
        ({"flops_per_second": 5e9, "busy": 0.5}, False),  # others took half of the processors
    ],
    ids=str,
)
def test_doctor_measures_speeds_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, float], is_taken: bool
) -> None:
    kept = replace(TWO_CORES, lost_rows=3.0, busy=0.02)
    keep(tmp_path, kept)
    monkeypatch.setattr(speed, "measure_backend", lambda: replace(kept, lost_rows=0.0, **found))
    monkeypatch.setattr(machine, "measure_lost_rows", lambda rows, kind: ({}, 0.0))
    monkeypatch.setattr(machine, "module_command", lambda *arguments: ["false"])
    assert measured_backend(tmp_path).flops_per_second == 200e9
    with pytest.raises(TrainingError):
        measure_machine(tmp_path)
    expected = replace(kept, **(found if is_taken else {}))
    assert replace(measured_backend(tmp_path), measured_at=0.0) == expected
