"""Past commits as changes of files, each with its whole text before and after, asked of git as `walk` asks.

In: a repository and the paths that are of interest. Out: `PastCommit`s, newest first, of those that people wrote: merges, reverts,
machines' commits, formatting, releases and changes of a great many files are left out, as are files with a secret in either text.
git lists which blobs a commit replaced and hands them out; it compares and filters nothing. Cost: bounded by `MOST_COMMITS` and
`MOST_BYTES` (some ten seconds, most of it the search for secrets); memory for the texts of fifty commits.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.config import DataConfig
from mlx_gardener.source.filters import decode_source, drop_by_bytes, drop_by_text
from mlx_gardener.source.history import MOST_COMMITS
from mlx_gardener.source.secrets import TooManySecretsError, find_secrets
from mlx_gardener.source.walk import Git

#: A commit that changes more files is the work of a tool, or of a merge without its second parent (judgement).
MOST_FILES = 20
#: Texts that are read, all together; and of one file.
MOST_BYTES, MOST_FILE_BYTES = 32_000_000, 200_000
_COMMITS_AT_ONCE = 50
_PLAIN_FILES = (b"100644", b"100755")
_MACHINES = re.compile(
    r"\[bot\]|\bbot\b|dependabot|renovate|greenkeeper|github-?actions|pre-commit-ci|mergify|autofix|weblate|transifex", re.I
)  # fmt: skip
#: First lines of messages of commits that nobody typed.
_NOT_TYPED = re.compile(
    r"^merge (branch|pull request|remote|tag)\b|^(revert|reapply)\b|^release\W*v?\d|^(style|fmt|format)(\(.*\))?:|^v?\d+(\.\d+)+\W*$|"
    r"\breformat|\b(run|ran|apply|applied)\b.{0,20}\b(black|prettier|ruff|gofmt|rustfmt|clang-format|isort|pre-commit|"
    r"formatter|formatting)\b|\bbump(s|ed)?\b.*(\bversion|\bto v?\d)|\bcherry[- ]pick",
    re.I,
)


@dataclass(frozen=True)
class FileChange:
    """What a commit made of a file; lines end with ``\\n``."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class PastCommit:
    """A commit and its changes of files, by path; ``age`` counts commits, merges left out, from the newest (0)."""

    commit: str
    age: int
    changes: tuple[FileChange, ...]


def past_commits(
    root: Path,
    is_wanted: Callable[[int, Sequence[str]], Collection[str]],
    config: DataConfig,
    *,
    counts: Counter[str],
    interrupt: Callable[[], None] = lambda: None,
    on_look: Callable[[int, int], None] = lambda done, count: None,
) -> Iterator[PastCommit]:
    """Commits that people wrote, newest first, with the changes of files that were neither added nor deleted.

    Args:
        root: of the repository, or a directory in it: paths are from there.
        is_wanted: of a commit's age and the files it changed, those to be read; of a commit without any nothing is read.
        counts: told how many commits there are (``commits``), and how many were left out and why.
        interrupt: asked between commits; may raise.
        on_look: told, every fifty commits, how many were looked at, and how many there are to look at.
    """
    git = Git(root)
    typed = _typed_commits(git, counts)
    reader = _Reader(git, config)
    for at in range(0, len(typed), _COMMITS_AT_ONCE):
        interrupt()
        on_look(at, len(typed))
        some = typed[at : at + _COMMITS_AT_ONCE]
        replaced = _replaced(git, [commit for commit, _ in some])
        if replaced is None:
            counts["not fetched"] += len(some)
            continue
        chosen: list[tuple[str, int, list[tuple[str, str, str]]]] = []
        for commit, age in some:
            blobs = replaced.get(commit, [])
            if len(blobs) > MOST_FILES:
                counts["of very many files"] += 1
                continue
            paths = is_wanted(age, [path for path, _, _ in blobs])
            if wanted := [blob for blob in blobs if blob[0] in paths]:
                chosen.append((commit, age, wanted))
        reader.fetch({name for _, _, blobs in chosen for _, *names in blobs for name in names})
        for commit, age, blobs in chosen:
            interrupt()
            changes = []
            for path, old, new in blobs:
                before, after = reader.text(old, path), reader.text(new, path)
                if before is not None and after is not None:
                    changes.append(FileChange(path, before, after))
            if changes:
                yield PastCommit(commit, age, tuple(changes))
            elif any(reader.is_missing(name) for _, *names in blobs for name in names):
                counts["not fetched"] += 1
        if reader.read_bytes > MOST_BYTES:
            counts["not looked at"] = len(typed) - at - len(some)
            return


def typed_commits(root: Path) -> Counter[str]:
    """How many commits there are (``commits``), how many people wrote (``typed``), and why others are left out; no file is read."""
    counts: Counter[str] = Counter()
    counts["typed"] = len(_typed_commits(Git(root), counts))
    return counts


