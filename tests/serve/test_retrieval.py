"""What is served is what evidence measures: the same prompts and answers; and an answer never waits for an index."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.dataset.tasks import fim_tasks, next_line_tasks
from mlx_gardener.evaluate.complete import (
    PREFIX_TOKENS,
    SUFFIX_TOKENS,
    CaretPrompt,
    caret_prompt,
    whole_characters,
)
from mlx_gardener.evaluate.generate import generate_many
from mlx_gardener.evaluate.measure import task_prompt
from mlx_gardener.model import BaseModel
from mlx_gardener.runs import indexed
from mlx_gardener.runs.indexed import index_place
from mlx_gardener.serve import ServeSettings, indexes
from mlx_gardener.serve import worker as worker_module
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.server import SelfTest, serve, serving
from tests.support.retrieving import ASKED, World, evidence, infill, told
from tests.support.trainings import until

SIZES = (PREFIX_TOKENS, SUFFIX_TOKENS)
ROOM = 2042  # the embedded model's context, less the six tokens that are written
HOLE = f"<|fim_prefix|>{ASKED}<|fim_suffix|>\n<|fim_middle|>"


@pytest.fixture
def world(home: Path, tmp_path: Path, tiny_model_dir: Path) -> World:
    return World(tmp_path, tiny_model_dir)


@contextmanager
def prompts_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CaretPrompt]]:
    seen: list[CaretPrompt] = []
    original = worker_module.answer

    def noted(base: BaseModel, prompt: CaretPrompt, *rest: Any, **more: Any) -> Any:
        seen.append(prompt)
        return original(base, prompt, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "answer", noted)
        yield seen


def test_prompts_and_answers_that_are_served_are_those_that_evidence_measures(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.adapter(evidence())
    world.indexed()
    files = sorted((world.tree / "core").glob("*.py"))
    unseen = [Excerpt(f"core/{file.name}", "python", file.read_text()) for file in files]
    lines, spans = next_line_tasks(unseen, 8, seed=3), fim_tasks(unseen, 8, seed=3)
    retriever, tokenizer = world.retriever, world.base.tokenizer
    measured = [task_prompt(task, tokenizer, retriever, SIZES, ROOM) for task in [*lines, *spans]]
    plain = [task_prompt(task, tokenizer, None, SIZES, ROOM) for task in [*lines, *spans]]
    assert len(measured) >= 14 and all(
        len(rich.ids) > len(poor.ids) for rich, poor in zip(measured, plain, strict=True)
    )
    with attach_adapter(world.base, PeftManager(world.registry).load_adapter("small")):
        found = [
            generate_many(world.base, [place.ids], begins=[place.begins], max_new_tokens=6)[0]
            for place in measured
        ]
    served = []
    with prompts_seen(monkeypatch) as seen, serving(world.registry, ServeSettings(port=0)) as address:
        for line in lines:
            body = {"prompt": line.prefix, "path": line.path, "max_tokens": 6}
            done = httpx.post(f"{address}/v1/completions", json=body, timeout=300)
            served.append(done.json()["choices"][0]["text"])
        for span in spans:
            done = infill(address, span.prefix, span.suffix, path=span.path, n_predict=6)
            served.append(done.json()["content"])
    assert seen == measured
    assert served == [whole_characters(answer.text) for answer in found]


def test_evidence_shows_no_more_retrieved_code_than_the_models_context_holds(world: World) -> None:
    """As the server does: what is measured in front of a model with a short context could else never be served."""
    world.indexed()
    task = next_line_tasks(
        [Excerpt("core/new.py", "python", sorted((world.tree / "core").glob("*.py"))[0].read_text())],
        1,
        seed=3,
    )[0]
    tokenizer = world.base.tokenizer
    own = len(task_prompt(task, tokenizer, None, SIZES, ROOM).ids)
    assert len(task_prompt(task, tokenizer, world.retriever, SIZES, ROOM).ids) > own + 120
    assert own < len(task_prompt(task, tokenizer, world.retriever, SIZES, own + 120).ids) <= own + 120
    assert len(task_prompt(task, tokenizer, world.retriever, SIZES, own + 8).ids) == own


@pytest.mark.parametrize("wish", ["auto", "on", "off"])
@pytest.mark.parametrize("helps", [True, False, None])
def test_auto_follows_the_evidence_and_on_and_off_do_not(world: World, wish: Any, helps: bool | None) -> None:
    world.adapter({} if helps is None else evidence(1.2, 1.1) if helps else evidence(1.1, 1.2))
    world.indexed()
    tests: list[SelfTest] = []
    answer: list[str] = []

    def on_ready(address: str, end: Any) -> None:
        threading.Thread(target=lambda: (answer.append(told(infill(address))), end())).start()

    serve(world.registry, ServeSettings(port=0, retrieval=wish), on_test=tests.append, on_ready=on_ready)
    is_on = wish == "on" or (wish == "auto" and bool(helps))
    assert tests[0].retrieval.startswith("on (" if is_on else "off ("), tests
    if is_on:
        assert "chunks, " in answer[0] and ".py:" in answer[0]
    elif wish == "off":
        assert answer == ["none; serve.retrieval is off"]
    else:
        assert answer[0].startswith("none; +9.1%" if helps is False else "none; its evidence has no arm")


def test_a_newer_evaluation_decides_for_the_next_request(world: World) -> None:
    from mlx_gardener.platform.files import make_private, write_whole

    world.adapter(evidence(1.1, 1.2))
    world.indexed()
    with serving(world.registry, ServeSettings(port=0)) as address:
        assert told(infill(address)).startswith("none; ")
        file = world.registry.get_adapter("small").directory / "evaluations" / "2031-01-01T00-00-00Z.json"
        make_private(file.parent)
        import json

        write_whole(file, json.dumps({"evidence": evidence()}))
        until(lambda: "chunks, " in told(infill(address)), "retrieved code")


def test_a_hole_that_an_editor_spells_out_gets_code_in_front(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Zed sends it to /v1/completions, and twinny to /completion."""
    world.adapter(evidence())
    world.indexed()
    asked = caret_prompt(world.base.tokenizer, ASKED, "\n", "")
    with prompts_seen(monkeypatch) as seen, serving(world.registry, ServeSettings(port=0)) as address:
        for path in ("/v1/completions", "/completion"):
            answer = httpx.post(f"{address}{path}", json={"prompt": HOLE, "max_tokens": 2}, timeout=300)
            assert "chunks, " in told(answer)
    front = world.retriever.context("", ASKED)
    assert front and seen == [replace(asked, ids=[*front, *asked.ids])] * 2


