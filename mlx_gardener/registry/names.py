"""Names and places: what may stand in a path, a table and a terminal without harm."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mlx_gardener.errors import ConfigError, RegistryError
from mlx_gardener.platform.files import resolved

#: The lock in a run's directory that its worker holds.
RUN_LOCK_NAME = "worker.lock"
#: Where the checkpoints of a run lie in its directory.
CHECKPOINTS_NAME = "checkpoints"
#: The index of a project's working tree in its directory (`retrieval.store`).
INDEX_NAME = "retrieval.safetensors"
#: What was offered of a project in use and what stayed of it, in its directory (`evaluate.offers`).
IN_USE_NAME = "in-use"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
#: Names that Windows takes for devices, with any ending: a home on a shared disk would not be readable there.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.I)
_VERSION = re.compile(r"v[1-9][0-9]{0,8}")


def check_project_name(name: str) -> str:
    """``name``, when it can be a directory below the home.

    Raises:
        ConfigError: it is empty, longer than 64 characters, has other characters than letters, digits, ``._-``, or is
            a device of Windows (``nul``, ``com1``).
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or _DEVICE.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a project name.",
            next_step="Use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter, digit or '_'.",
        )
    return name


def project_name_for(path: Path) -> str:
    """A good project name for a directory: its own name, with everything unusual made a hyphen, and no secret in it."""
    own = resolved(Path(path)).name
    if holds_secret(own):
        return "project"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip("-.")[:64].rstrip(".-")
    if _DEVICE.fullmatch(name):
        return f"{name.replace('.', '-')[:56].rstrip('-')}-project"
    return name or "project"


def holds_secret(name: str) -> bool:
    """Whether a name seems to hold a secret: names stand in manifests, reports and logs, and are given away with them."""
    from mlx_gardener.source.secrets import without_secrets

    return without_secrets(name) != name


def is_version(name: object) -> bool:
    """Whether ``name`` is one that adapter versions have: v1, v2, ..."""
    return isinstance(name, str) and _VERSION.fullmatch(name) is not None


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run left a checkpoint that a training can go on from."""
    return any((run_dir / CHECKPOINTS_NAME).glob("step-*"))


def resume_command(run_dir: Path) -> str:
    """What goes on with a run that ended early, typed anywhere; runs lie in projects/NAME/runs of the home."""
    return f"`mlx-gardener train --resume --project {run_dir.parents[1].name}`"


def what_is_kept(run_dir: Path) -> str:
    """What of a run (``NAME/runs/ID``) that ended early can be gone on with, a sentence for people."""
    if has_checkpoint(run_dir):
        return f"Its last checkpoint is kept: go on with {resume_command(run_dir)}."
    return "There is no checkpoint yet: start again."


def place_below(home: Path, recorded: str, project: str) -> Path:
    """The directory that a row of the registry names, which must be one of ``project``'s below the home.

    Rows are data: one that was tampered with, or restored from somewhere else, must not make the program read or delete
    anything beside its own files. Costs one resolution of links.

    Raises:
        RegistryError: it is absolute, climbs with ``..``, or leads elsewhere by symbolic links.
    """
    pure = PurePosixPath(recorded)
    own = ("projects", project)
    place = home / pure
    if pure.parts[:2] != own or len(pure.parts) < 4 or ".." in pure.parts or "\0" in recorded:
        inside = False
    else:
        inside = Path(os.path.realpath(place)) == Path(
            os.path.realpath(home / "projects")
        ) / pure.relative_to("projects")
    if not inside:
        raise RegistryError(
            f"The registry places files of {project!r} outside of its home: {recorded!r}.",
            next_step="Move registry.sqlite3 away: a new one is made, and the adapters' files are still there.",
        )
    return place
