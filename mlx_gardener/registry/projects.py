"""Projects: names that stand for repositories, and which of them is the active one.

In: names and paths. Out: `Project`s; a change is one transaction. Cost: a read is some 20 microseconds, a write under a
millisecond where nobody else writes.
"""

from __future__ import annotations

import difflib
import sqlite3
import time
from pathlib import Path

from mlx_gardener.errors import ConfigError, RegistryError
from mlx_gardener.platform.arguments import checked
from mlx_gardener.platform.files import resolved
from mlx_gardener.platform.home import default_home
from mlx_gardener.registry.database import Database
from mlx_gardener.registry.lost import unknown_repository
from mlx_gardener.registry.names import check_project_name, holds_secret
from mlx_gardener.registry.queue import TrainingQueue
from mlx_gardener.registry.records import LEFT_NOTHING, Project, project_of
from mlx_gardener.registry.rows import label, readable, wrong_in

_PROJECTS = (
    "SELECT projects.*, CASE WHEN EXISTS (SELECT 1 FROM queue WHERE project = projects.name AND training_id IS NULL) "
    "THEN 'queued' ELSE (SELECT status FROM trainings WHERE project = projects.name AND NOT (status = 'failed' AND "
    "(projects.active_adapter IS NOT NULL OR "
    f"CASE WHEN json_valid(result) THEN coalesce(json_extract(result, '$.{LEFT_NOTHING}'), 0) ELSE 0 END)) "
    "ORDER BY number DESC LIMIT 1) END AS status FROM projects"
)


