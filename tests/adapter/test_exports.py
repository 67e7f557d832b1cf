"""Every export is loaded back and agrees with its adapter, or is refused with the figure and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter, exports
from mlx_gardener.adapter.exports import Export, export_adapter
from mlx_gardener.adapter.gguf_files import read_gguf_adapter
from mlx_gardener.config import LoraConfig
from mlx_gardener.errors import AdapterError
from mlx_gardener.model import load_base
from tests.support.adapters import project_with
from tests.support.models import write_tiny_model


@pytest.fixture
def tiny(repository: Path, tiny_model_dir: Path) -> PeftManager:
    return project_with(load_base(str(tiny_model_dir)), repository, LoraConfig(rank=4), size=0.1)


@pytest.fixture
def seedling(repository: Path) -> PeftManager:
    return project_with(load_base("seedling"), repository, LoraConfig(rank=4))


def write(manager: PeftManager, form: str, place: Path, **options: object) -> Export:
    return export_adapter(manager.registry, "web", None, form, place, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["mlx", "peft", "gguf"])
def test_an_adapter_agrees_to_the_last_digits(seedling: PeftManager, tmp_path: Path, form: str) -> None:
    done = write(seedling, form, tmp_path / "out")
    assert done.agreement is not None and done.agreement.effect > 0.01
    assert done.agreement.share < 1e-3 and done.agreement.kept == pytest.approx(1, abs=1e-3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`seedling`" in card and done.agreement.sentence() in card and "none was measured" in card


def test_a_fused_model_is_the_base_with_the_adapter(seedling: PeftManager, tmp_path: Path) -> None:
    done = write(seedling, "fused", tmp_path / "out")
    assert done.agreement is not None and done.agreement.share < 0.05
    fused, base = load_base(str(tmp_path / "out")), load_base("seedling")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"
    ids = mx.array(np.random.default_rng(0).integers(10, 500, (1, 24)))
    with attach_adapter(base, seedling.load_adapter("web")):
        wanted = base.model(ids)
    assert mx.allclose(fused.model(ids), wanted, atol=0.02).item()


def test_quantising_passes_where_the_adapter_survives_and_is_refused_with_the_figure(
    repository: Path, tmp_path: Path
) -> None:
    strong = project_with(load_base("seedling"), repository, LoraConfig(rank=4), size=0.1)
    done = write(strong, "fused", tmp_path / "eight", bits=8)
    assert done.agreement is not None and done.agreement.share < 0.5
    assert json.loads((tmp_path / "eight" / "config.json").read_text())["quantization"]["bits"] == 8
    assert load_base(str(tmp_path / "eight"), base_weights="stored").quantized
    strong.registry.remove_project("web")
    weak = project_with(load_base("seedling"), repository, LoraConfig(rank=4), size=0.001)
    with pytest.raises(AdapterError, match=r"off by .* At most 50.0% is let pass"):
        write(weak, "fused", tmp_path / "four", bits=4)
    assert not (tmp_path / "four").exists() and not list(tmp_path.glob(".four*"))


def test_a_gguf_model_holds_every_tensor_and_the_markers(seedling: PeftManager, tmp_path: Path) -> None:
    import gguf

    write(seedling, "modelfile", tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    told = {name: field.contents() for name, field in reader.fields.items()}
    assert told["general.architecture"] == "llama" and told["tokenizer.ggml.pre"] == "qwen2"
    assert told["tokenizer.ggml.tokens"][told["tokenizer.ggml.fim_mid_token_id"]] == "<|fim_middle|>"
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n") and 'PARAMETER stop "<|endoftext|>"' in text
    assert "<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.gguf", "README.md", "Modelfile"}


def test_a_gguf_model_alone_has_no_modelfile(tiny: PeftManager, tmp_path: Path) -> None:
    write(tiny, "gguf-base", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.gguf", "README.md"}


def test_an_export_that_says_something_else_is_refused(
    tiny: PeftManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.adapter import gguf_files

    write_it = gguf_files.write_gguf_adapter

    def with_another_scale(file, weights, settings, config, **named):  # type: ignore[no-untyped-def]
        write_it(file, weights, replace(settings, scale=1.0), config, **named)

    monkeypatch.setattr(exports, "write_gguf_adapter", with_another_scale)
    with pytest.raises(AdapterError, match="does not say what the adapter says"):
        write(tiny, "gguf", tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_rows_of_q_and_k_change_places_and_come_back(
    tiny: PeftManager, tiny_model_dir: Path, tmp_path: Path
) -> None:
    import gguf

    write(tiny, "gguf", tmp_path / "out")
    adapter = tiny.load_adapter("web")
    tensors = {item.name: item for item in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    written = np.array(tensors["blk.0.attn_q.weight.lora_b"].data)
    mine = np.array(adapter.weights["model.layers.0.self_attn.q_proj.lora_b"]).T
    assert np.array_equal(written[1], mine[6]) and np.array_equal(written[2], mine[1])  # heads of 12
    config = json.loads((tiny_model_dir / "config.json").read_text())
    back, alpha = read_gguf_adapter(tmp_path / "out" / "adapter.gguf", config)
    assert alpha == 8.0 and np.array_equal(back["model.layers.0.self_attn.q_proj.lora_b"].T, mine)


def test_dora_is_merged_and_has_no_place_in_a_gguf_adapter(
    repository: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    lora = LoraConfig(rank=4, use_dora=True)
    manager = project_with(load_base(str(tiny_model_dir)), repository, lora, size=0.1)
    with pytest.raises(AdapterError, match="no DoRA"):
        write(manager, "gguf", tmp_path / "gguf")
    for form in ("peft", "fused"):
        done = write(manager, form, tmp_path / form)
        assert done.agreement is not None and done.agreement.share < 0.1


def test_adapters_of_stacked_experts_are_merged_and_have_no_place_in_peft(
    repository: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    mixture = write_tiny_model(
        tmp_path / "mixture", tiny_tokenizer_dir, model_type="qwen3_moe", head_dim=12, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[],
        attention_bias=False,
    )  # fmt: skip
    manager = project_with(load_base(str(mixture)), repository, LoraConfig(rank=4), size=0.1)
    with pytest.raises(AdapterError, match="stacked experts"):
        write(manager, "peft", tmp_path / "peft")
    with pytest.raises(AdapterError, match="qwen3_moe"):
        write(manager, "gguf-fused", tmp_path / "gguf-fused")
    for form in ("gguf", "fused"):
        done = write(manager, form, tmp_path / form)
        assert done.agreement is not None and done.agreement.share < 1e-3


def test_without_its_base_a_copy_is_compared_by_weights_and_a_merge_refused(
    repository: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    import shutil

    model = write_tiny_model(tmp_path / "gone", tiny_tokenizer_dir)
    manager = project_with(load_base(str(model)), repository, LoraConfig(rank=4))
    assert write(manager, "mlx", tmp_path / "with").agreement is not None
    shutil.rmtree(model)
    done = write(manager, "mlx", tmp_path / "without")
    assert done.agreement is None and "the base is not here" in done.notes[0]
    with pytest.raises(Exception, match="gone"):
        write(manager, "fused", tmp_path / "fused")
    other = write_tiny_model(tmp_path / "other", tiny_tokenizer_dir, rope_theta=5e4, hidden_size=32)
    with pytest.raises(AdapterError, match="is not the model"):
        write(manager, "mlx", tmp_path / "wrong", base=str(other))


def test_options_that_a_form_cannot_have_are_refused(seedling: PeftManager, tmp_path: Path) -> None:
    for form, options in (("gguf", {"bits": 4}), ("mlx", {"dtype": "float16"}), ("onnx", {})):
        with pytest.raises(AdapterError):
            write(seedling, form, tmp_path / "out", **options)


def test_an_export_that_was_killed_leaves_nothing_that_the_next_one_does_not_delete(
    tiny: PeftManager, tmp_path: Path
) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mlx_gardener.adapter import PeftManager, exports\n"
        "exports._card = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "PeftManager().export_adapter('web', None, 'mlx', Path(sys.argv[1]))\n"
    )
    place = tmp_path / "exports"
    place.mkdir()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(place / "mine")], check=False)
        assert done.returncode == -9 and len(list(place.iterdir())) == 1
    write(tiny, "mlx", place / "mine")
    assert [path.name for path in place.iterdir()] == ["mine"]
    assert (place / "mine").stat().st_mode & 0o700 == 0o700
