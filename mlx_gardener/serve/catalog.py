"""Which models there are: names as clients send them, and what stands behind each.

``project`` is the project's active version, ``project@version`` that version, and a base's id the base alone. The registry
is asked anew for every request (a millisecond), so a version that is activated is served from the next request on. A
name that is not there is an error, never something else.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_gardener.adapter import base_name
from mlx_gardener.errors import GardenerError, RegistryError
from mlx_gardener.registry import AdapterRecord, ProjectRegistry


class UnknownModelError(GardenerError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class Target:
    """What a request is answered with: a base, with an adapter or (``record`` None) alone.

    ``base`` is what `model.load_base` takes; ``base_id`` is how it is called outside.
    """

    id: str
    base_id: str
    base: str
    record: AdapterRecord | None

    @property
    def created_at(self) -> float:
        """Seconds since the epoch; 0 for a base."""
        return self.record.created_at if self.record is not None else 0.0


class Catalog:
    """The models of one registry.

    Args:
        projects: those served; empty for all.
    """

    def __init__(self, registry: ProjectRegistry, projects: tuple[str, ...] = ()) -> None:
        self.registry = registry
        self._projects = projects

    def targets(self) -> list[Target]:
        """Every project with an active adapter, every version of it, and their bases, in this order."""
        projects, versions, bases = [], [], {}
        for name in self._names():
            for record in self.registry.list_adapters(name):
                target = self._of(f"{name}@{record.version}", record)
                versions.append(target)
                if record.active:
                    projects.append(self._of(name, record))
                    bases[record.base_model] = Target(record.base_model, record.base_model, target.base, None)
        taken = {target.id for target in projects}
        return [*projects, *versions, *(base for name, base in bases.items() if name not in taken)]

    def find(self, name: str) -> Target:
        """What ``name`` stands for; a project before a base of the same name.

        Raises:
            UnknownModelError: nothing; names what there is.
        """
        project, at, version = name.rpartition("@")
        project = project if at else name
        if project in self._names():
            try:
                return self._of(name, self.registry.get_adapter(project, version if at else None))
            except RegistryError as error:
                raise UnknownModelError(error.message, next_step=error.next_step) from error
        targets = self.targets()
        for target in targets:
            if target.id == name:
                return target
        raise UnknownModelError(
            f"There is no model {name[:200]!r} here.",
            next_step=f"Served are: {', '.join(target.id for target in targets) or 'none yet'}.",
        )

    def default(self) -> Target:
        """The active project, or the only one there is: for clients that cannot name a model.

        Raises:
            UnknownModelError: neither is there.
        """
        names, active = self._names(), self.registry.get_active_project()
        if active is not None and active.name in names:
            return self.find(active.name)
        trained = [name for name in names if self.registry.get_project(name).active_adapter is not None]
        if len(trained) == 1:
            return self.find(trained[0])
        raise UnknownModelError(
            "The request names no model, and there is no active project to stand in.",
            next_step="Send `model`, ask below /projects/NAME/, or choose one with `mlx-gardener activate NAME`.",
        )

    def _names(self) -> list[str]:
        names = [project.name for project in self.registry.list_projects()]
        return [name for name in names if not self._projects or name in self._projects]

    def _of(self, name: str, record: AdapterRecord) -> Target:
        return Target(name, record.base_model, base_name(self.registry, record), record)
