"""What `pipx install .` and `uv tool install .` make of a checkout: the wheel has everything, and its command works."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path

import pytest

from tests.docs.commands import ROOT


def test_the_wheel_of_a_checkout_brings_its_command_and_its_files(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("hatchling")
    site = tmp_path / "site"
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(site)
    points = next(site.glob("*.dist-info/entry_points.txt")).read_text()
    assert "mlx-gardener = mlx_gardener.__main__:main" in points
    start = "import mlx_gardener, sys; from mlx_gardener.__main__ import main; print(mlx_gardener.__file__); main()"
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


#: Imported where a notebook is running anyway.
_BROUGHT_ALONG = {"IPython"}
#: What extras bring; the commands that need them say how to get them.
_EXTRAS = {"mcp": {"mcp"}, "lsp": {"pygls", "lsprotocol"}}


def plain(requirement: str) -> str:
    """The name in a requirement, as names are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_every_package_that_is_imported_comes_with_an_installation() -> None:
    """Nothing is there only because tests need it: what is imported is declared, or belongs to something that is."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    declared = {plain(one) for one in project["dependencies"]}
    assert set(project["optional-dependencies"]) >= set(_EXTRAS)
    here = {plain(one.name) for one in distributions()}  # not all are meant for every system
    below = {plain(one) for name in declared & here for one in requires(name) or () if "extra ==" not in one}
    imported: set[str] = set()
    for path in (ROOT / "mlx_gardener").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    others = (
        imported - set(sys.stdlib_module_names) - {"mlx_gardener"} - _BROUGHT_ALONG.union(*_EXTRAS.values())
    )
    assert len(others) > 20, "else nothing is proved"
    known = packages_distributions()
    lacking = {
        name for name in others if not {plain(one) for one in known.get(name, [])} & (declared | below)
    }
    assert not lacking, lacking
