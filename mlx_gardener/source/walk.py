"""Which files a repository has: git's own list where there is git, a walk that honours .gitignore where not.

Nothing the repository brings is ever run: git is asked with hooks, file-system monitor, every protocol and the user's
own settings switched off, for a limited time, and only commands that neither check out nor compare contents,
so that no filter, textconv, diff driver or alias has its turn. Names that leave the root are left out, whatever an index
or a configuration says. Symbolic links are not followed.
"""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pathspec
from pathspec.pattern import RegexPattern

from mlx_gardener.errors import DataError
from mlx_gardener.platform.untrusted import read_bytes

_GIT = (
    "git",
    "-c", "core.fsmonitor=false",
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.untrackedCache=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "core.excludesFile=/dev/null",
    "-c", "core.sshCommand=false",
    "-c", "core.pager=cat",
    "-c", "core.askPass=",
    "-c", "credential.helper=",
    "-c", "protocol.allow=never",
    "-c", "submodule.recurse=false",
    "-c", "safe.directory=*",
)  # fmt: skip
#: The Linux kernel, with 90,000 files, takes git half a second.
GIT_SECONDS = 30.0
#: Longer .gitignore files, and patterns with more ``**``, are not honoured: they could take hours.
MAX_IGNORE_BYTES = 100_000
MAX_DEEP_STARS = 3
_STAR = "[^/]*"
_ATTRIBUTES = {"linguist-generated": "generated", "linguist-vendored": "vendored"}


def list_files(root: Path) -> list[str]:
    """Paths of all files below ``root`` that git would track, relative to it, sorted; links and submodules included.

    Raises:
        DataError: ``root`` is not a directory that can be read.
    """
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise DataError(f"{str(root)!r} {what}.", next_step="Name the root directory of a repository.")
    listed = (
        None
        if _is_ignored(root)
        else _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    )
    if listed is not None:
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
        return sorted(name for name in names if _stays_inside(name))
    return sorted(_walk(root, root, []))


def _stays_inside(name: str) -> bool:
    """Whether a path is relative and never climbs; git checks what it adds, not what an index was made to hold."""
    return not name.startswith("/") and ".." not in name.split("/") and ".git" not in name.lower().split("/")


def head_commit(root: Path) -> str | None:
    """The commit that is checked out; None without git, without a commit, or where git ignores ``root``."""
    found = None if _is_ignored(root) else _git(root, "rev-parse", "--verify", "-q", "HEAD")
    return None if found is None else found.decode().strip()


def commits_between(root: Path, commit: str) -> int | None:
    """Commits from ``commit`` to the one that is checked out; None without git, or where ``commit`` is not an ancestor."""
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit) or _is_ignored(root):
        return None
    if _git(root, "merge-base", "--is-ancestor", commit, "HEAD") is None:
        return None
    found = _git(root, "rev-list", "--count", f"{commit}..HEAD")
    return None if found is None else int(found)


def origin_of(root: Path) -> tuple[bytes, bytes] | None:
    """What is the same wherever a repository is moved or cloned: its first commit, and ``root``'s path within it.

    None without git or a commit. Costs a walk through the history: seconds for a million commits.
    """
    if _is_ignored(root):
        return None
    first = _git(root, "rev-list", "--max-parents=0", "--first-parent", "HEAD")
    within = _git(root, "rev-parse", "--show-prefix")
    return None if first is None or within is None else (first, within)


def marked_paths(root: Path, paths: list[str]) -> dict[str, str]:
    """Paths whose git attributes say linguist-generated or linguist-vendored, with the rule that drops them."""
    given = b"\0".join(os.fsencode(path) for path in paths) + b"\0"
    found = _git(root, "check-attr", "-z", "--stdin", *_ATTRIBUTES, input_bytes=given) if paths else None
    if found is None:
        return {}
    fields = [os.fsdecode(field) for field in found.split(b"\0")]
    triples = zip(fields[0::3], fields[1::3], fields[2::3], strict=False)
    return {path: _ATTRIBUTES[name] for path, name, value in triples if value in ("set", "true")}


def _is_ignored(root: Path) -> bool:
    """Whether ``root`` lies in a repository that ignores it, and so is no part of that repository."""
    return _git(root, "check-ignore", "-q", ".") is not None


def _git(root: Path, *arguments: str, input_bytes: bytes | None = None) -> bytes | None:
    """What git answers; None when there is no git, or ``root`` is in no repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_OPTIONAL_LOCKS": "0"}
    environment |= {
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ATTR_NOSYSTEM": "1",
    }
    try:
        done = subprocess.run(
            (*_GIT, "-C", str(root), *arguments),
            input=input_bytes,
            capture_output=True,
            env=environment,
            check=False,
            timeout=GIT_SECONDS,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None  # git waits for ever where a repository made a pipe of a file it reads
    return done.stdout if done.returncode == 0 else None


def read_ignore(file: Path) -> pathspec.GitIgnoreSpec | None:
    """The patterns of a .gitignore; None where there is no plain, readable file. Lines that are no pattern say nothing."""
    try:
        data = read_bytes(file, max_bytes=MAX_IGNORE_BYTES, follow_links=False)
    except (OSError, ValueError):
        return None
    patterns = []
    for line in data.decode(errors="replace").splitlines():
        if line.count("**") > MAX_DEEP_STARS:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of sets like [[a]
                pattern = pathspec.GitIgnoreSpec.from_lines([line]).patterns[0]
                if isinstance(pattern, RegexPattern) and pattern.regex is not None:
                    pattern.regex = re.compile(_without_retries(pattern.regex.pattern))
        except (ValueError, IndexError, re.error):
            continue
        patterns.append(pattern)
    return pathspec.GitIgnoreSpec(patterns, backend="simple")  # another would compile its own


def _without_retries(regex: str) -> str:
    """A pattern's regular expression that tries every star once, and so takes no time exponential in their number.

    Of several stars in one part of a path, all but the last may stop at the first place where what follows them fits:
    if the rest fits anywhere, it fits after that one. Atomic groups say so.
    """
    first, *pieces = regex.split(_STAR)
    *between, last = pieces or [""]
    made = first
    for piece in between:
        is_in_one_part = not set("/($)|") & set(piece.replace("[^/]", ""))
        made += f"(?>{_STAR}?{piece})" if is_in_one_part else _STAR + piece
    return made + _STAR + last if pieces else regex


def _walk(root: Path, directory: Path, specs: list[tuple[Path, pathspec.GitIgnoreSpec]]) -> Iterator[str]:
    """Files below ``directory`` that no .gitignore on the way names; entries that vanish or cannot be read are left out."""
    spec = read_ignore(directory / ".gitignore")
    if spec is not None:
        specs = [*specs, (directory, spec)]
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except PermissionError as error:
        if directory == root:
            raise DataError(
                f"{str(root)!r} cannot be read ({error.strerror}).", next_step="Check its rights."
            ) from error
        yield directory.relative_to(root).as_posix()  # reading it as a file will name it as unreadable
        return
    except FileNotFoundError:
        return
    for entry in entries:
        path = Path(entry.path)
        is_directory = entry.is_dir(follow_symlinks=False)
        if entry.name == ".git" or any(
            spec.match_file(path.relative_to(base).as_posix() + ("/" if is_directory else ""))
            for base, spec in specs
        ):
            continue
        if is_directory and not (path / ".git").exists():
            yield from _walk(root, path, specs)
        else:
            yield path.relative_to(root).as_posix()
