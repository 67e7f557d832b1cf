"""Which files there are: what the user's git hides stays hidden, git's own files are refused, depth and pipes are no matter."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.errors import DataError
from mlx_gardener.source import read_source, scan_repository
from mlx_gardener.source.walk import Git, list_files

CODE = "def area(width, height):\n    return width * height\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of a user without settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    directory = tmp_path / "repo"
    directory.mkdir()
    git(directory, "init", "-q")
    (directory / "good.py").write_text(CODE)
    (directory / "private.py").write_text(CODE)
    return directory


def git(directory: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", *who, "-C", str(directory), *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    "way", ["setting", "setting with ~", "include", "default place", "XDG place", "link"]
)
@pytest.mark.parametrize("is_repository", [True, False])
def test_the_users_global_excludes_are_honoured(
    root: Path, monkeypatch: pytest.MonkeyPatch, way: str, is_repository: bool
) -> None:
    user = Path(os.environ["HOME"])
    file = user / "ignored"
    named = "~/ignored" if way == "setting with ~" else str(file)
    if way == "default place":
        file = user / ".config" / "git" / "ignore"
    elif way == "XDG place":
        monkeypatch.setenv("XDG_CONFIG_HOME", str(user / "xdg"))
        file = user / "xdg" / "git" / "ignore"
    elif way == "include":
        (user / ".gitconfig").write_text("[include]\n  path = more\n")
        (user / "more").write_text(f"[core]\n  excludesFile = {named}\n")
    else:
        (user / ".gitconfig").write_text(f"[core]\n  excludesFile = {named}\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    if way == "link":
        (user / "dotfiles").write_text("private.py\n")
        file.symlink_to(user / "dotfiles")
    else:
        file.write_text("private.py\n")
    if not is_repository:
        (root / ".git").rename(root.parent / "away")
    assert list_files(root) == ["good.py"]


def test_the_repositorys_own_setting_of_excludes_counts_for_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("good.py\n")
    user = Path(os.environ["HOME"])
    (user / ".gitconfig").write_text("[core]\n  excludesFile = ~/ignored\n")
    (user / "ignored").write_text("private.py\n")
    git(root, "config", "core.excludesFile", str(tmp_path / "theirs"))
    assert list_files(root) == ["good.py"]
    git(root, "config", "core.excludesFile", "~nobody-of-that-name/x")
    assert list_files(root) == ["good.py"]
    (root / ".git" / "config").write_text("[core\n")  # git refuses to work at all
    assert list_files(root) == ["good.py"]


@pytest.mark.parametrize("place", ["bare.git", "bare.git/hooks", "repo/.git", "repo/.git/refs"])
def test_gits_own_files_are_refused(root: Path, tmp_path: Path, place: str) -> None:
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    with pytest.raises(DataError, match="git's own files"):
        list_files(tmp_path / place)


def test_a_working_tree_within_a_bare_repository_is_read(root: Path, tmp_path: Path) -> None:
    git(root, "add", "good.py")
    git(root, "commit", "-q", "-m", "one")
    git(tmp_path, "clone", "-q", "--bare", str(root), "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "-q", "tree")
    assert list_files(tmp_path / "bare.git" / "tree") == ["good.py"]


def test_files_outside_a_sparse_checkout_are_not_called_deleted(root: Path) -> None:
    for name in ("kept", "left_out"):
        (root / name).mkdir()
        (root / name / "code.py").write_text(CODE + f"# {name}\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    git(root, "sparse-checkout", "set", "kept")
    found = scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert "deleted_during_scan" not in found.dropped
    assert list_files(root) == ["good.py", "kept/code.py", "private.py"]
    (root / "good.py").unlink()  # deleted before the scan, and not meanwhile
    assert list_files(root) == ["kept/code.py", "private.py"]


@pytest.fixture
def deep(root: Path) -> Iterator[Path]:
    """The repository, and whatever tree it holds is gone afterwards: Python's own way to remove one does not go so deep."""
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)


@pytest.mark.parametrize("is_repository", [True, False])
def test_a_tree_1300_directories_deep_is_read_to_its_end(deep: Path, is_repository: bool) -> None:
    root = deep
    if not is_repository:
        (root / ".git").rename(root.parent / "away")
    here = root
    for _ in range(1300):  # pathlib's own way to make parents does not go so deep
        here = here / "d"
        here.mkdir()
    (here / "end.py").write_text(CODE + "# the end\n")
    found = scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert [record.path.rsplit("/", 1)[-1] for record in found.files] == ["end.py", "good.py"]
    assert read_source(root, found.files[0]).text.endswith("# the end\n")


def test_a_tree_deeper_than_paths_may_be_long_is_left_where_it_ends(deep: Path) -> None:
    root = deep
    (root / ".git").rename(root.parent / "away")
    here = os.open(root, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=here)
        inner = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    found = scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert [record.path for record in found.files] == ["good.py"]
    assert found.dropped["unreadable"].count == 1


@pytest.mark.parametrize("name", [".git/config", ".git/info/exclude", ".git/index", ".gitattributes"])
def test_pipes_where_git_reads_are_seen_before_git_is_asked(root: Path, name: str) -> None:
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    assert Git(root).is_silent
    found = scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert [record.path for record in found.files] == ["good.py"]
    assert "git does not answer" in found.notes[0]


def test_git_is_waited_for_once_and_not_for_every_question(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.source import walk

    monkeypatch.setattr(walk, "GIT_SECONDS", 0.5)
    (root / "inner").mkdir()
    os.mkfifo(root / "inner" / ".gitignore")
    real, waited = subprocess.run, []

    def counting(*arguments: object, **options: object) -> object:
        try:
            return real(*arguments, **options)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            waited.append(arguments)
            raise

    monkeypatch.setattr(walk.subprocess, "run", counting)
    found = scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert len(waited) == 1 and found.notes and found.files
    again = scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert len(waited) == 1 and again.notes == found.notes, "others of this process do not wait either"
    walk._silent[root] = (time.monotonic(), walk._silent[root][1])  # the time is over
    scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)
    assert len(waited) == 2
