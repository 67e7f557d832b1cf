"""The page's projects: what the registry knows of each, and what can be done to one.

In: names, versions, paths. Out: rows of JSON. Cost: the list is the registry's rows and a manifest each (about a millisecond a
project); sizes walk over the files, and how stale an adapter is takes a scan, so both are asked for apart.
"""

from __future__ import annotations

from typing import Any

from mlx_gardener.adapter import PeftManager
from mlx_gardener.adapter.exports import FORMS, export_adapter
from mlx_gardener.adapter.versions import VersionFacts, roll_back, version_facts
from mlx_gardener.config import load_config, validate_config
from mlx_gardener.errors import ConfigError, GardenerError
from mlx_gardener.lifecycle.staleness import look_at
from mlx_gardener.platform.files import existing_directory, expanded, is_directory, resolved
from mlx_gardener.registry import AdapterRecord, Project, ProjectRegistry, project_name_for
from mlx_gardener.registry.deletion import tree_bytes
from mlx_gardener.serve.bodies import Body
from mlx_gardener.source.walk import commits_between
from mlx_gardener.ui.answers import Handlers, changing, looking


class AddBody(Body):
    """A repository to register; ``name`` is the directory's where it is left out."""

    path: str
    name: str | None = None


class VersionBody(Body):
    """A project, and perhaps a version of its adapter."""

    project: str
    version: str | None = None


class ExportBody(VersionBody):
    """What is written where."""

    form: str = "mlx"
    destination: str | None = None


class Projects:
    """Handlers over the registry."""

    def __init__(self, registry: ProjectRegistry) -> None:
        self._registry = registry

    def handlers(self) -> Handlers:
        """By path."""
        return {
            "projects": looking(self.all),
            "sizes": looking(self.sizes),
            "projects/{project}": looking(self.one),
            "projects/{project}/staleness": looking(self.staleness),
            "add": changing(AddBody, self.add),
            "activate": changing(VersionBody, self.activate),
            "rollback": changing(VersionBody, self.roll_back),
            "export": changing(ExportBody, self.export),
            "remove": changing(VersionBody, self.remove),
        }

    def all(self) -> dict[str, Any]:
        """Every project in a row, by name."""
        running = {record.project for record in self._registry.active_trainings()}
        return {
            "projects": [self._row(item, item.name in running) for item in self._registry.list_projects()],
            "forms": FORMS,
        }

    def _row(self, item: Project, is_training: bool) -> dict[str, Any]:
        base, facts, problem = None, None, None
        if item.active_adapter is not None:
            try:
                base = self._registry.get_adapter(item.name).base_model
                facts = version_facts(self._registry, item.name, item.active_adapter)
            except GardenerError as error:
                problem = error.in_terminal  # the others are shown all the same
        return {
            "name": item.name,
            "path": str(item.path),
            "is_there": is_directory(item.path),
            "active": item.active,
            "status": item.status.value,
            "is_training": is_training,
            "version": item.active_adapter,
            "base": base,
            "verdict": None if facts is None else facts.verdict,
            "answers": None if facts is None else facts.answers,
            "problem": problem,
        }

    def sizes(self) -> dict[str, Any]:
        """Bytes on disk, and commits since the active version was trained, of every project."""
        return {
            item.name: {"bytes": self._bytes(item.name), "commits_since": self._commits_since(item)}
            for item in self._registry.list_projects()
        }

    def _bytes(self, project: str) -> int:
        return tree_bytes(self._registry.project_directory(project))

    def _commits_since(self, item: Project) -> int | None:
        if item.active_adapter is None or not is_directory(item.path):
            return None
        try:
            commit = version_facts(self._registry, item.name, item.active_adapter).commit
        except GardenerError:
            return None  # its row says what is wrong
        return None if commit is None else commits_between(item.path, commit)

    def one(self, project: str) -> dict[str, Any]:
        """A project with the versions of its adapter, and what removing it would lose."""
        found = self._registry.get_project(project)
        versions = [self._version(record) for record in self._registry.list_adapters(project)]
        runs = self._registry.project_directory(project) / "runs"
        return {
            "name": found.name,
            "path": str(found.path),
            "active": found.active,
            "versions": versions,
            "versions_before": self._registry.versions_before(project),
            "runs": sum(1 for place in runs.iterdir() if place.is_dir()) if runs.is_dir() else 0,
            "bytes": self._bytes(project),
            "way_to_an_adapter": "" if versions else self._registry.way_to_an_adapter(project),
        }

    def _version(self, record: AdapterRecord) -> dict[str, Any]:
        row = {
            "version": record.version,
            "active": record.active,
            "base": record.base_model,
            "created_at": record.created_at,
            "directory": str(record.directory),
            "bytes": tree_bytes(record.directory),
        }
        try:
            return {**row, **_told(version_facts(self._registry, record.project, record.version))}
        except GardenerError as error:
            return {**row, "problem": error.in_terminal}

    def staleness(self, project: str) -> dict[str, Any]:
        """How far the repository has moved since the active version was trained."""
        latest = self._registry.latest_training(project)
        config = load_config() if latest is None else validate_config(latest.config)
        found = look_at(self._registry, project, config)
        return {"sentence": None} if found is None else {"sentence": found.sentence(), **found.to_json()}

    def add(self, body: AddBody) -> dict[str, Any]:
        """Register a repository."""
        if not body.path.strip():
            raise ConfigError("No directory was named.", next_step="Name the root directory of a repository.")
        root = existing_directory(expanded(body.path.strip()))
        name = (body.name or "").strip() or project_name_for(root)
        return {"name": self._registry.register_project(name, root).name}

    def activate(self, body: VersionBody) -> dict[str, Any]:
        """As `mlx-gardener activate`."""
        if body.version is not None:
            self._registry.activate_adapter(body.project, body.version)
        self._registry.set_active_project(body.project)
        active = self._registry.get_project(body.project).active_adapter
        return {"told": f"{body.project} is active, with {active or 'no adapter'}."}

    def roll_back(self, body: VersionBody) -> dict[str, Any]:
        """As `mlx-gardener rollback`."""
        was, now = roll_back(self._registry, body.project, to=body.version)
        return {"told": f"{now.version} of {body.project} is active, {was.version} was."}

    def export(self, body: ExportBody) -> dict[str, Any]:
        """As `mlx-gardener export`."""
        place = (body.destination or "").strip()
        if not place and body.form != "lmstudio":
            raise ConfigError("No directory was named.", next_step="Name one that does not exist yet.")
        destination = resolved(expanded(place)) if place else None
        done = export_adapter(self._registry, body.project, body.version, body.form, destination)
        agreement = () if done.agreement is None else (done.agreement.sentence(),)
        return {
            "told": f"Wrote the {body.form} form to {done.directory}.",
            "notes": [*agreement, *done.notes],
        }

    def remove(self, body: VersionBody) -> dict[str, Any]:
        """As `mlx-gardener remove`."""
        if body.version is not None:
            PeftManager(self._registry).delete_adapter(body.project, body.version)
            return {"told": f"Removed adapter {body.version} of {body.project}."}
        self._registry.remove_project(body.project)
        return {"told": f"Removed {body.project} with all its adapters."}


def _told(facts: VersionFacts) -> dict[str, Any]:
    return {
        "verdict": facts.verdict,
        "answers": facts.answers,
        "reason": facts.reason,
        "commit": facts.commit,
        "parent": facts.parent,
        "base_bits_per_byte": facts.metrics.get("base_bits_per_byte"),
        "adapter_bits_per_byte": facts.metrics.get("adapter_bits_per_byte"),
    }
