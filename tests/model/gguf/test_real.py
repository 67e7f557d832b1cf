"""Real files: run with ``REAL_BASES=DIR scripts/test --slow -k real``.

DIR holds ``qwen-coder.gguf`` (Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, sha256 cc324af070c2...) and folders with tokenizers that
were made of such files in another way, ``qwen-coder-1.5b`` and ``smollm2``.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from mlx_gardener.engine.facts import model_facts
from mlx_gardener.model import load_tokenizer
from mlx_gardener.model.gguf import gguf_facts, read_gguf
from mlx_gardener.model.gguf.architectures import placed_tensors
from mlx_gardener.model.gguf.blocks import packing_of
from mlx_gardener.model.gguf.reader import read_header
from tests.model.gguf.files import TEXTS, read, write_vocabulary

REAL = Path(os.environ.get("REAL_BASES", "/nowhere"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL.is_dir(), reason="REAL_BASES names no directory with real models"),
]


@pytest.mark.parametrize(("folder", "split"), [("qwen-coder-1.5b", "qwen2"), ("smollm2", "smollm")])
def test_a_real_vocabulary_gives_the_ids_it_gave(folder: str, split: str, tmp_path: Path) -> None:
    wanted = load_tokenizer(REAL / folder)
    found = read(write_vocabulary(tmp_path / "v.gguf", REAL / folder, split), tmp_path / "read")
    for text in TEXTS:
        assert found.encode(text) == wanted.encode(text), text
        assert found.encode_with_markers(text) == wanted.encode_with_markers(text), text
    assert (found.eos_id, found.markers, found.repo_id) == (wanted.eos_id, wanted.markers, wanted.repo_id)


def test_a_real_q4_k_m_says_what_ggml_says(tmp_path: Path) -> None:
    file = REAL / "qwen-coder.gguf"
    facts = gguf_facts(file)
    assert (facts.architecture, facts.quantisation, facts.why_not) == ("qwen2", "Q4_K_M", None)
    assert facts.has_fim_markers and facts.parameters == 1_777_088_000
    folder = read_gguf(file, tmp_path)
    assert model_facts(folder).parameters == facts.parameters
    wanted, found = load_tokenizer(REAL / "qwen-coder-1.5b"), load_tokenizer(folder)
    for text in TEXTS:
        assert found.encode(text) == wanted.encode(text), text
        assert found.encode_with_markers(text) == wanted.encode_with_markers(text), text
    assert (found.eos_id, found.markers, found.repo_id) == (wanted.eos_id, wanted.markers, wanted.repo_id)
    weights, gguf = mx.load(str(folder / "model.safetensors")), read_header(file)
    assert isinstance(weights, dict)
    for placed in placed_tensors(gguf)[::7]:
        packing, rows = packing_of(placed.tensor.kind), min(64, placed.tensor.rows)
        assert packing is not None
        raw = gguf.read(placed.tensor, placed.tensor.rows - rows, placed.tensor.rows)
        kind = Kind(placed.tensor.kind)
        said = raw.view("<f4") if kind == Kind.F32 else quants.dequantize(raw, kind)
        part = weights[placed.name][-rows:] if len(placed.tensor.shape) > 1 else weights[placed.name][None]
        if packing.bits:
            module = placed.name.removesuffix(".weight")
            scales, biases = (weights[f"{module}.{leaf}"][-rows:] for leaf in ("scales", "biases"))
            part = mx.dequantize(part, scales, biases, group_size=32, bits=packing.bits)
        floats = np.array(part.astype(mx.float32))
        if kind == Kind.Q6_K:
            assert np.linalg.norm(floats - said) < 4.5e-3 * np.linalg.norm(said)
        else:
            np.testing.assert_allclose(floats, said, rtol=3e-7, atol=1e-7)
    gguf.close()
