"""Short versions of the engine's benchmarks: what they prove exactly, on a few steps; and the table they are shown in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from mlx_gardener.model.lora import load_arrays

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
#: A little real code to train on.
SOURCE = BENCHMARKS.parent / "mlx_gardener" / "source"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        sys.modules.pop(name, None)
        return __import__(name)

    return load


def test_the_loss_curve_is_that_of_mlx_lm_s_own_trainer(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("walk", "filters", "scan"):
        shutil.copy(SOURCE / f"{name}.py", tmp_path)
    module = benchmark("loss_curve")
    monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(module, "TOKENS_PER_UPDATE", 256)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", {64: 3, 128: 1})
    monkeypatch.setattr(module, "SOURCE", tmp_path)
    try:
        ours, theirs = module.side("ours")["losses"], module.side("mlx_lm")["losses"]
    finally:
        __import__("mlx.core").core.enable_compile()
    assert len(ours) == 3 and ours[0] != ours[-1]
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow  # tests/engine/test_stream.py and tests/training/test_loop.py prove it on the tiny model
def test_adapters_of_different_budgets_are_equal(benchmark: Any, tmp_path: Path) -> None:
    module, found = benchmark("across_budgets"), []
    for name in ("filters", "imports", "records", "scan", "secrets", "walk"):
        shutil.copy(SOURCE / f"{name}.py", tmp_path)
    for name in (
        "1 GB",
        "1 GB, all from disk",
    ):  # in processes of their own: a budget counts all of a process
        command = (
            sys.executable, module.__file__, "--steps", "2", "--tokens", "1024", "--side", name, "--source", str(tmp_path)
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0]["plan"] != found[1]["plan"]
    first, second = (load_arrays(Path(one["adapter"])) for one in found)
    assert 0 < module.difference_of_changes(first, second) <= 5e-4
    assert found[0]["final_loss"] == pytest.approx(found[1]["final_loss"], abs=1e-4)


# A busy loop beside it takes as much of the machine again.
@pytest.mark.parametrize(
    ("layers", "loops", "budget", "width"),
    [(2, 0, 0.7, 128), *(pytest.param(layers, 1, 1.0, 256, marks=pytest.mark.slow) for layers in (2, 4))],
)
def test_a_real_base_s_shape_keeps_its_budget_also_beside_a_busy_loop(
    benchmark: Any, tmp_path: Path, layers: int, loops: int, budget: float, width: int
) -> None:
    """SmolLM2's layers and vocabulary, fewer of the former; looked at from outside, as its owner would."""
    plan = benchmark("memory_plan")
    model = benchmark("shapes").write_shape("smollm2-135m", tmp_path, bits=None, layers=layers)
    found = plan.cell(str(model), budget, width, 2, loops, f"optimizer.tokens_per_update={2 * width}")
    assert found["measured_peak_bytes"] <= budget * 2**30, found
    assert 0.75 <= found["measured_peak_bytes"] / found["predicted_peak_bytes"] <= 1.1, found


def test_table_and_picture_are_made_of_the_kept_results(benchmark: Any) -> None:
    module = benchmark("run")
    found = module.results()
    page = module.table(found)
    for result in found.values():
        for row in result.get("bars", ()):
            assert row["measure"] in page and row["seen"] in page
    picture = ElementTree.fromstring(module.picture(found))
    labels = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert "lean" in labels and "mlx_lm checkpointed" in labels


def test_every_kept_result_describes_its_machine() -> None:
    for file in (BENCHMARKS / "results").glob("*.json"):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if "bars" in kept:
            assert kept["machine"]["chip"] and kept["machine"]["mlx"], file.name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there MLX takes another BLAS")
def test_the_profile_of_a_step_counts_its_products_where_they_are_made(
    benchmark: Any, tmp_path: Path
) -> None:
    library = benchmark("step_profile").counting_blas(tmp_path)
    code = """
import ctypes, sys, mlx_gardener, mlx.core as mx
from mlx_gardener.platform import blas
library = ctypes.CDLL(blas.state().path)
library.product_nanoseconds.restype = library.product_operations.restype = ctypes.c_ulonglong
with blas.blas_threads(1):  # the real one's own functions are found behind it
    made = mx.ones((64, 32)) @ mx.ones((32, 48))
    assert mx.all(made == 32).item()
print(library.product_operations(), library.product_nanoseconds() > 0)
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MLX_GARDENER_BLAS": str(library)},
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == [str(2 * 64 * 32 * 48), "True"], told.stdout + told.stderr
