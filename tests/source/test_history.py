"""When files were added: by git's history, without running anything that the repository brings."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mlx_gardener.source.history import added_files


def git(root: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ("git", *settings, "-C", str(root), *arguments), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(root: Path, **files: str) -> str:
    """Write files and commit them; the commit."""
    for name, text in files.items():
        place = root / f"{name.replace('__', '/')}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")
    return git(root, "rev-parse", "HEAD")


def test_a_file_is_as_old_as_the_commit_that_added_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    first = commit(tmp_path, a="1", sub__b="2")
    second = commit(tmp_path, a="changed", sub__é="3")
    third = commit(tmp_path, new="4")
    found = added_files(tmp_path)
    assert {path: (item.commit, item.age) for path, item in found.items()} == {
        "a.py": (first, 2), "sub/b.py": (first, 2), "sub/é.py": (second, 1), "new.py": (third, 0),
    }  # fmt: skip
    assert set(added_files(tmp_path / "sub")) == {"b.py", "é.py"}, "paths are those below the root"


def test_a_file_that_came_back_is_as_old_as_its_return(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    commit(tmp_path, a="1", b="2")
    (tmp_path / "a.py").unlink()
    commit(tmp_path)
    last = commit(tmp_path, a="1")
    assert added_files(tmp_path)["a.py"].commit == last


def test_without_history_nothing_is_known(tmp_path: Path) -> None:
    assert added_files(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert added_files(tmp_path) == {}


def test_nothing_that_the_repository_brings_is_run(tmp_path: Path) -> None:
    """Neither a signature's program, nor a diff driver, nor a pager that its settings name."""
    git(tmp_path, "init", "-q")
    trap, mark = tmp_path / "trap.sh", tmp_path / "was-run"
    trap.write_text(f"#!/bin/sh\ntouch {mark}\n")
    trap.chmod(0o755)
    for name, value in (
        ("log.showSignature", "true"), ("gpg.program", str(trap)), ("diff.external", str(trap)), ("core.pager", str(trap)),
        ("diff.x.textconv", str(trap)), ("diff.x.command", str(trap)), ("core.fsmonitor", str(trap)),
    ):  # fmt: skip
        git(tmp_path, "config", name, value)
    (tmp_path / ".gitattributes").write_text("*.py diff=x\n")
    subprocess.run(
        ("git", "-c", "core.fsmonitor=false", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path),
         "commit", "--allow-empty", "-qm", "x"), check=True,
    )  # fmt: skip
    mark.unlink(missing_ok=True)
    (tmp_path / "a.py").write_text("1")
    subprocess.run(("git", "-c", "core.fsmonitor=false", "-C", str(tmp_path), "add", "-A"), check=True)
    subprocess.run(
        ("git", "-c", "core.fsmonitor=false", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path),
         "commit", "-qm", "y"), check=True,
    )  # fmt: skip
    mark.unlink(missing_ok=True)
    assert "a.py" in added_files(tmp_path)
    assert not mark.exists()
