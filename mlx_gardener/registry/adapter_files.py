"""An adapter's files against its manifest, as the registry needs it: without reading weights or settings.

What a manifest is made of is `adapter.manifest`'s. Cost: reading every file once, about a second a GB.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import parse_json, read_bytes, sha256_of
from mlx_gardener.registry.rows import wrong_in

MANIFEST_NAME = "manifest.json"
_MAX_MANIFEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ManifestFacts:
    """What the registry records of an adapter, read from its manifest; ``created_at`` is seconds since the epoch."""

    project: str
    version: str
    base_model: str
    metrics: dict[str, Any]
    created_at: float
    manifest_sha256: str


def differences(directory: Path, manifest_sha256: str | None = None) -> list[str]:
    """What is wrong with an adapter's files, a phrase each; empty where all are the ones that were written.

    Files that the manifest does not name are nobody's concern.

    Args:
        manifest_sha256: of the manifest that was registered; None takes the manifest at its word.
    """
    try:
        found, manifest = read_manifest_file(directory)
    except (OSError, ValueError) as error:
        return [f"{MANIFEST_NAME} cannot be read ({reason_of(error)})"]
    if manifest_sha256 is not None and found != manifest_sha256:
        return [f"{MANIFEST_NAME} is not the one that was written"]
    wrong = []
    for name, expected in manifest["files"].items():
        if not is_inner_name(name):
            wrong.append(f"{name!r} lies outside of it")
            continue
        try:
            if sha256_of(directory / name) != expected["sha256"]:
                wrong.append(f"{name!r} is not the one that was written")
        except FileNotFoundError:
            wrong.append(f"{name!r} is gone")
        except (OSError, ValueError, KeyError, TypeError) as error:
            wrong.append(f"{name!r} cannot be read ({reason_of(error)})")
    return wrong


def named_files(directory: Path) -> set[str]:
    """Names of the manifest and all it names.

    Raises:
        OSError, ValueError: as `read_manifest_file`.
    """
    return {MANIFEST_NAME, *read_manifest_file(directory)[1]["files"]}


def manifest_facts(directory: Path) -> ManifestFacts | None:
    """What an adapter directory's manifest says of it; None where it is not a good adapter in every file."""
    if differences(directory):
        return None
    try:
        found, manifest = read_manifest_file(directory)
        facts = ManifestFacts(
            project=manifest["project"],
            version=manifest["version"],
            base_model=manifest["base"]["id"],
            metrics=dict(manifest["metrics"]),
            created_at=float(calendar.timegm(time.strptime(manifest["created_at"], "%Y-%m-%dT%H:%M:%SZ"))),
            manifest_sha256=found,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    row = {
        "project": facts.project,
        "version": facts.version,
        "directory": f"projects/{facts.project}/adapters/{facts.version}",
        "base_model": facts.base_model,
        "metrics": json.dumps(facts.metrics),
        "manifest_sha256": facts.manifest_sha256,
        "created_at": facts.created_at,
    }
    return facts if manifest["files"] and not wrong_in("adapters", row) else None


def is_inner_name(name: str) -> bool:
    """Whether ``name`` is a plain relative path with forward slashes that stays below where it begins."""
    pure = PurePosixPath(name)
    plain = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == name
    return plain and name.isprintable() and "\\" not in name and ":" not in name


def read_manifest_file(directory: Path) -> tuple[str, dict[str, Any]]:
    """A manifest's sha256 and content.

    Raises:
        OSError, ValueError: it cannot be read, or lists no files.
    """
    if directory.is_symlink():
        raise ValueError("the directory is a link")
    path = directory / MANIFEST_NAME
    content = read_bytes(path, max_bytes=_MAX_MANIFEST_BYTES, follow_links=False)
    manifest = parse_json(content)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it lists no files")
    return hashlib.sha256(content).hexdigest(), manifest
