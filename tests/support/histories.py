"""Small real git repositories with a history."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def git(root: Path, *arguments: str) -> str:
    """What git says, with an identity of its own."""
    settings = ("-c", "user.name=Ada", "-c", "user.email=ada@example.invalid", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ("git", *settings, "-C", str(root), *arguments), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(
    root: Path, files: Mapping[str, str], message: str = "Change it", author: str | None = None
) -> str:
    """Write files into a repository, which is made where there is none, and commit them; the commit."""
    if not (root / ".git").exists():
        root.mkdir(parents=True, exist_ok=True)
        git(root, "init", "-q")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", message, *([f"--author={author}"] if author else []))
    return git(root, "rev-parse", "HEAD")


def renamings(root: Path, *, files: int = 12, later: int = 4, commits: int = 12) -> list[str]:
    """A repository whose commits rename a parameter at five places of a file, in turn; the last ``later`` files are added last.

    The commits that do so, oldest first: those of the first files, then, with the last files, those of these.
    """

    def text(number: int, name: str) -> str:
        lines = [f'"""Module {number} of the ledger."""', "", f"import math_{number}", ""]
        for part in range(5):
            lines += [
                f"def weigh_{number}_{part}(basket, {name}):",
                f'    """Weighs basket {number} for part {part}."""',
                f"    total_{number}_{part} = math_{number}.floor({name} * {part + number})",
                f"    return basket.weigh(total_{number}_{part}, limit={7 * number + part})",
                "",
                *(f"LEDGER_{number}_{part}_{at} = {number * part + at}" for at in range(12)),
                "",
            ]
        return "\n".join(lines)

    names = [f"module_{number}.py" for number in range(files)]
    commit(root, {name: text(at, "size") for at, name in enumerate(names[: files - later])}, "Add modules")
    made = []
    for turn in range(commits):
        at = turn % (files - later)
        made.append(commit(root, {names[at]: text(at, f"width_{turn}")}, f"Say width in {names[at]}"))
    for at in range(files - later, files):
        commit(root, {names[at]: text(at, "size")}, f"Add {names[at]}")
        made.append(commit(root, {names[at]: text(at, f"height_{at}")}, f"Say height in {names[at]}"))
    return made
