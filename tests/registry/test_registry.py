"""The registry under many threads and processes, with dead owners and damaged files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mlx_gardener.errors import ConfigError, RegistryError, TrainingError
from mlx_gardener.events import TrainingPhase, TrainingProgress
from mlx_gardener.registry import (
    ProjectRegistry,
    TrainingRecord,
    TrainingStatus,
    check_project_name,
    project_name_for,
)
from mlx_gardener.registry.database import DATABASE_NAME


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    made = ProjectRegistry()
    made.register_project("small", repository)
    return made


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", ".hidden", "-flag", "x" * 65, "new\nline", "esc\x1b[0m", "dot.", "ü"]
)
def test_a_name_that_could_leave_the_home_is_refused(
    registry: ProjectRegistry, repository: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="cannot be a project name"):
        registry.register_project(name, repository)
    with pytest.raises(ConfigError):
        registry.project_directory(name)


@pytest.mark.parametrize(
    "directory",
    ["web app", "..", "-x-", "ünï", "a" * 300, ".config", "new\nline", "com1." + "a" * 300, "nul"],
)
def test_every_directory_gets_a_good_name(tmp_path: Path, directory: str) -> None:
    assert check_project_name(project_name_for(tmp_path / directory))


def test_a_project_is_the_same_for_everybody(registry: ProjectRegistry, home: Path, repository: Path) -> None:
    other = ProjectRegistry(home)
    assert other.get_project("small").path == repository.resolve()
    other.set_active_project("small")
    active = registry.get_active_project()
    assert active is not None and active.name == "small"
    assert registry.register_project("small", repository).name == "small"


def test_a_name_stands_for_one_path_only(registry: ProjectRegistry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="already stands for"):
        registry.register_project("small", tmp_path)
    assert registry.register_project("small", tmp_path, replace=True).path == tmp_path.resolve()


def git(root: Path, *arguments: str) -> None:
    user = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    subprocess.run(("git", "-C", str(root), *user, *arguments), check=True, capture_output=True)


def test_a_repository_that_moved_keeps_its_name(
    registry: ProjectRegistry, git_repository: Path, tmp_path: Path
) -> None:
    registry.register_project("web", git_repository)
    moved = git_repository.rename(tmp_path / "moved")
    with pytest.raises(RegistryError, match="already stands for"):
        registry.register_project("web", tmp_path / "nowhere")
    assert registry.register_project("web", moved).path == moved


def test_a_clone_is_the_same_repository_and_another_one_is_not(
    registry: ProjectRegistry, git_repository: Path, tmp_path: Path
) -> None:
    registry.register_project("web", git_repository)
    clone, stranger = tmp_path / "clone", tmp_path / "stranger"
    subprocess.run(("git", "clone", "-q", str(git_repository), str(clone)), check=True, capture_output=True)
    git(clone, "commit", "-q", "--allow-empty", "-m", "Second")
    stranger.mkdir()
    git(stranger, "init", "-q")
    for wrong in (stranger, clone / "core"):  # without a commit; another part of the same repository
        with pytest.raises(RegistryError, match="already stands for"):
            registry.register_project("web", wrong)
    git(stranger, "commit", "-q", "--allow-empty", "-m", "Unlike the other")
    with pytest.raises(RegistryError, match="already stands for"):
        registry.register_project("web", stranger)
    assert registry.get_project("web").path == git_repository
    assert registry.register_project("web", clone).path == clone


def test_a_project_is_registered_only_where_what_it_is_for_begins(
    registry: ProjectRegistry, repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError), registry.registering("other", tmp_path):
        raise TrainingError("no")
    assert [project.name for project in registry.list_projects()] == ["small"]
    moved = repository.rename(tmp_path / "moved")
    with pytest.raises(TrainingError), registry.registering("small", moved):
        assert registry.get_project("small").path == moved
        raise TrainingError("no")
    assert registry.get_project("small").path == repository
    with registry.registering("other", tmp_path) as made:
        assert made.path == tmp_path
    with pytest.raises(TrainingError), registry.registering("third", tmp_path):
        registry.begin_training("third", {})
        raise TrainingError("it was begun")
    assert [project.name for project in registry.list_projects()] == ["other", "small", "third"]


def test_removing_a_project_takes_its_files_and_not_its_repository(
    registry: ProjectRegistry, repository: Path
) -> None:
    record = registry.begin_training("small", {})
    with pytest.raises(RegistryError, match="being trained"):
        registry.remove_project("small")
    registry.finish_training(record.id, TrainingStatus.FAILED, "x", {})
    registry.remove_project("small")
    assert not record.run_dir.exists() and repository.exists()
    with pytest.raises(RegistryError, match="no project"):
        registry.get_project("small")


def test_a_training_goes_through_its_states(registry: ProjectRegistry) -> None:
    assert registry.get_project("small").status is TrainingStatus.NOT_STARTED
    record = registry.begin_training("small", {"seed": 1})
    assert registry.get_project("small").status is TrainingStatus.QUEUED
    registry.claim_training(record.id, os.getpid())
    registry.update_training(record.id, TrainingProgress(TrainingPhase.TRAINING, 50.0, "half", {"step": 3}))
    assert [item.id for item in registry.active_trainings()] == [record.id]
    registry.finish_training(record.id, TrainingStatus.COMPLETED, "Done", {"adapter_version": "v1"})
    registry.update_training(record.id, TrainingProgress(TrainingPhase.TRAINING, 60.0, "late"))
    ended = registry.get_training(record.id)
    assert (ended.status, ended.percent, ended.message) == (TrainingStatus.COMPLETED, 100.0, "Done")
    assert ended.result == {"adapter_version": "v1"} and ended.config == {"seed": 1}


def test_only_one_of_many_threads_begins_a_training(registry: ProjectRegistry) -> None:
    begun, refused = [], []
    gate = threading.Barrier(12)

    def begin() -> None:
        gate.wait()
        try:
            begun.append(registry.begin_training("small", {}).id)
        except TrainingError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1 and len(refused) == 11
    assert all("already being trained" in text for text in refused)


def test_the_training_of_a_dead_process_is_closed_and_the_project_free_again(
    registry: ProjectRegistry,
) -> None:
    code = "from mlx_gardener.registry import ProjectRegistry as R; print(R().begin_training('small', {}).id)"
    dead = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert registry.active_trainings() == []
    closed = registry.get_training(dead)
    assert closed.status is TrainingStatus.FAILED and "no checkpoint yet" in closed.message
    registry.explain_death(dead, "It was ended by signal 9.")
    assert registry.get_training(dead).message == "It was ended by signal 9."
    registry.explain_death(dead, "Another story")
    assert registry.get_training(dead).message == "It was ended by signal 9."
    assert registry.begin_training("small", {}).id != dead


def test_a_process_with_the_number_of_a_dead_owner_owns_nothing(registry: ProjectRegistry) -> None:
    training = registry.begin_training("small", {})
    assert [record.id for record in registry.active_trainings()] == [training.id]
    with sqlite3.connect(registry.home / DATABASE_NAME) as database:
        database.execute("UPDATE trainings SET pid_started = pid_started - 60")
    assert registry.active_trainings() == []
    assert registry.begin_training("small", {}).id != training.id


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others record start times themselves")
def test_setting_the_clock_takes_no_training_from_its_owner(
    registry: ProjectRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start times were made of the boot's time of day, which moves with the clock."""
    training = registry.begin_training("small", {})
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
    assert psutil.Process().create_time() > time.time() + 1000, "the clock was not set"
    assert [record.id for record in registry.active_trainings()] == [training.id]


