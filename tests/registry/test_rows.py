"""A row that this program would not write is a finding with a name that repair puts out of use; nothing else stops."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from mlx_gardener.errors import RegistryError
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.registry.lost import LOST_NAME
from mlx_gardener.registry.restore import restore
from mlx_gardener.registry.rows import TABLES
from tests.registry.worlds import install_adapter
from tests.support.commands import gardener_here

#: What is done to one row, and the table it is of.
TAMPERINGS = [
    ("adapters", "metrics = '{bad'"),
    ("adapters", "metrics = '[]'"),
    ("adapters", f"metrics = '{'[' * 20_000}'"),
    ("adapters", """metrics = '{"adapter_bits_per_byte": "low"}'"""),
    ("adapters", "created_at = 9e999"),
    ("adapters", "created_at = 'yesterday'"),
    ("adapters", "created_at = -1"),
    ("adapters", "base_model = x'00ff'"),
    ("adapters", "base_model = cast(x'ff41' AS TEXT)"),
    ("adapters", "manifest_sha256 = x''"),
    ("adapters", "version = '..'"),
    ("adapters", "version = x'7631'"),
    ("adapters", "directory = 'projects/small/adapters/v9'"),
    ("adapters", "directory = 7"),
    ("trainings", "status = 'odd'"),
    ("trainings", "status = 'training'"),
    ("trainings", "finished_at = NULL"),
    ("trainings", "phase = x'00'"),
    ("trainings", "percent = 9e999"),
    ("trainings", "percent = 101"),
    ("trainings", "message = x'ff'"),
    ("trainings", """details = '{"loss": "low"}'"""),
    ("trainings", "config = 'null'"),
    ("trainings", """result = '{"adapter_version": 7}'"""),
    ("trainings", "pid = 99999999999999"),
    ("trainings", "pid_started = 'long ago'"),
    ("trainings", "updated_at = 9e999"),
    ("trainings", "cancel_requested = 5"),
    ("trainings", "run_dir = '../..'"),
    ("trainings", "id = 'a/b'"),
    ("projects", "path = x'00ff'"),
    ("projects", "path = 'not/absolute'"),
    ("projects", "path = cast(x'2fff' AS TEXT)"),
    ("projects", "active = 9"),
    ("projects", "active_adapter = x'ff'"),
    ("projects", "created_at = 9e999"),
    ("projects", "updated_at = 'x'"),
    ("queue", "config = '{'"),
    ("queue", "priority = 'first'"),
    ("queue", "budget_bytes = -4"),
    ("queue", "enqueued_at = x'00'"),
    ("forgotten", "path = x'00'"),
    ("activations", "version = x'00'"),
    ("activations", "activated_at = 9e999"),
    ("local_models", "path = 7"),
    ("local_models", "id = x'ff'"),
]
#: Commands that read, which a bad row of one project may not stop.
READERS = [
    ("projects",),
    ("projects", "--json"),
    ("status",),
    ("status", "--json"),
    ("show", "other"),
    ("show", "other", "--json"),
    ("queue", "list"),
    ("registry", "gc", "--dry-run"),
]


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    """Two projects, of which ``small`` has one row of each table."""
    made = ProjectRegistry()
    for name in ("small", "other"):
        made.register_project(name, repository / name)
        install_adapter(made, name, "v1")
        record = made.begin_training(name, {"seed": 7})
        made.finish_training(record.id, TrainingStatus.COMPLETED, "Done", {"adapter_version": "v1"})
        made.queue.add(name, {}, budget_bytes=1)
        made.forget_path(name, "secret.py")
    made.note_local_model("model", repository)
    return made


def tamper(file: Path, table: str, change: str) -> None:
    where = {"projects": "name = 'small'", "local_models": "1"}.get(table, "project = 'small'")
    connection = sqlite3.connect(file)
    assert connection.execute(f"UPDATE {table} SET {change} WHERE {where}").rowcount == 1
    connection.commit()
    connection.close()


def of_other(registry: ProjectRegistry) -> object:
    latest = registry.latest_training("other")
    assert latest is not None
    return (
        registry.get_project("other"), registry.list_adapters("other"), latest, registry.forgotten_paths("other"),
        [entry for entry in registry.queue.entries() if entry.project == "other"],
    )  # fmt: skip


@pytest.mark.parametrize(("table", "change"), TAMPERINGS)
def test_a_row_that_nobody_wrote_is_named_put_out_of_use_and_stops_nothing_else(
    registry: ProjectRegistry, home: Path, table: str, change: str
) -> None:
    before = of_other(registry)
    tamper(home / "registry.sqlite3", table, change)
    column = change.split()[0]
    problems = registry.check()
    bad = [problem for problem in problems if problem.kind == "bad_row"]
    assert [problem.subject.split()[0] for problem in bad] == [table], problems
    assert of_other(registry) == before
    registry.list_projects(), registry.active_trainings(), registry.collect_garbage(dry_run=True)
    with pytest.raises(RegistryError, match="repair"):
        registry.backup(home.parent / "b.tar")
    done = registry.repair()
    assert any("out of use" in said or "mended" in said for said in done)
    assert registry.check() == [] and of_other(registry) == before
    kept = [json.loads(path.read_text()) for path in (home / LOST_NAME).glob("*.json")]
    assert len(kept) == 1 and kept[0]["table"] == table
    assert [item.name for item in registry.list_projects()] == ["other", "small"]
    assert [item.version for item in registry.list_adapters("small")] == ["v1"], column
    registry.backup(home.parent / "b.tar")


@pytest.mark.parametrize(("table", "change"), TAMPERINGS)
def test_an_archive_with_a_row_that_nobody_wrote_is_refused(
    registry: ProjectRegistry, tmp_path: Path, table: str, change: str
) -> None:
    from tests.registry.worlds import entries_of, write_archive

    registry.backup(tmp_path / "b.tar")
    entries = entries_of(tmp_path / "b.tar")
    (tmp_path / "d.sqlite3").write_bytes(entries[0][1])
    tamper(tmp_path / "d.sqlite3", table, change)
    entries[0] = (entries[0][0], (tmp_path / "d.sqlite3").read_bytes())
    with pytest.raises(RegistryError, match=f"row of another kind .{table}"):
        restore(write_archive(tmp_path / "evil.tar", entries), tmp_path / "place" / "home")
    assert not (tmp_path / "place" / "home").exists()


@pytest.mark.parametrize(
    ("table", "change"),
    [("adapters", "created_at = 9e999"), ("projects", "path = x'00ff'"), ("trainings", "message = x'ff'")],
)
def test_no_command_stops_at_a_row_that_nobody_wrote(
    registry: ProjectRegistry, home: Path, table: str, change: str
) -> None:
    tamper(home / "registry.sqlite3", table, change)
    for command in READERS:
        done = gardener_here(*command)
        assert done.returncode == 0 and "defect" not in done.stderr, (command, done.stderr)
    found = gardener_here("registry", "check")
    assert found.returncode == 1 and f"bad_row: A row cannot be used ({table}" in found.stdout
    assert gardener_here("registry", "repair").returncode == 0
    assert gardener_here("registry", "check").returncode == 0


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("how", ["DROP TABLE {}", "ALTER TABLE {} RENAME TO elsewhere"])
def test_a_missing_table_is_damage_that_repair_mends(
    registry: ProjectRegistry, home: Path, table: str, how: str
) -> None:
    connection = sqlite3.connect(home / "registry.sqlite3")
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute(how.format(table))
    connection.commit()
    connection.close()
    registry.close()
    again = ProjectRegistry(home)
    (problem,) = again.check()
    assert problem.kind == "damaged_database" and table in problem.message
    assert "damaged" in again.repair()[0] and again.check() == []
    if table != "projects":
        assert [item.version for item in again.list_adapters("other")] == ["v1"]


@pytest.mark.parametrize("version", [-1, 0, 1, 2])
def test_a_schema_of_another_version_than_it_says_is_damage(
    registry: ProjectRegistry, home: Path, version: int
) -> None:
    registry.close()
    connection = sqlite3.connect(home / "registry.sqlite3")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    again = ProjectRegistry(home)
    assert [problem.kind for problem in again.check()] == ["damaged_database"]
    again.repair()
    assert again.check() == [] and len(again.list_projects()) == 2


def test_a_project_whose_repository_nobody_can_name_keeps_its_adapters(
    registry: ProjectRegistry, home: Path
) -> None:
    tamper(home / "registry.sqlite3", "projects", "path = x'00ff'")
    registry.repair()
    project = registry.get_project("small")
    assert not project.path.exists() and project.active_adapter == "v1"
    assert registry.register_project("small", home.parent).path == home.parent.resolve()
    tamper(home / "registry.sqlite3", "projects", "path = x'2f746d70'")  # bytes that are a path
    registry.repair()
    assert registry.get_project("small").path == Path("/tmp")


@pytest.mark.parametrize("path", ["x'00ff'", "cast(x'2f6100' AS TEXT)", "'not/absolute'", "7"])
def test_a_path_that_is_none_is_not_taken_for_a_repository_that_moved(
    registry: ProjectRegistry, repository: Path, tmp_path: Path, path: str
) -> None:
    with registry._database.write() as connection:
        connection.execute(f"UPDATE projects SET path = {path} WHERE name = 'small'")
    with pytest.raises(RegistryError, match="already stands for"):
        registry.register_project("small", tmp_path)
    registry.repair()
    assert registry.register_project("small", repository).path == repository
