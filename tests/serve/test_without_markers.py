"""A base without fill-in-the-middle markers: whoever asks with both sides gets what goes on from the first, and is told so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pygls.lsp.client import LanguageClient

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import complete
from mlx_gardener.model import load_base
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.server import serving
from tests.support.adapters import make_projects
from tests.support.lsp import asking, opened, shown_by, written
from tests.support.mcp import call, with_client
from tests.support.models import write_tiny_model
from tests.support.requests import World
from tests.support.trainings import until

PREFIX, SUFFIX, PATH = (
    "class Basket:\n    def area(self):\n        return ",
    "\n\n\nprint(1)\n",
    "core/new.py",
)
TOKENS = 12


@pytest.fixture
def plain(home: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> World:
    """A project with an adapter on such a base."""
    place = write_tiny_model(tmp_path / "plain", tiny_tokenizer_dir)
    words = (place / "tokenizer.json").read_text()
    (place / "tokenizer.json").write_text(words.replace("fim_", "other_"))
    base = load_base(str(place))
    assert base.tokenizer.markers is None
    return make_projects(base, tmp_path / "code", str(place), ["alpha"]), base


@pytest.fixture
def told() -> list[Access]:
    """What the server says of its requests."""
    return []


@pytest.fixture
def address(plain: World, told: list[Access]) -> Iterator[str]:
    with serving(plain[0], ServeSettings(port=0), on_request=told.append) as where:
        yield where


def offline(world: World, prefix: str, path: str, tokens: int = TOKENS) -> str:
    with attach_adapter(world[1], PeftManager(world[0]).load_adapter("alpha")):
        return complete(world[1], prefix, path=path, max_new_tokens=tokens)


def post(address: str, place: str, /, **body: Any) -> httpx.Response:
    return httpx.post(address + place, json=body, timeout=600)


def test_plugins_get_what_goes_on_from_before_the_caret_and_are_told(
    plain: World, address: str, told: list[Access]
) -> None:
    """llama.vim's, llama-vscode's, minuet's and Tabby's requests; prefixes with line breaks have them left to the model."""
    wanted = offline(plain, PREFIX, "")
    done = post(
        address,
        "/infill",
        input_prefix=PREFIX[:-7],
        prompt=PREFIX[-7:],
        input_suffix=SUFFIX,
        n_predict=TOKENS,
    )
    assert done.json()["content"] == wanted
    assert "no fill-in-the-middle markers" in done.headers["x-gardener-suffix"]
    until(lambda: len(told) == 1, "a line")
    assert "no fill-in-the-middle markers" in told[0].text()
    bodies: tuple[dict[str, Any], ...] = (
        {"prompt": PREFIX, "suffix": SUFFIX, "path": PATH},
        {"segments": {"prefix": PREFIX, "suffix": SUFFIX, "filepath": PATH}},
    )
    for body in bodies:
        done = post(address, "/v1/completions", model="alpha", max_tokens=TOKENS, **body)
        assert done.json()["choices"][0]["text"] == offline(plain, PREFIX, PATH), done.text
        assert "x-gardener-suffix" in done.headers
    broken = PREFIX.replace(" return ", "\n\n")
    done = post(address, "/infill", input_prefix=broken, input_suffix=SUFFIX, path=PATH, n_predict=TOKENS)
    assert done.json()["content"] == offline(plain, broken, PATH)
    streamed = post(
        address, "/infill", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=TOKENS, stream=True
    )
    assert "x-gardener-suffix" in streamed.headers
    alone = post(address, "/infill", input_prefix=PREFIX, n_predict=TOKENS)
    assert alone.json()["content"] == wanted and "x-gardener-suffix" not in alone.headers
    until(lambda: len(told) == 6, "six lines")
    assert "markers" not in told[5].text(), "nothing was left out"


def test_ollamas_clients_are_refused_as_by_ollama(plain: World, address: str) -> None:
    """They ask /api/show first; a template of the client's own is text, as there."""
    done = post(address, "/api/generate", model="alpha", prompt=PREFIX, suffix=SUFFIX, stream=False)
    assert done.status_code == 400
    assert (
        "does not support insert" in done.json()["error"] and "Leave the suffix out" in done.json()["error"]
    )
    twinnys = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    options = {"num_predict": 2}
    assert post(
        address, "/api/generate", model="alpha", prompt=twinnys, stream=False, options=options
    ).json()["eval_count"]


@pytest.mark.parametrize("runs", [True, False])
def test_a_language_client_gets_a_completion_and_no_complaint(
    plain: World, runs: bool, request: pytest.FixtureRequest
) -> None:
    """Before, its user was told at the first key that the request was wrong, and saw nothing ever after."""
    wanted = offline(plain, PREFIX, PATH, 64)
    assert wanted.strip()
    arguments = ("--address", request.getfixturevalue("address")) if runs else ()

    async def work(client: LanguageClient) -> None:
        uri = opened(client, plain[0].get_project("alpha").path / PATH, PREFIX + SUFFIX)
        assert await written(client, asking(uri, 2, len("        return "))) == wanted

    assert shown_by(plain, *arguments, work=work) == []


def test_agents_get_it_with_a_note(plain: World) -> None:
    async def ask(client: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        sides = {"prefix": PREFIX, "path": PATH, "max_tokens": TOKENS}
        return await call(client, "complete", **sides, suffix=SUFFIX), await call(client, "complete", **sides)

    both, one = with_client(plain[0], ask)
    assert both["text"] == one["text"] == offline(plain, PREFIX, PATH)
    assert "no fill-in-the-middle markers" in both["note"] and "note" not in one
