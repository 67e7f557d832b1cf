"""What is held out by time: the latest files, where a history tells them apart."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator, split_files
from mlx_gardener.errors import DataError
from mlx_gardener.model import load_tokenizer
from mlx_gardener.source import ChunkType, FileRecord
from mlx_gardener.source.history import Added
from mlx_gardener.source.records import ChunkRecord
from tests.support.repositories import write_repository
from tests.support.trainings import tiny_settings

TIME, AUTO, DRAWN = (DataConfig(split=way) for way in ("time", "auto", "files"))


def record(path: str, cluster: int, size: int = 100) -> FileRecord:
    chunk = ChunkRecord(f"{path}-0", ChunkType.FUNCTION, "f", 0, size, 1, 10, 1.0, 0.1)
    return FileRecord(path, "python", size, "0" * 64, cluster, (chunk,), ())


FILES = [record(f"{number}.py", number) for number in range(50)]
#: One file a commit, the last of them the latest.
ADDED = {item.path: Added(f"c{number}", 49 - number) for number, item in enumerate(FILES)}


@pytest.mark.parametrize("config", [TIME, AUTO])
def test_the_latest_files_are_held_out_whatever_the_seed(config: DataConfig) -> None:
    for seed in range(3):
        found = split_files(FILES, config, seed=seed, added=ADDED)
        assert {item.path for item in found.test} == {f"{number}.py" for number in range(45, 50)}
        assert {item.path for item in found.validation} == {f"{number}.py" for number in range(40, 45)}
        assert found.since == "c45" and len(found.train) == 40


def test_a_near_duplicate_of_an_old_file_is_not_new() -> None:
    copied = [*FILES[:-1], record("49.py", 0)]
    found = split_files(copied, TIME, seed=0, added=ADDED)
    assert "49.py" in {item.path for item in found.train}


def test_files_drawn_are_drawn_whatever_the_history() -> None:
    found = split_files(FILES, DRAWN, seed=0, added=ADDED)
    assert found.since is None and found == split_files(FILES, AUTO, seed=0)


@pytest.mark.parametrize(
    "added",
    [
        {},
        {path: Added("import", 0) for path in ADDED},
        {path: (item if item.age < 3 else Added("import", 50)) for path, item in ADDED.items()},
        {path: Added(f"c{item.age // 25}", item.age // 25) for path, item in ADDED.items()},
    ],
    ids=["no history", "one commit", "an import and three files", "two commits"],
)
def test_a_history_that_tells_too_little_is_not_gone_by(added: dict[str, Added]) -> None:
    assert split_files(FILES, AUTO, seed=0, added=added) == split_files(FILES, DRAWN, seed=0)
    with pytest.raises(DataError, match="too few commits") as raised:
        split_files(FILES, TIME, seed=0, added=added)
    assert "data.split" in str(raised.value.next_step)


def test_a_repository_with_a_history_is_split_by_it(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    root = write_repository(tmp_path / "repository", modules=16)
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ("git", *settings, "-C", str(root), *arguments), check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*_*.py"))
    later = files[-6:]
    git("add", "-A", "--", *(f":!{path}" for path in later))
    git("commit", "-qm", "most")
    commits = []
    for path in later:
        git("add", path)
        git("commit", "-qm", path)
        commits.append(git("rev-parse", "HEAD"))

    def prepared(**more: object) -> PreparedData:
        config = tiny_settings(tmp_path, **{"data.test_fraction": 0.2, **more})
        tokenizer = load_tokenizer(tiny_tokenizer_dir)
        return TrainingDataPreparator(config, tokenizer=tokenizer, cache_dir=tmp_path / "cache").prepare(root)

    data = prepared()
    held_out = [record.path for record in data.split.test]
    assert set(held_out) <= set(later) and len(held_out) >= 3
    since = data.summary.held_out_since
    assert since == commits[min(later.index(path) for path in held_out)]
    drawn = prepared(**{"data.split": "files"})
    assert drawn.summary.held_out_since is None
    assert drawn.data_sha256 != data.data_sha256
