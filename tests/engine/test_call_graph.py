"""The cut, on tiny random models of mlx-lm's architectures: gradients of segments are those of the whole graph.

``SPLIT`` is what was found with mlx-lm 0.32.2; docs/architectures.md shows the whole table and is written by
``python -m tests.engine.test_call_graph``. A few architectures of every kind run by default, all of them with ``-m slow``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_gardener.config import LoraConfig
from mlx_gardener.engine.call_graph import CannotSplit, learn_call_graph
from mlx_gardener.engine.verify import largest_difference
from mlx_gardener.errors import ModelError
from mlx_gardener.model.lora import attach_lora, lora_parameters
from tests.engine.zoo import CANNOT, MODEL_TYPES, SOME, TOLERANCE, batch, engine, tiny_model, with_adapters


def outcome(model_type: str) -> tuple[str, str]:
    """("split" or "whole" or "no", why): what the engine makes of an architecture, checked by its gradients."""
    if model_type in CANNOT:
        return "no", CANNOT[model_type]
    try:
        model = tiny_model(model_type)
        weights = with_adapters(model)
    except ModelError as error:
        return "no", str(error)
    except Exception as error:
        return "no", f"no tiny model could be made: {_said(error)}"
    try:
        whole = engine(model)
        whole.take_whole("to compare")
        expected = whole.loss_and_gradients(weights, batch(), seed=0)
    except Exception as error:
        return "no", f"mlx-lm's own code gives no gradient here: {_said(error)}"
    if not np.isfinite(expected.loss_sum):
        return "no", "the tiny model's loss is not finite"
    cut = engine(model)
    if cut.graph is None:
        return "whole", str(cut.whole_because)
    found = cut.loss_and_gradients(weights, batch(), seed=0)
    worst = largest_difference(found.gradients, expected.gradients)
    if not worst <= TOLERANCE:
        return "whole", f"code between layers: gradients of segments differ by {worst:.0e}"
    if abs(found.loss_sum - expected.loss_sum) > TOLERANCE * abs(expected.loss_sum):
        return "whole", "the loss of segments differs"
    return "split", ""


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


@pytest.mark.parametrize("model_type", SOME)
def test_segments_give_the_gradients_of_the_whole_graph(model_type: str) -> None:
    assert outcome(model_type) == ("split", "")


@pytest.mark.slow
def test_at_least_sixty_architectures_are_cut_exactly() -> None:
    found = {model_type: outcome(model_type)[0] for model_type in MODEL_TYPES}
    assert sum(kind == "split" for kind in found.values()) >= 60


@pytest.mark.parametrize(
    "settings",
    [
        {"kept_layers": 1},
        {"kept_layers": 4},
        {"kept_layers": 2, "cpu_streams": 2},
        {"cpu_streams": 2, "rows": 1},
        {"attention_block": 5, "attention_least": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "jamba", "gemma4_text"])
def test_every_plan_gives_the_same_gradients(model_type: str, settings: dict[str, Any]) -> None:
    model = tiny_model(model_type)
    weights = with_adapters(model)
    expected = engine(model).loss_and_gradients(weights, batch(), seed=0)
    found = engine(model, **settings).loss_and_gradients(weights, batch(), seed=0)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    assert largest_difference(found.gradients, expected.gradients) <= TOLERANCE


def test_only_layers_above_the_lowest_adapter_are_computed_again() -> None:
    model = tiny_model("llama")
    attach_lora(model, LoraConfig(rank=2, num_layers=1), seed=1)
    weights = lora_parameters(model)
    asked: list[float] = []
    engine(model).loss_and_gradients(
        weights, batch(), seed=0, between_segments=lambda share: asked.append(share)
    )
    assert len(set(asked)) == 4 + 1 + 1  # four layers forward, head and loss, one layer backward


@pytest.mark.parametrize(("kept_layers", "last"), [(0, 2.0), (2, 2.0), (4, 1.0)])
def test_the_share_of_a_step_that_is_done_goes_by_work(kept_layers: int, last: float) -> None:
    """Segments counted alike, so that at the end of a dry run "98 % of it, 2 s left" stood for half a minute."""
    model = tiny_model("llama")
    weights, asked = with_adapters(model), list[float]()
    one = engine(model, kept_layers=kept_layers)
    one.loss_and_gradients(weights, batch(), seed=0, between_segments=asked.append)
    parts = len(list(one.micro_batches(batch())))
    assert asked == sorted(asked) and len(set(asked)) >= parts * 2 * one.calls
    assert asked[-1] == pytest.approx(1 - last / (parts * one.step_work)), (
        "the work of the last segment is left"
    )
    read: list[float] = []
    one.read_rows(batch(), between_segments=read.append)
    parts = len(list(one.micro_batches(batch(), forward_only=True)))
    assert read[-1] == pytest.approx(1 - one.head_work / (parts * one.forward_work))
    assert one.head_work > 0


def test_a_model_that_changes_states_between_layers_is_not_cut() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 4)
            self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]

        def __call__(self, tokens: mx.array) -> mx.array:
            hidden = self.embed(tokens)
            for layer in self.layers:
                hidden = mx.tanh(layer(hidden))
            return self.embed.as_linear(hidden)

    with pytest.raises(CannotSplit, match="between layers"):
        learn_call_graph(Between(), mx.zeros((1, 3), dtype=mx.int32))
    assert "between layers" in str(engine(Between()).whole_because)


def test_layers_are_put_back_whatever_happens() -> None:
    model = tiny_model("llama")
    weights = with_adapters(model)
    layers = list(model.layers)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(model).loss_and_gradients(weights, batch(), seed=0, between_segments=stop)
    assert all(now is before for now, before in zip(model.layers, layers, strict=True))


def main() -> None:
    """Write docs/architectures.md."""
    found = {model_type: outcome(model_type) for model_type in MODEL_TYPES}
    counts = {kind: sum(one[0] == kind for one in found.values()) for kind in ("split", "whole", "no")}
    words = {"split": "segments", "whole": "one segment", "no": "not shown"}
    lines = [
        "# Architectures",
        "",
        "What the engine makes of every architecture of mlx-lm 0.32.2, found with tiny random models in float32",
        "(`python -m tests.engine.test_call_graph` writes this page). *Segments*: cut at its layers; adapter gradients equal the",
        "whole graph's to 1e-5. *One segment*: trained as one graph, with the memory that takes. *Not shown*: no tiny model",
        "could be made or trained here, for the reason given; the check at load decides.",
        "",
        f"Segments: {counts['split']}. One segment: {counts['whole']}. Not shown: {counts['no']}.",
        "",
        "| architecture | trained in | why |",
        "|---|---|---|",
        *(f"| {name} | {words[kind]} | {why.replace('|', '/')} |" for name, (kind, why) in found.items()),
    ]
    Path(__file__).parents[2].joinpath("docs", "architectures.md").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )
    print(counts)


if __name__ == "__main__":
    main()
