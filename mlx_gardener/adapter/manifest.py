"""The manifest: what an adapter is, what it was made from, how good it is, and the sha256 of its every file.

Nothing in it names a place on this machine, and no source text goes into it.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import AdapterError
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_json, sha256_of

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel
    from mlx_gardener.model.lora import AdapterSettings

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_PARTS = ("base", "config", "data", "files", "metrics", "training")
_MAX_MANIFEST_BYTES = 64 * 2**20
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
    settings: AdapterSettings
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
            "has_fim": base.tokenizer.markers is not None,
        },
        **told,
        "versions": {"python": platform.python_version(), **package_versions()},
        "files": {
            path.relative_to(directory).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name != MANIFEST_NAME
        },
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that an adapter depends on, by name."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a checkout that is not installed
    return found


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest in ``directory``.

    Raises:
        AdapterError: it is missing or damaged.
    """
    try:
        refuse_links(directory)
        manifest = read_json(directory / MANIFEST_NAME, max_bytes=_MAX_MANIFEST_BYTES, follow_links=False)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"The adapter {directory.name!r} has no readable {MANIFEST_NAME} ({reason_of(error)}).",
            next_step="Train again, or remove this version with `mlx-gardener remove`.",
        ) from error
    parts = {name: manifest.get(name) for name in _PARTS} if isinstance(manifest, dict) else {}
    if not parts or not all(isinstance(part, dict) for part in parts.values()):
        raise AdapterError(
            f"The {MANIFEST_NAME} of {directory.name!r} is not that of an adapter: {', '.join(_PARTS)} are needed.",
            next_step="Train again.",
        )
    return dict(manifest)


def refuse_links(directory: Path) -> None:
    """Refuse an adapter that is, or holds, a symbolic link: it could show any file of this machine as its own.

    Raises:
        AdapterError: there is one.
        OSError: the directory cannot be read.
    """
    for path in (directory, *sorted(directory.rglob("*"))):
        if path.is_symlink():
            name = "The directory" if path == directory else repr(path.relative_to(directory).as_posix())
            raise AdapterError(
                f"{name} of adapter {directory.name!r} is a symbolic link.",
                next_step="Put the files themselves there, or train again.",
            )


def verify_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with the manifest.

    Raises:
        AdapterError: one is missing, is another than was written, or lies outside the directory.
    """
    for name, expected in manifest["files"].items():
        path = directory / name
        if not is_plain_name(name):
            raise AdapterError(
                f"The manifest of {directory.name!r} names a file outside of it: {name!r}.",
                next_step="Train again, and do not use this adapter.",
            )
        try:
            same = sha256_of(path) == expected["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdapterError(
                f"The file {name!r} of adapter {directory.name!r} cannot be read ({reason_of(error)}).",
                next_step="Train again.",
            ) from error
        if not same:
            raise AdapterError(
                f"The file {name!r} of adapter {directory.name!r} is not the one that was written.",
                next_step="Train again, or restore the file from a backup.",
            )


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a relative path with forward slashes that stays below where it begins."""
    pure = PurePosixPath(name)
    usual = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == name
    return usual and name.isprintable() and "\\" not in name and ":" not in name


def load_adapter_directory(directory: Path, manifest: dict[str, Any] | None = None) -> LoadedAdapter:
    """Read the ``mlx/`` form of an adapter.

    Raises:
        AdapterError: its files are missing or damaged.
    """
    from mlx_gardener.model.lora import AdapterSettings, load_arrays

    file = directory / "mlx" / "adapters.safetensors"
    try:
        refuse_links(directory)
        settings = AdapterSettings.from_json(
            read_json(directory / "mlx" / "adapter_config.json", max_bytes=2**24, follow_links=False)
        )
        weights = load_arrays(file)
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterError(
            f"The weights of adapter {directory.name!r} cannot be read ({reason_of(error)}).",
            next_step="Train again.",
        ) from error
    return LoadedAdapter(weights, settings, manifest or {}, directory)
