"""Adapters with real manifests and small files, for tests that need no model."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from mlx_gardener.platform.locks import hold
from mlx_gardener.registry import AdapterRecord, ProjectRegistry


def write_adapter(
    directory: Path,
    project: str,
    version: str,
    content: bytes = b"weights",
    learned_from: dict[str, list[str]] | None = None,
) -> str:
    """An adapter's files and manifest in a new directory; the manifest's sha256."""
    (directory / "mlx").mkdir(parents=True)
    files = {"mlx/adapters.safetensors": content, "README.md": b"a card"}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    manifest = {
        "format_version": 1,
        "project": project,
        "version": version,
        "created_at": "2026-01-02T03:04:05Z",
        "base": {"id": "base"},
        "config": {},
        "data": {} if learned_from is None else {"files": learned_from},
        "training": {},
        "metrics": {"adapter_bits_per_byte": 1.0, "base_bits_per_byte": 2.0},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        },
    }
    text = json.dumps(manifest).encode()
    (directory / "manifest.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def install_adapter(
    registry: ProjectRegistry,
    project: str,
    version: str,
    content: bytes = b"weights",
    *,
    activate: bool = True,
    learned_from: dict[str, list[str]] | None = None,
) -> AdapterRecord:
    """Write an adapter beside, rename it and register it, as `PeftManager` does."""
    parent = registry.project_directory(project) / "adapters"
    staged = parent / f".new-{version}"
    staged.mkdir(parents=True)
    with hold(staged):
        sha256 = write_adapter(staged / "inner", project, version, content, learned_from)
        for item in (staged / "inner").iterdir():
            item.rename(staged / item.name)
        (staged / "inner").rmdir()
        final = staged.rename(parent / version)
        return registry.add_adapter(
            project,
            version,
            final,
            base_model="base",
            metrics={"adapter_bits_per_byte": 1.0, "base_bits_per_byte": 2.0},
            manifest_sha256=sha256,
            activate=activate,
        )


Entry = tuple[tarfile.TarInfo, bytes]


def entries_of(archive: Path) -> list[Entry]:
    with tarfile.open(archive) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_archive(file: Path, entries: list[Entry], *, index: bool = True) -> Path:
    """An archive of ``entries``, with an index that fits them, so that only what was changed can be wrong."""
    entries = [entry for entry in entries if entry[0].name != "index.json"]
    files = {
        member.name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for member, data in entries
    }
    body = {"format": "mlx-gardener-backup", "format_version": 1, "files": files}
    if index:
        entries.append(entry_of("index.json", json.dumps(body).encode()))
    with tarfile.open(file, "w") as tar:
        for member, data in entries:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def entry_of(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, linkname: str = "") -> Entry:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, linkname
    return member, data
