"""Commands with a full disk behind them, interrupted before they began, with empty names and without an answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener_here


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "code"), [(("show", "nope", "--json"), 1), (("--version",), 1), (("train", "--frobnicate", "--json"), 2)]
)  # fmt: skip
@pytest.mark.parametrize("both", [False, True])
def test_a_full_disk_is_told_without_a_traceback(arguments: tuple[str, ...], code: int, both: bool) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_gardener", *arguments],
            stdout=full,
            stderr=full if both else subprocess.PIPE,
            timeout=600,
        )
    assert done.returncode == code
    assert both or (b"Error: " in done.stderr and b"Traceback" not in done.stderr), done.stderr
    assert both or b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("module", ["click", "mlx_gardener.cli.projects"])
def test_ctrl_c_while_modules_are_imported_ends_quietly(module: str, tmp_path: Path) -> None:
    (tmp_path / "interrupting.py").write_text(
        "import os, runpy, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['mlx-gardener', 'projects']\n"
        "runpy.run_module('mlx_gardener', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "interrupting.py")],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=600,
    )
    assert done.returncode == 130 and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", ""), ("train", ""), ("plan", ""), ("models", ""), ("scan", "--config", ""), ("train", "--hosts", ""),
        ("export", "small", ""), ("import", "small", ""), ("import", "small", ".", "--repository", ""),
        ("registry", "backup", ""), ("registry", "restore", ""), ("connect", "zed", "--file", ""),
        ("eval", "small", "--output", ""), ("report", "small", "--output", ""),
        ("train", "--project", ""), ("connect", "zed", "--project", ""), ("status", ""), ("report", ""), ("export", "", "x"),
        ("serve", ""), ("mcp", ""), ("queue", "remove", ""),
    ],
)  # fmt: skip
def test_an_empty_name_is_not_the_current_directory(
    arguments: tuple[str, ...], repository: Path, registry: ProjectRegistry
) -> None:
    done = gardener_here(*arguments, cwd=repository)
    assert done.returncode == 2 and "the name is empty" in done.stderr, done.stderr


def test_a_question_without_an_answer_ends_its_own_line(registry: ProjectRegistry) -> None:
    done = gardener_here("remove", "small")
    assert done.returncode == 2 and "[y/N]: \nError: " in done.stderr, done.stderr


def test_going_back_to_the_active_version_says_that_it_is_that_already(registry: ProjectRegistry) -> None:
    done = gardener_here("rollback", "small", "v1")
    assert (done.returncode, done.stdout) == (0, "v1 of small is the active version already.\n")
    assert registry.versions_before("small") == []


def test_a_named_project_is_resumed_from_anywhere(registry: ProjectRegistry, tmp_path: Path) -> None:
    done = gardener_here("train", "--resume", "--project", "small", cwd=tmp_path)
    assert done.returncode == 1 and "never been trained" in done.stderr, done.stderr
    assert [project.name for project in registry.list_projects()] == ["small"]
    unknown = gardener_here("train", "--resume", "--project", "smal", cwd=tmp_path)
    assert unknown.returncode == 1 and "Did you mean small?" in unknown.stderr