class Projects:
    """The projects of one home, and the database that they share with their trainings and adapters.

    Args:
        home: its directory; `default_home` when None. Nothing is made before the first use.
    """

    @checked
    def __init__(self, home: str | Path | None = None) -> None:
        self.home = (Path(home) if home is not None else default_home()).absolute()
        self._database = Database(self.home)
        #: Projects that wait for their training.
        self.queue = TrainingQueue(self._database, self.get_project)

    @property
    def exists(self) -> bool:
        """Whether there is a registry yet; asking makes none."""
        return self._database.path.exists()

    def close(self) -> None:
        """Close the calling thread's connection, so that the home may be moved; the next use opens it again."""
        self._database.leave()

    @checked
    def register_project(self, name: str, path: str | Path, *, replace: bool = False) -> Project:
        """Make ``name`` stand for the repository at ``path``; registering the same pair again changes nothing.

        A repository that moved keeps its name: where its old place is gone, or holds the same one by its first commit.
        So does one whose repository a repair or an adoption could not know.

        Raises:
            ConfigError: the name cannot be one, or is new and seems to hold a secret.
            RegistryError: the name stands for another repository, and ``replace`` is off.
        """
        full, now = str(resolved(Path(path))), time.time()
        accepted = self._accepted_places(name, full)
        with self._database.write() as connection:
            _refuse_other(connection, name, None if replace else accepted)
            connection.execute(
                "INSERT INTO projects (name, path, created_at, updated_at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET path = excluded.path",
                (name, full, now, now),
            )
        return self.get_project(name)

    def check_registration(self, name: str, path: str | Path) -> None:
        """Refuse what `register_project` would; nothing is written, and no registry made.

        Raises:
            ConfigError, RegistryError: as there.
        """
        if not self.exists:
            _check_new_name(name)
            return
        accepted = self._accepted_places(name, str(resolved(Path(path))))
        with self._database.read() as connection:
            _refuse_other(connection, name, accepted)

    def _accepted_places(self, name: str, full: str) -> set[str]:
        """The places that ``name`` may stand for so far where it is to stand for ``full``; git is asked, which may take a while.

        Raises:
            ConfigError: the name cannot be one, or is new and seems to hold a secret.
        """
        check_project_name(name)
        with self._database.read() as connection:
            rows = connection.execute(_PROJECTS + " WHERE projects.name = ?", (name,)).fetchall()
        if not rows:
            _check_new_name(name)
        old = next((row["path"] for row in readable("projects", rows)), None)
        accepted = {full, str(unknown_repository(self.home, name))}
        if old is not None and old != full and _has_moved(Path(old), Path(full)):
            accepted.add(old)
        return accepted

    @checked
    def get_project(self, name: str) -> Project:
        """The project called ``name``.

        Raises:
            RegistryError: there is none; offers near names.
        """
        with self._database.read() as connection:
            row = connection.execute(_PROJECTS + " WHERE projects.name = ?", (name,)).fetchone()
        if row is None:
            names = [project.name for project in self.list_projects()]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = (
                f"Did you mean {', '.join(near)}?" if near else "`mlx-gardener projects` lists what there is."
            )
            raise RegistryError(f"There is no project {name!r}.", next_step=hint)
        return project_of(self._sound("projects", row))

    def list_projects(self) -> list[Project]:
        """All projects, by name."""
        with self._database.read() as connection:
            rows = connection.execute(_PROJECTS + " ORDER BY projects.name").fetchall()
        return [project_of(row) for row in readable("projects", rows)]

    def _sound(self, table: str, row: sqlite3.Row) -> sqlite3.Row:
        """``row``, when this program could have written it.

        Raises:
            RegistryError: it could not.
        """
        wrong = wrong_in(table, row, self.home)
        if wrong:
            raise RegistryError(
                f"The registry holds a row that cannot be used ({label(table, row)}): {wrong}.",
                next_step="`mlx-gardener registry repair` puts it out of use, and keeps what is good.",
            )
        return row

    def set_active_project(self, name: str) -> None:
        """Make ``name`` the project that other programs use when none is named.

        Raises:
            RegistryError: there is no such project.
        """
        with self._database.write() as connection:
            self.get_project(name)
            connection.execute("UPDATE projects SET active = 0 WHERE active = 1")
            connection.execute("UPDATE projects SET active = 1 WHERE name = ?", (name,))

    def get_active_project(self) -> Project | None:
        """The active project, if one was chosen."""
        with self._database.read() as connection:
            row = connection.execute(_PROJECTS + " WHERE projects.active = 1").fetchone()
        return None if row is None else project_of(self._sound("projects", row))

    def project_directory(self, name: str) -> Path:
        """Where the runs and adapters of a project lie; always below the home.

        Raises:
            ConfigError: the name cannot be one.
        """
        return self.home / "projects" / check_project_name(name)


def _check_new_name(name: str) -> None:
    check_project_name(name)
    if holds_secret(name):
        raise ConfigError(
            "This project name seems to hold a secret, and names stand in manifests, reports and logs.",
            next_step="Choose another name with --project.",
        )


def _refuse_other(connection: sqlite3.Connection, name: str, accepted: set[str] | None) -> None:
    """Refuse a name that stands for another place than the ``accepted`` ones (None: any), or is another's but for its case."""
    row = connection.execute("SELECT path FROM projects WHERE name = ?", (name,)).fetchone()
    if row is not None and accepted is not None and row["path"] not in accepted:
        raise RegistryError(
            f"The project {name!r} already stands for {row['path']}.",
            next_step="Choose another name with --project, or remove the old project first.",
        )
    same = connection.execute(
        "SELECT name FROM projects WHERE name = ? COLLATE NOCASE AND name != ?", (name, name)
    ).fetchone()
    if same is not None:  # many file systems would give both one directory
        raise RegistryError(
            f"The project {name!r} differs from {same['name']!r} in upper and lower case only.",
            next_step="Choose another name with --project.",
        )


def _has_moved(old: Path, new: Path) -> bool:
    """Whether the repository of ``old`` is now (or also) at ``new``."""
    from mlx_gardener.source.walk import origin_of

    if not new.is_dir():
        return False
    try:
        old.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # it may be there, and be another one
    origin = origin_of(old)
    return origin is not None and origin == origin_of(new)
