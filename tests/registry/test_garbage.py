"""gc deletes what the policy does not keep, says how much that is, and leaves alone what is in use."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from mlx_gardener.model.gguf import read_gguf
from mlx_gardener.model.gguf.kept import note_source
from mlx_gardener.platform.locks import take_lock
from mlx_gardener.platform.read_folders import sources
from mlx_gardener.registry import GarbagePolicy, ProjectRegistry, TrainingStatus
from mlx_gardener.registry.names import INDEX_NAME
from tests.model.store_worlds import write_gguf
from tests.registry.worlds import install_adapter


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    made = ProjectRegistry()
    made.register_project("small", repository)
    for number in range(1, 6):
        install_adapter(made, "small", f"v{number}", os.urandom(1000 * number))
    return made


def versions(registry: ProjectRegistry) -> list[str]:
    """What is registered, which has to be what is on disk."""
    recorded = [adapter.version for adapter in registry.list_adapters("small")]
    adapters = registry.project_directory("small") / "adapters"
    assert sorted(recorded) == sorted(path.name for path in adapters.iterdir())
    return recorded


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def run(
    registry: ProjectRegistry, status: TrainingStatus, *, days_ago: float = 0.0, run_dir: Path | None = None
) -> tuple[str, Path]:
    """A finished run with a checkpoint of 500 bytes and a log of 30."""
    record = registry.begin_training("small", {}, run_dir=run_dir)
    checkpoint = record.run_dir / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "state.json").write_bytes(b"s" * 500)
    (record.run_dir / "worker.log").write_bytes(b"l" * 30)
    registry.finish_training(record.id, status, "", {})
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute(
            "UPDATE trainings SET finished_at = ? WHERE id = ?", (time.time() - days_ago * 86400, record.id)
        )
    return record.id, record.run_dir


def test_an_index_goes_where_no_adapter_is_left_that_could_use_it(registry: ProjectRegistry) -> None:
    index = registry.project_directory("small") / INDEX_NAME
    index.write_bytes(b"i" * 700)
    assert registry.collect_garbage(GarbagePolicy(keep_versions=9)) == [] and index.exists()
    for version in versions(registry):
        registry.remove_adapter("small", version)
    (gone,) = [item for item in registry.collect_garbage(GarbagePolicy()) if item.kind == "index"]
    assert (gone.subject, gone.size_bytes) == (f"projects/small/{INDEX_NAME}", 700) and not index.exists()


def test_old_versions_go_and_the_newest_and_the_active_one_stay(registry: ProjectRegistry) -> None:
    registry.activate_adapter("small", "v1")
    adapters = registry.project_directory("small") / "adapters"
    sizes = {name: size_of(adapters / name) for name in ("v2", "v3")}
    policy = GarbagePolicy(keep_versions=2)
    planned = registry.collect_garbage(policy, dry_run=True)
    assert versions(registry) == ["v1", "v2", "v3", "v4", "v5"]
    done = registry.collect_garbage(policy)
    assert done == planned
    assert {item.subject: item.size_bytes for item in done} == {
        f"small/{name}": sizes[name] for name in sizes
    }
    assert versions(registry) == ["v1", "v4", "v5"] and registry.get_project("small").active_adapter == "v1"
    assert registry.check() == [] and registry.collect_garbage(policy) == []


def test_at_least_one_version_stays(registry: ProjectRegistry) -> None:
    registry.activate_adapter("small", None)
    registry.collect_garbage(GarbagePolicy(keep_versions=0))
    assert versions(registry) == ["v5"]


def test_old_runs_and_checkpoints_of_completed_ones_go(registry: ProjectRegistry) -> None:
    old, old_dir = run(registry, TrainingStatus.FAILED, days_ago=40)
    resumed, resumed_dir = run(registry, TrainingStatus.FAILED, days_ago=40)
    run(registry, TrainingStatus.COMPLETED, days_ago=2, run_dir=resumed_dir)
    cancelled, cancelled_dir = run(registry, TrainingStatus.CANCELLED, days_ago=3)
    latest, latest_dir = run(registry, TrainingStatus.FAILED, days_ago=50)
    done = registry.collect_garbage(GarbagePolicy(keep_versions=9))
    assert sorted((item.kind, item.size_bytes) for item in done) == [("checkpoints", 500), ("run", 530)]
    assert not old_dir.exists() and (resumed_dir / "worker.log").exists()
    assert not (resumed_dir / "checkpoints").exists()
    assert (cancelled_dir / "checkpoints").exists() and (latest_dir / "checkpoints").exists()
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        known = {row[0] for row in connection.execute("SELECT id FROM trainings")}
    assert old not in known and {resumed, cancelled, latest} <= known
    assert registry.check() == []


def test_checkpoints_of_completed_runs_stay_when_asked(registry: ProjectRegistry) -> None:
    _, directory = run(registry, TrainingStatus.COMPLETED)
    assert registry.collect_garbage(GarbagePolicy(keep_versions=9, keep_checkpoints=True)) == []
    assert (directory / "checkpoints").exists()


def test_a_run_that_the_queue_waits_for_stays(registry: ProjectRegistry) -> None:
    registry.queue.add("small", {}, budget_bytes=1)
    waited, directory = run(registry, TrainingStatus.FAILED, days_ago=40)
    run(registry, TrainingStatus.FAILED)
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute("UPDATE queue SET training_id = ?", (waited,))
    assert registry.collect_garbage(GarbagePolicy(keep_versions=9)) == [] and directory.exists()


def test_a_project_that_is_being_trained_is_left_alone(registry: ProjectRegistry) -> None:
    _, directory = run(registry, TrainingStatus.FAILED, days_ago=90)
    record = registry.begin_training("small", {}, run_dir=directory)
    for dry_run in (True, False):
        assert registry.collect_garbage(GarbagePolicy(keep_versions=1, run_days=0), dry_run=dry_run) == []
    assert len(versions(registry)) == 5 and (directory / "checkpoints").exists()
    registry.finish_training(record.id, TrainingStatus.COMPLETED, "", {})
    assert {item.kind for item in registry.collect_garbage(GarbagePolicy(keep_versions=1, run_days=0))} == {
        "version", "checkpoints",
    }  # fmt: skip


def test_what_is_activated_while_it_works_stays(registry: ProjectRegistry) -> None:
    """The plan is made, the version in it is activated by another process, and only then is it carried out."""
    other = sqlite3.connect(registry.home / "registry.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    thread = threading.Thread(target=registry.collect_garbage, args=(GarbagePolicy(keep_versions=1),))
    thread.start()
    thread.join(timeout=0.5)
    assert thread.is_alive()  # it waits to be let write
    other.execute("UPDATE projects SET active_adapter = 'v1'")
    other.execute("COMMIT")
    other.close()
    thread.join()
    assert versions(registry) == ["v1", "v5"] and registry.check() == []


def test_models_of_the_package_index_go_when_nobody_used_them_for_long(home: Path) -> None:
    registry, packages = ProjectRegistry(), home / "cache" / "packages"
    model = write_gguf(packages / "tiny.gguf")
    parts = packages / ".half-1.5.parts"
    (parts / "000").parent.mkdir()
    (parts / "000").write_bytes(b"12345")
    folder = read_gguf(model, home / "cache" / "bases")
    assert registry.collect_garbage(GarbagePolicy()) == []
    old = time.time() - 40 * 86_400
    for path in (model, parts / "000", parts):
        os.utime(path, (old, old))
    bases = home / "cache" / "bases"
    note_source((model,), bases, sources(bases).popitem()[1])  # as if it had been read then
    (packages / ".half-1.5.lock").touch()
    lock = take_lock(packages / ".half-1.5.lock")
    assert lock is not None
    assert registry.collect_garbage(GarbagePolicy()) == [], "one was used a moment ago, one is being fetched"
    os.close(lock)
    os.utime(folder, (old, old))
    found = registry.collect_garbage(GarbagePolicy(), dry_run=True)
    told = [(item.kind, item.subject) for item in found]
    assert told == [("package", "tiny.gguf"), ("package", ".half-1.5.parts"), ("base", folder.name)]
    assert found[0].size_bytes == model.stat().st_size and found[1].size_bytes == 5 and parts.exists()
    assert registry.collect_garbage(GarbagePolicy()) == found
    assert not model.exists() and not parts.exists() and not folder.exists()
    assert registry.collect_garbage(GarbagePolicy()) == []
