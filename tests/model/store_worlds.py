"""Other programs' stores in their true layouts, of models that are real and tiny."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
MEDIA = "application/vnd.ollama.image."


def write_gguf(
    file: Path,
    *,
    architecture: str = "qwen2",
    kind: str = "model",
    fim: bool = True,
    licence: str | None = "apache-2.0",
    name: str = "Tiny Coder",
    layers: int = 2,
    tensors_a_shard: int = 0,
) -> Path:
    """A GGUF file with random weights and a byte-level vocabulary of some 260 tokens, as llama.cpp's scripts write them.

    With ``tensors_a_shard`` it is written in shards, as those scripts split; the first is returned.
    """
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    file.parent.mkdir(parents=True, exist_ok=True)
    hidden, inner, heads = 64, 128, 4
    control = WORDS if fim else WORDS[:1]
    tokens = [*sorted(ByteLevel.alphabet()), "in", "er", *control]
    writer = GGUFWriter(file, architecture, split_max_tensors=tensors_a_shard)
    writer.add_type(kind)
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - len(control)) + [3] * len(control))
    writer.add_token_merges(["i n", "e r"])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    random = np.random.default_rng(0)

    def add(tensor: str, *shape: int) -> None:
        values = random.standard_normal(shape).astype(np.float32) * 0.06
        writer.add_tensor(tensor, values if len(shape) == 1 else values.astype(np.float16))

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    for layer in range(layers):
        for tensor, *shape in (
            ("attn_norm.weight", hidden),
            ("attn_q.weight", hidden, hidden),
            ("attn_q.bias", hidden),
            ("attn_k.weight", hidden // 2, hidden),
            ("attn_k.bias", hidden // 2),
            ("attn_v.weight", hidden // 2, hidden),
            ("attn_v.bias", hidden // 2),
            ("attn_output.weight", hidden, hidden),
            ("ffn_norm.weight", hidden),
            ("ffn_gate.weight", inner, hidden),
            ("ffn_up.weight", inner, hidden),
            ("ffn_down.weight", hidden, inner),
        ):
            add(f"blk.{layer}.{tensor}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file if not tensors_a_shard else min(file.parent.glob(f"{file.stem}-00001-of-*.gguf"))


class OllamaStore:
    """``~/.ollama/models``: manifests that name blobs by their sha256."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, data: bytes) -> str:
        """Put a blob in; its digest."""
        digest = hashlib.sha256(data).hexdigest()
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        (self.root / "blobs" / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    def add(
        self,
        model: str,
        tag: str,
        layers: list[dict[str, Any]],
        *,
        host: str = "registry.ollama.ai",
        namespace: str = "library",
    ) -> Path:
        """Put a manifest in."""
        file = self.root / "manifests" / host / namespace / model / tag
        file.parent.mkdir(parents=True, exist_ok=True)
        config = {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": self.blob(b"{}"),
            "size": 2,
        }
        told = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": config,
            "layers": layers,
        }
        file.write_text(json.dumps(told))
        return file

    def model_of(self, model: str, tag: str) -> Path:
        """The blob of a model's weights."""
        told = json.loads((self.root / "manifests/registry.ollama.ai/library" / model / tag).read_text())
        (layer,) = (layer for layer in told["layers"] if layer["mediaType"] == f"{MEDIA}model")
        return self.root / "blobs" / layer["digest"].replace(":", "-")

    def layer(self, kind: str, data: bytes, **more: str) -> dict[str, Any]:
        """A layer of a manifest, with its blob."""
        return {"mediaType": f"{MEDIA}{kind}", "digest": self.blob(data), "size": len(data), **more}


def hub_snapshot(cache: Path, name: str, revision: str = "0" * 40, *, main: bool = True) -> Path:
    """The directory of a repository's snapshot in a hub cache; `into_blobs` turns its files into links."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
    return snapshot


def into_blobs(snapshot: Path) -> None:
    """Move a snapshot's files into blobs and leave links, as the hub's library does."""
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in [path for path in snapshot.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.replace(blob)
        up = "../" * (len(file.relative_to(snapshot).parts) + 1)
        file.symlink_to(f"{up}blobs/{blob.name}")


def write_wheel(place: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel whose module tells whether it was imported."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('it was imported')\n")
        for path, data in files.items():
            archive.writestr(path, data)
        about = f"{name}-{version}.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{about}/RECORD", "")
    return file
