"""The page on base models says what the list of recommended ones says, and what was measured."""

from __future__ import annotations

import json
import re

import pytest

from mlx_gardener.model.recommended import RECOMMENDED, Recommended
from mlx_gardener.model.tokens import FIM_TEXTS
from tests.docs.commands import ROOT

PAGE = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8").replace("\\|", "¦")
ROWS = {row.split("|")[1].strip().strip("`"): row for row in PAGE.splitlines() if row.startswith("| ")}
#: How the page spells licences.
LICENCES = {
    "apache-2.0": "Apache-2.0",
    "qwen-research (non-commercial)": "not for commercial use",
    "bigcode-openrail-m": "BigCode OpenRAIL-M",
    "gemma": "Gemma's terms",
}


@pytest.mark.parametrize("one", RECOMMENDED, ids=lambda one: one.id)
def test_a_recommended_model_is_on_the_page_as_it_is_in_the_list(one: Recommended) -> None:
    _, _, weights, licence, markers, least, measured, _ = ROWS[one.id].split("|")
    assert weights.strip() == f"{one.parameters / 1e9:.1f}B" and least.strip() == f"{one.least_gb:g} GB"
    assert LICENCES[one.licence] in licence and one.is_commercial != ("not for commercial use" in licence)
    (spelled,) = re.findall(r"`([^`]+)`", markers)
    assert spelled.replace("¦", "|") in FIM_TEXTS
    assert measured.strip()


@pytest.mark.parametrize("name", ["smollm2", "qwen"])
def test_what_was_measured_is_what_the_committed_result_says(name: str) -> None:
    file = f"benchmarks/results/real_run_{name}.json"
    found = json.loads((ROOT / file).read_text(encoding="utf-8"))
    (row,) = (row for row in ROWS.values() if file in row)
    metrics = found["evidence"]["metrics"]
    change, low, high = (metrics[f"bits_per_byte_change{end}"] for end in ("", "_low", "_high"))
    minutes = found["command"][-1] if "--timeout" in found["command"] else "30"
    for told in (
        f"{change:+.1%} bits per byte", f"{metrics['base_bits_per_byte']:.4f} to {metrics['adapter_bits_per_byte']:.4f}",
        f"{low:+.1%} to {high:+.1%}", f"{found['training']['tokens_seen']:,} tokens in {minutes} minutes",
        f"{found['highest_bytes'] / 2**30:.2f} GB at most of 4 GB",
    ):  # fmt: skip
        assert told in row.replace(" %", "%"), told
    assert ("chance may explain it" in row) == (found["evidence"]["verdict"] == "inconclusive")
