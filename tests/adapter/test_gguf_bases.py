"""Adapters of GGUF bases go back to the very file: rows, names and scale are those that llama.cpp puts on it."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import gguf
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_gardener.adapter import PeftManager
from mlx_gardener.adapter.exports import Export, export_adapter
from mlx_gardener.adapter.gguf_files import BASE_SHA256
from mlx_gardener.adapter.gguf_imports import import_gguf_adapter
from mlx_gardener.errors import AdapterError
from mlx_gardener.model import load_base
from mlx_gardener.platform.untrusted import sha256_of
from tests.model.gguf.files import CONFIGS, logits, tiny_model, write_gguf
from tests.model.store_worlds import OllamaStore
from tests.support.adapters import IDS, LORA, adapted_logits, project_with


def gguf_base(place: Path, architecture: str) -> Path:
    """A tiny model's file."""
    model, config = tiny_model(architecture)
    return write_gguf(place / f"{architecture}.gguf", architecture, model, config)


def write(manager: PeftManager, form: str, place: Path, **options: object) -> Export:
    return export_adapter(manager.registry, "web", None, form, place, **options)  # type: ignore[arg-type]


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
    told = {
        name: field.contents()
        for name, field in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").fields.items()
    }
    assert told[BASE_SHA256] == sha256_of(base) and told["general.base_model.0.name"] == "llama.gguf"
    assert told["general.architecture"] == "llama" and told["general.type"] == "adapter"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_merged_model_has_the_settings_of_its_base_s_file(
    architecture: str, repository: Path, tmp_path: Path
) -> None:
    base = gguf_base(tmp_path, architecture)
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    write(manager, "gguf-fused", tmp_path / "out", dtype="float32")
    wanted, file = adapted_logits(manager, base), tmp_path / "out" / "model.gguf"
    found = logits(load_base(str(file)).model, IDS)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    told, before = (
        {
            key: field.contents()
            for key, field in gguf.GGUFReader(place).fields.items()
            if not key.startswith("GGUF.")
        }
        for place in (file, base)
    )
    assert told.pop("general.name") == "web v1" and told.pop("general.file_type") == 0
    assert all(told[key] == value for key, value in before.items() if key != "general.name")
    names = [{tensor.name for tensor in gguf.GGUFReader(place).tensors} for place in (file, base)]
    assert names[0] == names[1]


def test_a_merged_model_is_quantised_where_the_adapter_survives_it(repository: Path, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, "llama")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    done = write(manager, "gguf-fused", tmp_path / "eight", quantise="q8_0")
    assert done.agreement is not None and 0 < done.agreement.share < 0.5
    tensors = {item.name: item for item in gguf.GGUFReader(tmp_path / "eight" / "model.gguf").tensors}
    Kind = gguf.GGMLQuantizationType
    assert tensors["blk.0.attn_q.weight"].tensor_type == Kind.Q8_0
    assert tensors["blk.0.attn_norm.weight"].tensor_type == Kind.F32
    assert "quantised to q8_0" in (tmp_path / "eight" / "README.md").read_text()
    assert {path.name for path in (tmp_path / "eight").iterdir()} == {"model.gguf", "README.md"}
    manager.registry.remove_project("web")
    weak = project_with(load_base(str(base)), repository, LORA, size=0.003)
    with pytest.raises(AdapterError, match=r"off by .* At most 50.0% is let pass"):
        write(weak, "gguf-fused", tmp_path / "four", quantise="q4_0")
    assert not (tmp_path / "four").exists() and not list(tmp_path.glob(".four*"))


def test_four_bits_leave_the_head_eight(tmp_path: Path) -> None:
    from mlx_gardener.adapter.gguf_merged import quantise_gguf

    quantise_gguf(gguf_base(tmp_path, "qwen3moe"), tmp_path / "four.gguf", "q4_0")
    read = gguf.GGUFReader(tmp_path / "four.gguf")
    kinds = {item.name: item.tensor_type.name for item in read.tensors}
    assert kinds["output.weight"] == "Q8_0" and kinds["token_embd.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down_exps.weight"] == "Q4_0" and kinds["blk.0.ffn_gate_inp.weight"] == "F32"
    assert read.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0
    before = {item.name: item for item in gguf.GGUFReader(tmp_path / "qwen3moe.gguf").tensors}
    for item in read.tensors:
        wanted = np.array(before[item.name].data)
        found = gguf.quants.dequantize(item.data, item.tensor_type).reshape(wanted.shape)
        most = {"F32": 0.0, "Q8_0": 0.01, "Q4_0": 0.15}[item.tensor_type.name]
        assert np.linalg.norm(found - wanted) <= most * np.linalg.norm(wanted), item.name


