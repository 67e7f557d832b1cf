"""What is known of the base is not computed again, whatever else is asked with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.dataset import Batch
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.errors import TimeLimitError
from mlx_gardener.evaluate import generate, measure
from mlx_gardener.evaluate.complete import CaretPrompt
from mlx_gardener.evaluate.generate import Answer
from mlx_gardener.evaluate.measure import Bench
from mlx_gardener.evaluate.rows import make_windows, plain_rows
from mlx_gardener.evaluate.work import Work, decide_work, more_work
from mlx_gardener.model import load_base
from mlx_gardener.platform.kept import KeptValues


@pytest.fixture
def bench(tiny_model_dir: Path, tmp_path: Path) -> Bench:
    config = load_config(environment={}, overrides={"data.sequence_lengths": [32, 64]})
    base = load_base(str(tiny_model_dir))
    engine = Engine(
        base.model, Plan({64: 2}, 2**32, 0, PredictedParts(), (), cache_bytes=0), dtype=base.dtype
    )
    return Bench(base, engine, config, KeptValues(tmp_path / "kept"), lambda: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Sequence[int]]]:
    """The prompts of every call that generates."""
    calls: list[list[Sequence[int]]] = []
    original = measure.generate_many

    def noted(base: Any, prompts: Sequence[Sequence[int]], **settings: Any) -> list[Answer]:
        calls.append(list(prompts))
        return original(base, prompts, **settings)

    monkeypatch.setattr(measure, "generate_many", noted)
    return calls


def test_the_bases_answers_are_kept_by_prompt(bench: Bench, asked: list[list[Sequence[int]]]) -> None:
    first, second, third = (CaretPrompt(ids) for ids in ([5, 6, 7], [8, 9], [10, 11, 12]))
    before = bench.answers([first, second], kind="next line", of="", max_new_tokens=4)
    after = bench.answers([third, second, first, second], kind="next line", of="", max_new_tokens=4)
    assert asked == [[first.ids, second.ids], [third.ids]]
    assert [after[2], after[1], after[3]] == [before[0], before[1], before[1]]
    assert bench.answers([third], kind="next line", of="", max_new_tokens=4) == after[:1]
    assert len(asked) == 2


def test_answers_that_were_done_when_the_time_was_over_are_kept(
    bench: Bench, asked: list[list[Sequence[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_MOST_AT_ONCE", 1)  # one after the other
    prompts, calls = [CaretPrompt([5, 6, 7]), CaretPrompt([8, 9])], [0]

    def interrupt() -> None:  # asked once for a prompt and for each of its four tokens
        calls[0] += 1
        if calls[0] > 7:
            raise TimeLimitError("over")

    with pytest.raises(TimeLimitError):
        replace(bench, interrupt=interrupt).answers(prompts, kind="fim", of="", max_new_tokens=4)
    found = bench.answers(prompts, kind="fim", of="", max_new_tokens=4)
    assert asked[-1] == [prompts[1].ids] and all(len(answer.ids) == 4 for answer in found)


def test_another_kind_or_length_and_an_adapters_answers_are_their_own(
    bench: Bench, asked: list[list[Sequence[int]]]
) -> None:
    prompt = [CaretPrompt([5, 6, 7])]
    bench.answers(prompt, kind="next line", of="", max_new_tokens=4)
    bench.answers(prompt, kind="fim", of="", max_new_tokens=4)
    bench.answers(prompt, kind="next line", of="", max_new_tokens=5)
    bench.answers(prompt, kind="next line", of="an adapter", max_new_tokens=4)
    bench.answers([replace(prompt[0], begins="x")], kind="next line", of="", max_new_tokens=4)
    assert len(asked) == 5


def test_the_next_line_begins_a_line_and_does_not_go_on_with_the_one_before(bench: Bench) -> None:
    """SmolLM2-135M went on with the line before in 5 of 60 places, and what it wrote there was compared with the next line."""
    decode = bench.base.tokenizer.decode
    prompts = [[number, number + 1, 50] for number in range(60, 90)]
    free = bench.answers([CaretPrompt(ids) for ids in prompts], kind="next line", of="", max_new_tokens=4)
    assert not all(answer.text.startswith("\n") for answer in free), "else nothing is proved"
    asked = [CaretPrompt(ids, "\n") for ids in prompts]
    lines = bench.answers(asked, kind="next line", of="", max_new_tokens=4)
    assert all(decode(list(answer.ids)) == f"\n{answer.text}" for answer in lines)


def test_losses_are_kept_and_say_how_far_they_are_within_a_batch(
    bench: Bench, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    excerpts = [
        Excerpt(path.name, "python", path.read_text()) for path in sorted(repository.rglob("*.py"))[:2]
    ]
    tokenizer = bench.base.tokenizer
    rows = plain_rows(make_windows(excerpts, tokenizer, 64), tokenizer, (32, 64))
    shares: list[float] = []
    found = bench.losses(rows, shares.append, of="")
    batches = rows.update_count(bench.batch_tokens)
    assert len(shares) > 2 * batches and shares == sorted(shares) and shares[-1] == 1.0
    assert bench.losses(rows, of="an adapter") == pytest.approx(found)
    read, likeliest = bench.read(rows, of="")
    assert read == pytest.approx(found) and len(likeliest) == len(rows)
    for computed in ("row_losses", "read_rows"):
        monkeypatch.setattr(Engine, computed, lambda *_, **__: pytest.fail("computed again"))
    assert bench.read(rows, of="")[0] == read
    assert bench.losses(rows, of="") == found


def test_every_stream_has_a_row_to_put_forward_however_small_an_update_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, real, shapes = bench.base.tokenizer, Engine.row_losses, list[tuple[int, ...]]()

    def noted(engine: Engine, batch: Batch, **named: Any) -> list[float]:
        shapes.append(batch.tokens.shape)
        return real(engine, batch, **named)

    monkeypatch.setattr(Engine, "row_losses", noted)
    rows = plain_rows(
        make_windows([Excerpt("a.py", "python", "value = 1\n" * 200)], tokenizer, 64), tokenizer, (64,)
    )
    one_row = bench.config.optimizer.model_copy(update={"tokens_per_update": 64})
    small = replace(bench, config=bench.config.model_copy(update={"optimizer": one_row}))
    plan = replace(bench.engine.plan, rows_of_width={64: 1}, cpu_streams=2)
    streams = replace(small, engine=Engine(bench.base.model, plan, dtype=bench.base.dtype))
    found = streams.losses(rows, of="")
    assert max(shapes) == (2, 64)
    shapes.clear()
    assert small.losses(rows, of="an adapter") == pytest.approx(found)
    assert max(shapes) == (2, 64), "as many as a step has at once"
    shapes.clear()
    assert bench.losses(rows, of="another one") == pytest.approx(found)
    assert max(shapes)[0] > 2, "as many as an update has"


def test_where_a_token_for_all_answers_costs_much_next_lines_are_all_that_is_asked() -> None:
    def work(forward_tokens: float, step_tokens: float) -> Work:
        return decide_work(
            TrainingConfig(),
            training_tokens=10**6,
            windows=100,
            tasks=None,
            can_write=True,
            files=8,
            forward_tokens=forward_tokens,
            step_tokens=step_tokens,
        )

    quick, slow = work(40_000, 1.0), work(11_000, 40.0)
    assert quick.fim_tasks == quick.next_line_tasks > 4 and "no spans" not in quick.reason
    assert slow.fim_tasks == 0 and slow.next_line_tasks == 4 and "no spans" in slow.reason
    assert slow.new_tokens < work(float("inf"), 40.0).new_tokens == TrainingConfig().evaluation.max_new_tokens
    more = more_work(slow, quick, 3.0, TrainingConfig().data.sequence_lengths[-1])
    assert more is not None and more.fim_tasks == 0 and more.next_line_tasks == min(12, quick.next_line_tasks)
    assert more_work(quick, quick, 0.5, quick.row_tokens) is None
