"""A backup restores what was there; anything else in its place is refused and changes nothing."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.errors import ConfigError, GardenerError, RegistryError
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.registry import archive as archive_module
from mlx_gardener.registry.restore import restore
from mlx_gardener.registry.schema import newest_version
from tests.registry.worlds import Entry, entries_of, entry_of, install_adapter, write_archive


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    made = ProjectRegistry()
    made.register_project("small", repository)
    made.register_project("other", repository / "other")
    install_adapter(made, "small", "v1", os.urandom(5000))
    install_adapter(made, "small", "v2", os.urandom(5000), activate=False)
    install_adapter(made, "other", "v1", b"")
    record = made.begin_training("small", {"seed": 7})
    made.finish_training(record.id, TrainingStatus.COMPLETED, "Done", {"adapter_version": "v2"})
    return made


@pytest.fixture
def archive(registry: ProjectRegistry, tmp_path: Path) -> Path:
    file = tmp_path / "backups" / "registry.tar"
    file.parent.mkdir()
    registry.backup(file)
    return file


def content(registry: ProjectRegistry) -> dict[str, object]:
    """Everything a backup has to bring back."""
    found: dict[str, object] = {}
    for project in registry.list_projects():
        latest = registry.latest_training(project.name)
        found[project.name] = (
            project.path, project.status, project.active_adapter, project.created_at,
            None if latest is None else (latest.id, latest.config, latest.result, latest.message),
        )  # fmt: skip
        for adapter in registry.list_adapters(project.name):
            for file in sorted(path for path in adapter.directory.rglob("*") if path.is_file()):
                name = file.relative_to(registry.home).as_posix()
                found[name] = (file.read_bytes(), adapter.created_at, adapter.metrics)
    return found


def nothing_is_left(place: Path) -> None:
    """No home, and nothing beside where it would be."""
    assert not place.exists()
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(f".{place.name}")] == []


def test_what_is_restored_is_what_was_backed_up(
    registry: ProjectRegistry, archive: Path, tmp_path: Path
) -> None:
    assert restore(archive, tmp_path / "new" / "home") is None
    restored = ProjectRegistry(tmp_path / "new" / "home")
    assert content(restored) == content(registry) and len(content(restored)) == 2 + 3 * 3
    assert restored.check() == []
    assert restored.home.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in restored.home.rglob("*"))
    install_adapter(restored, "small", "v3")
    assert restored.check() == []


def test_an_archive_is_a_plain_tar_that_only_its_owner_may_read(archive: Path) -> None:
    entries = entries_of(archive)
    assert entries[0][0].name == "registry.sqlite3" and entries[-1][0].name == "index.json"
    assert all(member.isreg() and (member.uid, member.uname) == (0, "") for member, _ in entries)
    assert archive.stat().st_mode & 0o077 == 0
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_runs_under_way_are_not_under_way_in_what_is_restored(
    registry: ProjectRegistry, tmp_path: Path
) -> None:
    registry.queue.add("other", {}, budget_bytes=1)
    record = registry.begin_training("other", {}, queue_number=registry.queue.entries()[0].number)
    registry.backup(tmp_path / "b.tar")
    assert registry.get_training(record.id).finished_at is None
    restore(tmp_path / "b.tar", tmp_path / "new")
    restored = ProjectRegistry(tmp_path / "new")
    assert restored.get_training(record.id).status is TrainingStatus.FAILED and restored.check() == []
    assert [entry.training_id for entry in restored.queue.entries()] == [None]


def test_a_backup_replaces_no_file_unless_told_and_lies_outside_of_the_home(
    registry: ProjectRegistry, archive: Path
) -> None:
    before = archive.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        registry.backup(archive)
    with pytest.raises(ConfigError, match="in the registry's home"):
        registry.backup(registry.home / "projects" / "b.tar")
    assert archive.read_bytes() == before
    registry.remove_project("other")
    registry.backup(archive, replace=True)
    assert not any("other" in member.name for member, _ in entries_of(archive))


def test_a_damaged_adapter_is_not_backed_up_as_a_good_one(registry: ProjectRegistry, tmp_path: Path) -> None:
    weights = registry.get_adapter("small").directory / "mlx" / "adapters.safetensors"
    weights.write_bytes(b"other")
    with pytest.raises(RegistryError, match="damaged") as error:
        registry.backup(tmp_path / "b.tar")
    assert "repair" in error.value.next_step and not (tmp_path / "b.tar").exists()
    assert not list(tmp_path.glob(".b.tar*"))
    registry.repair()
    assert registry.backup(tmp_path / "b.tar") == (tmp_path / "b.tar").stat().st_size


def test_a_backup_amid_changes_is_of_one_moment(registry: ProjectRegistry, tmp_path: Path) -> None:
    """An adapter may be removed between the snapshot of the database and the reading of its files."""
    over = threading.Event()

    def change() -> None:
        number = 10
        while not over.is_set():
            install_adapter(registry, "other", f"v{number}", os.urandom(2000))
            registry.remove_adapter("other", f"v{number}", delete_files=True)
            number += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(8):
            registry.backup(tmp_path / f"{number}.tar")
    finally:
        over.set()
        thread.join()
    for number in range(8):
        restore(tmp_path / f"{number}.tar", tmp_path / f"home-{number}")
        assert ProjectRegistry(tmp_path / f"home-{number}").check() == []


def test_adapters_that_are_removed_all_the_time_are_not_called_damaged(
    registry: ProjectRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_TRIES", 2)
    real = archive_module._add_adapter

    def removed_first(tar: tarfile.TarFile, home: Path, directory: str, index: dict[str, Any]) -> str:
        if "/other/" in directory:
            registry.remove_adapter("other", Path(directory).name, delete_files=True)
        return real(tar, home, directory, index)

    monkeypatch.setattr(archive_module, "_add_adapter", removed_first)
    for version in ("v7", "v8", "v9"):
        install_adapter(registry, "other", version, os.urandom(2000))
    with pytest.raises(RegistryError, match="removed all the time"):
        registry.backup(tmp_path / "never.tar")
    assert not (tmp_path / "never.tar").exists()


def test_a_home_in_use_is_not_replaced(registry: ProjectRegistry, archive: Path) -> None:
    before = content(registry)
    with pytest.raises(ConfigError, match="not empty"):
        restore(archive, registry.home)
    with pytest.raises(RegistryError, match="Another program has the registry"):
        restore(archive, registry.home, replace=True)
    assert content(registry) == before and registry.check() == []


def test_a_replaced_home_is_kept_beside(registry: ProjectRegistry, archive: Path) -> None:
    backed_up = content(registry)
    registry.remove_project("other")
    changed = content(registry)
    registry.close()
    aside = restore(archive, registry.home, replace=True)
    assert aside is not None and content(ProjectRegistry(aside)) != backed_up
    assert content(registry) == backed_up and registry.check() == []
    kept = ProjectRegistry(aside)
    assert content(kept).keys() == changed.keys() and kept.check() == []


def test_an_empty_home_is_as_good_as_none(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert restore(archive, tmp_path / "empty") is None
    assert ProjectRegistry(tmp_path / "empty").check() == []
    assert [path.name for path in tmp_path.glob("empty*")] == ["empty"]


OUTSIDE = [
    "/etc/passwd",
    "../outside",
    "projects/small/adapters/v1/../../../../../outside",
    "projects/../adapters/v1/x",
    "projects/small/adapters/../x",
    "projects/small/adapters/v1//x",
    "projects/small/adapters/v1/./x",
    "projects/small/adapters/v1/a\\b",
    "projects/small/adapters/v1/new\nline",
    "projects/small/adapters/v1/c:x",
    "projects/small/adapters/.new-1/x",
    "projects/small/runs/r/job.json",
    "queue.lock",
    "registry.sqlite3-wal",
    "",
    ".",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_member_without_a_place_in_a_registry_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    evil = write_archive(tmp_path / "evil.tar", [*entries_of(archive), entry_of(name)])
    with pytest.raises(RegistryError, match="cannot be restored"):
        restore(evil, tmp_path / "place" / "home")
    nothing_is_left(tmp_path / "place" / "home")
    assert not (tmp_path / "outside").exists() and not (tmp_path / "place" / "outside").exists()


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE],
)  # fmt: skip
def test_links_devices_and_directories_are_refused(archive: Path, tmp_path: Path, kind: bytes) -> None:
    odd = entry_of("projects/small/adapters/v1/mlx/odd", b"", kind, linkname="/etc/passwd")
    evil = write_archive(tmp_path / "evil.tar", [odd, *entries_of(archive)])
    with pytest.raises(RegistryError, match="no regular file"):
        restore(evil, tmp_path / "place" / "home")
    nothing_is_left(tmp_path / "place" / "home")


def change_database(data: bytes, tmp_path: Path, *statements: str) -> bytes:
    file = tmp_path / "changed.sqlite3"
    file.write_bytes(data)
    connection = sqlite3.connect(file)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return file.read_bytes()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE adapters SET directory = '../../outside' WHERE version = 'v2'",
        "UPDATE adapters SET directory = 'projects/small/adapters' WHERE version = 'v2'",
        "UPDATE adapters SET version = '..', directory = 'projects/small/adapters/..' WHERE version = 'v2'",
        "UPDATE adapters SET version = 'v7' WHERE version = 'v2'",
        "UPDATE trainings SET run_dir = '/tmp'",
        "UPDATE trainings SET run_dir = 'projects/small/runs/..'",
        "INSERT INTO projects VALUES ('../up', '/', 0, NULL, 1, 1)",
        "DELETE FROM adapters WHERE version = 'v2'",
        "UPDATE adapters SET manifest_sha256 = '0' WHERE version = 'v2'",
        "INSERT INTO adapters SELECT project, 'v9', 'projects/small/adapters/v9', base_model, metrics, "
        "manifest_sha256, created_at FROM adapters WHERE version = 'v2'",
        "CREATE TRIGGER evil AFTER UPDATE ON projects BEGIN DELETE FROM adapters; END",
        "CREATE VIEW evil AS SELECT 1",
        "ALTER TABLE projects ADD COLUMN evil",
        "INSERT INTO queue SELECT 1, 'nobody', 0, '{}', 1, 0, NULL, 0, 1",
        f"PRAGMA user_version = {newest_version() + 1}",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -1",
    ],
)
def test_a_database_other_than_this_program_writes_is_refused(
    archive: Path, tmp_path: Path, statement: str
) -> None:
    entries = entries_of(archive)
    entries[0] = (entries[0][0], change_database(entries[0][1], tmp_path, statement))
    with pytest.raises(RegistryError):
        restore(write_archive(tmp_path / "evil.tar", entries), tmp_path / "place" / "home")
    nothing_is_left(tmp_path / "place" / "home")


def without(name: str) -> Callable[[list[Entry]], list[Entry]]:
    return lambda entries: [entry for entry in entries if not entry[0].name.endswith(name)]


@pytest.mark.parametrize(
    "change",
    [
        without("registry.sqlite3"),
        without("v1/manifest.json"),
        without("small/adapters/v1/mlx/adapters.safetensors"),
        lambda entries: [*entries, entries[3]],
        lambda entries: [*entries, (entry_of(entries[3][0].name.upper())[0], b"x")],
        lambda entries: [(member, data + b"x" * member.name.endswith("safetensors")) for member, data in entries],
        lambda entries: [(member, b"SQLite format 3\0" * (member.name == "registry.sqlite3") or data) for member, data in entries],
        lambda entries: [],
    ],
)  # fmt: skip
def test_an_archive_whose_parts_do_not_fit_together_is_refused(
    archive: Path, tmp_path: Path, change: Callable[[list[Entry]], list[Entry]]
) -> None:
    evil = write_archive(tmp_path / "evil.tar", change(entries_of(archive)))
    with pytest.raises(RegistryError, match="cannot be restored"):
        restore(evil, tmp_path / "place" / "home")
    nothing_is_left(tmp_path / "place" / "home")


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"format": 1}', b"[" * 100_000, b"\xff"])
def test_an_index_that_is_none_is_refused(archive: Path, tmp_path: Path, index: bytes) -> None:
    entries = [*entries_of(archive)[:-1], entry_of("index.json", index)]
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as tar:
        for member, data in entries:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(RegistryError):
        restore(file, tmp_path / "place" / "home")
    nothing_is_left(tmp_path / "place" / "home")


@pytest.mark.parametrize("how", ["cut", "flipped", "garbage"])
def test_a_damaged_archive_restores_nothing_or_what_was_backed_up(
    registry: ProjectRegistry, archive: Path, tmp_path: Path, how: str
) -> None:
    """Bytes that nothing is read from (paddings, owners, times) may be flipped; whatever is restored is right."""
    good, choose, expected = archive.read_bytes(), random.Random(5), content(registry)
    home, refused = tmp_path / "place" / "home", 0
    for number in range(24):
        damaged = bytearray(good)
        if how == "cut":
            del damaged[choose.randrange(len(good) - 20 * 512) :]
        elif how == "flipped":
            damaged[choose.randrange(len(good))] ^= 1 << choose.randrange(8)
        else:
            damaged[: 512 * number] = choose.randbytes(512 * number)
        (tmp_path / "damaged.tar").write_bytes(damaged)
        try:
            restore(tmp_path / "damaged.tar", home)
        except GardenerError:
            refused += 1
            nothing_is_left(home)
            continue
        assert content(ProjectRegistry(home)) == expected
        shutil.rmtree(home)
    assert refused >= (24 if how == "cut" else 12)


def test_a_restore_that_is_killed_leaves_the_home_as_it_was(registry: ProjectRegistry, archive: Path) -> None:
    """SIGKILL at five moments: the home is the old one or the new one, and what is beside goes next time."""
    backed_up = content(registry)
    registry.remove_project("other")
    changed = content(registry)
    registry.close()
    keep = registry.home.with_name("kept")
    shutil.copytree(registry.home, keep)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mlx_gardener.registry.restore import restore\n"
        "print('go', flush=True)\nrestore(Path(sys.argv[1]), Path(sys.argv[2]), replace=True, tell=lambda t: time.sleep(0.01))\n"
    )
    seen = set()
    for moment in range(5):
        for path in registry.home.parent.glob("home.replaced-*"):
            shutil.rmtree(path)
        shutil.rmtree(registry.home)
        shutil.copytree(keep, registry.home)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(archive), str(registry.home)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(moment * 0.04)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        now = ProjectRegistry(registry.home)
        found = content(now)
        assert found in (backed_up, changed)
        beside = [problem.subject for problem in now.check()]
        assert all(subject.startswith("../.home.") for subject in beside) and len(beside) <= 1, beside
        seen.add("new" if found == backed_up else "old")
        now.close()
    assert "old" in seen
    for beside_home in registry.home.parent.glob(".home.*.new"):
        os.utime(beside_home, (1, 1))  # an empty one of this minute may be somebody's who is about to lock it
    restore(archive, registry.home, replace=True)
    assert content(registry) == backed_up
    assert [path for path in registry.home.parent.iterdir() if path.name.startswith(".home")] == []


def test_a_file_that_no_manifest_names_is_not_restored(archive: Path, tmp_path: Path) -> None:
    more = entry_of("projects/small/adapters/v1/mlx/unnamed.py", b"import os")
    with pytest.raises(RegistryError, match=r"no manifest names projects/small/adapters/v1/mlx/unnamed\.py"):
        restore(
            write_archive(tmp_path / "evil.tar", [*entries_of(archive), more]), tmp_path / "place" / "home"
        )
    nothing_is_left(tmp_path / "place" / "home")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [1 << 20, 1 << 34, (1 << 62) + 5, -(1 << 40)])
def test_a_header_that_claims_more_than_there_is_is_refused_and_not_tried(
    archive: Path, tmp_path: Path, kind: bytes, size: int
) -> None:
    header = tarfile.TarInfo("projects/small/adapters/v1/mlx/huge")
    header.size, header.type = size, kind
    data = header.tobuf(tarfile.GNU_FORMAT)
    padding = b"x" * (1 << 20) if size == 1 << 20 and kind != tarfile.REGTYPE else b""
    (tmp_path / "evil.tar").write_bytes(data + padding + archive.read_bytes())
    with pytest.raises(RegistryError, match="cannot be restored"):
        restore(tmp_path / "evil.tar", tmp_path / "place" / "home")
    nothing_is_left(tmp_path / "place" / "home")


def test_a_pipe_in_place_of_an_archive_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RegistryError, match="cannot be restored"):
        restore(tmp_path / "pipe", tmp_path / "home")


def test_a_backup_that_is_killed_leaves_nothing_that_the_next_one_does_not_delete(
    registry: ProjectRegistry, tmp_path: Path
) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mlx_gardener.registry import ProjectRegistry\n"
        "ProjectRegistry().backup(Path(sys.argv[1]), tell=lambda text: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    place = tmp_path / "backups"
    place.mkdir()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(place / "b.tar")], check=False)
        assert done.returncode == -9
        assert len(list(place.iterdir())) == 1  # the second one deleted what the first one left
    (place / ".b.tar.mine.new").touch()
    registry.backup(place / "b.tar")
    assert sorted(path.name for path in place.iterdir()) == [".b.tar.mine.new", "b.tar"]
