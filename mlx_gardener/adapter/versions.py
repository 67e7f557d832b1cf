"""Two versions of an adapter beside each other, and back to the one before. Cost: reading two manifests and evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.config import as_recorded
from mlx_gardener.errors import AdapterError, RegistryError
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.registry.evaluations import counting_evaluation


@dataclass(frozen=True)
class VersionFacts:
    """What is known of a version's worth, by the evaluation that counts, else by its manifest.

    ``verdict`` is None where nothing was measured, ``answers`` where older; ``evaluated_at`` (seconds since the epoch) is None where
    it was not evaluated since its training.
    """

    version: str
    verdict: str | None
    reason: str | None
    metrics: dict[str, float]
    commit: str | None
    parent: str | None
    created_at: str
    answers: str | None = None
    evaluated_at: float | None = None


@dataclass(frozen=True)
class VersionsDiff:
    """``metrics``, ``settings``: name to [first, second], None where one has none; settings only where they differ.

    ``files``: those both were tested on, largest change of bits per byte first. ``comparable`` is whether both were
    tested on the same files with the same base; ``note`` says why not.
    """

    first: VersionFacts
    second: VersionFacts
    metrics: dict[str, list[float | None]]
    files: list[dict[str, Any]]
    settings: dict[str, list[Any]]
    comparable: bool
    note: str | None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types."""
        return asdict(self)


def version_facts(registry: ProjectRegistry, project: str, version: str) -> VersionFacts:
    """What is known of a version.

    Raises:
        RegistryError, AdapterError: it is not there, or its manifest cannot be read.
    """
    return _facts(version, _known(registry, project, version))


def _known(registry: ProjectRegistry, project: str, version: str) -> dict[str, Any]:
    """A version's, with evidence and metrics of the evaluation that counts, as `show` and `report` have them."""
    directory = registry.get_adapter(project, version).directory
    manifest, newest = read_manifest(directory), counting_evaluation(directory)
    if newest is None:
        return manifest
    evidence = newest.evidence
    return {**manifest, "metrics": evidence["metrics"], "evidence": evidence, "evaluated_at": newest.at}


def _facts(version: str, manifest: dict[str, Any]) -> VersionFacts:
    evidence = manifest.get("evidence") or {}
    numbers = {
        name: value
        for name, value in manifest["metrics"].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return VersionFacts(
        version,
        evidence.get("verdict"),
        evidence.get("reason"),
        numbers,
        manifest["data"].get("commit"),
        manifest["training"].get("parent"),
        str(manifest.get("created_at", "")),
        evidence.get("answers"),
        manifest.get("evaluated_at"),
    )


def diff_versions(registry: ProjectRegistry, project: str, first: str, second: str) -> VersionsDiff:
    """Compare two versions' evidence, that which counts, data and settings.

    Raises:
        RegistryError, AdapterError: one is not there, or its manifest cannot be read.
    """
    one, two = _known(registry, project, first), _known(registry, project, second)
    facts = _facts(first, one), _facts(second, two)
    names = sorted(facts[0].metrics.keys() | facts[1].metrics.keys())
    tested = [
        {item["path"]: item for item in (found.get("evidence") or {}).get("files", [])}
        for found in (one, two)
    ]
    files = [
        {
            "path": path,
            "first": tested[0][path]["adapter_bits_per_byte"],
            "second": tested[1][path]["adapter_bits_per_byte"],
        }
        for path in tested[0].keys() & tested[1].keys()
    ]
    files.sort(key=lambda item: (-abs(item["second"] - item["first"]), item["path"]))
    settings = [dict(_flat(as_recorded(found["config"]))) for found in (one, two)]
    differing = {
        name: [settings[0].get(name), settings[1].get(name)]
        for name in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(name) != settings[1].get(name)
    }
    note = None
    if one["base"].get("weights_sha256") != two["base"].get("weights_sha256"):
        note = "They belong to different base models."
    elif not all(tested):
        lacking = " and ".join(item.version for item, files in zip(facts, tested, strict=True) if not files)
        note = f"There is nothing to compare: {lacking} was never measured on unseen files."
    elif tested[0].keys() != tested[1].keys() or any(
        tested[0][path].get("bytes") != tested[1][path].get("bytes") for path in tested[0]
    ):
        note = "They were tested on different files or versions of them, so the metrics do not compare them."
    return VersionsDiff(
        facts[0],
        facts[1],
        {name: [facts[0].metrics.get(name), facts[1].metrics.get(name)] for name in names},
        files,
        differing,
        note is None,
        note,
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def roll_back(
    registry: ProjectRegistry, project: str, *, to: str | None = None
) -> tuple[VersionFacts, VersionFacts]:
    """Activate an earlier version; (the one that was active, the one that is now), the same where ``to`` is active already.

    Going back again goes one further back, as often as there is a version that was active before.

    Args:
        to: that version; the one that was active before the active one when None.

    Raises:
        RegistryError: there is no active version, or none was before it.
        AdapterError: the manifest of the version to go to cannot be read.
    """
    active = registry.get_adapter(project)
    before = registry.versions_before(project)
    if to is None and not before:
        raise RegistryError(
            f"No version of {project!r} was active before {active.version}, or it is gone.",
            next_step=f"`mlx-gardener show {project}` lists its versions; `activate` chooses any of them.",
        )
    found = version_facts(registry, project, to or before[0])
    try:
        was = version_facts(registry, project, active.version)
    except AdapterError as error:  # a reason to go back
        was = VersionFacts(active.version, None, error.message, {}, None, None, "")
    if to is None:
        registry.step_back(project, found.version)
    elif found.version != active.version:
        registry.activate_adapter(project, found.version)
    return was, found
