"""Plans for recorded real models at 2, 4 and 8 GB and rows of 512, 1024 and 2048 tokens: writes docs/plans.md.

    python benchmarks/plan_table.py

Nothing is loaded or trained: sizes come from recorded configs (``tests/engine/model_configs``), 4-bit in groups of 64.
The backend is a Mac's GPU as the planner sees it; its speeds are judgement, so the table says nothing of speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shapes import CONFIGS, lazy_model

from mlx_gardener.config import load_config
from mlx_gardener.engine import Backend, ModelFacts, facts_of, make_plan
from mlx_gardener.engine.facts import Stored
from mlx_gardener.errors import GardenerError

#: Apple gives no such figures; 3 TFLOP/s is 70 % of 4.3 that ten M4 cores multiply at most in float32 (judgement).
MAC_MINI_M4 = Backend("metal", 1, 3e12, 1e11, 1e10, 2.5e9, True)
MODELS = (
    "qwen2.5-coder-0.5b",
    "qwen2.5-coder-1.5b",
    "qwen2.5-coder-3b",
    "qwen2.5-coder-7b",
    "qwen2.5-coder-14b",
    "qwen2.5-coder-32b-instruct",
    "qwen3-4b",
    "qwen3.5-4b",
    "qwen3-coder-30b-a3b-instruct",
    "starcoder2-3b",
    "granite-4.0-h-micro",
    "mellum2-12b-a2.5b-base",
)
BUDGETS, WIDTHS = (2, 4, 8), (512, 1024, 2048)


def recorded_facts(file: Path) -> ModelFacts:
    """Facts of a recorded model at 4 bits, from shapes alone."""
    config = json.loads(file.read_text(encoding="utf-8"))["config"]
    quantized = config | {"quantization": {"group_size": 64, "bits": 4}}
    return facts_of(file.stem, quantized, _weights(config))


def _weights(config: dict[str, Any]) -> Iterator[Stored]:
    from mlx.utils import tree_flatten

    for name, value in tree_flatten(lazy_model(config, None).parameters()):
        if config.get("tie_word_embeddings", True) and name.endswith("lm_head.weight"):
            continue  # mlx-lm drops it when it loads the files
        divisible = value.ndim >= 2 and value.shape[-1] % 64 == 0
        if divisible:
            yield Stored(name, value.size, int(value.size * 4.5 / 8), int(value.size * 0.5 / 8), value.shape)
        else:
            yield Stored(name, value.size, 2 * value.size, 2 * value.size, value.shape)


def cell(facts: ModelFacts, budget: int, width: int) -> str:
    """A plan in a few words."""
    config = load_config(
        environment={}, overrides={"memory_limit_gb": budget, "data.sequence_lengths": [width]}
    )
    try:
        plan = make_plan(facts, config, config.memory_limit_bytes, MAC_MINI_M4)
    except GardenerError as error:
        return (
            "needs " + error.args[0].rpartition(" need ")[2].rstrip(".")
            if " need " in error.args[0]
            else "too wide"
        )
    disk = f", {plan.streamed_layers}/{facts.layers} from disk" if plan.streamed_layers else ""
    recomputed = f"{facts.layers - plan.kept_layers}/{facts.layers} recomputed"
    if plan.kept_products:
        recomputed += f", {plan.kept_products} of them in part"
    if plan.tile_tokens:
        recomputed += f" in tiles of {plan.tile_tokens}"
    if plan.states_on_disk:
        disk += ", hidden states in a file"
    peak = f"{plan.predicted_peak_bytes / 2**30:.1f} GB"
    return f"{plan.rows_of_width[width]} rows, {recomputed}{disk}, {peak}"


def row(name: str, budget: int) -> str:
    """The table's row of a recorded model."""
    facts = recorded_facts(CONFIGS / f"{name}.json")
    return f"| {name} | " + " | ".join(cell(facts, budget, width) for width in WIDTHS) + " |"


def main() -> None:
    """Write the page."""
    lines = [
        "# Plans for real models",
        "",
        "What the planner does with 4-bit bases on a Mac's GPU (`python benchmarks/plan_table.py` writes this page): rows at",
        "once, layers recomputed (in part: outputs of their matrix products are kept), layers read from disk in every pass,",
        "predicted peak. Sizes are from recorded configs;",
        "the memory formula was fitted on a CPU in float32 and has not been checked on a Mac.",
        "",
    ]
    for budget in BUDGETS:
        lines += [
            f"## {budget} GB",
            "",
            "| model | " + " | ".join(f"{width} tokens" for width in WIDTHS) + " |",
            "|---|---|---|---|",
            *(row(name, budget) for name in MODELS),
            "",
        ]
    page = Path(__file__).parents[1] / "docs" / "plans.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
