"""What killed writers leave, of every kind: found by check, swept by repair, gc and the next training; never while alive."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_gardener.platform.beside import left_beside, staged_beside
from mlx_gardener.platform.locks import hold
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.registry.lost import LOST_NAME
from mlx_gardener.registry.names import RUN_LOCK_NAME
from tests.registry.worlds import install_adapter, write_adapter


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    made = ProjectRegistry()
    made.register_project("small", repository)
    install_adapter(made, "small", "v1")
    return made


@pytest.fixture
def run(registry: ProjectRegistry) -> TrainingRecord:
    record = registry.begin_training("small", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "", {})
    (record.run_dir / RUN_LOCK_NAME).touch()
    return record


def write(path: Path) -> Path:
    """A file of an hour ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    os.utime(path, (time.time() - 3600,) * 2)
    return path


#: Of every row of the table in `registry.remnants`, what is left below the home, made in a run's directory or the home.
IN_RUN = [
    "job.json.new",
    "result.json.new",
    "checkpoints/.step-00000001.new/state.json",
    "checkpoints/.step-00000001.dropped/weights.safetensors",
    "checkpoints.old/.step-00000001.new/state.json",
]
IN_HOME = [
    "projects/small/adapters/.new-0badcafe/mlx/adapters.safetensors",
    "projects/small/adapters/v1/evaluations/2026.new",
    "projects/small/.retrieval.safetensors.4711.new",
    ".trash/v0-0badcafe/README.md",
    ".trash/projects+small+adapters+v0-0badcafe/README.md",
    ".rebuild-abc/new.sqlite3",
    "editors/.vscode.json.0badcafe.new/file",
    "cache/.dry_runs.json.123",
    "cache/.backend.json.17",
    "cache/.gguf_facts.json.17",
    "../.home.0badcafe.new/registry.sqlite3",
]


def left(registry: ProjectRegistry) -> list[str]:
    return [problem.subject for problem in registry.check() if problem.kind == "leftover"]


@pytest.mark.parametrize("how", ["repair", "gc"])
@pytest.mark.parametrize("name", [*IN_RUN, *IN_HOME, "an empty run"])
def test_every_kind_is_found_and_swept(
    registry: ProjectRegistry, run: TrainingRecord, name: str, how: str
) -> None:
    if name == "an empty run":
        path = registry.project_directory("small") / "runs" / "0badcafe0000"
        path.mkdir()
        os.utime(path, (1, 1))
    else:
        path = write((run.run_dir if name in IN_RUN else registry.home) / name)
    assert len(left(registry)) == 1 == len(registry.check())
    if how == "repair":
        assert len(registry.repair()) == 1
    else:
        (planned,) = registry.collect_garbage(dry_run=True)
        assert (
            planned.kind == "leftover"
            and path.exists()
            and planned.size_bytes == (4 if path.is_file() else 0)
        )
        assert registry.collect_garbage() == [planned]
    assert not path.exists() and registry.check() == []
    assert registry.get_adapter("small").version == "v1" and not (registry.home / LOST_NAME).exists()


@pytest.mark.parametrize("name", IN_RUN)
def test_the_next_training_of_the_project_sweeps_what_an_earlier_one_left(
    registry: ProjectRegistry, run: TrainingRecord, name: str
) -> None:
    write(run.run_dir / name)
    write_adapter(registry.project_directory("small") / "adapters" / ".new-0badcafe", "small", "v2")
    registry.begin_training("small", {})
    assert len(registry.sweep("small")) == 2
    assert registry.check() == []


