"""The index of a project's working tree, as it is kept in the registry beside the project's runs and adapters.

In: a project. Out: its index, made by the rules of its active adapter's training and without what the project is to forget; one that
was made by others is not used. There is one for each project, as there is one working tree: it can always be made anew, so backups
leave it out. Cost: the modules of `retrieval` say theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.config import TrainingConfig, validate_config
from mlx_gardener.errors import AdapterError, ConfigError, DataError
from mlx_gardener.platform.files import make_private
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.registry.names import INDEX_NAME
from mlx_gardener.retrieval import Index, Rules, read_index, refreshed, write_index
from mlx_gardener.runs.parent import exclude_pattern, without_forgotten

_DECIDING = ("data", "training_data_quality_threshold")


def index_place(registry: ProjectRegistry, project: str) -> Path:
    """The file of a project's index."""
    return registry.project_directory(project) / INDEX_NAME


def index_rules(registry: ProjectRegistry, project: str) -> Rules:
    """What of a project's repository may be retrieved: what its active adapter's training would read now, else the newest one's.

    Raises:
        RegistryError: there is no such project, or the registry cannot be read.
    """
    records = registry.list_adapters(project)
    record = next((found for found in records if found.active), records[-1] if records else None)
    trained = TrainingConfig() if record is None else _settings(record.directory, record.manifest_sha256)
    config = without_forgotten(trained, registry, project)
    return Rules.of(config.data, config.training_data_quality_threshold)


@lru_cache(maxsize=256)
def _settings(directory: Path, manifest_sha256: str) -> TrainingConfig:
    """Those of a manifest that decide what is read; the defaults where it tells none, as those of imported adapters do."""
    try:
        recorded = read_manifest(directory)["config"]
        return validate_config({key: recorded[key] for key in _DECIDING if key in recorded})
    except (AdapterError, ConfigError):
        return TrainingConfig()


def kept_index(registry: ProjectRegistry, project: str, rules: Rules) -> Index | None:
    """The index that is kept; None where there is none, it is damaged, or was made by other rules."""
    try:
        index, made_by = read_index(index_place(registry, project))
    except (OSError, ValueError):
        return None  # it is made anew
    return index if made_by == rules else None


def update_index(
    registry: ProjectRegistry,
    project: str,
    rules: Rules,
    *,
    earlier: Index | None = None,
    interrupt: Callable[[], None] = lambda: None,
    processes: int | None = None,
) -> Index:
    """The index of the working tree as it is now, kept for the next one who asks.

    Args:
        earlier: made by the same rules; the kept one when None.
        interrupt: asked between files; may raise.
        processes: as in `source.scan_repository`.

    Raises:
        DataError: the repository cannot be read.
        OSError: the index cannot be written.
        RegistryError: there is no such project.
    """
    root = registry.get_project(project).path
    earlier = kept_index(registry, project, rules) if earlier is None else earlier
    found = refreshed(earlier, root, rules, interrupt=interrupt, processes=processes)
    if found is earlier:
        return found
    registry.get_project(project)  # it may have been removed meanwhile, and its directory with it
    place = index_place(registry, project)
    make_private(place.parent)
    write_index(place, found, rules)
    forgotten = {exclude_pattern(path) for path in registry.forgotten_paths(project)}
    if not forgotten <= set(rules.exclude):  # something is to be forgotten since
        place.unlink(missing_ok=True)
    # Mapped from the file, where it takes no memory of its own.
    return kept_index(registry, project, rules) or found


def index_as_it_is(registry: ProjectRegistry, project: str) -> tuple[Index | None, str]:
    """A project's index, brought up to date as far as that is possible, and why there is none.

    Raises:
        RegistryError: there is no such project.
    """
    rules = index_rules(registry, project)
    try:
        # In this process: a script that asks need not be one that other processes can import.
        return update_index(registry, project, rules, processes=1), ""
    except (OSError, DataError) as error:
        kept = kept_index(registry, project, rules)
        return kept, "" if kept is not None else f"the repository cannot be indexed ({reason_of(error)})"
