"""Pages and pictures that programs write from the package are those that they would write today."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT


def run_script(name: str, target: Path) -> None:
    """A script of the project that writes to ``target`` instead of into docs."""
    subprocess.run(
        (sys.executable, str(ROOT / "scripts" / name), str(target)), cwd=ROOT, check=True, timeout=600
    )


def test_the_page_on_the_python_api_is_what_the_docstrings_say(tmp_path: Path) -> None:
    run_script("make_api_page.py", tmp_path / "api.md")
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == (tmp_path / "api.md").read_text(
        encoding="utf-8"
    ), "run scripts/make_api_page.py"


def test_the_picture_of_the_architecture_is_what_the_imports_say(tmp_path: Path) -> None:
    pytest.importorskip("grimp")
    run_script("draw_house.py", tmp_path)
    for name in ("house.svg", "run.svg"):
        drawn = (tmp_path / name).read_text(encoding="utf-8")
        assert (ROOT / "docs" / "pictures" / name).read_text(encoding="utf-8") == drawn, (
            "run scripts/draw_house.py"
        )


def test_the_page_on_the_engine_s_benchmarks_is_what_their_results_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    run = importlib.import_module("run")
    found = run.results()
    for name, made in (("engine.md", run.table(found)), ("engine.svg", run.picture(found))):
        written = (ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8")
        assert written == made, "run python benchmarks/run.py --table"


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "starcoder2-3b"])
def test_the_page_on_plans_is_what_the_planner_plans(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two models, as all take ten seconds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    plan_table = importlib.import_module("plan_table")
    page = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in page if line.startswith(f"| {name} |")]
    assert rows == [plan_table.row(name, budget) for budget in plan_table.BUDGETS], (
        "run python benchmarks/plan_table.py"
    )
