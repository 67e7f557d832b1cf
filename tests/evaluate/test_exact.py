"""Whether an answer would be written is known without writing it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate import exact
from mlx_gardener.evaluate.complete import written_ids
from mlx_gardener.evaluate.exact import writes_exactly
from mlx_gardener.model import BaseModel, load_base


@pytest.fixture
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


def written(base: BaseModel, prompt: list[int]) -> list[int]:
    """What the base writes greedily, whatever it would stop at."""
    return [token for token, _ in written_ids(base, prompt, max_new_tokens=40, stops=frozenset())]


@pytest.mark.parametrize("streams", [0, 2])
def test_what_greedy_writing_gives_and_nothing_else_is_exact(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    monkeypatch.setattr(exact, "_AT_ONCE", 3)
    engine = None
    if streams:
        plan = Plan({64: 2}, 2**32, 0, PredictedParts(), (), cache_bytes=0)
        engine = Engine(base.model, replace(plan, cpu_streams=streams), dtype=base.dtype)
    prompts = [[5, 6, 7], [8], list(range(20, 90)), [11, 12] * 300]
    kept: list[tuple[list[int], list[int]]] = []
    for prompt in prompts:
        ids = written(base, prompt)
        # The last token that it had not written before stands for its end of text.
        at = max(at for at in range(len(ids)) if ids[at] not in ids[:at])
        ending = replace(base, tokenizer=replace(base.tokenizer, eos_id=ids[at]))
        answer = ids[:at]
        wrong = [*answer[:-1], answer[-1] + 1] if answer else [ids[0] + 1]
        asked = [(prompt, answer), (prompt, wrong), (prompt, [*answer, 5]), (prompt, answer[:-1])]
        found = writes_exactly(ending, asked, engine=engine)
        assert found[:3] == [True, False, False]
        assert found[3] is (not answer), "it would go on"
        kept.append((prompt, answer))
    assert max(len(answer) for _, answer in kept) > 3, "over several pieces"


def test_an_empty_prompt_is_refused(base: BaseModel) -> None:
    with pytest.raises(ModelError):
        writes_exactly(base, [([], [5])])