def _typed_commits(git: Git, counts: Counter[str]) -> list[tuple[str, int]]:
    """Commits that people wrote, with their ages, newest first."""
    listed = None if git.ignores_root() else git.ask(
        "rev-list", "--no-merges", f"--max-count={MOST_COMMITS}", "--pretty=tformat:%H%x00%an%x00%ae%x00%s", "HEAD"
    )  # fmt: skip
    lines = [line.split(b"\0") for line in (listed or b"").split(b"\n") if b"\0" in line]
    counts["commits"] = len(lines)
    typed: list[tuple[str, int]] = []
    for age, fields in enumerate(lines):
        commit, name, mail, subject = (field.decode(errors="replace") for field in fields[:4])
        if _MACHINES.search(name) or _MACHINES.search(mail):
            counts["by machines"] += 1
        elif _NOT_TYPED.search(subject):
            counts["formatting, reverts and releases"] += 1
        else:
            typed.append((commit, age))
    return typed


def _replaced(git: Git, commits: list[str]) -> dict[str, list[tuple[str, str, str]]] | None:
    """Of each commit the plain files it changed: path, old blob, new blob; None where git cannot say, as trees are not there."""
    listed = git.ask(
        "diff-tree", "--stdin", "-r", "-z", "--raw", "--no-renames", "--diff-filter=M", "--relative", "--no-ext-diff",
        "--no-textconv", input_bytes="".join(f"{commit}\n" for commit in commits).encode(),
    )  # fmt: skip
    if listed is None:
        return None
    known = set(commits)
    found: dict[str, list[tuple[str, str, str]]] = {}
    commit, meta = "", None
    for field in listed.split(b"\0"):
        if meta is not None:
            old_mode, new_mode, old, new, _ = meta
            if old_mode.lstrip(b":") in _PLAIN_FILES and new_mode in _PLAIN_FILES and old != new:
                found[commit].append((os.fsdecode(field), old.decode(), new.decode()))
            meta = None
        elif field.startswith(b":"):
            parts = field.split(b" ")
            meta = parts if len(parts) == 5 else None
        elif field.strip().decode(errors="replace") in known:
            commit = field.strip().decode()
            found[commit] = []
    return found


class _Reader:
    """Texts of blobs, by name and path; None for those that filters or the search for secrets drop.

    Only those of the latest two `fetch`es are kept: what a commit left is what the next one found.
    """

    def __init__(self, git: Git, config: DataConfig) -> None:
        self._git, self._config = git, config
        self._blobs: dict[str, bytes] = {}
        self._texts: dict[tuple[str, str], str | None] = {}
        self._missing: set[str] = set()
        self._is_partial = git.is_partial_clone()
        self.read_bytes = 0

    def fetch(self, names: Collection[str]) -> None:
        """Have these blobs at hand, but for those that are too large or not there."""
        self._texts = {key: text for key, text in self._texts.items() if key[0] in names}
        kept = {name: data for name, data in self._blobs.items() if name in names}
        asked = self._there(sorted(set(names) - set(kept)))
        self._missing = set(names) - set(kept) - set(asked)
        lines = "".join(f"{name}\n" for name in asked).encode()
        sizes = (self._git.ask("cat-file", "--batch-check", input_bytes=lines) or b"").split(b"\n")
        most = min(self._config.max_file_bytes, MOST_FILE_BYTES)
        plain = []
        for line in sizes:
            name, kind, size = (*line.split(b" "), b"", b"")[:3]
            if kind == b"blob" and int(size) <= most and self.read_bytes < MOST_BYTES:
                self.read_bytes += int(size)
                plain.append(name)
        data = (
            self._git.ask("cat-file", "--batch", input_bytes=b"".join(name + b"\n" for name in plain)) or b""
        )
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            name, _, size = data[at:end].split(b" ")
            kept[name.decode()] = data[end + 1 : end + 1 + int(size)]
            at = end + 1 + int(size) + 1
        self._blobs = kept

    def _there(self, names: list[str]) -> list[str]:
        """Those of some blobs that this repository has: git before 2.45 would try to fetch others, and then say nothing of any."""
        if not (self._is_partial and names):
            return names
        lines = "".join(f"{name}\n" for name in names).encode()
        found = self._git.ask(
            "rev-list", "--objects", "--no-walk", "--ignore-missing", "--missing=allow-any", "--stdin", input_bytes=lines
        )  # fmt: skip
        return [line.strip().decode() for line in (found or b"").split(b"\n") if line.strip()]

    def is_missing(self, name: str) -> bool:
        """Whether a blob that was asked for last is not in this repository: a partial clone has only what was checked out."""
        return name in self._missing

    def text(self, name: str, path: str) -> str | None:
        """The text of a blob as the file ``path``."""
        key = (name, path)
        if key not in self._texts:
            data = self._blobs.get(name)
            self._texts[key] = None if data is None else clean_text(data, path, self._config)
        return self._texts[key]


def clean_text(data: bytes, path: str, config: DataConfig) -> str | None:
    """The text of a file, lines ended by ``\n``; None where a filter drops it, or something in it looks like a secret."""
    if drop_by_bytes(data, config) is not None:
        return None
    try:
        text = decode_source(data).replace("\r\n", "\n")
        if drop_by_text(path, text, config) is not None or find_secrets(text, path):
            return None
    except (UnicodeDecodeError, TooManySecretsError):
        return None
    return text