def test_what_only_llama_cpp_quantises_is_refused_without_it_before_anything_is_done(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.adapter import gguf_merged

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gguf_merged, "find_spec", lambda name: None)
    manager = project_with(load_base(str(gguf_base(tmp_path, "llama"))), repository, LORA)
    with pytest.raises(AdapterError, match=r"llama\.cpp's own quantiser") as caught:
        write(manager, "gguf-fused", tmp_path / "out", quantise="q4_k_m")
    assert caught.value.next_step is not None and "llama-quantize" in caught.value.next_step
    for form in ("gguf", "mlx", "fused"):
        with pytest.raises(AdapterError, match="no GGUF model"):
            write(manager, form, tmp_path / "out", quantise="q8_0")


def test_ollama_gets_the_adapter_on_the_model_that_it_has(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = OllamaStore(tmp_path / "ollama")
    monkeypatch.setenv("OLLAMA_MODELS", str(store.root))
    base = gguf_base(tmp_path, "llama")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    write(manager, "ollama", tmp_path / "path")
    assert (tmp_path / "path" / "Modelfile").read_text() == f"FROM {base.resolve()}\nADAPTER ./adapter.gguf\n"
    store.add("coder", "1.5b", [store.layer("model", base.read_bytes())])
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" in "$(ls)" > {tmp_path}/told\n[ "$2" != bad ] || {{ echo no server >&2; exit 1; }}\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    done = write(manager, "ollama", tmp_path / "out", create="web")
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM coder:1.5b\nADAPTER ./adapter.gguf\n"
    assert "create web -f Modelfile in" in (tmp_path / "told").read_text()
    assert "adapter.gguf" in (tmp_path / "told").read_text() and "Ollama has it as web." in done.notes
    with pytest.raises(AdapterError, match="no server") as caught:
        write(manager, "ollama", tmp_path / "kept", create="bad")
    assert (
        str(tmp_path / "kept") in str(caught.value.next_step)
        and (tmp_path / "kept" / "adapter.gguf").exists()
    )


def test_ollama_s_form_is_refused_where_it_has_no_base(
    repository: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = gguf_base(tmp_path, "llama")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdapterError, match="no program `ollama`"):
        write(manager, "ollama", tmp_path / "out", create="web")
    with pytest.raises(AdapterError, match="no Modelfile"):
        write(manager, "gguf", tmp_path / "out", create="web")
    base.unlink()
    with pytest.raises(AdapterError, match="is not here any more"):
        write(manager, "ollama", tmp_path / "out")
    manager.registry.remove_project("web")
    dense = project_with(load_base(str(tiny_model_dir)), repository, LORA, size=0.1)
    with pytest.raises(AdapterError, match="GGUF models only"):
        write(dense, "ollama", tmp_path / "out")


def test_lm_studio_finds_the_merged_model(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.model.stores import find_bases

    base = gguf_base(tmp_path, "llama")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    with pytest.raises(AdapterError, match="LM Studio's folder"):
        export_adapter(manager.registry, "web", None, "lmstudio", None)
    settings, moved = tmp_path / "user" / ".lmstudio" / "settings.json", tmp_path / "disk" / "models"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'{{"downloadsFolder": "{moved}"}}')
    moved.parent.mkdir()
    done = export_adapter(manager.registry, "web", None, "lmstudio", None, quantise="q8_0")
    assert done.directory == moved / "mlx-gardener" / "web-v1-q8_0"
    assert (done.directory / "web-v1-q8_0.gguf").is_file()
    names = [found.name for found in find_bases() if found.store == "lmstudio"]
    assert names == ["lmstudio:mlx-gardener/web-v1-q8_0/web-v1-q8_0.gguf"]
    shutil.rmtree(moved)


def mlx_folder(place: Path, base: Path, *, rounded: float = 0.0) -> Path:
    """The base of a GGUF file as an MLX folder of floats, of which a share is noise."""
    import json

    import mlx.core as mx

    folder = load_base(str(base)).path
    place.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(folder / name, place / name)
    settings = json.loads((place / "config.json").read_text())
    settings.pop("quantization", None)
    (place / "config.json").write_text(json.dumps(settings))
    mx.random.seed(1)
    weights = {
        name: value + rounded * mx.random.normal(value.shape) * mx.sqrt((value**2).mean())
        for name, value in tree_flatten(load_base(str(base)).model.parameters())
    }
    mx.save_safetensors(str(place / "model.safetensors"), weights)
    return place


@pytest.mark.parametrize("trained_on", ["mlx", "gguf"])
def test_an_adapter_moves_to_the_other_form_of_its_base(
    trained_on: str, repository: Path, tmp_path: Path
) -> None:
    model, config = tiny_model("llama")
    packed = write_gguf(tmp_path / "base.gguf", "llama", model, config, kind=gguf.GGMLQuantizationType.Q8_0)
    folder = mlx_folder(tmp_path / "folder", packed, rounded=0.002)
    own, other = (folder, packed) if trained_on == "mlx" else (packed, folder)
    manager = project_with(load_base(str(own)), repository, LORA, size=0.1)
    done = write(manager, "gguf" if trained_on == "mlx" else "peft", tmp_path / "out", base=str(other))
    assert "differ from its by 0.20" in done.notes[0], done.notes
    assert done.agreement is not None and done.agreement.share < 1e-3
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Base: `{other.name}`" in card and "differ from its by" in card
    if trained_on == "mlx":
        told = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").fields
        assert told[BASE_SHA256].contents() == sha256_of(packed)


def test_an_adapter_does_not_move_to_what_is_rounded_otherwise(repository: Path, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, "llama")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    rough = mlx_folder(tmp_path / "rough", base, rounded=0.07)
    with pytest.raises(
        AdapterError, match=r"is not the model .* differ by [67]\.\d\d% .* at most 1% is let pass"
    ):
        write(manager, "peft", tmp_path / "out", base=str(rough))
    other = write_gguf(tmp_path / "other.gguf", "llama", *tiny_model("llama", intermediate_size=64))
    with pytest.raises(AdapterError, match="no counterpart of the same shape"):
        write(manager, "gguf", tmp_path / "out", base=str(other))
    shutil.rmtree(load_base(str(base)).path)
    base.unlink()
    with pytest.raises(AdapterError, match="not here to compare it with"):
        write(manager, "peft", tmp_path / "out", base=str(rough))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["llama", "granite", "gemma3", "phi3"])
