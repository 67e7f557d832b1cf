"""Pages and pictures that programs write from the package are those that they would write today."""

from __future__ import annotations

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
