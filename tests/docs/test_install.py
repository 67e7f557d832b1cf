"""What `pipx install .` and `uv tool install .` make of a checkout: the wheel has everything, and its command works."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.docs.commands import ROOT

pytest.importorskip("hatchling")


def test_the_wheel_of_a_checkout_brings_its_command_and_its_files(tmp_path: Path, repository: Path) -> None:
    site = tmp_path / "site"
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    points = next(site.glob("*.dist-info/entry_points.txt")).read_text()
    declared = {point.value for point in distribution("mlx-gardener").entry_points}
    assert "mlx-gardener = mlx_gardener.cli:main" in points and declared == {"mlx_gardener.cli:main"}
    start = (
        "import mlx_gardener, sys; from mlx_gardener.cli import main; print(mlx_gardener.__file__); main()"
    )
    for arguments in (("scan", str(repository), "--model", "seedling"), ("plan", "--model", "seedling")):
        done = subprocess.run(
            (sys.executable, "-P", "-c", start, *arguments),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.splitlines()[0]).is_relative_to(site)
    assert (site / "mlx_gardener" / "py.typed").is_file()
