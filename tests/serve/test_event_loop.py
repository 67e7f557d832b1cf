"""The event loop goes on whatever a request holds: what grows with a body or an answer is done beside it or in turns."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.types import Message

from mlx_gardener.serve import ServeSettings, answers, intake
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.catalog import Catalog
from mlx_gardener.serve.generation import Limits, Sampling
from mlx_gardener.serve.server import serving
from mlx_gardener.serve.streams import EventStream
from mlx_gardener.serve.worker import QueuedRequest
from tests.support.requests import HEAD, World, connected, ended, looks_nothing_up, message, post

TEXT = "def run(self):\n    return 1\n" * 4_000
LONG_BODIES = {
    "/infill": {"input_prefix": TEXT, "n_predict": 1},
    "/completion": {"prompt": TEXT, "n_predict": 1},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 1},
    "/api/generate": {"prompt": TEXT, "suffix": TEXT, "options": {"num_predict": 1}},
}
#: Of what is too long a part is shown; elsewhere it is refused.
CUT = ("/infill", "/api/generate")


class Held:
    """A function that waits, once begun, until it is let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        self.let_go.wait()
        return self._function(*arguments)


@pytest.fixture
def alpha(world: World) -> Iterator[str]:
    with serving(world[0], ServeSettings(port=0, projects=("alpha",))) as address:
        yield address


def health_while(held: Held, address: str, path: str, body: dict[str, Any]) -> httpx.Response:
    """Ask, see that others are answered while ``held`` is at work on it, and give the answer."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, address, path, body)
        try:
            assert held.begun.wait(600)
            assert httpx.get(f"{address}/health", timeout=60).status_code == 200
            assert not asked.done()
        finally:
            held.let_go.set()
        return asked.result()


@pytest.mark.parametrize("path", LONG_BODIES)
def test_others_are_answered_while_a_long_body_is_read(
    path: str, alpha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(intake.read_json)
    monkeypatch.setattr(intake, "read_json", held)
    done = health_while(held, alpha, path, LONG_BODIES[path])
    assert done.status_code == (200 if path in CUT else 400), done.text
    if done.status_code == 400:
        assert "tokens" in message(done) or "template" in message(done)


def test_others_are_answered_while_a_long_answer_is_written_out(
    alpha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"prompt": "class Basket", "max_tokens": 30, "n": 2, "logprobs": 20}
    plain = post(alpha, "/v1/completions", body).json()["choices"]
    assert sum(len(choice["logprobs"]["tokens"]) for choice in plain) > 50, "else it is no long answer"
    held = Held(answers.completion_choice)
    monkeypatch.setattr(answers, "completion_choice", held)
    assert health_while(held, alpha, "/v1/completions", body).json()["choices"] == plain


def test_others_have_their_turn_between_the_lines_of_a_stream(world: World) -> None:
    """Also where nothing is waited for: copies of the likeliest answer are there all at once."""
    turns = 0
    seen: list[int] = []

    async def lines() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            yield {"number": number}

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def send(sent: Message) -> None:
        if sent["type"] == "http.response.body" and sent["body"]:
            seen.append(turns)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        target = Catalog(world[0]).find("alpha")
        lookup = looks_nothing_up(world[0], target)
        job = QueuedRequest(target, lambda base, room: [], lookup, Sampling(), Limits(1))
        busy = asyncio.create_task(other())
        await EventStream(lines(), job, {}, closing="[DONE]")({"type": "http"}, receive, send)
        busy.cancel()

    asyncio.run(run())
    assert len(seen) == 6 and len(set(seen)) == 6, seen


def chunked(part: bytes, count: int) -> bytes:
    return HEAD + b"transfer-encoding: chunked\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(part), part)) * count


def test_a_body_in_too_many_parts_is_refused_and_one_in_some_is_answered(world: World) -> None:
    seen: list[Access] = []
    body = json.dumps({"input_prefix": "x = " * 100, "n_predict": 2}).encode()
    with serving(world[0], ServeSettings(port=0, projects=("alpha",)), seen.append) as address:
        with connected(address) as connection:
            connection.sendall(chunked(b" ", 20_000))
            said = ended(connection)
        assert said.startswith(b"HTTP/1.1 413")
        assert "parts" in json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"]
        with connected(address) as connection:
            connection.sendall(chunked(b" ", 3) + b"what is this?\r\n")
            said = ended(connection)
        assert said.startswith(b"HTTP/1.1 400")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
        pieces = (body[at : at + 7] for at in range(0, len(body), 7))
        done = httpx.post(
            f"{address}/projects/alpha/infill", content=pieces, headers={"content-type": "application/json"}, timeout=60,
        )  # fmt: skip
        assert done.status_code == 200, done.text
    assert [access.status for access in seen] == [413, 400, 200]
    assert "parts" in seen[0].refused and "Invalid" in seen[1].refused