@pytest.mark.parametrize("name", IN_RUN)
def test_what_a_worker_whose_row_was_closed_still_writes_is_left_alone(
    registry: ProjectRegistry, run: TrainingRecord, name: str
) -> None:
    """Its supervisor was killed, somebody closed its training, and it writes its last checkpoint."""
    path = write(run.run_dir / name)
    with open(run.run_dir / RUN_LOCK_NAME, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert (
            registry.check()
            == registry.collect_garbage()
            == registry.sweep("small")
            == registry.repair()
            == []
        )
        assert path.exists()
    registry.sweep("small")
    assert not path.exists()


@pytest.mark.parametrize("name", ["projects/small/adapters/.new-1/x", ".trash/a-0badcafe/x", ".rebuild-1/x"])
def test_what_somebody_has_locked_is_left_alone(registry: ProjectRegistry, name: str) -> None:
    path = write(registry.home / name)
    with hold(path.parent):
        assert (
            registry.check()
            == registry.collect_garbage()
            == registry.repair()
            == registry.sweep("small")
            == []
        )
    assert path.exists() and len(left(registry)) == 1


REMOVALS = {
    "an adapter": "r.remove_adapter('small', 'v1', delete_files=True)",
    "a project": "r.remove_project('small')",
    "gc": "r.collect_garbage(GarbagePolicy(keep_versions=1))",
}


@pytest.mark.parametrize("moment", ["before the row is gone", "after it"])
@pytest.mark.parametrize("what", REMOVALS)
def test_a_removal_that_is_killed_is_undone_or_ended(
    registry: ProjectRegistry, run: TrainingRecord, what: str, moment: str
) -> None:
    """Between the renaming of the files and the commit of the rows, and between that and the deletion of the files."""
    for version in ("v2", "v3"):
        install_adapter(registry, "small", version)
    other = registry.begin_training("small", {})
    registry.finish_training(other.id, TrainingStatus.COMPLETED, "", {})
    before = [adapter.version for adapter in registry.list_adapters("small")]
    target = "pathlib.Path.rename" if moment.startswith("before") else "shutil.rmtree"
    code = f"""
import os, pathlib, shutil, signal
from mlx_gardener.registry import GarbagePolicy, ProjectRegistry
from unittest import mock
real = {target}
def die(*arguments, **options):
    if {moment.startswith("before")}:
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
r = ProjectRegistry()
with mock.patch("{target}", die):
    {REMOVALS[what]}
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(left(registry)) == 1
    (said,) = registry.repair()
    if moment.startswith("before"):
        assert "back in its place" in said
        assert [adapter.version for adapter in registry.list_adapters("small")] == before
    else:
        assert "is gone" in said
        assert what == "a project" or [item.version for item in registry.list_adapters("small")] != before
    assert registry.check() == [] and not list((registry.home / ".trash").iterdir())


def test_what_lies_beside_a_place_is_swept_by_the_next_writer_of_that_place_alone(tmp_path: Path) -> None:
    write(tmp_path / ".model.0badcafe.new" / "weights")
    write(tmp_path / ".model.mine.new" / "weights")
    write(tmp_path / ".other.0badcafe.new" / "weights")
    assert [path.name for path in left_beside(tmp_path / "model")] == [".model.0badcafe.new"]
    with staged_beside(tmp_path / "model") as first, staged_beside(tmp_path / "model") as second:
        assert first.is_dir() and second.is_dir() and first != second
        assert left_beside(tmp_path / "model") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.mine.new", ".other.0badcafe.new"]


def test_a_rebuild_that_is_killed_keeps_the_damaged_database(registry: ProjectRegistry, home: Path) -> None:
    registry.close()
    (home / "registry.sqlite3").write_bytes(b"this is no database at all, but it is long enough" * 400)
    for ending in ("-wal", "-shm"):
        (home / f"registry.sqlite3{ending}").unlink(missing_ok=True)
    code = """
import os, pathlib, signal
from mlx_gardener.registry import ProjectRegistry
pathlib.Path.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
ProjectRegistry().repair()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    again = ProjectRegistry(home)
    assert [problem.kind for problem in again.check()] == ["damaged_database"]
    again.repair()
    assert again.check() == []


def test_an_empty_home_is_swept_too(home: Path) -> None:
    write(home / ".rebuild-1" / "x")
    registry = ProjectRegistry()
    assert left(registry) == [".rebuild-1"]
    registry.repair()
    assert registry.check() == []
    shutil.rmtree(home)
