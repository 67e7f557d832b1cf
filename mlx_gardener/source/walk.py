"""Which files a repository has: git's own list where there is git, a walk that honours .gitignore where not.

Nothing the repository brings is ever run: git is asked with its hooks, file-system monitor and the user's own settings
switched off, and symbolic links are not followed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pathspec

from mlx_gardener.errors import DataError

_GIT = (
    "git",
    "-c", "core.fsmonitor=false",
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.untrackedCache=false",
    "-c", "core.attributesFile=/dev/null",
    "-c", "safe.directory=*",
)  # fmt: skip
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
        return sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})
    return sorted(_walk(root, root, []))


def head_commit(root: Path) -> str | None:
    """The commit that is checked out; None without git, without a commit, or where git ignores ``root``."""
    found = None if _is_ignored(root) else _git(root, "rev-parse", "--verify", "-q", "HEAD")
    return None if found is None else found.decode().strip()


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
    try:
        done = subprocess.run(
            (*_GIT, "-C", str(root), *arguments),
            input=input_bytes,
            capture_output=True,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _walk(root: Path, directory: Path, specs: list[tuple[Path, pathspec.GitIgnoreSpec]]) -> Iterator[str]:
    """Files below ``directory`` that no .gitignore on the way names; entries that vanish or cannot be read are left out."""
    ignore = directory / ".gitignore"
    if ignore.is_file() and not ignore.is_symlink():
        lines = ignore.read_text(encoding="utf-8", errors="replace").splitlines()
        specs = [*specs, (directory, pathspec.GitIgnoreSpec.from_lines(lines))]
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
