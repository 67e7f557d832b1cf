"""Answers in fewer steps, from prompts that are not read again: the same tokens as offline, always."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_gardener.evaluate.complete import CaretPrompt, build_prompt, caret_prompt, rest_of, written_ids
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.serve import drafts
from mlx_gardener.serve.drafts import Drafter, guess, sides
from mlx_gardener.serve.generation import Ending, Limits, Piece, Sampling, answer
from mlx_gardener.serve.prompt_caches import PromptCaches
from tests.support.models import write_tiny_model

#: Python that stays as it is: what a model writes after it, and how its sums end, hangs on every token.
SOURCE = (Path(__file__).parent / "sample_source.txt").read_text()
KEY = ("base", "adapter")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("seedling")


def fresh(base: BaseModel, prompt: list[int], tokens: int, begins: str = "") -> str:
    found = [token for token, _ in written_ids(base, prompt, max_new_tokens=tokens, begins=begins)]
    return rest_of(base.tokenizer, found, begins)


def asked(
    base: BaseModel, prompt: list[int], caches: PromptCaches, tokens: int, begins: str = "", **more: Any
) -> tuple[str, Ending]:
    place = CaretPrompt(prompt, begins)
    *pieces, ending = answer(
        base, place, more.pop("sampling", Sampling()), Limits(tokens), caches=caches, key=KEY, **more
    )
    assert isinstance(ending, Ending)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), ending


def typed(base: BaseModel, at: int, text: str) -> CaretPrompt:
    """A prompt of somebody who typed ``text`` at a place of the file."""
    return caret_prompt(base.tokenizer, SOURCE[:at] + text, SOURCE[at:], "config/sections.py")


def test_what_followed_the_last_tokens_before_is_the_draft() -> None:
    drafter = Drafter([1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3], [[5, 2, 3, 6]])
    assert drafter.draft(2) == [4, 9]  # three tokens stand alike there, and two elsewhere
    drafter.add(7)
    assert drafter.draft(8) == [8, 1, 2, 3, 7]
    drafter.add(0)
    assert drafter.draft(8) == []
    ended = Drafter([5, 6], [[4, 5, 6, 7], [8, 8]])
    assert ended.draft(8) == [7]  # no text is continued across its end


def test_the_caret_is_where_the_models_own_form_says(base: BaseModel) -> None:
    tokenizer = base.tokenizer
    before, after = (
        tokenizer.encode("def add(first, second):\n    return "),
        tokenizer.encode("\n\n\nadd(1, 2)\n"),
    )
    prompt = build_prompt(tokenizer, tokenizer.decode(before), tokenizer.decode(after), "a.py")
    left, others = sides(prompt, tokenizer)
    assert left == before and tokenizer.decode(others).endswith("\n\n\nadd(1, 2)\n<|fim_middle|>")
    assert sides(before, tokenizer) == (before, [])
    known = tokenizer.encode("def add(first, second):\n    return first + second")
    told = guess(tokenizer, known, tokenizer.encode("def add(first, second):\n    return fir"))
    assert tokenizer.decode(told).endswith("return first + second")
    assert guess(tokenizer, known, tokenizer.encode("def add(first, second):\n    return sec")) == []


def test_typing_reads_what_changed_and_writes_the_same_in_fewer_steps(base: BaseModel) -> None:
    at, caches = SOURCE.index("\n\n", 1500), PromptCaches()
    line = "\n    tokens: int = field(default=0)"
    steps, tokens, read = 0, 0, []
    for length in range(0, len(line) + 1, 6):
        place = typed(base, at, line[:length])
        text, ending = asked(base, place.ids, caches, 16, place.begins)
        offline = [token for token, _ in written_ids(base, place.ids, max_new_tokens=16, begins=place.begins)]
        assert text == rest_of(base.tokenizer, offline, place.begins)
        steps += ending.decode_steps
        tokens += len(offline)
        read.append(ending.prompt_tokens - ending.cached_tokens)
    assert read[0] > 400 and max(read[2:]) < 12  # the first key began another line
    assert steps < 0.85 * tokens


def test_scores_are_of_what_is_given_out_and_of_what_could_have_been(base: BaseModel) -> None:
    """Behind a word that was begun few tokens may follow; no score says minus infinity, which JSON has no word for."""
    for line in ("\n    tokens: int = fie", "\n    names = '日本", "\n    "):
        place = typed(base, 900, line)
        *pieces, ending = answer(
            base, place, Sampling(), Limits(6), caches=PromptCaches(), key=KEY, top_scores=20
        )
        assert isinstance(ending, Ending) and place.begins
        texts = "".join(piece.text for piece in pieces if isinstance(piece, Piece))
        scores = [score for piece in pieces if isinstance(piece, Piece) for score in piece.scores]
        assert len(scores) == ending.written_tokens > 0
        assert "".join(score.text for score in scores).startswith(texts) and scores[0].text
        for score in scores:
            assert score.top[0] == (score.text, score.logprob)
            assert all(math.isfinite(value) for _, value in score.top)


def test_an_edit_before_the_caret_and_another_place_are_read_from_where_they_differ(base: BaseModel) -> None:
    caches, ids = PromptCaches(), base.tokenizer.encode(SOURCE)[:400]
    other = [*ids[:90], *ids[200:400]]
    seen = []
    for prompt in (ids[:300], [*ids[:260], 11, *ids[260:300]], other, ids[:248], other[:240], ids[9:300]):
        text, ending = asked(base, prompt, caches, 8)
        assert text == fresh(base, prompt, 8)
        seen.append(ending.cached_tokens)
    # Each place has its own: the other one begins alike, and neither takes nor overwrites anything of the first.
    assert seen == [0, 260, 90, 247, 239, 0]


def test_a_choice_as_close_as_rounding_is_made_as_offline_makes_it(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = base.tokenizer.encode(SOURCE)
    for close in (1.0, 0.05):  # every choice; some, in the middle of an answer
        monkeypatch.setattr(drafts, "_CLOSE", close)
        caches = PromptCaches()
        for prompt in (ids[:100], ids[:110], ids[:130]):
            text, ending = asked(base, prompt, caches, 12)
            assert text == fresh(base, prompt, 12)
            if close == 1.0:
                assert ending.decode_steps > ending.written_tokens


@pytest.mark.parametrize("start", [0, 1000, 2000])
def test_sums_in_other_pieces_differ_by_much_less_than_what_counts_as_close(
    base: BaseModel, start: int
) -> None:
    from mlx_lm.models.cache import make_prompt_cache

    ids = base.tokenizer.encode(SOURCE)[start : start + 400]

    def logits(sizes: list[int]) -> mx.array:
        cache, at, found = make_prompt_cache(base.model), 0, []
        for size in sizes:
            found.append(base.model(mx.array([ids[at : at + size]]), cache=cache)[0])
            at += size
        return mx.concatenate(found)

    offline = logits([256, *[1] * 44])
    other = logits([64] * 4 + [17, 3, 16, 5, 3])
    off = (mx.abs(offline - other).max() / mx.abs(offline).max()).item()
    assert off < drafts._CLOSE / 10  # 1e-6 to 6e-6 was seen


def test_an_answer_that_nobody_waits_for_leaves_what_was_read(base: BaseModel) -> None:
    caches, ids = PromptCaches(), base.tokenizer.encode(SOURCE)
    calls = 0

    def leave() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TimeoutError

    for sampling, cached in ((Sampling(), 512), (Sampling(temperature=0.8, seed=3), 512)):
        caches.clear()
        calls = 0
        with pytest.raises(TimeoutError):
            asked(base, ids[:600], caches, 4, check=leave, sampling=sampling)
        text, ending = asked(base, ids[:600], caches, 4)
        assert text == fresh(base, ids[:600], 4) and ending.cached_tokens >= cached


def test_what_is_drawn_is_the_same_whatever_was_asked_before(base: BaseModel) -> None:
    ids, sampling = base.tokenizer.encode(SOURCE), Sampling(temperature=1.0, seed=5)
    alone, _ = asked(base, ids[:700], PromptCaches(), 12, sampling=sampling)
    caches = PromptCaches()
    asked(base, ids[:690], caches, 4)
    again, ending = asked(base, ids[:700], caches, 12, sampling=sampling)
    assert again == alone and ending.cached_tokens == 512  # whole blocks, as offline reads them
    third, ending = asked(base, ids[:700], caches, 12, sampling=sampling)
    assert third == alone and ending.cached_tokens == 512


def test_in_half_precision_all_is_computed_as_offline(tmp_path: Path) -> None:
    half = load_base("seedling", compute_dtype="bfloat16")
    ids, caches = half.tokenizer.encode(SOURCE), PromptCaches()
    for prompt, cached in ((ids[:300], 0), (ids[:310], 256)):
        text, ending = asked(half, prompt, caches, 4)
        assert text == fresh(half, prompt, 4) and ending.cached_tokens == cached
        assert ending.drafted_tokens == 0


def test_a_cache_that_forgets_is_read_and_written_as_offline(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    """A sliding window's cannot take back what was drafted, once it has gone round."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    place = write_tiny_model(tmp_path / "sliding", tiny_tokenizer_dir, layer_types=kinds, sliding_window=32)
    sliding = load_base(str(place))
    for source in ("class A:\n    pass\n", "def f(x):\n    return x\n"):
        ids, caches = sliding.tokenizer.encode(source * 40)[:60], PromptCaches()
        offline = fresh(sliding, ids, 24).rstrip("\ufffd")
        for _ in range(2):
            text, ending = asked(sliding, ids, caches, 24)
            assert text == offline
            assert (ending.cached_tokens, ending.drafted_tokens) == (0, 0)


def test_kept_prompts_are_bounded_by_number_and_bytes(base: BaseModel) -> None:
    ids = base.tokenizer.encode(SOURCE)
    few = PromptCaches(kept=2)
    for start in (0, 50, 100):
        asked(base, ids[start : start + 100], few, 1)
    assert [asked(base, ids[start : start + 100], few, 1)[1].cached_tokens for start in (100, 0)] == [99, 0]
    small = PromptCaches(kept_bytes=1)
    for start in (0, 50):
        asked(base, ids[start : start + 100], small, 1)
    assert len(small._readings) == 1