def test_many_processes_write_at_once_and_nothing_is_lost(registry: ProjectRegistry, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom mlx_gardener.registry import ProjectRegistry\n"
        "registry = ProjectRegistry()\n"
        "for number in range(20):\n"
        "    registry.register_project(f'p{sys.argv[1]}-{number}', Path(sys.argv[2]))\n"
        "    registry.get_project(f'p{sys.argv[1]}-{number}')\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(n), str(tmp_path)]) for n in range(4)]
    assert [worker.wait(timeout=600) for worker in workers] == [0] * 4
    assert len(registry.list_projects()) == 1 + 4 * 20
    assert registry.check() == []


def test_many_threads_update_one_training(registry: ProjectRegistry) -> None:
    record = registry.begin_training("small", {})

    def update(number: int) -> None:
        for step in range(25):
            progress = TrainingProgress(TrainingPhase.TRAINING, 50.0, f"{number}", {"step": step})
            registry.update_training(record.id, progress)

    threads = [threading.Thread(target=update, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get_training(record.id).details == {"step": 24}


def test_a_version_that_is_not_there_is_not_activated(registry: ProjectRegistry) -> None:
    directory = registry.project_directory("small") / "adapters" / "v1"
    registry.add_adapter("small", "v1", directory, base_model="b", metrics={}, manifest_sha256="0")
    with pytest.raises(RegistryError, match="no adapter version 'v2'"):
        registry.activate_adapter("small", "v2")
    assert registry.get_project("small").active_adapter == "v1"
    with pytest.raises(RegistryError, match="no project"):
        registry.set_active_project("nobody")


def test_a_version_is_recorded_once_however_often_it_is_told(registry: ProjectRegistry) -> None:
    directory = registry.project_directory("small") / "adapters" / "v1"

    def add(manifest_sha256: str) -> None:
        registry.add_adapter(
            "small", "v1", directory, base_model="b", metrics={}, manifest_sha256=manifest_sha256
        )

    add("0" * 64)
    add("0" * 64)
    with pytest.raises(RegistryError):
        add("1" * 64)
    assert [adapter.manifest_sha256 for adapter in registry.list_adapters("small")] == ["0" * 64]


def test_a_training_that_was_taken_for_dead_registers_nothing_once_another_has_begun(
    registry: ProjectRegistry,
) -> None:
    adapters = registry.project_directory("small") / "adapters"

    def add(version: str, training: TrainingRecord) -> None:
        registry.add_adapter(
            "small",
            version,
            adapters / version,
            base_model="b",
            metrics={},
            manifest_sha256="0" * 64,
            training_id=training.id,
        )

    first = registry.begin_training("small", {})
    assert registry.finish_training(first.id, TrainingStatus.FAILED, "silent", {})
    assert not registry.finish_training(first.id, TrainingStatus.COMPLETED, "Done", {})
    assert not registry.claim_training(first.id, os.getpid())
    add("v1", first)  # nothing else has begun: it is better to have it than not
    second = registry.begin_training("small", {})
    with pytest.raises(TrainingError, match="Another training of 'small' has begun since"):
        add("v2", first)
    add("v3", second)
    assert [adapter.version for adapter in registry.list_adapters("small")] == ["v1", "v3"]


def test_a_file_that_is_no_database_is_named(home: Path) -> None:
    home.mkdir()
    (home / "registry.sqlite3").write_bytes(b"this is no database at all, but it is long enough" * 40)
    with pytest.raises(RegistryError, match="no database"):
        ProjectRegistry().list_projects()


def test_a_registry_of_a_newer_version_is_left_alone(registry: ProjectRegistry, home: Path) -> None:
    registry.list_projects()
    with sqlite3.connect(home / "registry.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RegistryError, match="newer version"):
        ProjectRegistry(home).list_projects()


def test_nobody_else_can_read_it(registry: ProjectRegistry, home: Path) -> None:
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "registry.sqlite3").stat().st_mode & 0o077 == 0
