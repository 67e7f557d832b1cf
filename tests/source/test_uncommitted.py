"""What is being worked on: files changed since the last commit, the latest last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.source.uncommitted import uncommitted_changes
from mlx_gardener.source.walk import Git
from tests.source.secret_corpus import secret_samples
from tests.support.histories import commit, git


def write(root: Path, name: str, text: str, seconds: int) -> None:
    """Write a file so many seconds after the latest commit."""
    (root / name).write_text(text)
    when = int(git(root, "log", "-1", "--format=%ct")) + seconds
    os.utime(root / name, (when, when))


def told(root: Path, *, most: int = 9, always: str = "") -> list[tuple[str, str, str]]:
    found = uncommitted_changes(root, DataConfig(), most=most, always=always)
    return [(change.path, change.before, change.after) for change in found]


def test_changed_files_are_told_by_when_they_were_written(tmp_path: Path) -> None:
    commit(
        tmp_path,
        {
            name: f"{name[0]}_value = 1\n"
            for name in ("a.py", "b.py", "sub/c.py", "d.py", "e.py", "package-lock.json")
        },
    )
    secret = next(sample for sample in secret_samples(0) if sample.path.endswith(".py"))
    write(tmp_path, "b.py", "b_value = 2\r\n", 10)
    write(tmp_path, "sub/c.py", "c_value = 2\n", 20)
    write(tmp_path, "a.py", "a_value = 2\n", 15)
    write(tmp_path, "d.py", "d_value = 1\n", 30)
    write(tmp_path, "e.py", "\n".join([*secret.lines, ""]), 40)
    write(tmp_path, "package-lock.json", "{}", 50)
    write(tmp_path, "new.py", "new = 1\n", 60)
    b, a, c = (
        ("b.py", "b_value = 1\n", "b_value = 2\n"),
        ("a.py", "a_value = 1\n", "a_value = 2\n"),
        ("sub/c.py", "s_value = 1\n", "c_value = 2\n"),
    )
    assert told(tmp_path) == [b, a, c], "nothing new, unchanged, secret, or written by a machine"
    assert told(tmp_path, most=2) == [a, c], "the latest"
    assert told(tmp_path, most=1, always="b.py") == [b]
    assert [path for path, _, _ in told(tmp_path / "sub")] == ["c.py"]


def test_what_is_older_than_the_commit_is_looked_at_only_if_it_is_asked_for(tmp_path: Path) -> None:
    commit(tmp_path, {"a.py": "a_value = 1\n"})
    write(tmp_path, "a.py", "a_value = 2\n", -1000)
    assert told(tmp_path) == []
    assert told(tmp_path, always="a.py") == [("a.py", "a_value = 1\n", "a_value = 2\n")]


def test_of_a_file_that_was_very_large_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path, {"a.py": "a_value = 1\n", "large.py": "x = 1\n" * 50_000})
    write(tmp_path, "a.py", "a_value = 2\n", 10)
    write(tmp_path, "large.py", "x = 2\n", 20)
    answers: list[bytes | None] = []
    ask = Git.ask

    def seen(git: Git, *arguments: str, input_bytes: bytes | None = None) -> bytes | None:
        answers.append(ask(git, *arguments, input_bytes=input_bytes))
        return answers[-1]

    monkeypatch.setattr(Git, "ask", seen)
    assert told(tmp_path) == [("a.py", "a_value = 1\n", "a_value = 2\n")]
    assert max(len(answer or b"") for answer in answers) < 1000


def test_without_a_commit_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a_value = 1\n")
    assert told(tmp_path) == []
    git(tmp_path, "init", "-q")
    assert told(tmp_path) == []
