"""Files of every architecture in llama.cpp and here: the same logits, the same tokens.

Run with ``scripts/test --parity``, which installs llama.cpp.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from benchmarks.llama_cpp_side import has_llama_cpp, llama_logits, relative
from mlx_gardener.model import load_base
from tests.model.gguf.files import CONFIGS, SAME, TOLERANCE, logits, tiny_model, write_gguf

pytestmark = [
    pytest.mark.llama,
    pytest.mark.skipif(
        not has_llama_cpp(), reason="llama.cpp is not here; scripts/test --parity installs it"
    ),
]

IDS = [*range(40, 64), 3, 250, 7, 7, 9]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_llama_cpp_gives_the_same_logits(architecture: str, tmp_path: Path) -> None:
    model, config = tiny_model(architecture, **SAME.get(architecture, {}))
    file = write_gguf(tmp_path / "tiny.gguf", architecture, model, config)
    wanted = llama_logits(file, None, IDS)
    found = logits(load_base(str(file)).model, IDS)
    assert relative(wanted, found) < TOLERANCE.get(architecture, 1e-4)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_llama_cpp_gives_nearly_the_same_logits_of_quantised_weights(kind: Kind, tmp_path: Path) -> None:
    """llama.cpp quantises what it multiplies them with to 8 bits, we do not."""
    model, config = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", "llama", model, config, kind=kind)
    found = logits(load_base(str(file)).model, IDS)
    assert relative(llama_logits(file, None, IDS), found) < 0.03
