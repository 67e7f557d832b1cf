"""PeftManager: the only part that turns LoRA weights into files and back.

An adapter is written to a temporary sibling, measured there as it was written, completed with its manifest, fsynced,
renamed into place and only then registered. Whatever interrupts that leaves no adapter and no half of one.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.base import note_base
from mlx_gardener.adapter.exports import export_adapter
from mlx_gardener.adapter.forms import has_peft_form, write_mlx_form, write_peft_form
from mlx_gardener.adapter.loaded import load_registered
from mlx_gardener.adapter.manifest import (
    MANIFEST_NAME,
    LoadedAdapter,
    ManifestDetails,
    load_adapter_directory,
    make_manifest,
)
from mlx_gardener.errors import AdapterError
from mlx_gardener.platform.files import fsync_path, make_private, make_tree_private, write_private
from mlx_gardener.platform.locks import hold
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import sha256_of
from mlx_gardener.registry import AdapterRecord, ProjectRegistry, patiently
from mlx_gardener.registry.database import BUSY_TIMEOUT_SECONDS

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel


class StagedAdapter:
    """An adapter whose weights are on disk and which is not registered yet."""

    def __init__(self, registry: ProjectRegistry, project: str, directory: Path, base: BaseModel) -> None:
        self.directory = directory
        self.version = _next_version(directory.parent, registry, project)
        self._registry = registry
        self._project = project
        self._base = base

    def load(self) -> LoadedAdapter:
        """Read the weights back from the files just written.

        Raises:
            AdapterError: they cannot be read.
        """
        return load_adapter_directory(self.directory)

    def commit(
        self,
        details: ManifestDetails,
        *,
        model_card: str,
        extra_files: dict[str, bytes] | None = None,
        activate: bool = True,
        patience_seconds: float = BUSY_TIMEOUT_SECONDS,
        training_id: str | None = None,
    ) -> AdapterRecord:
        """Complete the adapter, put it in its place and register it.

        Args:
            details: what the manifest says of how it was made and how good it is.
            model_card: its README.md.
            extra_files: more files, by name.
            activate: whether other programs pick this version up from now on.
            patience_seconds: how long the registry is asked again where it cannot be written.
            training_id: see `ProjectRegistry.add_adapter`.

        Raises:
            AdapterError: a file cannot be written; nothing is left behind.
            RegistryError, TrainingError: it cannot be registered; nothing is left behind.
        """
        try:
            write_private(self.directory / "README.md", model_card)
            for name, content in (extra_files or {}).items():
                write_private(self.directory / name, content)
            manifest = make_manifest(
                self.directory,
                project=self._project,
                adapter_version=self.version,
                base=self._base,
                details=details,
            )
            path = self.directory / MANIFEST_NAME
            write_private(path, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
            manifest_sha256 = sha256_of(path)
            make_tree_private(self.directory)
            _fsync_tree(self.directory)
            final = self._rename()
        except OSError as error:
            raise AdapterError(
                f"The adapter of {self._project!r} cannot be written ({error.strerror}).",
                next_step="Free disk space first.",
            ) from error

        def register() -> AdapterRecord:
            note_base(self._registry, self._base)
            return self._registry.add_adapter(
                self._project,
                self.version,
                final,
                base_model=self._base.id,
                metrics=details.metrics,
                manifest_sha256=manifest_sha256,
                activate=activate,
                training_id=training_id,
            )

        try:
            return patiently(register, seconds=patience_seconds)
        except BaseException:
            shutil.rmtree(final, ignore_errors=True)
            raise

    def _rename(self) -> Path:
        final = self.directory.parent / self.version
        self.directory.rename(final)
        fsync_path(final.parent)
        return final


class PeftManager:
    """Adapters of the projects in one registry.

    Args:
        registry: where adapters are recorded; the user's own when None.
    """

    def __init__(self, registry: ProjectRegistry | None = None) -> None:
        self.registry = registry or ProjectRegistry()

    @contextmanager
    def stage_adapter(
        self, project: str, weights: dict[str, mx.array], *, base: BaseModel, settings: dict[str, Any]
    ) -> Iterator[StagedAdapter]:
        """Write an adapter's weights beside its place; left without `StagedAdapter.commit`, it is removed again.

        Args:
            weights: by mlx-lm's names.
            settings: `model.lora.adapter_settings`.

        Raises:
            AdapterError: the weights cannot be written.
            RegistryError: there is no such project.
        """
        self.registry.get_project(project)
        parent = self.registry.project_directory(project) / "adapters"
        staged = parent / f".new-{uuid.uuid4().hex[:8]}"
        with ExitStack() as stack:
            try:
                make_private(staged)
                stack.enter_context(hold(staged))  # until it is registered: `registry repair` leaves it alone
                write_mlx_form(staged / "mlx", weights, settings, base.id)
                if has_peft_form(weights):
                    layers = len(base.model.layers)
                    write_peft_form(staged / "peft", weights, settings, base.id, layers)
            except (OSError, RuntimeError) as error:
                shutil.rmtree(staged, ignore_errors=True)
                raise AdapterError(
                    f"The adapter of {project!r} cannot be written ({reason_of(error)}).",
                    next_step="Free disk space first.",
                ) from error
            try:
                yield StagedAdapter(self.registry, project, staged, base)
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def create_adapter(
        self,
        project: str,
        weights: dict[str, mx.array],
        *,
        base: BaseModel,
        settings: dict[str, Any],
        details: ManifestDetails,
        model_card: str,
        extra_files: dict[str, bytes] | None = None,
    ) -> AdapterRecord:
        """Write and register an adapter in one call; see `stage_adapter` and `StagedAdapter.commit`."""
        with self.stage_adapter(project, weights, base=base, settings=settings) as staged:
            return staged.commit(details, model_card=model_card, extra_files=extra_files)

    def load_adapter(self, project: str, version: str | None = None) -> LoadedAdapter:
        """Read an adapter version (the active one by default) after comparing its files with the manifest.

        Raises:
            AdapterError: a file is missing or is not the one that was written.
            RegistryError: there is no such project or version.
        """
        return load_registered(self.registry, project, version)

    def unload_adapter(self, base: BaseModel) -> None:
        """Take any adapter out of a base model."""
        from mlx_gardener.model.lora import detach_lora

        detach_lora(base.model)

    def list_adapters(self, project: str) -> list[AdapterRecord]:
        """The project's versions, oldest first.

        Raises:
            RegistryError: there is no such project.
        """
        return self.registry.list_adapters(project)

    def delete_adapter(self, project: str, version: str) -> None:
        """Forget a version and delete its files.

        Raises:
            RegistryError: there is no such project or version, or its files cannot be moved or deleted.
        """
        self.registry.remove_adapter(project, version, delete_files=True)

    def export_adapter(
        self, project: str, version: str | None, form: str, destination: Path, **options: Any
    ) -> Path:
        """Write one form of an adapter to a new directory; see `exports.export_adapter`, which has the options."""
        return export_adapter(self.registry, project, version, form, destination, **options).directory


def _next_version(parent: Path, registry: ProjectRegistry, project: str) -> str:
    """v1, v2, ...: one more than any version that is recorded or on disk."""
    names = {record.version for record in registry.list_adapters(project)} | {
        path.name for path in parent.iterdir()
    }
    numbers = [int(name[1:]) for name in names if name[:1] == "v" and name[1:].isdigit()]
    return f"v{max(numbers, default=0) + 1}"


def _fsync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        fsync_path(path)
    fsync_path(directory)
