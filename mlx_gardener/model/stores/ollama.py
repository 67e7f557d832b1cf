"""Ollama's store: manifests that name blobs by their sha256.

In: the store's directory. Out: `StoredBase`s by Ollama's own names. A manifest is JSON that others wrote: its size is
limited, a digest must be one, and a blob must lie in the store. Cost: a small file for each model; no blob is opened.
Layout: ollama manifest/paths.go, types/model/name.go, server/images.go.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_gardener.model.stores.folders import StoredBase
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_head, read_json

_HOST, _NAMESPACE = "registry.ollama.ai", "library"
#: The largest are those of models stored tensor by tensor: some thousand layers of 250 bytes.
_MANIFEST_BYTES = 8 * 2**20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_KIND = "application/vnd.ollama.image."
#: How well-known licences begin, in the texts that Ollama keeps beside models.
_LICENCES = (
    ("Apache License", "apache-2.0"),
    ("MIT License", "mit"),
    ("Qwen RESEARCH LICENSE", "qwen-research (non-commercial)"),
    ("Qwen LICENSE AGREEMENT", "qwen"),
    ("Gemma Terms of Use", "gemma"),
    ("LLAMA 3", "llama3"),
    ("LLAMA 2", "llama2"),
    ("DEEPSEEK LICENSE", "deepseek"),
    ("BigCode Open RAIL-M", "bigcode-openrail-m"),
)


def ollama_bases(root: Path) -> Iterator[StoredBase]:
    """All models of the Ollama store at ``root``."""
    manifests = root / "manifests"
    for file in sorted(manifests.glob("*/*/*/*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        name = ollama_name(*file.relative_to(manifests).parts)
        try:
            manifest = read_json(file, max_bytes=_MANIFEST_BYTES, follow_links=False)
            yield _base(name, manifest, root)
        except (OSError, ValueError) as error:
            yield StoredBase(
                name, "ollama", file, False, why_not=f"its manifest is damaged ({reason_of(error)})"
            )


def ollama_name(host: str, namespace: str, model: str, tag: str) -> str:
    """``ollama:`` and a model's name as `ollama list` shows it."""
    parts = [model] if namespace == _NAMESPACE and host == _HOST else [namespace, model]
    return f"ollama:{'/'.join(parts if host == _HOST else [host, *parts])}:{tag}"


def _base(name: str, manifest: Any, root: Path) -> StoredBase:
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("it has no layers")
    kinds = [str(layer.get("mediaType", "")).removeprefix(_KIND) for layer in layers]
    models = [layer for layer, kind in zip(layers, kinds, strict=True) if kind == "model"]
    licence = next(
        (_licence(layer, root) for layer, kind in zip(layers, kinds, strict=True) if kind == "license"), None
    )
    if not models:
        tensors = kinds.count("tensor")
        unread = (
            f"Ollama keeps it as {tensors} safetensors layers for its MLX engine, which are not read here: "
            "pull a tag with GGUF weights"
        )
        why_no_gguf = unread if tensors else "its manifest names no model"
        return StoredBase(name, "ollama", root, False, licence=licence, why_not=why_no_gguf)
    if len(models) > 1:
        raise ValueError("it names several models")
    blob = blob_path(models[0], root)
    why_not: str | None = None
    if "adapter" in kinds:
        why_not = "Ollama serves it with an adapter on top: train on the base that it was made from"
    elif not blob.is_file():
        why_not = "its weights are not in the store: `ollama pull` fetches them"
    return StoredBase(name, "ollama", blob, True, files=(blob,), licence=licence, why_not=why_not)


def blob_path(layer: dict[str, Any], root: Path) -> Path:
    """Where the blob of a manifest's layer lies.

    Raises:
        ValueError: its digest is none, or the blob is a link that leads out of the store.
    """
    match = _DIGEST.fullmatch(str(layer.get("digest", "")))
    if match is None:
        raise ValueError("a digest in it is no sha256")
    blob = root / "blobs" / f"sha256-{match[1]}"
    if blob.is_symlink() and not Path(os.path.realpath(blob)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"its weights are a link out of the store, to {os.path.realpath(blob)}")
    return blob


def _licence(layer: dict[str, Any], root: Path) -> str | None:
    """The licence by the text that lies beside a model; None where it is none of the well-known."""
    try:
        text = read_head(blob_path(layer, root), 2048).decode(errors="replace")
    except (OSError, ValueError):
        return None
    return next((licence for begins, licence in _LICENCES if begins.lower() in text.lower()), None)
