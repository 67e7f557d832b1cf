"""The comparison with other trainers: our sides do the same work, and the table keeps rows without figures."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from tests.support.scripts import load_script


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("benchmarks/against_trainers.py", monkeypatch)


def figures(peak: float, speed: float) -> dict[str, Any]:
    return {
        "peak_beyond_weights_mib": {"median": peak},
        "tokens_per_second": {"median": speed},
        **{key: {"median": 1.0} for key in ("seconds", "processor_seconds", "loss_before", "loss")},
    }


def test_our_sides_learn_the_same(module: ModuleType) -> None:
    lean, fast = (module.our_side(name, module.TINY | module.LORA) for name in module.OURS)
    assert lean["loss"] == pytest.approx(fast["loss"], abs=1e-5)
    assert lean["loss"] < lean["loss_before"]


def test_a_trainer_is_met_only_where_both_figures_are_better_than_its_best(module: ModuleType) -> None:
    found = {
        "ours, lean": figures(100, 50),
        "ours, fast": figures(900, 90),
        "gmlx, memory": figures(500, 40),
        "gmlx, speed": figures(2000, 80),
        "mlx-lm-lora, memory": figures(90, 10),
        "unsloth-zoo, memory": {"failed": "RuntimeError: no Metal"},
    }
    met = {row["against"].partition(",")[0]: row["met"] for row in module.bars(found)}
    assert met == {"gmlx": True, "mlx-lm-lora": False}
    shown = module.table(found)
    assert "| unsloth-zoo, memory | does not run here: RuntimeError: no Metal |" in shown
    assert len({line.count("|") for line in shown.splitlines()}) == 1
