"""Past commits: what people wrote, each file before and after; and nothing that the repository brings is run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.source import commits
from mlx_gardener.source.commits import PastCommit, past_commits
from tests.source.secret_corpus import secret_samples
from tests.support.histories import commit, git


def told(root: Path, counts: Counter[str] | None = None) -> list[PastCommit]:
    return list(
        past_commits(
            root, lambda age, paths: paths, DataConfig(), counts=Counter() if counts is None else counts
        )
    )


def test_a_commit_tells_the_files_it_changed_before_and_after(tmp_path: Path) -> None:
    commit(tmp_path, {"a.py": "one = 1\n", "sub/b.py": "two = 2\n", "gone.py": "old = 0\n"})
    (tmp_path / "gone.py").unlink()
    second = commit(tmp_path, {"a.py": "one = 11\r\n", "new.py": "three = 3\n"})
    third = commit(tmp_path, {"a.py": "one = 111\n", "sub/b.py": "two = 22\n"})
    found = told(tmp_path)
    assert [(item.commit, item.age) for item in found] == [(third, 0), (second, 1)]
    assert [(change.path, change.before, change.after) for change in found[0].changes] == [
        ("a.py", "one = 11\n", "one = 111\n"), ("sub/b.py", "two = 2\n", "two = 22\n"),
    ]  # fmt: skip
    assert [change.path for change in found[1].changes] == ["a.py"], "no file that was added or deleted"
    assert [change.path for change in told(tmp_path / "sub")[0].changes] == ["b.py"]


def test_nothing_is_read_of_files_that_are_not_wanted(tmp_path: Path) -> None:
    commit(tmp_path, {"a.py": "one = 1\n", "b.py": "two = 2\n"})
    commit(tmp_path, {"a.py": "one = 2\n", "b.py": "two = 3\n"})
    commit(tmp_path, {"a.py": "one = 3\n"})
    asked: list[tuple[int, list[str]]] = []

    def only_b(age: int, paths: object) -> list[str]:
        asked.append((age, list(paths)))  # type: ignore[call-overload]
        return ["b.py"]

    found = list(past_commits(tmp_path, only_b, DataConfig(), counts=Counter()))
    assert [[change.path for change in item.changes] for item in found] == [["b.py"]]
    assert asked == [(0, ["a.py"]), (1, ["a.py", "b.py"]), (2, [])]


@pytest.mark.parametrize(
    ("message", "author", "reason"),
    [
        ("Bump x from 1 to v2", None, "formatting, reverts and releases"),
        ("Revert \"Change it\"", None, "formatting, reverts and releases"),
        ("style: run black", None, "formatting, reverts and releases"),
        ("Apply clang-format", None, "formatting, reverts and releases"),
        ("v1.2.3", None, "formatting, reverts and releases"),
        ("Change it", "dependabot[bot] <49699333+dependabot[bot]@users.noreply.github.com>", "by machines"),
        ("Change it", "Release Bot <x@example.invalid>", "by machines"),
    ],
)  # fmt: skip
def test_what_nobody_typed_is_left_out_and_counted(
    tmp_path: Path, message: str, author: str | None, reason: str
) -> None:
    commit(tmp_path, {"a.py": "one = 1\n"})
    commit(tmp_path, {"a.py": "one = 2\n"}, message, author)
    counts: Counter[str] = Counter()
    assert told(tmp_path, counts) == []
    assert counts == {"commits": 2, reason: 1}


@pytest.mark.parametrize(
    "message",
    ["Fix the format of dates", "Merge sort is stable now", "Release the lock on close", "Revise bots"],
)
def test_what_only_sounds_like_that_is_kept(tmp_path: Path, message: str) -> None:
    commit(tmp_path, {"a.py": "one = 1\n"})
    commit(tmp_path, {"a.py": "one = 2\n"}, message, "Abbot Costello <abbot@example.invalid>")
    assert len(told(tmp_path)) == 1


def test_merges_and_changes_of_very_many_files_are_left_out(tmp_path: Path) -> None:
    names = [f"file_{number}.py" for number in range(commits.MOST_FILES + 1)]
    commit(tmp_path, dict.fromkeys(names, "one = 1\n"))
    git(tmp_path, "checkout", "-qb", "side")
    commit(tmp_path, {names[0]: "one = 2\n"})
    git(tmp_path, "checkout", "-q", "-")
    commit(tmp_path, {names[1]: "one = 3\n"})
    git(tmp_path, "merge", "-q", "--no-ff", "-m", "Both", "side")
    commit(tmp_path, dict.fromkeys(names, "one = 4\n"))
    counts: Counter[str] = Counter()
    assert sorted(change.path for item in told(tmp_path, counts) for change in item.changes) == names[:2]
    assert counts["of very many files"] == 1


@pytest.mark.parametrize("at", [0, 1], ids=["before", "after"])
def test_a_file_with_a_secret_in_either_text_is_left_out(tmp_path: Path, at: int) -> None:
    sample = next(sample for sample in secret_samples(0) if sample.path.endswith(".py"))
    texts = ["\n".join([*sample.lines, ""]) if number == at else "one = 1\n" for number in range(2)]
    commit(tmp_path, {"a.py": texts[0], "b.py": "two = 2\n"})
    commit(tmp_path, {"a.py": texts[1], "b.py": "two = 3\n"})
    assert [change.path for item in told(tmp_path) for change in item.changes] == ["b.py"]


def test_reading_ends_where_enough_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        commit(tmp_path, {"a.py": f"one = {number}\n"})
    monkeypatch.setattr(commits, "_COMMITS_AT_ONCE", 1)
    monkeypatch.setattr(commits, "MOST_BYTES", 10)
    counts: Counter[str] = Counter()
    assert [item.age for item in told(tmp_path, counts)] == [0]
    assert counts["not looked at"] == 3


@pytest.mark.parametrize("left_out", ["blob:none", "tree:0"])
def test_of_a_partial_clone_what_is_there_is_read_and_nothing_is_fetched(
    tmp_path: Path, left_out: str
) -> None:
    source, clone, touched = tmp_path / "source", tmp_path / "clone", tmp_path / "touched"
    for number in range(4):
        commit(source, {"a.py": f"one = {number}\n"})
    git(source, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", f"--filter={left_out}", source.as_uri(), str(clone))
    git(clone, "checkout", "-q", "HEAD~1")  # fetches what was there then
    git(clone, "checkout", "-q", "-")
    git(clone, "config", "remote.origin.uploadpack", f"touch {touched}; git-upload-pack")
    counts: Counter[str] = Counter()
    assert [item.age for item in told(clone, counts)] == ([0] if left_out == "blob:none" else [])
    assert counts["commits"] == 4 and counts["not fetched"] == (2 if left_out == "blob:none" else 4)
    assert not touched.exists()


def test_without_history_there_are_no_commits(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one = 1\n")
    assert told(tmp_path) == []


def test_nothing_that_the_repository_brings_is_run(tmp_path: Path) -> None:
    commit(tmp_path, {"a.py": "one = 1\n"})
    trap, mark = tmp_path / "trap.sh", tmp_path / "was-run"
    trap.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    trap.chmod(0o755)
    commit(tmp_path, {"a.py": "one = 2\n", ".gitattributes": "*.py diff=x filter=x\n"})
    for name in (
        "diff.x.command", "diff.x.textconv", "diff.external", "filter.x.smudge", "filter.x.clean", "core.pager", "gpg.program",
    ):  # fmt: skip
        git(tmp_path, "config", name, str(trap))
    git(tmp_path, "config", "log.showSignature", "true")
    assert len(told(tmp_path)) == 1 and not mark.exists()
