"""Our GGUF files in llama.cpp: base and adapter give the logits that MLX gives.

Run with ``scripts/test --parity``, which installs llama.cpp.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest

from benchmarks import llama_cpp_side
from benchmarks.llama_cpp_side import has_llama_cpp, llama_logits, llama_tokens, relative
from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.adapter.exports import export_adapter
from mlx_gardener.config import LoraConfig
from mlx_gardener.model import load_base, seedling_path
from tests.model.gguf.files import CONFIGS, SAME, logits, tiny_model, write_gguf
from tests.model.gguf.files import TOLERANCE as OF_ARCHITECTURES
from tests.support.adapters import IDS, LORA, adapted_logits, project_with
from tests.support.models import write_tiny_model

pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(
        not has_llama_cpp(), reason="llama.cpp is not here; scripts/test --parity installs it"
    ),
]

#: Largest difference over largest logit; up to 7e-6 was seen. ggml sums in another order.
TOLERANCE = 1e-4
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "hidden_size": 64},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 64},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64},
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 64,
        "head_dim": 32,
    },
}


def mlx_logits(manager: PeftManager, name: str, ids: list[int], *, adapted: bool) -> np.ndarray:
    base = load_base(name)
    if not adapted:
        return np.array(base.model(mx.array([ids])))[0]
    with attach_adapter(base, manager.load_adapter("web")):
        return np.array(base.model(mx.array([ids])))[0]


@pytest.mark.parametrize("kind", ["seedling", *KINDS])
def test_llama_cpp_gives_the_same_logits(
    kind: str, repository: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    name = (
        str(seedling_path())
        if kind == "seedling"
        else str(write_tiny_model(tmp_path / kind, tiny_tokenizer_dir, **KINDS[kind]))
    )
    manager = project_with(load_base(name), repository, LoraConfig(rank=8), size=0.05)
    for form in ("gguf-base", "gguf-fused", "gguf"):
        options = {} if form == "gguf" else {"dtype": "float32"}
        export_adapter(manager.registry, "web", None, form, tmp_path / form, **options)  # type: ignore[arg-type]
    base = load_base(name)
    ids = base.tokenizer.encode((repository / "web").glob("*.js").__next__().read_text())[:96]
    plain, adapted = (mlx_logits(manager, name, ids, adapted=flag) for flag in (False, True))
    assert relative(plain, adapted) > 0.02, "the adapter changes the logits, or there is nothing to compare"

    model, lora = tmp_path / "gguf-base" / "model.gguf", tmp_path / "gguf" / "adapter.gguf"
    found = {
        "base": relative(plain, llama_logits(model, None, ids)),
        "base with adapter": relative(adapted, llama_logits(model, lora, ids)),
        "fused": relative(adapted, llama_logits(tmp_path / "gguf-fused" / "model.gguf", None, ids)),
    }
    print({arm: f"{value:.1e}" for arm, value in found.items()})
    assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("architecture", CONFIGS)
def test_llama_cpp_puts_an_adapter_on_the_file_that_it_was_trained_on(
    architecture: str, repository: Path, tmp_path: Path
) -> None:
    model, config = tiny_model(architecture, **SAME.get(architecture, {}))
    file = write_gguf(tmp_path / "tiny.gguf", architecture, model, config)
    manager = project_with(load_base(str(file)), repository, LORA, size=0.1)
    export_adapter(manager.registry, "web", None, "gguf", tmp_path / "out")
    export_adapter(manager.registry, "web", None, "gguf-fused", tmp_path / "fused", dtype="float32")
    wanted, plain = adapted_logits(manager, file), logits(load_base(str(file)).model, IDS)
    assert relative(plain, wanted) > 0.02, "the adapter changes the logits, or there is nothing to compare"
    found = {
        "with adapter": relative(wanted, llama_logits(file, tmp_path / "out" / "adapter.gguf", IDS)),
        "fused": relative(wanted, llama_logits(tmp_path / "fused" / "model.gguf", None, IDS)),
    }
    print({arm: f"{value:.1e}" for arm, value in found.items()})
    assert max(found.values()) < OF_ARCHITECTURES.get(architecture, TOLERANCE)


def test_llama_cpp_s_own_quantisation_is_made_and_checked(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{Path(llama_cpp_side.__file__).read_text()}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    model, config = tiny_model("llama", hidden_size=256, intermediate_size=512, head_dim=64)
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config)
    manager = project_with(load_base(str(file)), repository, LORA, size=0.1)
    done = export_adapter(manager.registry, "web", None, "gguf-fused", tmp_path / "out", quantise="q4_k_m")
    assert done.agreement is not None and 0 < done.agreement.share < 0.5
    made = tmp_path / "out" / "model.gguf"
    assert "Q4_K" in {tensor.tensor_type.name for tensor in gguf.GGUFReader(made).tensors}
    ours = logits(load_base(str(made)).model, IDS)
    assert relative(ours, llama_logits(made, None, IDS)) < 0.15, "its activations are in 8 bits, ours are not"


def test_llama_cpp_splits_text_as_the_model_was_trained(repository: Path, tmp_path: Path) -> None:
    manager = project_with(load_base("seedling"), repository, LoraConfig(rank=4))
    export_adapter(manager.registry, "web", None, "gguf-base", tmp_path / "out")
    file = tmp_path / "out" / "model.gguf"
    tokenizer = load_base("seedling").tokenizer
    for path in sorted(repository.rglob("*.py")):
        assert llama_tokens(file, path.read_text()) == tokenizer.encode(path.read_text())
    marks = tokenizer.markers
    assert marks is not None
    assert llama_tokens(file, "<|fim_prefix|>", special=True) == [marks.prefix]