def test_what_is_asked_in_another_form_gets_nothing_in_front(world: World) -> None:
    world.adapter(evidence())
    world.indexed()
    with serving(world.registry, ServeSettings(port=0)) as address:
        raw = httpx.post(f"{address}/v1/completions", json={"prompt": ASKED, "max_tokens": 2}, timeout=300)
        assert told(raw) == "none; the prompt is taken as it was written"
        twice = {"prompt": [HOLE, HOLE], "max_tokens": 2}
        other = {"prompt": f"<|file_sep|>a.py\n{HOLE}", "max_tokens": 2}
        for body in (twice, other):
            answer = httpx.post(f"{address}/v1/completions", json=body, timeout=300)
            assert told(answer) == "none; the prompt is taken as it was written"
        base = {"model": world.base.id, "prompt": ASKED, "path": "a.py", "max_tokens": 2}
        alone = httpx.post(f"{address}/v1/completions", json=base, timeout=300)
        assert told(alone) == "none; a base alone has no repository"


def test_the_clients_pieces_stand_between_what_is_retrieved_and_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.adapter(evidence())
    world.indexed()
    piece = {"text": "def sent_by_the_client():\n    return True\n", "filename": "open.py"}
    with prompts_seen(monkeypatch) as seen, serving(world.registry, ServeSettings(port=0)) as address:
        found = told(infill(address))
        shown = found.partition("; ")[2].split(", ")[0].partition(":")[0]
        assert shown
        told(infill(address, input_extra=[piece]))
        full = {"text": "word = 1\n" * 2000, "filename": "full.py"}
        assert told(infill(address, input_extra=[full])) == "none; nothing fits, or there is no room"
        again = {"text": (world.tree / shown).read_text(), "filename": shown}
        assert shown not in told(infill(address, input_extra=[again]))
    text = world.base.tokenizer.decode(seen[1].ids)
    assert text.startswith("<|repo_name|>code\n<|file_sep|>")
    places = [
        text.index(part)
        for part in (f"<|file_sep|>{shown}\n", "<|file_sep|>open.py\n", "<|file_sep|>core/new.py\n")
    ]
    assert places == sorted(places)


