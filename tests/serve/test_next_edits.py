"""Next edits as Zed asks for them: a whole window comes back, without line breaks that the editor's has not, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import written_ids
from mlx_gardener.model import load_base
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.base_cards import FAMILIES
from mlx_gardener.serve.next_edits import finish_of, finished
from mlx_gardener.serve.server import serving
from tests.support.adapters import make_projects
from tests.support.requests import events, post, request

MARK = "<|file_sep|>"


def prompt_of(window: str, path: str = "src/a.py") -> str:
    """The end of a prompt, as Zed writes it of an editor's window."""
    shown = window if window.endswith("\n") else window + "\n"
    return f"{MARK}original/{path}\n{shown}{MARK}current/{path}\n{shown}{MARK}updated/{path}\n"


def rows(count: int, last: str = "the last") -> list[str]:
    return [f"row {at}" for at in range(count - 1)] + [last]


@pytest.mark.parametrize(
    ("window", "written", "expected"),
    [
        ("\n".join(rows(21)), "\n".join(rows(21, "changed")) + "\n", "\n".join(rows(21, "changed"))),
        ("\n".join(rows(21)), "\n".join(rows(21, "changed")) + "\n\n\n", "\n".join(rows(21, "changed"))),
        ("\n".join(rows(21)), "\n".join(rows(21)) + "\n", ""),
        ("\n".join(rows(21)), "\n".join(rows(21)), ""),
        ("\n".join(rows(21, "")), "\n".join(rows(20, "changed")) + "\n", "\n".join([*rows(20, "changed"), ""])),
        ("\n".join(rows(21, "")), "\n".join(rows(21, "")), ""),
        ("a\nb\n\n\n", "a\nc\n", "a\nc\n\n\n"),
        ("a\nb", "a\nc\n", "a\nc"),
    ],
    ids=["one put there", "more written", "the same", "the same without", "an empty last row", "the same with it",
         "several empty rows", "the top of a file"],
)  # fmt: skip
def test_an_answer_ends_as_the_editors_window_and_is_empty_where_nothing_changes(
    window: str, written: str, expected: str
) -> None:
    finish = finish_of([prompt_of(window)])
    assert finish is not None
    assert finish(written, True) == expected
    assert finish(written, False) == "", "what was cut off would delete the rest"


@pytest.mark.parametrize(
    "prompts",
    [
        [], ["x = 1"], [[1, 2, 3]], [prompt_of("a"), prompt_of("b")], [prompt_of("a") + "a"],
        [f"{MARK}current/a.py\nx\n{MARK}updated/b.py\n"], [f"{MARK}updated/a.py\n"], [f"current/a.py\nx\n{MARK}updated/a.py\n"],
        [f"{MARK}current/a.py\nx\n{MARK}updated/a.py"], ["<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"],
    ],
)  # fmt: skip
def test_other_prompts_answers_are_left_as_they_are(prompts: list[Any]) -> None:
    assert finish_of(prompts) is None


ZETA = (
    "<[fim-suffix]>\nlast()\n<[fim-prefix]><filename>edit_history\n--- a/a.py\n+++ b/a.py\n-one\n+two\n\n"
    "<filename>a.py\nfirst()\n<|marker_1|>one()\ntwo()<|user_cursor|><|marker_2|>\n<[fim-middle]>"
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<|marker_1|>one()\nthree()<|marker_2|>", "<|marker_1|>one()\nthree()<|marker_2|>"),
        ("<|marker_1|>one()\ntwo()<|marker_2|>", ""),
        ("<|marker_2|><|marker_2|>", ""),
        ("<|marker_1|>one()", ""),
        ("three()", ""),
        ("<|marker_1|>one()<|marker_7|>", ""),
    ],
    ids=["an edit", "the same", "no edit", "without its end", "without tags", "no such tag"],
)
def test_an_answer_in_zetas_later_form_is_given_out_where_it_changes_something(
    written: str, expected: str
) -> None:
    """Zed takes nothing for "no edit", and an answer without two tags for an error."""
    finish = finish_of([ZETA])
    assert finish is not None
    assert finish(written, True) == expected and finish(written, False) == ""
    assert {"zeta2", "zeta2.1"} <= FAMILIES, "names that Zed infers its form from"
    assert finish_of([ZETA.replace("<|marker_1|>", "<<<<<<< CURRENT\n")]) is None


