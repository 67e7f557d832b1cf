"""Adapters of GGUF bases go back to the very file: rows, names and scale are those that llama.cpp puts on it."""

from __future__ import annotations

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.adapter.exports import Export, export_adapter
from mlx_gardener.adapter.gguf_files import BASE_SHA256
from mlx_gardener.config import LoraConfig
from mlx_gardener.model import load_base
from mlx_gardener.platform.untrusted import sha256_of
from tests.adapter.test_exports import project_with
from tests.model.gguf.files import CONFIGS, logits, tiny_model, write_gguf

IDS = [*range(40, 64), 3, 250, 7, 7, 9]
LORA = LoraConfig(rank=4, target_modules="all-linear")


def gguf_base(place: Path, architecture: str) -> Path:
    """A tiny model's file."""
    model, config = tiny_model(architecture)
    return write_gguf(place / f"{architecture}.gguf", architecture, model, config)


def write(manager: PeftManager, form: str, place: Path, **options: object) -> Export:
    return export_adapter(manager.registry, "web", None, form, place, **options)  # type: ignore[arg-type]


def adapted_logits(manager: PeftManager, base: Path) -> np.ndarray:
    """What the adapter says here."""
    model = load_base(str(base))
    with attach_adapter(model, manager.load_adapter("web")):
        return logits(model.model, IDS)


def as_llama_cpp_adds(base: Path, adapter: Path, file: Path) -> Path:
    """The file with the adapter added to its tensors as llama.cpp does: W + alpha / rank * B A, name by name."""
    plain, low_rank = gguf.GGUFReader(base), gguf.GGUFReader(adapter)
    products = {tensor.name: np.array(tensor.data) for tensor in low_rank.tensors}
    alpha = low_rank.fields["adapter.lora.alpha"].contents()
    writer = gguf.GGUFWriter(file, plain.fields["general.architecture"].contents())
    for key, field in plain.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    for tensor in plain.tensors:
        value = np.array(tensor.data)
        if f"{tensor.name}.lora_a" in products:
            a, b = products.pop(f"{tensor.name}.lora_a"), products.pop(f"{tensor.name}.lora_b")
            value = value + np.float32(alpha / a.shape[-2]) * (b @ a)
        writer.add_tensor(tensor.name, value)
    assert not products, "every tensor of the adapter belongs to one of the file"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_adapter_on_its_file_says_what_it_says_here(
    architecture: str, repository: Path, tmp_path: Path
) -> None:
    base = gguf_base(tmp_path, architecture)
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    done = write(manager, "gguf", tmp_path / "out")
    assert done.agreement is not None and done.agreement.share < 1e-3
    wanted = adapted_logits(manager, base)
    plain = logits(load_base(str(base)).model, IDS)
    assert np.abs(wanted - plain).max() > 0.02 * np.abs(plain).max()
    merged = as_llama_cpp_adds(base, tmp_path / "out" / "adapter.gguf", tmp_path / "merged.gguf")
    found = logits(load_base(str(merged)).model, IDS)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_an_adapter_says_which_file_it_belongs_to(repository: Path, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, "llama")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    write(manager, "gguf", tmp_path / "out")
    told = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").fields.items()}
    assert told[BASE_SHA256] == sha256_of(base) and told["general.base_model.0.name"] == "llama.gguf"
    assert told["general.architecture"] == "llama" and told["general.type"] == "adapter"
