"""Which commit added a file, by git's own history, asked as `walk` asks it: by commands that compare no contents.

Cost: a look at the trees of the latest `MOST_COMMITS` commits; a second or two in a large repository, `walk.GIT_SECONDS` at most.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.source.walk import Git

#: What was added before so many commits is old.
MOST_COMMITS = 5000
_COMMIT = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True)
class Added:
    """The commit that added a file last, and how many commits ago that was; merges are not counted."""

    commit: str
    age: int


def added_files(root: Path) -> dict[str, Added]:
    """The files that the latest commits added, by path from ``root``; empty without history."""
    git = Git(root)
    if git.ignores_root():
        return {}
    commits = git.ask("rev-list", "--no-merges", f"--max-count={MOST_COMMITS}", "HEAD")
    if not commits:
        return {}
    listed = git.ask(
        "diff-tree", "--stdin", "--root", "-r", "-z", "--no-renames", "--diff-filter=A", "--name-only", "--relative",
        "--no-ext-diff", "--no-textconv", input_bytes=commits,
    )  # fmt: skip
    ages = {commit: age for age, commit in enumerate(commits.split())}
    found: dict[str, Added] = {}
    commit, age = "", 0
    for field in (listed or b"").split(b"\0"):
        if _COMMIT.fullmatch(field.strip()) and field.strip() in ages:
            commit, age = field.strip().decode(), ages[field.strip()]
        elif field and commit:
            found.setdefault(os.fsdecode(field), Added(commit, age))
    return found
