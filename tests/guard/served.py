"""What comes over a wire: requests to every endpoint of a server with the page, and messages to the agents' tools.

As `tests.guard.targets`. The server's whole application answers here, with its real worker, a real project and its adapter on the
embedded base; what would begin a training, fetch a model or export an adapter is refused instead.
"""

from __future__ import annotations

import asyncio
import atexit
import io
import json
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from mlx_gardener.errors import ConfigError
from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.app import Server
from mlx_gardener.serve.catalog import Catalog
from mlx_gardener.serve.indexes import Indexes
from mlx_gardener.serve.intake import Intake
from mlx_gardener.serve.mcp import Tools
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.next_edits import finish_of
from mlx_gardener.serve.parts import Parts
from mlx_gardener.serve.worker import Worker
from mlx_gardener.ui import make_page
from tests.guard.seeds import CUT
from tests.support.adapters import make_projects
from tests.support.repositories import write_repository

TOKEN = "a-token-of-the-tests-only"
_Result = TypeVar("_Result")
#: Answers are short, so that many requests are answered.
#: So long is waited for an answer.
_SILENT_SECONDS = 0.2
_SETTINGS = ServeSettings(port=0, max_context_tokens=256, max_answer_tokens=4)


class World:
    """A registry with a project, and what answers over it, on an event loop that stays."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fuzz-served-"))
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.registry = ProjectRegistry(self.root / "home")
        self.base = load_base("seedling")
        self.loop = asyncio.new_event_loop()
        self.failures: list[BaseException] = []
        write_repository(self.root / "code" / "alpha", modules=2, functions=1)
        metrics, catalog = Metrics(), Catalog(self.registry)
        worker = Worker(
            self.registry,
            budget_bytes=2**31,
            max_queued=64,
            max_queued_seconds=60.0,
            max_context_tokens=_SETTINGS.max_context_tokens,
            metrics=metrics,
        )
        indexes = Indexes(self.registry, "off", metrics)
        self.mend()
        worker.start()
        worker.run(
            lambda: worker.residents.enter(catalog.find("alpha"))
        )  # the base is loaded once, and not while somebody waits
        atexit.register(worker.stop, timeout=600.0)  # else the process ends while MLX computes
        page = make_page(TOKEN)
        intake = Intake(catalog, _SETTINGS, metrics, indexes)
        parts = Parts(self.registry, _SETTINGS, metrics, catalog, indexes, worker, intake)
        self.app = Server(parts, page=page).app()
        self.tools = Tools(parts)
        logging.getLogger("mlx_gardener.serve").addHandler(_Keeping(self.failures))

    def mend(self) -> None:
        """Make the project anew where a request has removed it, or its adapter, and forget what else was registered."""
        known = {project.name: project for project in self.registry.list_projects()}
        if "alpha" not in known or known["alpha"].active_adapter is None:
            if "alpha" in known:
                self.registry.remove_project("alpha")
            make_projects(self.base, self.root / "code", "seedling", ["alpha"], self.registry)
        for name in known.keys() - {"alpha"}:
            self.registry.remove_project(name)
        for path in self.registry.forgotten_paths("alpha"):
            self.registry.remember_path("alpha", path)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do it on the loop."""
        return self.loop.run_until_complete(work)