def test_an_adapter_of_llama_cpp_s_comes_back(architecture: str, repository: Path, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, architecture)
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    write(manager, "gguf", tmp_path / "out")
    record = import_gguf_adapter(manager, "web", tmp_path / "out" / "adapter.gguf")
    mine, back = (manager.load_adapter("web", version) for version in ("v1", record.version))
    assert back.settings.scale == mine.settings.scale
    assert all(
        np.array_equal(np.array(back.weights[name]), np.array(value)) for name, value in mine.weights.items()
    )
    assert back.manifest["base"]["weights_sha256"] == mine.manifest["base"]["weights_sha256"]


def test_a_foreign_or_damaged_adapter_of_llama_cpp_s_is_refused_by_name(
    repository: Path, tmp_path: Path
) -> None:
    base, other = gguf_base(tmp_path, "llama"), gguf_base(tmp_path, "qwen2")
    manager = project_with(load_base(str(base)), repository, LORA, size=0.1)
    write(manager, "gguf", tmp_path / "out")
    file = tmp_path / "out" / "adapter.gguf"
    again = write_gguf(tmp_path / "again.gguf", "llama", *tiny_model("llama", rope_theta=1e4))
    for place, named, why in (
        (base, None, "it is a model"),
        (file, other, "architecture 'llama'|another file"),
        (file, again, "trained on another file"),
    ):
        with pytest.raises(AdapterError, match=why):
            import_gguf_adapter(manager, "web", place, base=None if named is None else str(named))
    data = file.read_bytes()
    for broken, why in (
        (data[: len(data) // 2], "where the file ends"),
        (data.replace(b"adapter.lora.alpha", b"adapter.lora.alphA"), "alpha is no number"),
        (data.replace(b"blk.1.attn_q.weight.lora_b", b"blk.1.attn_x.weight.lora_b"), "attn_x.* has no place"),
    ):
        (tmp_path / "broken.gguf").write_bytes(broken)
        with pytest.raises(AdapterError, match=why):
            import_gguf_adapter(manager, "web", tmp_path / "broken.gguf", base=str(base))
    assert len(manager.list_adapters("web")) == 1
