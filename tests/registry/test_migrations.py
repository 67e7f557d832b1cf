"""A registry of any earlier version becomes one of this version, with everything that was in it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.registry.schema import apply_migrations, newest_version, schema_of


def registry_of_version(home: Path, version: int) -> Path:
    """A home with a database as version ``version`` of the schema left it, with a row of each table of version 1."""
    home.mkdir()
    file = home / "registry.sqlite3"
    connection = sqlite3.connect(file, isolation_level=None)
    apply_migrations(connection, upto=version)
    if version:
        rows = {
            "projects": {"name": "old", "path": "/old", "active": 1, "active_adapter": "v1", "created_at": 1.0, "updated_at": 2.0},
            "trainings": {
                "id": "t1", "project": "old", "status": "completed", "phase": "completed", "percent": 100.0, "message": "Done",
                "details": "{}", "run_dir": "projects/old/runs/t1", "config": '{"seed": 1}', "result": "{}", "started_at": 1.0,
                "updated_at": 2.0, "finished_at": 2.0,
            },
            "adapters": {
                "project": "old", "version": "v1", "directory": "projects/old/adapters/v1", "base_model": "b", "metrics": "{}",
                "manifest_sha256": "0", "created_at": 2.0,
            },
        }  # fmt: skip
        for table, row in rows.items():
            marks = ", ".join("?" * len(row))
            connection.execute(
                f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values())
            )
    connection.close()
    return file


def described(file: Path) -> tuple[int, set[tuple[str, str, str]]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute("PRAGMA user_version").fetchone()[0], schema_of(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("version", range(newest_version() + 1))
def test_a_registry_of_every_earlier_version_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    file = registry_of_version(tmp_path / "old", version)
    assert described(file)[0] == version
    registry = ProjectRegistry(file.parent)
    projects = registry.list_projects()
    fresh = ProjectRegistry(tmp_path / "fresh")
    assert fresh.list_projects() == []
    assert described(file) == described(fresh.home / "registry.sqlite3")
    assert described(file)[0] == newest_version() >= 2
    if version:
        (project,) = projects
        assert (project.name, project.active_adapter, project.status) == (
            "old",
            "v1",
            TrainingStatus.COMPLETED,
        )
        assert registry.get_training("t1").config == {"seed": 1}
        assert registry.get_adapter("old").version == "v1"
        assert [problem.kind for problem in registry.check()] == ["missing_files"]  # rows only were made here


def test_many_processes_that_bring_it_up_to_date_at_once_do_it_once(tmp_path: Path) -> None:
    file = registry_of_version(tmp_path / "old", 1)
    code = "from mlx_gardener.registry import ProjectRegistry as R; print(len(R().list_projects()))"
    environment = {**os.environ, "MLX_GARDENER_HOME": str(file.parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    assert [process.communicate(timeout=600) for process in processes] == [("1\n", "")] * 6
    assert described(file)[0] == newest_version()
