"""What hostile bodies cost the server's event loop: the longest time in which it did not turn, and its processor time.

    python benchmarks/serve_loop.py [--bodies 0]

A server runs here, on a tiny model with a chat template; another process sends it, one after the other, the longest bodies
that are allowed, of every endpoint: texts that are most expensive to read, lists of most parts, chunks of a byte each, and
one that asks for the longest answer. A task on the server's own event loop looks at the clock every two milliseconds.
``without_a_turn_seconds`` is the longest time between two looks, which other programs at work make longer;
``loop_cpu_seconds`` is what the loop's thread computed for the body in all, which they hardly do. All traffic stays on
127.0.0.1. Takes a minute or two on idle cores. Writes ``results/serve_loop.json``.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import bar, describe, save

from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serve
from tests.serve.test_large_bodies import SHAPES_OF_BODIES, WIRE_BODIES, WIRE_TEXTS
from tests.support.adapters import make_projects
from tests.support.models import write_chat_model, write_tiny_tokenizer
from tests.support.repositories import write_repository

LOOK_SECONDS = 0.002
#: Seconds of the event loop that no body may cost.
MOST_SECONDS = 0.5
BYTES = "one byte a chunk"


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Path, what it is called, and the body."""
    for path, forms in WIRE_BODIES.items():
        for name, text in WIRE_TEXTS.items():
            yield path, name, forms[0].replace(b"%s", text)
        for name in ("few numbers", "few messages", "names", "deep", "quotes", "blanks"):
            yield path, name, SHAPES_OF_BODIES[name]
        yield path, "a half and escapes", b'{"prompt":"\\ud83d' + b"\\n" * (2**21 - 99) + b'"}'
        yield path, BYTES, b" " * 2**17
    scores = {
        "prompt": "class Basket",
        "max_tokens": 512,
        "n": 8,
        "logprobs": 20,
        "temperature": 1,
        "seed": 1,
    }
    yield "/v1/completions", "eight long answers with scores", json.dumps(scores).encode()
    copies = {"prompt": "class Basket", "max_tokens": 512, "n": 8, "stream": True}
    yield "/v1/completions", "eight copies in a stream", json.dumps(copies).encode()


class Loop:
    """A task on an event loop that looks at the clock: what it saw since `begin`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.idle_cpu = 0.0
        self._task = self._loop.create_task(self._look())

    async def _look(self) -> None:
        self._forget()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.perf_counter()
            self.longest = max(self.longest, now - self._last - LOOK_SECONDS)
            self._last, self.looks = now, self.looks + 1

    def _forget(self) -> None:
        self.longest, self.looks, self._last = 0.0, 0, time.perf_counter()
        self._cpu = time.thread_time()

    async def _seen(self) -> dict[str, float]:
        cpu = time.thread_time() - self._cpu - self.looks * self.idle_cpu
        return {"without_a_turn_seconds": round(self.longest, 4), "loop_cpu_seconds": round(max(0.0, cpu), 4)}

    async def _begin(self) -> None:
        self._forget()

    async def _idle(self) -> None:
        self._forget()
        await asyncio.sleep(1)
        self.idle_cpu = (time.thread_time() - self._cpu) / max(1, self.looks)

    def _do(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    def learn_idle(self) -> None:
        """What a look itself costs."""
        self._do(self._idle)

    def begin(self) -> None:
        """Forget what was seen."""
        self._do(self._begin)

    def seen(self) -> dict[str, float]:
        """The longest time without a turn and the processor time, both since `begin`."""
        found: dict[str, float] = self._do(self._seen)
        return found


@contextmanager
def server(registry: ProjectRegistry) -> Iterator[tuple[str, Loop]]:
    """A server in a thread of its own while the block runs: its address, and its event loop."""
    ready, told = threading.Event(), dict[str, Any]()

    def on_ready(address: str, end: Callable[[], None]) -> None:
        told.update(address=address, end=end, loop=Loop())
        ready.set()

    def run() -> None:
        try:
            serve(registry, ServeSettings(port=0), on_test=lambda _: None, on_ready=on_ready)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield told["address"], told["loop"]
    finally:
        told["end"]()
        thread.join()


def send(address: str) -> None:
    """The client: for each line of standard input (path, how, file) one request, and its status as a line."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    for line in sys.stdin:
        path, how, file = json.loads(line)
        data = Path(file).read_bytes()
        connection = http.client.HTTPConnection(host, int(port), timeout=600)
        headers = {"content-type": "application/json"}
        if how == BYTES:
            headers["transfer-encoding"] = "chunked"
            data = b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n"
        try:
            connection.request("POST", path, data, headers)
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except OSError as error:  # it was answered before all was sent
            status = type(error).__name__
        connection.close()
        print(status, flush=True)


def measure(most: int) -> dict[str, Any]:
    """All bodies, or the first ``most`` of them."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        os.environ["MLX_GARDENER_HOME"] = str(root / "home")
        (root / "words").mkdir()
        tokenizer = write_tiny_tokenizer(root / "words", write_repository(root / "repository"))
        model = str(write_chat_model(root / "chatty", tokenizer))
        registry = make_projects(load_base(model), root / "code", model, ["alpha"])
        command = (sys.executable, __file__, "--send")
        rows = []
        with (
            server(registry) as (address, loop),
            subprocess.Popen(
                (*command, address), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as client,
        ):
            assert client.stdin is not None and client.stdout is not None

            def ask(path: str, name: str, data: bytes) -> str:
                (root / "body").write_bytes(data)
                print(json.dumps((path, name, str(root / "body"))), file=client.stdin, flush=True)
                return client.stdout.readline().strip()

            for path, forms in WIRE_BODIES.items():  # what is loaded and compiled once
                ask(path, "", forms[0].replace(b"%s", b"x = 1; "))
            loop.learn_idle()
            for path, name, data in list(bodies())[: most or None]:
                loop.begin()
                status = ask(path, name, data)
                rows.append({"path": path, "body": name, "bytes": len(data), "status": status, **loop.seen()})
            client.stdin.close()
    return {"machine": describe(), "bodies": rows}


@click.command()
@click.option("--bodies", "most", type=int, default=0, help="Only the first so many; 0 for all.")
@click.option("--send", "address", hidden=True)
def main(most: int, address: str | None) -> None:
    """Measure, print and keep."""
    if address is not None:
        send(address)
        return
    result = measure(most)
    rows = result["bodies"]
    worst = max(rows, key=lambda row: row["loop_cpu_seconds"])
    longest = max(rows, key=lambda row: row["without_a_turn_seconds"])
    result["bars"] = [
        bar(
            "processor time of the event loop",
            f"{worst['path']}: {worst['body']}",
            f"{MOST_SECONDS} s",
            f"{worst['loop_cpu_seconds']} s",
            worst["loop_cpu_seconds"] <= MOST_SECONDS,
        ),
        bar(
            "longest time without a turn of the event loop",
            f"{longest['path']}: {longest['body']}",
            f"{MOST_SECONDS} s on idle cores",
            f"{longest['without_a_turn_seconds']} s",
            None,
        ),
    ]
    print(json.dumps(result, indent=2))
    if not most:
        save("serve_loop", result)


if __name__ == "__main__":
    main()
