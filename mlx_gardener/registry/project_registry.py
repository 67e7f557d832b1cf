"""ProjectRegistry: projects, trainings and adapters, and their upkeep.

What is asked and changed all the time is `Tables`; here is what is done now and then: checking, repairing, deleting what is
no longer needed, backing up. Cost: the modules of the upkeep say theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlx_gardener.registry.deletion import delete_with
from mlx_gardener.registry.names import check_project_name
from mlx_gardener.registry.records import Garbage, GarbagePolicy, Problem
from mlx_gardener.registry.tables import Tables


class ProjectRegistry(Tables):
    """The registry of one home; safe to share between threads and to open in many processes at once.

    Args:
        home: its directory; `default_home` when None. Nothing is made before the first use.

    Every method raises `RegistryError` when the database cannot be read or written.
    """

    def remove_run(self, project: str, run_dir: Path) -> bool:
        """Forget the trainings in a run's directory and delete it; False (and nothing is done) for the project's latest.

        Raises:
            RegistryError: its files cannot be deleted.
        """
        from mlx_gardener.registry import garbage

        return garbage.remove_run(self._database, project, run_dir)

    def check(self, *, hashes: bool = True, tell: Callable[[str], None] | None = None) -> list[Problem]:
        """What does not fit together; empty where all is well. Nothing is changed. See `health.check`."""
        from mlx_gardener.registry import health

        return health.check(self, self._database, hashes=hashes, tell=tell)

    def repair(self, *, tell: Callable[[str], None] | None = None) -> list[str]:
        """Mend what `check` finds; returns what was done, a sentence each. See `health.repair`."""
        from mlx_gardener.registry import health

        return health.repair(self, self._database, tell=tell)

    def sweep(self, project: str) -> list[str]:
        """Delete what killed writers left in a project, but for what somebody alive works on; a sentence each.

        See `remnants`. Half an adapter goes as well as a whole one that was not put in its place.
        """
        from mlx_gardener.registry.remnants import clear, remnants

        found = [
            clear(self._database, path, keep_whole=False)
            for path in remnants(self._database, check_project_name(project))
        ]
        return [said for said in found if said]

    def discard(self, directory: Path) -> None:
        """Delete a directory of the home that no row names; a crash leaves it whole or in ``.trash``."""
        with delete_with(self._database, directory):
            pass

    def adopt(self, *, tell: Callable[[str], None] | None = None) -> list[str]:
        """Register whole adapters in ``lost+found`` again; returns what was done, a sentence each. See `adoption.adopt`."""
        from mlx_gardener.registry import adoption

        return adoption.adopt(self._database, tell=tell)

    def collect_garbage(self, policy: GarbagePolicy | None = None, *, dry_run: bool = False) -> list[Garbage]:
        """Delete what the policy does not keep; returns what was, or would be, deleted. See `garbage.collect`."""
        from mlx_gardener.registry import garbage

        return garbage.collect(self, self._database, policy or GarbagePolicy(), dry_run=dry_run)

    def backup(self, file: Path, *, replace: bool = False, tell: Callable[[str], None] | None = None) -> int:
        """Write projects, history and adapters into one file; returns its bytes. See `archive.backup`."""
        from mlx_gardener.registry import archive

        return archive.backup(self._database, file, replace=replace, tell=tell)
