"""Which version is shown where none was named, and what is known of it. Cost: reading a row, or a manifest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.registry.evaluations import counting_evaluation

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
    """Evidence, metrics and training of a version; ``evaluated_at`` (seconds since the epoch) where the evidence is of a later `eval`.

    Of evaluations the newest that says enough counts (`counting_evaluation`), as it does for the server. With the evidence's source
    texts where it is of the training that made the version, and that is still there; manifests and evaluations have it without.

    Raises:
        AdapterError: the manifest cannot be read.
    """
    training = registry.training_that_made(record.project, record.version)
    known = (None if training is None else training.result) or read_manifest(record.directory)
    newest = counting_evaluation(record.directory)
    if newest is None:
        return known
    notes = (measured_again(newest.at), *(newest.evidence.get("notes") or ()))
    evidence = {**newest.evidence, "notes": list(notes)}
    return {**known, "metrics": evidence["metrics"], "evidence": evidence, "evaluated_at": newest.at}


def measured_again(at: float) -> str:
    """That a version's figures are those of an evaluation, made ``at`` seconds since the epoch."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    return f"Measured again by `mlx-gardener eval` on {when}."
