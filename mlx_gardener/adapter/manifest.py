"""The manifest: what an adapter is, what it was made from, how good it is, and the sha256 of its every file.

Nothing in it names a place on this machine, and no source text goes into it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import AdapterError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_PACKAGES = ("mlx-gardener", "mlx", "mlx-lm", "numpy", "tokenizers", "transformers")


@dataclass(frozen=True)
class ManifestDetails:
    """What the run tells the manifest; all JSON types."""

    config: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    evidence: dict[str, Any]
    training: dict[str, Any]
    plan: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The details by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter read from its files: weights by mlx-lm's names, and what mlx-lm needs to place them."""

    weights: dict[str, mx.array]
    settings: dict[str, Any]
    manifest: dict[str, Any]
    directory: Path


def make_manifest(
    directory: Path, *, project: str, adapter_version: str, base: BaseModel, details: ManifestDetails
) -> dict[str, Any]:
    """The manifest of the files that lie in ``directory``."""
    told = details.to_json()
    told["config"] = {**told["config"], "model": base.id}  # a local model's path stays on this machine
    return {
        "format_version": FORMAT_VERSION,
        "project": project,
        "version": adapter_version,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "base": {
            "id": base.id,
            "revision": base.revision,
            "weights_sha256": base.weights_sha256,
            "model_type": base.config.get("model_type"),
        },
        **told,
        "versions": {"python": platform.python_version(), **_versions()},
        "files": {
            path.relative_to(directory).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name != MANIFEST_NAME
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a checkout that is not installed
    return found


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest in ``directory``.

    Raises:
        AdapterError: it is missing or damaged.
    """
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"The adapter {directory.name!r} has no readable {MANIFEST_NAME} ({error}).",
            next_step="Train again, or remove this version with `mlx-gardener remove`.",
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise AdapterError(
            f"The {MANIFEST_NAME} of {directory.name!r} lists no files.", next_step="Train again."
        )
    return manifest


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with the manifest.

    Raises:
        AdapterError: one is missing, is another than was written, or lies outside the directory.
    """
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise AdapterError(f"The manifest of {directory.name!r} names a file outside of it: {name!r}.")
        try:
            same = sha256_of(path) == expected["sha256"]
        except (OSError, KeyError, TypeError) as error:
            raise AdapterError(
                f"The file {name!r} of adapter {directory.name!r} cannot be read ({error}).",
                next_step="Train again.",
            ) from error
        if not same:
            raise AdapterError(
                f"The file {name!r} of adapter {directory.name!r} is not the one that was written.",
                next_step="Train again, or restore the file from a backup.",
            )


def load_adapter_directory(directory: Path, manifest: dict[str, Any] | None = None) -> LoadedAdapter:
    """Read the ``mlx/`` form of an adapter.

    Raises:
        AdapterError: its files are missing or damaged.
    """
    from mlx_gardener.model.lora import load_arrays

    file = directory / "mlx" / "adapters.safetensors"
    try:
        settings = json.loads((directory / "mlx" / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_arrays(file)
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"The weights of adapter {directory.name!r} cannot be read ({error}).", next_step="Train again."
        ) from error
    return LoadedAdapter(weights, settings, manifest or {}, directory)
