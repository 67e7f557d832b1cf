"""A full disk can be freed by gc and remove; a read-only home can be read. On small disks of their own, where they may be made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlx_gardener.errors import RegistryUnavailableError
from mlx_gardener.registry import GarbagePolicy, ProjectRegistry, TrainingStatus
from mlx_gardener.registry.scarcity import RESERVE_NAME
from tests.registry.worlds import install_adapter
from tests.support.commands import gardener


@contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    if not sys.platform.startswith("linux") or os.getuid() != 0:
        pytest.skip("a disk can be mounted on Linux by root alone")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def registry(home: Path, repository: Path) -> Iterator[ProjectRegistry]:
    """Three versions and a completed run with checkpoints, on a disk of 80 MB."""
    with mounted(home, "80m"):
        made = ProjectRegistry(home)
        made.register_project("small", repository)
        for version in ("v1", "v2", "v3"):
            install_adapter(made, "small", version, os.urandom(10_000))
        record = made.begin_training("small", {})
        (record.run_dir / "checkpoints").mkdir()
        (record.run_dir / "checkpoints" / "x").write_bytes(os.urandom(300_000))
        made.finish_training(record.id, TrainingStatus.COMPLETED, "Done", {})
        made.close()
        yield made
        made.close()


def fill(home: Path) -> None:
    """Leave no byte free."""
    with open(home / "others", "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    assert shutil.disk_usage(home).free == 0


@pytest.mark.parametrize(
    "command",
    [
        ("registry", "gc", "--keep", "1", "--yes"),
        ("remove", "small", "v1", "--yes"),
        ("remove", "small", "--yes"),
    ],
)
def test_a_full_disk_can_be_freed(registry: ProjectRegistry, home: Path, command: tuple[str, ...]) -> None:
    fill(home)
    for _ in range(2):
        with pytest.raises(RegistryUnavailableError, match="cannot be used"):
            registry.note_local_model("base", Path("x" * 200_000))
    registry.close()
    assert gardener("projects").returncode == 0 and (home / RESERVE_NAME).exists(), "reading takes no space"
    done = gardener(*command)
    assert done.returncode == 0, done.stderr
    assert shutil.disk_usage(home).free > 0
    assert registry.check() == []
    left = [project.name for project in registry.list_projects()]
    assert left == ([] if command == ("remove", "small", "--yes") else ["small"])
    (home / "others").unlink()
    registry.close()
    registry.list_projects()
    assert (home / RESERVE_NAME).stat().st_size == 1 << 20, "it is kept again"


def test_without_the_reserve_what_has_no_row_still_goes_first(registry: ProjectRegistry, home: Path) -> None:
    registry.list_projects()
    (home / RESERVE_NAME).unlink()
    fill(home)
    found = registry.collect_garbage(GarbagePolicy(keep_versions=1))
    assert [item.kind for item in found] == ["checkpoints", "version", "version"]
    assert registry.check() == []


@pytest.mark.parametrize("log", ["no log", "a log"])
def test_a_read_only_home_is_read(registry: ProjectRegistry, home: Path, log: str) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "from mlx_gardener.registry import ProjectRegistry as R; R().begin_training('small', {})"
         + ("; import os; os._exit(0)" if log == "a log" else "")],
        check=True,
    )  # fmt: skip
    assert dead.returncode == 0
    assert ((home / "registry.sqlite3-wal").exists()) == (log == "a log")
    (home / "registry.sqlite3-shm").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
    for command in (
        ("projects",),
        ("show", "small"),
        ("status",),
        ("status", "--json"),
        ("queue", "list"),
        ("registry", "gc", "--dry-run"),
    ):
        done = gardener(*command)
        assert done.returncode == 0, (command, done.stderr)
    (row,) = json.loads(gardener("status", "--json").stdout)["trainings"]
    assert (row["status"], row["active"]) == ("failed", False), "its process is gone"
    found = gardener("registry", "check")
    assert found.returncode == 1 and "dead_training" in found.stdout and "defect" not in found.stderr
    assert gardener("registry", "backup", str(home.parent / "b.tar")).returncode == 0
    refused = gardener("activate", "small", "v1")
    assert refused.returncode == 1 and "cannot be used" in refused.stderr and "defect" not in refused.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(home)], check=True)
    assert gardener("activate", "small", "v1").returncode == 0
