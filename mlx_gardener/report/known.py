"""Which version is shown where none was named, and what is known of it. Cost: reading a row, or a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.manifest import read_manifest

if TYPE_CHECKING:
    from mlx_gardener.registry import AdapterRecord, ProjectRegistry


def version_to_show(registry: ProjectRegistry, project: str, version: str | None) -> AdapterRecord:
    """The version asked for, else the active one, else the newest: a rejected one is looked at, too.

    Raises:
        RegistryError: there is no such project or version, or the project has none.
    """
    if version is None and registry.get_project(project).active_adapter is None:
        versions = registry.list_adapters(project)
        if versions:
            return max(versions, key=lambda item: item.created_at)
    return registry.get_adapter(project, version)


def known_of(registry: ProjectRegistry, record: AdapterRecord) -> dict[str, Any]:
    """Evidence, metrics and training of a version.

    With the evidence's source texts where the training that made it is still there; the manifest has it without.

    Raises:
        AdapterError: the manifest cannot be read.
    """
    training = registry.training_that_made(record.project, record.version)
    return (None if training is None else training.result) or read_manifest(record.directory)
