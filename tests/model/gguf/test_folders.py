"""The folder that a GGUF file is read into: written once, found again, named for people, and gone when nobody uses it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from mlx_gardener.errors import ModelError
from mlx_gardener.model import check_model, choose_model, load_base, resolve_model
from mlx_gardener.model.choose import absolute_model
from mlx_gardener.model.gguf import gguf_file, read_gguf, write
from mlx_gardener.platform.locks import take_lock
from mlx_gardener.platform.read_folders import LOCK_NAME, STAGED
from mlx_gardener.registry import GarbagePolicy, ProjectRegistry
from tests.model.gguf.files import smallest_file, tiny_model, write_gguf

DAY = 86_400


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A whole model of 4 kB."""
    (tmp_path / "My model (v2).gguf").write_bytes(smallest_file())
    return tmp_path / "My model (v2).gguf"


def test_a_file_is_read_once_and_found_again_wherever_it_lies(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    folder = read_gguf(file, tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert folder.name.startswith("My-model-v2-") and told[-1][0] == told[-1][1] > 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "gguf.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    about = json.loads((folder / "gguf.json").read_text())
    assert about["name"] == file.name and about["architecture"] == "llama" and len(about["sha256"]) == 64
    monkeypatch.setattr(write, "write_folder", None)
    assert read_gguf(file, tmp_path / "cache") == folder
    copy = shutil.copy(file, tmp_path / "copy.gguf")
    assert read_gguf(Path(copy), tmp_path / "cache") == folder
    (tmp_path / "cache" / "sources.json").write_text("damaged")
    assert read_gguf(file, tmp_path / "cache") == folder


def test_a_file_that_has_changed_is_read_again(file: Path, tmp_path: Path) -> None:
    before = read_gguf(file, tmp_path / "cache")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after = read_gguf(file, tmp_path / "cache")
    assert after != before and before.is_dir()


def test_a_file_that_changes_while_it_is_read_is_refused(file: Path, tmp_path: Path) -> None:
    def touch(done: int, total: int) -> None:
        os.utime(file, ns=(1, done))

    with pytest.raises(ModelError, match="changed while it was read"):
        read_gguf(file, tmp_path / "cache", touch)
    assert not list((tmp_path / "cache").glob("*.v[0-9]*"))


def test_reading_that_is_stopped_leaves_nothing(file: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        read_gguf(file, tmp_path / "cache", stop)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [LOCK_NAME]


def test_what_the_disk_refuses_on_its_way_is_no_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells a failed write to the first who asks, and never again."""
    failed: list[int] = []

    def once(descriptor: int) -> None:
        if not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(write, "_ON_ITS_WAY", 16)
    monkeypatch.setattr(write.os, "fsync", once)
    with pytest.raises(ModelError, match="Input/output error"):
        read_gguf(file, tmp_path / "cache")
    assert failed and [path.name for path in (tmp_path / "cache").iterdir()] == [LOCK_NAME]


def test_a_full_disk_is_named_before_anything_is_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"GB as a model folder, the disk has 0\.0 GB"):
        read_gguf(file, tmp_path / "cache")


def test_a_model_is_named_by_its_file_or_its_directory(file: Path, home: Path, tmp_path: Path) -> None:
    choice = choose_model(str(file))
    assert choice.path is None and "to be read once" in choice.reason
    folder = resolve_model(choice)
    assert folder.parent == home / "cache" / "bases"
    assert choose_model(str(file)).path == folder
    assert load_base(str(file)).id == load_base(str(folder)).id == file.name
    assert choose_model(str(file.parent)).path == folder
    assert absolute_model(os.path.relpath(file)) == str(file.resolve())


def test_a_directory_with_several_files_asks_for_one(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "mmproj-x.gguf")
    assert gguf_file(str(tmp_path)) == file
    shutil.copy(file, tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"several models: My model \(v2\)\.gguf, other\.gguf"):
        choose_model(str(tmp_path))
    assert gguf_file("seedling") is None and gguf_file(str(tmp_path / "nothing")) is None


def test_what_a_model_has_no_place_for_is_refused_by_the_first_look(file: Path) -> None:
    from mlx_gardener.config import LoraConfig

    choice = choose_model(str(file))
    assert check_model(choice, LoraConfig()).is_dir()
    with pytest.raises(ModelError):
        check_model(choice, LoraConfig(target_modules=["nothing"]))


def test_weights_that_are_no_numbers_are_read_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    from gguf import GGMLQuantizationType as Kind

    model, config = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config, kind=Kind.Q4_0)
    data = np.fromfile(file, dtype=np.uint8)
    data[-18 * 64 :] = 0xFF
    data.tofile(file)
    read_gguf(file, tmp_path / "cache")
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_folders_that_nobody_used_for_long_are_garbage_if_they_can_be_read_again(
    file: Path, home: Path, tmp_path: Path
) -> None:
    registry = ProjectRegistry()
    folder = resolve_model(choose_model(str(file)))
    policy = GarbagePolicy(run_days=30)
    assert registry.collect_garbage(policy) == []
    old = time.time() - 40 * DAY
    os.utime(folder, (old, old))
    away = file.rename(tmp_path / "away.gguf")
    assert registry.collect_garbage(policy) == []
    away.rename(file)
    found = registry.collect_garbage(policy, dry_run=True)
    assert [(item.kind, item.subject) for item in found] == [("base", folder.name)] and folder.is_dir()
    assert choose_model(str(file)).path == folder
    assert registry.collect_garbage(policy) == [], "it was just used"
    os.utime(folder, (old, old))
    assert registry.collect_garbage(policy) == found and not folder.exists()
    assert resolve_model(choose_model(str(file))) == folder


def test_what_a_killed_reader_left_is_swept_when_nobody_reads(home: Path) -> None:
    registry = ProjectRegistry()
    bases = home / "cache" / "bases"
    (bases / f"{STAGED}abc").mkdir(parents=True)
    (bases / LOCK_NAME).touch()
    lock = take_lock(bases / LOCK_NAME)
    assert lock is not None
    assert registry.collect_garbage(GarbagePolicy()) == []
    os.close(lock)
    found = registry.collect_garbage(GarbagePolicy())
    assert [(item.kind, item.subject) for item in found] == [("leftover", f"cache/bases/{STAGED}abc")]
    assert not (bases / f"{STAGED}abc").exists()