@pytest.mark.parametrize(
    "prompt",
    [
        ZETA.replace("one()", "usage('<filename>')"),
        ZETA.replace("two()", "usage('<filename>')"),
        ZETA.replace("first()", "first('<|marker_1|>')"),
        ZETA.replace("one()", f"one('<|marker_{'9' * 5000}|>')"),
    ],
    ids=["a file's marker in the window", "below its beginning", "a tag above it", "a tag of many digits"],
)
def test_code_that_has_the_later_forms_own_markers_does_not_hide_its_window(prompt: str) -> None:
    finish = finish_of([prompt])
    assert finish is not None
    assert finish("<|marker_2|><|marker_2|>", True) == "" == finish("<|marker_1|>three()", True)
    assert finish("<|marker_1|>three()<|marker_2|>", True) == "<|marker_1|>three()<|marker_2|>"
    window = "<<<<<<< CURRENT\none()\n=======\n<[fim-middle]>"
    assert finish_of([prompt[: prompt.rindex("<|marker_1|>")] + window]) is None, "the earlier form"


@pytest.fixture
def served(home: Path, tmp_path: Path, tiny_model_dir: Path) -> Iterator[tuple[str, str]]:
    """A server of the project ``beta`` on a random base, and the first words that it writes after Zed's prompt."""
    base = load_base(str(tiny_model_dir))
    registry = make_projects(base, tmp_path / "code", str(tiny_model_dir), ["beta"])
    ids = base.tokenizer.encode_with_markers(request("zed_sweep")["prompt"])
    with attach_adapter(base, PeftManager(registry).load_adapter("beta")):
        written = base.tokenizer.decode([token for token, _ in written_ids(base, ids, max_new_tokens=16)])
    assert len(written) > 8
    with serving(registry, ServeSettings(port=0, max_queued_seconds=600.0)) as address:
        yield address, written


def test_zeds_sweep_request_gets_the_window_that_the_adapter_writes(served: tuple[str, str]) -> None:
    (address, whole), body = served, request("zed_sweep")
    body["stop"].append(whole[6:8])  # a random adapter does not end by itself
    window = body["prompt"].split(f"{MARK}current/src/basket.py\n")[1].split(MARK)[0]
    expected = finished(window, whole[: whole.index(whole[6:8])])
    assert expected
    answer = post(address, "/v1/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model"] == "beta" and answer.json()["choices"][0]["text"] == expected
    assert answer.headers["x-gardener-retrieval"].startswith("none")
    streamed = events(post(address, "/v1/completions", {**body, "stream": True}))
    texts = [event["choices"][0]["text"] for event in streamed if event["choices"]]
    assert [text for text in texts if text] == [expected]
    cut = post(address, "/v1/completions", {**body, "stop": body["stop"][:2], "max_tokens": 3})
    assert cut.json()["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}


def test_zeds_sweep_request_is_answered_by_ollamas_api_too(served: tuple[str, str]) -> None:
    (address, whole), body = served, request("zed_sweep_ollama")
    names = [entry["name"] for entry in httpx.get(f"{address}/api/tags", timeout=60).json()["models"]]
    assert body["model"] in names, "Zed lists the models whose names it knows"
    body["options"] |= {"temperature": 0, "stop": [*body["options"]["stop"], whole[6:8]]}
    answer = post(address, "/api/generate", body)
    assert answer.status_code == 200, answer.text
    window = body["prompt"].split(f"{MARK}current/src/basket.py\n")[1].split(MARK)[0]
    assert answer.json()["response"] == finished(window, whole[: whole.index(whole[6:8])])
    assert answer.json()["done_reason"] == "stop"
    lines = post(address, "/api/generate", {**body, "stream": True}).text.splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == answer.json()["response"]
