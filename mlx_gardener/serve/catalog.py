"""Which models there are: names as clients send them, and what stands behind each.

``project`` is the project's active version, ``project@version`` that version, and a base's id the base alone. The registry
is asked anew for every request (a millisecond), so a version that is activated is served from the next request on. A
name that is not there is an error, never something else.

Clients of Ollama write names with a tag, and editors look for names that they know: ``project:latest`` and ``project:version`` are
the same as above; ``family:project`` is the project, under the family whose prompts have its base's form (``qwen2.5-coder:shop``);
``qwen2.5-coder:1.5b`` and ``qwen2.5-coder`` the project on such a base, where it is the active one or the only one. Under
``sweep-next-edit:shop`` Zed asks it for next edits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_gardener.adapter import base_name
from mlx_gardener.errors import GardenerError, RegistryError
from mlx_gardener.registry import AdapterRecord, ProjectRegistry
from mlx_gardener.registry.names import is_version
from mlx_gardener.serve.base_cards import FAMILIES, base_card, library_name

_SIZE = re.compile(r"(\d+(?:\.\d+)?b)-")


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
    def is_project(self) -> bool:
        """Whether it is a project's active version."""
        return self.record is not None and self.id == self.record.project

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
        projects, wanted = self._names(), (name, name.removesuffix(":latest"))
        for known in wanted:
            project, at, version = known.rpartition("@")
            if not at and is_version(known.rpartition(":")[2]):
                project, at, version = known.rpartition(":")
            project = project if at else known
            if project in projects:
                try:
                    record = self.registry.get_adapter(project, version if at else None)
                except RegistryError as error:
                    raise UnknownModelError(error.message, next_step=error.next_step) from error
                return self._of(f"{project}@{version}" if at else project, record)
        targets = self.targets()
        for target in targets:
            if target.id in wanted:
                return target
        meant = self._known_as(targets, name.lower())
        if len(meant) == 1:
            return meant[0]
        if meant:
            raise UnknownModelError(
                f"{name!r} could be {' or '.join(target.id for target in meant)}.",
                next_step="Ask for one by its own name, or choose one with `mlx-gardener activate NAME`.",
            )
        raise UnknownModelError(
            f"There is no model {name[:200]!r} here.",
            next_step=f"Served are: {', '.join(target.id for target in targets) or 'none yet'}.",
        )

    def editors_names(self) -> list[tuple[str, Target]]:
        """Every project under each name with a tag that editors are shown."""
        targets = [target for target in self.targets() if target.is_project]
        known = self._shared_names(targets)
        return [
            *((f"{target.id}:latest", target) for target in targets),
            *((name, found[0]) for name, found in known.items() if len(found) == 1 and ":" in name),
        ]

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

    def _known_as(self, targets: list[Target], name: str) -> list[Target]:
        """The projects that ``name``, in lower case, stands for; the active one alone, if it is among them."""
        family, _, tag = name.partition(":")
        if family not in FAMILIES:
            return []
        known = self._shared_names([target for target in targets if target.is_project])
        # Ollama's tags go on behind a size: 1.5b-base-q4_K_M. A project's name does not.
        size = _SIZE.match(tag)
        return known.get(name) or (known.get(f"{family}:{size[1]}") if size is not None else None) or []

    def _shared_names(self, projects: list[Target]) -> dict[str, list[Target]]:
        found: dict[str, list[Target]] = {}
        for target in projects:
            card, library = base_card(target.base), library_name(target.base_id)
            names = (card.family, *card.edit_names) if card is not None else ()
            families = [name for name in names if name is not None]
            for family in families:
                found[f"{family}:{target.id.lower()}"] = [target]
            of_library = {library, library.partition(":")[0]} if library is not None else set()
            for name in {*families, *of_library}:
                found.setdefault(str(name), []).append(target)
        active = self.registry.get_active_project()
        for name, targets in found.items():
            chosen = [target for target in targets if active is not None and target.id == active.name]
            found[name] = chosen or targets
        return found

    def projects(self) -> list[str]:
        """The projects that are served, with and without an adapter.

        Raises:
            RegistryError: the registry cannot be read.
        """
        return self._names()

    def _names(self) -> list[str]:
        names = [project.name for project in self.registry.list_projects()]
        return [name for name in names if not self._projects or name in self._projects]

    def _of(self, name: str, record: AdapterRecord) -> Target:
        return Target(name, record.base_model, base_name(self.registry, record), record)
