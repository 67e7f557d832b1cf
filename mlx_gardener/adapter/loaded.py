"""A registered adapter read from its files, and put into a base model for a while.

In: a project's version. Out: its weights, after every file was compared with the manifest. Cost: reading the files once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_gardener.adapter.manifest import (
    MANIFEST_NAME,
    LoadedAdapter,
    load_adapter_directory,
    read_manifest,
    verify_files,
)
from mlx_gardener.errors import AdapterError, ModelError
from mlx_gardener.platform.untrusted import sha256_of
from mlx_gardener.registry import ProjectRegistry

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel


def load_registered(registry: ProjectRegistry, project: str, version: str | None = None) -> LoadedAdapter:
    """Read an adapter version (the active one by default) after comparing its files with the manifest.

    Raises:
        AdapterError: a file is missing or is not the one that was written.
        RegistryError: there is no such project or version.
    """
    record = registry.get_adapter(project, version)
    manifest = read_manifest(record.directory)
    if sha256_of(record.directory / MANIFEST_NAME) != record.manifest_sha256:
        raise AdapterError(
            f"The manifest of {project}/{record.version} is not the one that was written.",
            next_step="Train again, or restore the file from a backup.",
        )
    verify_files(record.directory, manifest)
    return load_adapter_directory(record.directory, manifest)


@contextmanager
def attach_adapter(base: BaseModel, adapter: LoadedAdapter) -> Iterator[None]:
    """``base.model`` with ``adapter`` in it, for the length of the block.

    Raises:
        AdapterError: the adapter's modules or shapes do not fit the base.
    """
    from mlx_gardener.model.lora import detach_lora, set_lora_parameters

    try:
        adapter.settings.put_into(base.model)
        set_lora_parameters(
            base.model, {name: value.astype(base.dtype) for name, value in adapter.weights.items()}
        )
    except (ModelError, ValueError, KeyError, TypeError) as error:
        detach_lora(base.model)
        raise AdapterError(
            f"The adapter {adapter.directory.name!r} does not fit {base.id} ({error}).",
            next_step="Use the base model it was trained on; its manifest names it.",
        ) from error
    base.model.eval()
    try:
        yield
    finally:
        detach_lora(base.model)
