"""The check of a GPU: what its parts report, how they end, and what is made of that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

GIB = 2**30


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_check

    return gpu_check


@pytest.mark.parametrize(
    ("code", "seconds", "told"),
    [
        ("print('noise'); print('{\"a\": 1}')", 60, {"a": 1}),
        ("import sys; print('it broke', file=sys.stderr); sys.exit(3)", 60, {"failed": "exit code 3"}),
        ("import os; os.write(2, b'it broke'); os.abort()", 60, {"failed": "exit code -6"}),
        ("import time; time.sleep(60)", 10, {"not_reached": "not done after 10 s"}),
        ("print('{}')", 5, {"not_reached": "no time was left"}),
    ],
)
def test_a_part_that_fails_or_dies_is_told_and_ends_nothing(
    gpu_check: Any, code: str, seconds: float, told: dict[str, Any]
) -> None:
    found = gpu_check.report_of([sys.executable, "-c", code], seconds)
    assert {key: found[key] for key in told} == told
    assert "it broke" in found.get("said", "it broke")


def test_what_decides_is_gradients_budgets_and_failures(gpu_check: Any) -> None:
    def right(name: str, **report: Any) -> bool | None:
        found: tuple[bool | None, str] = gpu_check.verdict(name, report)
        return found[0]

    cell = {"predicted_peak_bytes": 3 * GIB, "tokens_per_second": 9.0, "plan": {"budget_bytes": 4 * GIB}}
    assert right("budget: x", measured_peak_bytes=4 * GIB, **cell)
    assert right("budget: x", measured_peak_bytes=4 * GIB + 1, **cell) is False
    assert right("gradients", device="gpu", tolerance=1e-2, differences={"a": 1e-3, "b": 5e-3})
    assert right("gradients", device="gpu", tolerance=1e-2, differences={"a": 1e-3, "b": 2e-2}) is False
    assert right("gradients", failed="exit code -6") is False
    assert right("budget: x", refused="it does not fit") is False
    assert right("speed: mlx_lm.lora", out_of_memory="of theirs, which is a result") is None
    assert right("speed: mlx_gardener", not_reached="no time was left") is None


def test_tokens_a_second_are_those_that_bear_loss_after_the_first_steps(gpu_check: Any) -> None:
    report = {
        "measured_peak_bytes": GIB,
        "seconds": [99.0, 1.0, 3.0],
        "first_steps": 1,
        "steps_per_pass": 4,
        "loss_tokens_per_pass": 800,
    }
    assert gpu_check.verdict("speed: x", report) == (None, "100 loss-bearing tokens/s, peak 1.00 GB")
    is_right, said = gpu_check.verdict("speed: x", {**report, "seconds": [99.0]})
    assert is_right is None and "no step" in said and "tokens/s" not in said


def test_gradients_are_compared_by_every_way_and_the_device_is_given_back(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = mx.default_device()
    monkeypatch.setattr(gpu_check, "KINDS", ("llama",))
    found = gpu_check.gradients()
    assert set(found["differences"]) == {f"llama, {way}" for way in gpu_check.WAYS}
    assert gpu_check.verdict("gradients", found)[0] and mx.default_device() == device


@pytest.mark.slow
def test_the_script_runs_to_its_end(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
    command = [sys.executable, str(script), "--quick", "--minutes", "2", "--out", str(tmp_path / "found")]
    subprocess.run(command, check=True, timeout=300)
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert [part["right"] for part in parts.values()] == [True, True, None, None, None]