def test_no_answer_waits_for_an_index_and_the_next_one_has_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is none yet, where it is damaged, and where the repository changes or goes."""
    world.adapter(evidence())
    monkeypatch.setattr(indexes, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(indexes, "_REST", 0.0)
    monkeypatch.setattr(indexes, "_FAILED_SECONDS", 0.0)
    place = index_place(world.registry, "small")
    place.write_bytes(b"damaged")
    first, reading, original = threading.Event(), threading.Lock(), indexed.refreshed

    def held(*given: Any, **more: Any) -> Any:
        first.wait(60)
        with reading:  # who holds it knows that nobody is at it
            return original(*given, **more)

    monkeypatch.setattr(indexed, "refreshed", held)
    with serving(world.registry, ServeSettings(port=0)) as address:
        assert told(infill(address)) == "none; its repository is being read"
        first.set()
        until(lambda: "chunks, " in told(infill(address)), "retrieved code")
        with reading:
            (world.tree / "core" / "fresh.py").write_text(
                "def compare_walnut_unheard_of(amount):\n    return compare_walnut_everywhere(amount)\n"
            )
            assert "fresh.py" not in told(infill(address, "compare_walnut_unheard_of"))
        until(
            lambda: "core/fresh.py:1-2" in told(infill(address, "compare_walnut_unheard_of")),
            "the new file, retrieved",
        )
        world.tree.rename(world.tree.with_name("elsewhere"))
        metrics = lambda: httpx.get(f"{address}/metrics", timeout=60).text  # noqa: E731
        until(
            lambda: bool(infill(address)) and "index_failures_total 0" not in metrics(), "a failure, counted"
        )
        assert "chunks, " in told(infill(address)), "what was known goes on serving"
        numbers = dict(line.split() for line in metrics().splitlines() if not line.startswith("#"))
        assert float(numbers["mlx_gardener_index_chunks"]) > 10
        assert float(numbers["mlx_gardener_retrieved_chunks_total"]) > 3
        assert float(numbers["mlx_gardener_retrievals_total"]) >= 3


def test_what_is_to_be_forgotten_is_shown_no_more_from_then_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.adapter(evidence())
    world.indexed()
    with serving(world.registry, ServeSettings(port=0)) as address:
        shown = told(infill(address)).partition("; ")[2].partition(":")[0]
        world.registry.forget_path("small", shown)
        assert not index_place(world.registry, "small").exists()
        assert shown not in told(infill(address))
        until(lambda: "chunks, " in told(infill(address)), "retrieved code")
        assert shown not in told(infill(address))


def test_a_request_leaves_how_much_was_retrieved_and_no_path(world: World) -> None:
    world.adapter(evidence())
    world.indexed()
    seen: list[Access] = []
    with serving(world.registry, ServeSettings(port=0), seen.append) as address:
        found = told(infill(address))
    access = next(item for item in seen if item.path == "/infill")
    assert f"{access.retrieved_chunks} chunks, {access.retrieved_tokens} tokens" in found
    assert f"; {access.retrieved_tokens} tokens retrieved" in access.text()
    assert ".py" not in access.text() and access.as_json()["retrieved_tokens"] == access.retrieved_tokens