class _Keeping(logging.Handler):
    """Keeps the defects that a server logs, and does not show to who asked."""

    def __init__(self, kept: list[BaseException]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._kept.append(record.exc_info[1])


@contextmanager
def _kept_inside() -> Iterator[None]:
    """Nothing is trained, fetched or exported meanwhile."""
    from huggingface_hub import constants

    from mlx_gardener.runs.manager import TrainingPipeline
    from mlx_gardener.ui import projects

    def refuse(*arguments: object, **names: object) -> NoReturn:
        raise ConfigError("Nothing of that kind is done here.", next_step="Do it elsewhere.")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        patched.setattr(TrainingPipeline, "start_training", refuse)
        patched.setattr(TrainingPipeline, "resume_training", refuse)
        patched.setattr(projects, "export_adapter", refuse)
        yield


@cache
def world() -> World:
    """The one of this process."""
    return World()


def endpoints(data: bytes, directory: Path) -> None:
    """A request: a line of method, path and query, headers a line each, and behind a cut the body; none is answered by a defect.

    Headers that it does not say are those of a client of the page.
    """
    head, _, body = data.partition(CUT)
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    own = {
        name.strip().lower(): value.strip()
        for name, mark, value in (line.partition(b":") for line in lines)
        if mark
    }
    usual = {
        b"host": b"localhost",
        b"content-type": b"application/json",
        b"authorization": b"Bearer " + TOKEN.encode(),
        b"content-length": str(len(body)).encode(),
    }
    here = world()
    with _kept_inside():
        status, headers, answer = here.run(_asked(here, method, path, query, {**usual, **own}, body))
    try:
        if here.failures:
            raise here.failures.pop()
        assert status not in (0, 500), f"{status}: {answer[:500]!r}"
        if headers.get(b"content-type") == b"application/json" and method != b"HEAD":
            json.loads(answer)
        if status >= 400 and method != b"HEAD":
            assert b"error" in answer, answer
    finally:
        here.failures.clear()
        if method == b"POST" and path.startswith(b"/ui/"):
            here.mend()


async def _asked(
    here: World, method: bytes, path: bytes, query: bytes, headers: dict[bytes, bytes], body: bytes
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the answer, as uvicorn would get them; a stream of events is left after its first."""
    from urllib.parse import unquote

    status, told, said = 0, dict[bytes, bytes](), bytearray()
    sent, done = False, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            told.update(message["headers"])
        else:
            said.extend(message.get("body", b""))
            goes_on = message.get("more_body", False)
            if not goes_on or (b"/training" in path and said):
                done.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("latin-1"),
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "root_path": "",
        "query_string": query,
        "headers": list(headers.items()),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8012),
    }
    await here.app(scope, receive, send)
    return status, told, bytes(said)


def tools(data: bytes, directory: Path) -> None:
    """What an agent sends on standard input, lines of JSON-RPC as the SDK reads them: tools answer or say why not."""
    import anyio
    from mcp.server.stdio import stdio_server

    here = world()
    answers = io.StringIO()

    class Agent:
        """Sends its lines, and goes when they are answered, or nothing more comes for a while."""

        async def __aiter__(self) -> AsyncIterator[str]:
            lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace").readlines()
            for line in lines:
                yield line
            told, until = -1, 0.0
            while time.monotonic() < until or told != answers.tell():
                if told != answers.tell():
                    told, until = answers.tell(), time.monotonic() + _SILENT_SECONDS
                if answers.getvalue().count("\n") >= sum('"id"' in line for line in lines):
                    break
                await asyncio.sleep(0.001)

    async def talk() -> None:
        server = here.tools.server()._lowlevel_server
        async with stdio_server(Agent(), anyio.wrap_file(answers)) as (reads, writes):  # type: ignore[arg-type]
            await server.run(reads, writes, server.create_initialization_options())

    logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)
    here.run(talk())
    for line in answers.getvalue().splitlines():
        told = json.loads(line)
        result = told.get("result") or {}
        text = json.dumps(result.get("content", ""))
        assert not (result.get("isError") and "Traceback" in text), text
        assert told.get("error", {}).get("code") != -32603, told  # an internal error
    if here.failures:
        raise here.failures.pop()


def edits(data: bytes, directory: Path) -> None:
    """A prompt that may be one of a next edit, and an answer to it: what the client gets is the answer's window, or nothing."""
    prompt, _, written = data.partition(CUT)
    text, answer = prompt.decode(errors="replace"), written.decode(errors="replace")
    finish = finish_of([text])
    if finish is None:
        return
    window = text[: text.rindex("<|file_sep|>")].rpartition("<|file_sep|>current/")[2].partition("\n")[2]
    for ended in (True, False):
        told = finish(answer, ended)
        assert told == "" or (ended and told.rstrip("\n") == answer.rstrip("\n") != window.rstrip("\n"))
        assert len(told) <= len(answer) + len(window)


def seeds() -> dict[str, list[bytes]]:
    """Usual and hostile inputs of each."""

    def text(value: object) -> bytes:
        return json.dumps(value).encode()

    def post(path: str, body: object, *headers: str) -> bytes:
        return "\n".join((f"POST {path}", *headers)).encode() + CUT + text(body)

    of = {"project": "alpha"}
    sides = {"input_prefix": "def f(a):\n    ", "input_suffix": "\n", "path": "a.py", "n_predict": 2}
    asked = {"options": {"num_predict": 2, "stop": ["x"], "seed": -1}, "stream": False, "keep_alive": "5m"}
    looked = (
        "/", "/ui/app.js", "/ui/api/projects", "/ui/api/sizes", "/ui/api/queue", "/ui/api/bases",
        "/ui/api/projects/alpha", "/ui/api/projects/%2e%2e",
        "/ui/api/projects/alpha/staleness", "/ui/api/projects/alpha/scan", "/ui/api/projects/alpha/settings",
        "/ui/api/projects/alpha/training", "/ui/api/projects/alpha/verdict?version=v1",
        "/ui/api/projects/alpha/compare?first=v1&second=v1", "/api/tags", "/api/ps", "/api/version", "/v1/models", "/v1/models/alpha",
        "/projects/alpha/api/tags", "/projects/a%00/props", "/props?model=alpha", "/metrics", "/health",
    )  # fmt: skip
    posted = [
        post("/ui/api/add", {"path": "/nosuch/place", "name": "a b"}),
        post("/ui/api/activate", of | {"version": "v1"}),
        post("/ui/api/rollback", of | {"version": None}),
        post("/ui/api/export", of | {"form": "mlx", "destination": "x"}),
        post("/ui/api/remove", {"project": "nosuch", "version": "v1"}),
        post("/ui/api/leave-out", of | {"path": "lib", "leave_out": True}),
        post("/ui/api/plan", of | {"model": "seedling", "budget": 1.0, "epochs": 1, "timeout": 0, "more": "lora.rank=4\n"}),
        post("/ui/api/train", of | {"model": "seedling", "more": "optimizer.epochs=1e9", "fresh": True}),
        post("/ui/api/cancel", of), post("/ui/api/resume", of), post("/ui/api/queue/remove", of),
        post("/ui/api/try", of | sides | {"adapter": False, "retrieval": True, "version": "v1"}),
        post("/api/generate", {"model": "alpha", "prompt": "def f(", "suffix": ")", **asked}),
        post("/api/generate", {"model": "qwen2.5-coder:alpha", "prompt": "x", "raw": True, **asked, "stream": True}),
        post("/api/generate", {"model": "alpha:latest", "keep_alive": 0}),
        post("/api/chat", {"model": "alpha", "messages": [{"role": "user", "content": "hi"}], **asked}),
        post("/api/show", {"model": "alpha", "verbose": True}), post("/api/show", {"name": "seedling:latest"}),
        post("/api/pull", {"model": "x"}),
        post("/infill", sides | {"input_extra": [{"text": "x", "filename": "b.py"}], "response_fields": ["content", "timings/x"]}),
        post("/projects/alpha/infill", sides | {"n_cmpl": 2, "t_max_predict_ms": 1, "lora": [{"id": 0, "scale": 0.5}]}),
        post("/v1/completions", {"model": "alpha", "prompt": ["a", "b"], "max_tokens": 1, "n": 2, "logprobs": 2, "temperature": 1.5}),
        post("/v1/completions", {"prompt": "<|file_sep|>current/a\nx\n<|file_sep|>updated/a\n", "max_tokens": 3, "stream": True}),
        post("/v1/chat/completions", {"messages": []}), post("/completion", {"prompt": [1, 2], "n_predict": 1}),
        post("/ui/api/try", of, "Origin: http://localhost", "Authorization: Basic x"),
        post("/api/generate", {}, "Host: a.b", "Content-Length: 9999999999", "Sec-Fetch-Site: cross-site"),
        b"POST /ui/api/plan" + CUT + b"[" * 5000, b"POST /api/chat" + CUT + b'{"model": "\xff"}', b"DELETE /api/delete" + CUT + b"{}",
        b"POST /projects/a%23b%3Fc/api/pull" + CUT + b"{}", b"GET /v1/completions?\xbe", b"POST /a%23/v1/completions" + CUT + b"{}",
    ]  # fmt: skip

    def call(number: int, tool: str, **arguments: object) -> dict[str, object]:
        params = {"name": tool, "arguments": arguments}
        return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}

    client = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "a", "version": "1"},
    }
    opening = [
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": client},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
    ]
    calls = [
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        call(2, "search_repository", query="collect basket", project="alpha", count=2),
        call(3, "complete", prefix="def f(", suffix=")", path="a.py", max_tokens=2),
        call(4, "status", project="alpha"), call(5, "verdict", project="alpha"), call(6, "nosuch", a=1),
        call(7, "search_repository", query="\ud800", count=10**30), call(8, "complete", prefix=[], max_tokens="x"),
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}},
        {"jsonrpc": "1.0", "id": [], "method": 3},
    ]  # fmt: skip
    talks = [b"\n".join(map(text, [*opening, one])) + b"\n" for one in calls]
    window = "<|file_sep|>current/a.py\ndef f():\n    return 1\n<|file_sep|>updated/a.py\n"
    return {
        "endpoints": [*(f"GET {path}".encode() for path in looked), *posted, b"\0", b"", b"GET ?" + CUT],
        "tools": [
            *talks, b"\n".join(map(text, [*opening, *calls])) + b"\n", text(calls[0]) + b"\n", b"{" * 5000 + b"\n", b"\xff\n[1]\n\n",
        ],
        "edits": [
            f"{front}{window}".encode() + CUT + answer
            for front in ("", "<|file_sep|>b.py.diff\noriginal:\na\nupdated:\nb\n")
            for answer in (b"def f():\n    return 1\n", b"def f():\n    return 2\n\n\n", b"", b"\n" * 30)
        ] + [window.replace("a.py", "b\nc.py").encode(), b"<|file_sep|>" * 9, b"<|file_sep|>current/\n<|file_sep|>updated/\n"],
    }  # fmt: skip
