"""Which files a repository has: git's own list where there is git, a walk that honours .gitignore where not.

Nothing the repository brings is ever run: git is asked with hooks, file-system monitor, every protocol and the user's
own settings switched off, for a limited time, and only commands that neither check out nor compare contents,
so that no filter, textconv, diff driver or alias has its turn. Of the user's settings only the file of global excludes
counts, and the repository's setting of it does not. Names that leave the root are left out, whatever an index or a
configuration says. Symbolic links are not followed.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pathspec
from pathspec.pattern import RegexPattern

from mlx_gardener.errors import DataError
from mlx_gardener.platform.files import expanded, is_directory
from mlx_gardener.platform.untrusted import read_bytes
from mlx_gardener.source.secrets import without_secrets

_GIT = (
    "git",
    "-c", "core.fsmonitor=false",
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.untrackedCache=false",
    "-c", "core.attributesFile=/dev/null",
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
#: Files that git reads whatever it is asked; a pipe among them would make it wait for ever.
_READ_BY_GIT = (".git", ".gitignore", ".gitattributes", ".gitmodules")
_STAR = "[^/]*"
#: Scopes of settings that whoever made the repository has written.
_OF_REPOSITORY = (b"local", b"worktree")
#: How long git is not asked again about a directory for which it did not answer in time (judgement).
_SILENT_SECONDS = 300.0
#: Until when git is not asked about a directory, on the clock of `time.monotonic`, and the user's own file of what git ignores.
_silent: dict[Path, tuple[float, Path]] = {}
_ATTRIBUTES = {"linguist-generated": "generated", "linguist-vendored": "vendored"}


class Git:
    """Questions to git about one directory; after the first that it does not answer in time, none is asked for some minutes.

    Args:
        root: the directory; it need not be in a repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        until, excludes_file = _silent.get(root, (0.0, root))
        self.is_silent = (is_known := time.monotonic() < until) or _has_pipes(root)
        self._has_timed_out = False
        self.excludes_file = excludes_file if is_known else self._excludes_of_user()
        if self._has_timed_out:
            self._remember_silence()

    def ask(self, *arguments: str, input_bytes: bytes | None = None) -> bytes | None:
        """What git answers; None when there is no git, it is silent, or the directory is in no repository."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        kept |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        if self.is_silent:
            return None
        settings = ("-c", f"core.excludesFile={self.excludes_file}")
        answer = self._run((*settings, "-C", str(self.root), *arguments), kept, input_bytes)
        if self._has_timed_out:
            self._remember_silence()
        return answer

    def _remember_silence(self) -> None:
        """For other objects of this process: each would wait as long again."""
        _silent[self.root] = time.monotonic() + _SILENT_SECONDS, self.excludes_file

    def ignores_root(self) -> bool:
        """Whether the directory lies in a repository that ignores it, and so is no part of that repository."""
        return self.ask("check-ignore", "-q", ".") is not None

    def is_partial_clone(self) -> bool:
        """Whether some of the repository's objects may be on another machine alone, from where nothing is fetched."""
        return (
            self.ask("config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$")
            is not None
        )

    def _excludes_of_user(self) -> Path:
        """The user's ``core.excludesFile``, or where git looks when there is none; the repository's own is passed over."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
        }
        question = ("config", "-z", "--show-scope", "--get-all", "core.excludesFile")
        found = None if self.is_silent else self._run(("-C", str(self.root), *question), kept, None)
        if (
            found is None
        ):  # unset, or the repository's settings cannot be read: the user's stand outside of it too
            found = self._run(("-C", self.root.anchor or "/", *question), kept, None)
        fields = (found or b"").split(b"\0")
        named = [
            value
            for scope, value in zip(fields[0::2], fields[1::2], strict=False)
            if scope not in _OF_REPOSITORY
        ]
        if named:
            file = expanded(os.fsdecode(named[-1]))
            return (
                file if file.is_absolute() else Path(os.devnull)
            )  # relative ones would lead into the repository
        home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        return expanded(home) / "git" / "ignore"

    def _run(
        self, arguments: tuple[str, ...], environment: dict[str, str], input_bytes: bytes | None
    ) -> bytes | None:
        environment = environment | {
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ATTR_NOSYSTEM": "1",
        }
        try:
            done = subprocess.run(
                (*_GIT, *arguments),
                input=input_bytes,
                capture_output=True,
                env=environment,
                check=False,
                timeout=GIT_SECONDS,
            )
        except FileNotFoundError:
            return None
        except subprocess.TimeoutExpired:
            self.is_silent = self._has_timed_out = True
            return None
        return done.stdout if done.returncode == 0 else None


def list_files(root: Path, git: Git | None = None) -> list[str]:
    """Paths of all files below ``root`` that git would track, relative to it, sorted; links and submodules included.

    Tracked files that are not there, deleted or outside a sparse checkout, are left out.

    Raises:
        DataError: ``root`` is not a directory that can be read, went away meanwhile, or belongs to git's own files.
    """
    require_directory(root)
    _refuse_git_directory(root)
    git = git or Git(root)
    listed = (
        None
        if git.ignores_root()
        else git.ask("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    )
    if listed is not None:
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
        found = sorted(name for name in names if _stays_inside(name) and os.path.lexists(root / name))
    else:
        found = sorted(_walk(root, read_ignore(git.excludes_file, follow_links=True)))
    if not found:
        require_directory(root)  # one that went away meanwhile is not an empty one
    return found


def require_directory(root: Path) -> None:
    """Refuse what is no directory; asked again after all files were read, as one that went away meanwhile seems to lack them.

    Raises:
        DataError: ``root`` is not a directory.
    """
    if not is_directory(root):
        what = "is not a directory" if os.path.lexists(root) else "does not exist"
        raise DataError(
            f"{without_secrets(str(root))!r} {what}.", next_step="Name the root directory of a repository."
        )


def _refuse_git_directory(root: Path) -> None:
    """Refuse a bare repository, ``.git`` and what lies in them: objects and hooks, and no source files."""
    absolute = Path(os.path.abspath(root))  # noqa: PTH100  links stay as they are named
    for directory in (absolute, *absolute.parents):
        if os.path.lexists(directory / ".git"):
            return
        if all(os.path.lexists(directory / name) for name in ("HEAD", "objects", "refs")):
            raise DataError(
                f"{without_secrets(str(root))!r} belongs to git's own files (a bare repository, or what lies in .git): "
                "it holds history and no source files.",
                next_step="Name a working tree; `git clone` or `git worktree add` makes one.",
            )


def _has_pipes(root: Path) -> bool:
    """Whether a pipe or device stands where git reads files of the repository that ``root`` is in."""
    top = next((place for place in (root, *root.parents) if os.path.lexists(place / ".git")), root)
    suspects = [top / name for name in _READ_BY_GIT]
    try:
        suspects += (top / ".git").iterdir()
        suspects += (top / ".git" / "info").iterdir()
    except OSError:
        pass  # no repository, or one whose .git is a file
    return any(_is_pipe(file) for file in suspects)


def _is_pipe(file: Path) -> bool:
    try:
        mode = file.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _stays_inside(name: str) -> bool:
    """Whether a path is relative and never climbs; git checks what it adds, not what an index was made to hold."""
    return not name.startswith("/") and ".." not in name.split("/") and ".git" not in name.lower().split("/")


def head_commit(root: Path, git: Git | None = None) -> str | None:
    """The commit that is checked out; None without git, without a commit, or where git ignores ``root``."""
    git = git or Git(root)
    found = None if git.ignores_root() else git.ask("rev-parse", "--verify", "-q", "HEAD")
    return None if found is None else found.decode().strip()


def commits_between(root: Path, commit: str) -> int | None:
    """Commits from ``commit`` to the one that is checked out; None without git, or where ``commit`` is not an ancestor."""
    git = Git(root)
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit) or git.ignores_root():
        return None
    if git.ask("merge-base", "--is-ancestor", commit, "HEAD") is None:
        return None
    found = git.ask("rev-list", "--count", f"{commit}..HEAD")
    return None if found is None else int(found)


def origin_of(root: Path) -> tuple[bytes, bytes] | None:
    """What is the same wherever a repository is moved or cloned: its first commit, and ``root``'s path within it.

    None without git or a commit. Costs a walk through the history: seconds for a million commits.
    """
    git = Git(root)
    if git.ignores_root():
        return None
    first = git.ask("rev-list", "--max-parents=0", "--first-parent", "HEAD")
    within = git.ask("rev-parse", "--show-prefix")
    return None if first is None or within is None else (first, within)


def marked_paths(root: Path, paths: list[str], git: Git | None = None) -> dict[str, str]:
    """Paths whose git attributes say linguist-generated or linguist-vendored, with the rule that drops them."""
    given = b"\0".join(os.fsencode(path) for path in paths) + b"\0"
    git = git or Git(root)
    found = git.ask("check-attr", "-z", "--stdin", *_ATTRIBUTES, input_bytes=given) if paths else None
    if found is None:
        return {}
    fields = [os.fsdecode(field) for field in found.split(b"\0")]
    triples = zip(fields[0::3], fields[1::3], fields[2::3], strict=False)
    return {path: _ATTRIBUTES[name] for path, name, value in triples if value in ("set", "true")}


def read_ignore(file: Path, *, follow_links: bool = False) -> pathspec.GitIgnoreSpec | None:
    """The patterns of a .gitignore; None where there is no plain, readable file. Lines that are no pattern say nothing."""
    try:
        data = read_bytes(file, max_bytes=MAX_IGNORE_BYTES, follow_links=follow_links)
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


def _walk(root: Path, excludes: pathspec.GitIgnoreSpec | None) -> Iterator[str]:
    """Files below ``root`` that neither ``excludes`` nor a .gitignore on the way names; what vanishes is left out."""
    waiting = [(root, [] if excludes is None else [(root, excludes)])]
    while waiting:
        directory, specs = waiting.pop()
        spec = read_ignore(directory / ".gitignore")
        if spec is not None:
            specs = [*specs, (directory, spec)]
        try:
            entries = list(os.scandir(directory))
        except FileNotFoundError:
            continue
        except OSError as error:
            if directory == root:
                raise DataError(
                    f"{without_secrets(str(root))!r} cannot be read ({error.strerror}).",
                    next_step="Check its rights.",
                ) from error
            yield directory.relative_to(root).as_posix()  # reading it as a file will name it as unreadable
            continue
        for entry in entries:
            path = Path(entry.path)
            is_directory = entry.is_dir(follow_symlinks=False)
            if entry.name == ".git" or any(
                spec.match_file(path.relative_to(base).as_posix() + ("/" if is_directory else ""))
                for base, spec in specs
            ):
                continue
            if is_directory and not os.path.lexists(path / ".git"):
                waiting.append((path, specs))
            else:
                yield path.relative_to(root).as_posix()
