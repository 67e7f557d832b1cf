"""Check finds each kind of damage and nothing else; repair mends it, says so, and deletes no good adapter."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mlx_gardener.errors import RegistryError
from mlx_gardener.platform.locks import hold
from mlx_gardener.platform.sealed import write_sealed
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.registry.lost import LOST_NAME
from mlx_gardener.registry.names import INDEX_NAME
from tests.registry.worlds import install_adapter, write_adapter


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    made = ProjectRegistry()
    made.register_project("small", repository)
    install_adapter(made, "small", "v1")
    install_adapter(made, "small", "v2")
    return made


def adapters_of(registry: ProjectRegistry) -> Path:
    return registry.project_directory("small") / "adapters"


def kinds(registry: ProjectRegistry) -> list[str]:
    return sorted(problem.kind for problem in registry.check())


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def lost(registry: ProjectRegistry) -> list[str]:
    """Names in lost+found, without the time."""
    return sorted(path.name[16:] for path in (registry.home / LOST_NAME).glob("*"))


def abandon_a_training(registry: ProjectRegistry) -> str:
    code = "from mlx_gardener.registry import ProjectRegistry as R; print(R().begin_training('small', {}).id)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_good_registry_has_no_problems_and_nothing_is_mended(registry: ProjectRegistry) -> None:
    record = registry.begin_training("small", {})
    assert registry.check() == [] and registry.repair() == []
    registry.finish_training(record.id, TrainingStatus.COMPLETED, "", {})
    assert registry.check() == []


def test_check_changes_nothing(registry: ProjectRegistry) -> None:
    training = abandon_a_training(registry)
    (adapters_of(registry) / "v9").mkdir()
    assert kinds(registry) == ["dead_training", "orphan_files"] == kinds(registry)
    assert registry.get_training(training).finished_at is None


def test_a_dead_training_is_closed(registry: ProjectRegistry) -> None:
    training = abandon_a_training(registry)
    (said,) = registry.repair()
    assert training in said and registry.check() == []
    assert registry.get_training(training).status is TrainingStatus.FAILED


@pytest.mark.parametrize(
    "damage", ["changed", "gone", "manifest", "outside", "link", "no manifest", "no directory"]
)
def test_an_adapter_whose_files_are_not_the_written_ones_is_taken_out_of_use(
    registry: ProjectRegistry, damage: str
) -> None:
    directory = adapters_of(registry) / "v2"
    weights, manifest = directory / "mlx" / "adapters.safetensors", directory / "manifest.json"
    if damage == "changed":
        weights.write_bytes(b"weightz")
    elif damage == "gone":
        weights.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"base"', '"Base"'))
    elif damage == "outside":
        changed = json.loads(manifest.read_text())
        changed["files"]["../v1/README.md"] = changed["files"].pop("README.md")
        manifest.write_text(json.dumps(changed))
    elif damage == "link":
        weights.rename(directory / "elsewhere")
        weights.symlink_to(directory / "elsewhere")
    elif damage == "no manifest":
        manifest.unlink()
    else:
        shutil.rmtree(directory)
    expected = "missing_files" if damage.startswith("no ") else "wrong_files"
    assert [(problem.kind, problem.subject) for problem in registry.check()] == [(expected, "small/v2")]
    (said,) = registry.repair()
    assert "out of use" in said and "mlx-gardener activate" in said
    assert registry.check() == []
    assert [adapter.version for adapter in registry.list_adapters("small")] == ["v1"]
    assert registry.get_project("small").active_adapter is None
    assert lost(registry) == ([] if damage == "no directory" else ["small-v2"])


def test_a_damaged_index_is_deleted_as_it_can_be_made_again(registry: ProjectRegistry) -> None:
    place = registry.project_directory("small") / INDEX_NAME
    write_sealed(place, {"words": np.arange(99, dtype=np.uint64)}, {"format": "any"})
    assert registry.check() == []
    data = bytearray(place.read_bytes())
    data[-8] ^= 4
    place.write_bytes(data)
    (problem,) = registry.check()
    assert (problem.kind, problem.subject) == ("wrong_index", f"projects/small/{INDEX_NAME}")
    assert registry.check(hashes=False) == []
    (said,) = registry.repair()
    assert "made anew" in said and not place.exists() and registry.check() == []


def test_a_quick_check_reads_no_hashes(registry: ProjectRegistry) -> None:
    (adapters_of(registry) / "v2" / "README.md").write_text("changed")
    assert registry.check(hashes=False) == [] and kinds(registry) == ["wrong_files"]


def test_a_good_adapter_nobody_knows_is_registered_again(registry: ProjectRegistry) -> None:
    before = registry.get_adapter("small", "v1")
    registry.remove_adapter("small", "v1")
    assert kinds(registry) == ["orphan_files"]
    (said,) = registry.repair()
    assert "registered again" in said and registry.check() == []
    again = registry.get_adapter("small", "v1")
    assert (again.base_model, again.metrics, again.manifest_sha256, again.directory) == (
        before.base_model, before.metrics, before.manifest_sha256, before.directory,
    )  # fmt: skip
    assert not again.active and registry.get_project("small").active_adapter == "v2"
    assert again.created_at == 1767323045.0  # what its manifest says


def test_what_is_no_good_adapter_of_its_place_is_kept_in_lost_and_found(registry: ProjectRegistry) -> None:
    write_adapter(adapters_of(registry) / "v3", "small", "v4")
    write_adapter(adapters_of(registry) / "v5", "other", "v5")
    write_adapter(adapters_of(registry) / "v6", "small", "v6")
    (adapters_of(registry) / "v6" / "README.md").write_text("changed")
    run = registry.project_directory("small") / "runs" / "abc"
    run.mkdir(parents=True)
    (run / "worker.log").write_text("a line")
    write_adapter(registry.home / "projects" / "gone" / "adapters" / "v1", "gone", "v1")
    assert kinds(registry) == ["orphan_files"] * 4 + ["orphan_project"]
    assert len(registry.repair()) == 5
    assert registry.check() == []
    assert lost(registry) == ["gone", "small-abc", "small-v3", "small-v5", "small-v6"]
    (kept,) = (registry.home / LOST_NAME).glob("*-gone")
    assert (kept / "adapters" / "v1" / "mlx" / "adapters.safetensors").read_bytes() == b"weights"


def test_things_lost_twice_are_both_kept(registry: ProjectRegistry) -> None:
    for _ in range(3):
        (adapters_of(registry) / "v7").mkdir()
        (adapters_of(registry) / "v7" / "x").touch()
        registry.repair()
    assert len(lost(registry)) == 3


def test_an_active_version_that_is_gone_is_no_longer_active(registry: ProjectRegistry) -> None:
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute("UPDATE projects SET active_adapter = 'v8'")
    assert kinds(registry) == ["missing_version"]
    assert "activate" in registry.repair()[0] and registry.check() == []


def test_an_entry_of_the_queue_whose_training_is_gone_waits_again(registry: ProjectRegistry) -> None:
    entry = registry.queue.add("small", {}, budget_bytes=1)
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute("UPDATE queue SET training_id = 'gone'")
    assert kinds(registry) == ["stale_queue"]
    assert len(registry.repair()) == 1 and registry.check() == []
    assert registry.queue.entries() == [entry]


def test_half_written_files_are_deleted_and_whole_adapters_among_them_kept(registry: ProjectRegistry) -> None:
    half = adapters_of(registry) / ".new-1"
    (half / "mlx").mkdir(parents=True)
    write_adapter(adapters_of(registry) / ".new-2", "small", "v3")
    (registry.home / ".trash" / "v0-1" / "mlx").mkdir(parents=True)
    record = registry.begin_training("small", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "", {})
    for name in (
        "job.json.new",
        "checkpoints/.step-00000003.new/state.json",
        "checkpoints/.step-00000001.dropped/x",
    ):
        (record.run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (record.run_dir / name).touch()
    kept = record.run_dir / "checkpoints" / "step-00000002"
    kept.mkdir()
    assert kinds(registry) == ["leftover"] * 6
    assert len(registry.repair()) == 6
    assert registry.check() == [] and lost(registry) == ["small-.new-2"]
    assert kept.is_dir() and sorted(path.name for path in record.run_dir.rglob("*")) == [
        "checkpoints",
        kept.name,
    ]


def test_what_somebody_alive_is_writing_is_left_alone(registry: ProjectRegistry) -> None:
    staged = adapters_of(registry) / ".new-1"
    sha256 = write_adapter(staged, "small", "v3")
    trashed = registry.home / ".trash" / "v0"
    trashed.mkdir(parents=True)
    record = registry.begin_training("small", {})
    (record.run_dir / "job.json.new").touch()
    with hold(staged), hold(trashed):
        assert registry.check() == []
        final = staged.rename(staged.with_name("v3"))  # the lock goes with it
        assert registry.check() == [] and registry.repair() == []
        registry.add_adapter("small", "v3", final, base_model="b", metrics={}, manifest_sha256=sha256)
    trashed.rmdir()
    assert registry.check() == [] and (record.run_dir / "job.json.new").exists()


def test_a_directory_that_is_made_within_a_transaction_is_no_orphan(registry: ProjectRegistry) -> None:
    record = registry.begin_training("small", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "", {})
    (record.run_dir / "job.json").touch()
    run = record.run_dir.with_name("another")
    other = sqlite3.connect(registry.home / "registry.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE trainings SET run_dir = ?", (run.relative_to(registry.home).as_posix(),))
    record.run_dir.rename(run)
    with ThreadPoolExecutor() as pool:
        found = pool.submit(registry.check)
        time.sleep(0.3)
        assert not found.done()  # it waits for the transaction's end, to be sure
        other.execute("COMMIT")
        other.close()
        assert found.result() == []


def test_a_writer_that_is_killed_leaves_what_repair_clears_away(registry: ProjectRegistry) -> None:
    code = (
        "import os, signal\nfrom pathlib import Path\n"
        "from mlx_gardener.platform.locks import hold\nfrom mlx_gardener.registry import ProjectRegistry\n"
        "staged = ProjectRegistry().project_directory('small') / 'adapters' / '.new-1'\n"
        "staged.mkdir()\nwith hold(staged):\n    (staged / 'x').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert kinds(registry) == ["leftover"]
    registry.repair()
    assert registry.check() == [] and names_in(adapters_of(registry)) == ["v1", "v2"]


def corrupt(home: Path, page: int) -> None:
    """Overwrite one page of the database, whose log has been taken into it."""
    with sqlite3.connect(home / "registry.sqlite3") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    with open(home / "registry.sqlite3", "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)


def page_of(home: Path, name: str) -> int:
    with sqlite3.connect(home / "registry.sqlite3") as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    connection.close()
    return int(page)


@pytest.mark.parametrize("table", ["projects", "adapters", "trainings", "one_live_training", "queue"])
def test_a_damaged_database_is_rebuilt_from_what_can_be_read(
    registry: ProjectRegistry, home: Path, table: str
) -> None:
    record = registry.begin_training("small", {"seed": 3})
    registry.finish_training(record.id, TrainingStatus.COMPLETED, "Done", {})
    before = registry.list_adapters("small")
    page = page_of(home, table)
    registry.close()
    corrupt(home, page)
    again = ProjectRegistry(home)
    assert kinds(again) == ["damaged_database"]
    done = again.repair()
    assert "damaged" in done[0] and again.check() == []
    assert any(name.startswith("registry.sqlite3") for name in lost(again))
    if table == "projects":
        assert again.list_projects() == [] and "small" in lost(again)
        (kept,) = (home / LOST_NAME).glob("*-small")
        assert sorted(path.name for path in (kept / "adapters").iterdir()) == ["v1", "v2"]
        return
    versions = [(adapter.version, adapter.manifest_sha256) for adapter in again.list_adapters("small")]
    assert versions == [(adapter.version, adapter.manifest_sha256) for adapter in before]
    if table != "trainings":
        assert again.get_training(record.id).config == {"seed": 3}


def test_a_database_that_is_none_any_more_is_moved_away_when_nobody_has_it_open(
    registry: ProjectRegistry, home: Path
) -> None:
    user = "from mlx_gardener.registry import ProjectRegistry as R\nr = R()\nr.list_projects()\nprint('open', flush=True)\ninput()"
    other = subprocess.Popen(
        [sys.executable, "-c", user], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "open\n"
    registry.close()
    (home / "registry.sqlite3").write_bytes(b"this is no database at all, but it is long enough" * 400)
    for ending in ("-wal", "-shm"):
        (home / f"registry.sqlite3{ending}").unlink(missing_ok=True)
    assert kinds(ProjectRegistry(home)) == ["damaged_database"]
    with pytest.raises(RegistryError, match="Another program has the registry"):
        ProjectRegistry(home).repair()
    other.kill()  # its orderly end would write the file's old pages back
    other.communicate()
    again = ProjectRegistry(home)
    assert "no row" in again.repair()[0]
    assert again.check() == [] and again.list_projects() == []
    assert sorted(name.partition(".")[0] for name in lost(again)) == ["registry", "small"]


def test_an_adapter_that_is_removed_is_gone_with_its_files_or_not_at_all(
    registry: ProjectRegistry,
) -> None:
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute("CREATE TRIGGER no BEFORE DELETE ON adapters BEGIN SELECT raise(ABORT, 'no'); END")
    with pytest.raises(RegistryError):
        registry.remove_adapter("small", "v1", delete_files=True)
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute("DROP TRIGGER no")
    assert registry.check() == [] and len(registry.list_adapters("small")) == 2
    registry.remove_adapter("small", "v1", delete_files=True)
    assert registry.check() == [] and names_in(adapters_of(registry)) == ["v2"]


@pytest.mark.parametrize("kind", ["fifo", "broken link"])
def test_odd_files_are_found_and_moved_too(registry: ProjectRegistry, kind: str) -> None:
    odd = adapters_of(registry) / "odd"
    odd.symlink_to("nowhere") if kind == "broken link" else os.mkfifo(odd)
    assert kinds(registry) == ["orphan_files"]
    registry.repair()
    assert registry.check() == [] and lost(registry) == ["small-odd"]


def test_a_manifest_that_is_nested_without_end_stops_no_check(registry: ProjectRegistry) -> None:
    (adapters_of(registry) / "v9").mkdir()
    for version in ("v2", "v9"):
        (adapters_of(registry) / version / "manifest.json").write_text('{"a":' * 100_000)
    assert kinds(registry) == ["orphan_files", "wrong_files"]
    registry.repair()
    assert registry.check() == [] and lost(registry) == ["small-v2", "small-v9"]


def test_adapters_in_lost_and_found_are_registered_again_by_one_call(
    registry: ProjectRegistry, repository: Path
) -> None:
    before = registry.get_adapter("small", "v1")
    bad = write_adapter(adapters_of(registry) / "v9", "other", "v9")
    with sqlite3.connect(registry.home / "registry.sqlite3") as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM projects")
    registry.repair()
    assert registry.list_projects() == [] and len(lost(registry)) == 1 and bad
    (kept,) = (registry.home / LOST_NAME).glob("*-small/adapters/v2")
    (kept / "README.md").write_text("changed")
    said = registry.adopt()
    assert sorted(sentence.split(" is ")[0] for sentence in said)[-2:] == ["other/v9", "small/v1"]
    assert sum("it stays" in sentence for sentence in said) == 1 and registry.check() == []
    again = registry.get_adapter("small", "v1")
    assert (again.metrics, again.manifest_sha256, again.directory) == (
        before.metrics, before.manifest_sha256, before.directory,
    )  # fmt: skip
    assert not registry.get_project("small").path.exists()
    assert registry.register_project("small", repository).path == repository
    assert [sentence.endswith("it stays.") for sentence in registry.adopt()] == [True]


def test_no_adapter_takes_the_place_of_another(registry: ProjectRegistry) -> None:
    for name, content in (("same", b"weights"), ("other", b"differ")):
        write_adapter(registry.home / LOST_NAME / name, "small", "v2", content)
    write_adapter(registry.home / LOST_NAME / "case", "Small", "v7")
    said = registry.adopt()
    assert len(said) == 3 and all(sentence.endswith("it stays.") for sentence in said)
    assert registry.check() == [] and registry.get_adapter("small").version == "v2"
