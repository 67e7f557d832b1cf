"""A model of every architecture, written as llama.cpp has it, is the same model when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from mlx.utils import tree_flatten, tree_unflatten

from mlx_gardener.engine.facts import model_facts
from mlx_gardener.errors import ModelError
from mlx_gardener.model import choose_model, load_base, resolve_model
from mlx_gardener.model.gguf import gguf_facts, read_gguf, write
from mlx_gardener.model.gguf.architectures import ARCHITECTURES, row_order
from tests.model.gguf.files import (
    CONFIGS,
    forward_permuted,
    logits,
    settings_of,
    smallest_file,
    tiny_model,
    write_gguf,
)

IDS = [*range(40, 64), 3, 250, 7, 7, 9]
#: Largest difference over largest logit; the same numbers in the same order give none, rope's factors some 1e-6.
TOLERANCE = 2e-5


def read_logits(file: Path) -> np.ndarray:
    return logits(load_base(str(file)).model, IDS)


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


def test_the_smallest_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(smallest_file())
    found = logits(load_base(str(tmp_path / "small.gguf")).model, [1, 4, 5])
    assert found.shape == (3, 8) and np.isfinite(found).all()


def test_every_architecture_that_is_read_is_tested() -> None:
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_that_is_written_and_read_gives_the_same_logits(architecture: str, tmp_path: Path) -> None:
    model, config = tiny_model(architecture)
    file = write_gguf(tmp_path / "tiny.gguf", architecture, model, config)
    assert relative(logits(model, IDS), read_logits(file)) < TOLERANCE
    facts = gguf_facts(file)
    assert facts.why_not is None and facts.architecture == architecture and facts.has_fim_markers
    assert facts.licence == "apache-2.0" and facts.context_length == 512


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q5_0])
def test_a_tensor_in_many_parts_is_the_same(
    architecture: str, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = tiny_model(architecture)
    file = write_gguf(tmp_path / "tiny.gguf", architecture, model, config, kind=kind)
    whole = read_gguf(file, tmp_path / "whole") / "model.safetensors"
    monkeypatch.setattr(write, "_PART", 200)
    parts = read_gguf(file, tmp_path / "parts") / "model.safetensors"
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3moe", "phi3"])
def test_quantised_matrices_stay_quantised_and_give_the_logits_of_their_values(
    architecture: str, tmp_path: Path
) -> None:
    from mlx.utils import tree_flatten

    model, config = tiny_model(architecture)
    file = write_gguf(tmp_path / "tiny.gguf", architecture, model, config, kind=Kind.Q4_0)
    folder = resolve_model(choose_model(str(file)))
    assert settings_of(folder)["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert load_base(str(file), base_weights="stored").quantized

    def rounded(value: Any) -> Any:
        if value.ndim == 1:
            return value
        return mx.array(quants.dequantize(quants.quantize(np.array(value), Kind.Q4_0), Kind.Q4_0))

    plain = logits(model, IDS)
    model.update(tree_unflatten([(name, rounded(value)) for name, value in tree_flatten(model.parameters())]))
    wanted = logits(model, IDS)
    assert relative(plain, wanted) > 0.01, "four bits change the logits, or there is nothing to compare"
    assert relative(wanted, read_logits(file)) < TOLERANCE
    stored = logits(load_base(str(file), base_weights="stored").model, IDS)
    assert relative(wanted, stored) < 1e-3


def test_mixed_kinds_are_named_in_the_config_and_counted_right(tmp_path: Path) -> None:
    model, config = tiny_model("llama")
    kinds = {"ffn_down": Kind.Q8_0, "attn_v": Kind.F16, "token_embd": Kind.Q5_1}
    write_gguf(tmp_path / "mixed.gguf", "llama", model, config, kind=Kind.Q4_1, kinds=kinds)
    folder = read_gguf(tmp_path / "mixed.gguf", tmp_path / "cache")
    quantization = settings_of(folder)["quantization"]
    assert quantization["bits"] == 4
    assert quantization["model.layers.1.mlp.down_proj"]["bits"] == 8
    assert quantization["model.layers.0.self_attn.v_proj"] is False
    assert quantization["model.embed_tokens"]["bits"] == 5
    assert relative(logits(model, IDS), logits(load_base(str(folder)).model, IDS)) < 0.2
    assert model_facts(folder).parameters == sum(value.size for _, value in tree_flatten(model.parameters()))


def test_rows_come_back_from_where_llama_cpp_puts_them() -> None:
    rows = np.arange(96.0).reshape(48, 2)
    moved = forward_permuted(rows, 3)
    assert not np.array_equal(moved, rows)
    np.testing.assert_array_equal(moved[row_order(48, 3)], rows)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama_3s_rope_factors_are_put_back_into_its_settings(tmp_path: Path) -> None:
    model, config = tiny_model("llama", rope_theta=500000.0, rope_scaling=LLAMA3)
    freqs = np.array(model.layers[0].self_attn.rope._freqs)
    plain = 500000.0 ** (np.arange(0, 16, 2) / 16)
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config, rope_freqs=freqs / plain)
    assert settings_of(resolve_model(choose_model(str(file))))["rope_scaling"] == LLAMA3
    assert relative(logits(model, IDS), read_logits(file)) < TOLERANCE


def test_other_rope_factors_are_kept_as_they_are(tmp_path: Path) -> None:
    factors = [1.0, 1.1, 1.3, 1.7, 2.0, 2.2, 3.0, 5.0]
    scaling = {"rope_type": "longrope", "long_factor": factors, "short_factor": factors}
    scaling |= {"original_max_position_embeddings": 512}
    model, config = tiny_model("llama", rope_scaling=scaling)
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config, rope_freqs=np.array(factors))
    assert relative(logits(model, IDS), read_logits(file)) < TOLERANCE


@pytest.mark.parametrize(
    ("scaling", "keys"),
    [
        (
            {"rope_type": "linear", "factor": 4.0},
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 128,
            },
        ),
    ],
    ids=["linear", "yarn"],
)
def test_scaled_rope_is_scaled(scaling: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    model, config = tiny_model("qwen2", rope_scaling=scaling)
    file = write_gguf(tmp_path / "tiny.gguf", "qwen2", model, config, **keys)
    assert relative(logits(model, IDS), read_logits(file)) < TOLERANCE


def test_biases_of_a_llama_are_read_and_put_back(tmp_path: Path) -> None:
    model, config = tiny_model("llama", attention_bias=True)
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config)
    assert relative(logits(model, IDS), read_logits(file)) < TOLERANCE


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"rope__scaling__type": "su"}, "rope is scaled as 'su'"),
        ({"attention__value_length": 8}, "values of another size"),
        ({"rope__dimension_count": 8}, "turns 8 of the 16 values"),
        ({"block_count": 3}, "3 layers, and has tensors of 2"),
        ({"block_count": 2**24}, "layers, and has tensors of 2"),
        ({"feed_forward_length": 128}, "and not 128 x 64 as its metadata says"),
        ({"context_length": 0}, "context_length is 0"),
    ],
)
def test_what_mlx_lm_cannot_compute_is_refused_before_anything_is_written(
    keys: dict[str, Any], what: str, tmp_path: Path
) -> None:
    model, config = tiny_model("llama")
    write_gguf(tmp_path / "tiny.gguf", "llama", model, config, **keys)
    with pytest.raises(ModelError, match=what) as caught:
        choose_model(str(tmp_path / "tiny.gguf"))
    assert caught.value.next_step
    assert what in str(gguf_facts(tmp_path / "tiny.gguf").why_not)


def test_an_architecture_that_is_not_known_is_named_with_those_that_are(tmp_path: Path) -> None:
    model, config = tiny_model("qwen2")
    file = write_gguf(tmp_path / "tiny.gguf", "qwen2", model, config)
    data = file.read_bytes().replace(b"qwen2.", b"bert5.")
    data = data.replace(b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0bert5", 1)
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"architecture 'bert5' is not read here.*smollm3"):
        choose_model(str(file))


def test_a_tensor_without_a_place_and_one_that_is_missing_are_named(tmp_path: Path) -> None:
    model, config = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"blk.1.ffn_gate.weight", b"blk.1.ffn_gate_weight"))
    assert "no tensor 'blk.1.ffn_gate.weight'" in str(gguf_facts(file).why_not)
    model, config = tiny_model("llama", attention_bias=True)
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config)
    file.write_bytes(file.read_bytes().replace(b"output_norm.weight", b"output_norm.wright"))
    assert "no tensor 'output_norm.weight'" in str(gguf_facts(file).why_not)
