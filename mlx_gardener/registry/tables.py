"""All tables at once: what concerns several of them, what projects forget, and where local models lie.

In: names and paths. Out: projects that come and go with all that is theirs; a change is one transaction. Cost: as in
`projects`, `trainings` and `adapters`, which hold what concerns one table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_gardener.errors import RegistryError
from mlx_gardener.registry.adapters import Adapters
from mlx_gardener.registry.deletion import delete_with
from mlx_gardener.registry.names import IN_USE_NAME, INDEX_NAME
from mlx_gardener.registry.records import LIVE, Project
from mlx_gardener.registry.rows import readable


class Tables(Adapters):
    """Projects, trainings and adapters; `ProjectRegistry` adds their upkeep.

    Safe to share between threads and to open in many processes at once.

    Args:
        home: its directory; `default_home` when None. Nothing is made before the first use.

    Every method raises `RegistryError` when the database cannot be read or written.
    """

    @contextmanager
    def registering(self, name: str, path: str | Path) -> Iterator[Project]:
        """`register_project` for what the block begins with it; where the block raises, the registry is as it was before.

        A project that has a training, an adapter or a place in the queue by then stays.

        Raises:
            ConfigError, RegistryError: as `register_project`.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT path FROM projects WHERE name = ?", (name,)).fetchone()
        project = self.register_project(name, path)
        try:
            yield project
        except BaseException:
            if row is not None:
                with self._database.write() as connection:
                    connection.execute("UPDATE projects SET path = ? WHERE name = ?", (row["path"], name))
            elif not self._is_used(name):
                self.remove_project(name)
            raise

    def _is_used(self, project: str) -> bool:
        with self._database.read() as connection:
            return any(
                connection.execute(f"SELECT 1 FROM {table} WHERE project = ?", (project,)).fetchone()
                for table in ("trainings", "adapters", "queue")
            )

    def remove_project(self, name: str, *, delete_files: bool = True) -> None:
        """Forget a project with its trainings and adapters; its repository is never touched.

        Raises:
            RegistryError: there is no such project, or it is being trained.
        """
        self.get_project(name)
        self.close_dead_trainings()
        directory = self.project_directory(name)
        with delete_with(self._database, directory if delete_files else None) as connection:
            if connection.execute(
                f"SELECT 1 FROM trainings WHERE project = ? AND {LIVE}", (name,)
            ).fetchone():
                raise RegistryError(
                    f"{name!r} is being trained.", next_step=f"Stop it first: `mlx-gardener cancel {name}`."
                )
            connection.execute("DELETE FROM projects WHERE name = ?", (name,))

    def forget_path(self, project: str, path: str) -> None:
        """Leave ``path`` (a file or directory of the repository) out of the project's trainings and answers from now on.

        Its index for retrieval goes, as it may hold what is to be forgotten, and what is known of its use.

        Raises:
            RegistryError: there is no such project, or these cannot be deleted.
        """
        self.get_project(project)
        with delete_with(self._database, self.project_directory(project) / IN_USE_NAME):
            pass  # no row names it
        with delete_with(self._database, self.project_directory(project) / INDEX_NAME) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO forgotten (project, path, forgotten_at) VALUES (?, ?, ?)",
                (project, path, time.time()),
            )

    def remember_path(self, project: str, path: str) -> bool:
        """Undo `forget_path`; whether it was forgotten."""
        with self._database.write() as connection:
            done = connection.execute(
                "DELETE FROM forgotten WHERE project = ? AND path = ?", (project, path)
            ).rowcount
        return bool(done)

    def forgotten_paths(self, project: str) -> list[str]:
        """What the project's trainings leave out, sorted."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM forgotten WHERE project = ? ORDER BY path", (project,)
            ).fetchall()
        return [row["path"] for row in readable("forgotten", rows)]

    def note_local_model(self, model_id: str, path: Path) -> None:
        """Remember where the local base model ``model_id`` lies; adapters say its name only."""
        with self._database.write() as connection:
            connection.execute(
                "INSERT INTO local_models (id, path) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET path = excluded.path",
                (model_id, str(path)),
            )

    def local_model(self, model_id: str) -> Path | None:
        """Where a local base model lies, as far as it is known."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM local_models WHERE id = ?", (model_id,)).fetchall()
        return next((Path(row["path"]) for row in readable("local_models", rows)), None)
