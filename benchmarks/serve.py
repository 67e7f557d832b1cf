"""Four projects served to eight clients: is every answer its project's own, is memory flat, what does a swap cost?

    python benchmarks/serve.py [--minutes 10] [--clients 8]

A server process (``mlx-gardener serve``) on the embedded model; clients in threads ask for places in this repository's own
files: FIM spans through ``/v1/completions`` (streamed or whole) and ``/infill``, and raw prompts. Each answer is compared with
what `evaluate.complete` writes offline with that project's adapter. Then one request after the other, to the same or to
the other adapter in turn, to this server and to ``mlx_lm.server``, which reloads the model to change adapters. All traffic
stays on 127.0.0.1. Writes ``results/serve.json``.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import bar, describe, save, spread

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import complete, whole_characters, written_ids
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.choose import seedling_path
from mlx_gardener.platform.processes import module_command
from mlx_gardener.registry import ProjectRegistry
from tests.support.adapters import SHAPES, make_projects

ROOT = Path(__file__).parents[1]
MIB = 2**20
MOST_REQUESTS = 100_000
TOKENS = 16
#: Of a file, shown before and after the caret.
LINES_BEFORE, LINES_AFTER = 40, 15


@dataclass(frozen=True)
class Question:
    """A place in a file, asked for in one of the ways that clients have; ``suffix`` None is a raw prompt."""

    way: str
    prefix: str
    suffix: str | None
    path: str


@dataclass
class Seen:
    """What the clients saw."""

    requests: int = 0
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    footprints: list[tuple[float, float]] = field(default_factory=list)


def questions(count: int) -> list[Question]:
    """Places in this repository's sources, the four ways in turn."""
    draw = random.Random(5)
    files = sorted((ROOT / "mlx_gardener").rglob("*.py"))
    found = []
    for number in range(count):
        file = files[draw.randrange(len(files))]
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        at = draw.randrange(1, len(lines)) if len(lines) > 1 else 0
        way = ("stream", "infill", "whole", "raw")[number % 4]
        prefix, suffix = (
            "".join(lines[max(0, at - LINES_BEFORE) : at]),
            "".join(lines[at + 1 : at + 1 + LINES_AFTER]),
        )
        path = file.relative_to(ROOT).as_posix()
        found.append(Question(way, prefix or "import os\n", None if way == "raw" else suffix, path))
    return found


def offline(base: BaseModel, registry: ProjectRegistry, asked: list[Question]) -> dict[tuple[str, int], str]:
    """What each project's adapter answers without a server."""
    wanted = {}
    for project in SHAPES:
        with attach_adapter(base, PeftManager(registry).load_adapter(project)):
            for number, question in enumerate(asked):
                if question.suffix is None:
                    prompt = base.tokenizer.encode_with_markers(question.prefix)
                    ids = [token for token, _ in written_ids(base, prompt, max_new_tokens=TOKENS)]
                    wanted[project, number] = whole_characters(base.tokenizer.decode(ids))
                else:
                    wanted[project, number] = complete(
                        base, question.prefix, question.suffix, path=question.path, max_new_tokens=TOKENS
                    )
    return wanted


@contextmanager
def process(command: list[str], address: Callable[[subprocess.Popen[str]], str]) -> Iterator[str]:
    """A server process while the block runs."""
    with tempfile.TemporaryFile("w+") as errors:
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ)
        )
        try:
            yield address(running)
        except BaseException:
            errors.seek(0)
            print(errors.read()[-3000:], file=sys.stderr)
            raise
        finally:
            running.terminate()
            running.wait(30)


def ours() -> tuple[list[str], Callable[[subprocess.Popen[str]], str]]:
    """This project's server, on a free port."""

    def address(running: subprocess.Popen[str]) -> str:
        assert running.stdout is not None
        for line in running.stdout:
            event = json.loads(line)
            assert event.get("problem") is None, event
            if event["event"] == "ready":
                return str(event["address"])
        raise RuntimeError("the server ended")

    return module_command("mlx_gardener", "serve", "--port", "0", "--json"), address


def theirs() -> tuple[list[str], Callable[[subprocess.Popen[str]], str]]:
    """mlx-lm's server, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = f"http://127.0.0.1:{port}"

    def address(running: subprocess.Popen[str]) -> str:
        for _ in range(1800):
            if running.poll() is not None:
                raise RuntimeError("mlx_lm.server ended")
            try:
                httpx.get(where + "/health", timeout=1)
                return where
            except httpx.HTTPError:
                time.sleep(0.1)
        raise RuntimeError("mlx_lm.server does not answer")

    start = (
        "import mlx_gardener, runpy; runpy.run_module('mlx_lm.server', run_name='__main__')"  # the same BLAS
    )
    return [
        sys.executable,
        "-c",
        start,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "ERROR",
    ], address


def ask(client: httpx.Client, project: str, question: Question) -> tuple[str, str, float]:
    """(answer, adapter's hash, seconds to its first piece)."""
    start = time.perf_counter()
    body: dict[str, Any] = {"model": project, "max_tokens": TOKENS, "prompt": question.prefix}
    if question.way == "infill":
        body = {
            "model": project,
            "input_prefix": question.prefix,
            "prompt": "",
            "input_suffix": question.suffix,
            "filename": question.path,
            "n_predict": TOKENS,
        }
        done = client.post("/infill", json=body).raise_for_status()
        return done.json()["content"], done.headers["x-adapter"], time.perf_counter() - start
    if question.suffix is not None:
        body |= {"suffix": question.suffix, "path": question.path}
    if question.way == "whole":
        done = client.post("/v1/completions", json=body).raise_for_status()
        return done.json()["choices"][0]["text"], done.headers["x-adapter"], time.perf_counter() - start
    text, first = "", 0.0
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        stream.raise_for_status()
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - start
                text += json.loads(line[6:])["choices"][0]["text"]
    return text, stream.headers["x-adapter"], first


def storm(
    address: str,
    asked: list[Question],
    wanted: dict[tuple[str, int], str],
    hashes: dict[str, str],
    *,
    seconds: float,
    clients: int,
) -> Seen:
    """Clients that ask until the time is over."""
    seen, lock, until = Seen(), threading.Lock(), time.monotonic() + seconds
    projects = sorted(hashes)

    def one(number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(base_url=address, timeout=120) as client:
            while time.monotonic() < until and seen.requests < MOST_REQUESTS:
                project, place = draw.choice(projects), draw.randrange(len(asked))
                start = time.perf_counter()
                try:
                    text, adapter, first = ask(client, project, asked[place])
                except httpx.HTTPError as error:
                    with lock:
                        seen.failed.append(f"{type(error).__name__}: {error}")
                    continue
                with lock:
                    seen.requests += 1
                    seen.whole.append(time.perf_counter() - start)
                    if asked[place].way in ("stream", "raw"):
                        seen.first_token.append(first)
                    if text != wanted[project, place] or adapter != hashes[project]:
                        seen.different.append(f"{project} {place} {asked[place].way}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    start, step = time.monotonic(), max(0.5, min(5.0, seconds / 60))
    with httpx.Client(base_url=address, timeout=60) as client:
        while any(thread.is_alive() for thread in threads):
            seen.footprints.append((time.monotonic() - start, metric(client, "process_footprint_bytes")))
            time.sleep(step)
    for thread in threads:
        thread.join()
    return seen


def metric(client: httpx.Client, name: str) -> float:
    """A value of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"mlx_gardener_{name} ")))


def turns(post: Callable[[int], None], count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of requests that stay with adapter 0, and of requests that change the adapter every time."""
    post(0)
    same = [_timed(post, 0) for _ in range(count)]
    return same, [_timed(post, 1 - number % 2) for number in range(count)]


def _timed(post: Callable[[int], None], which: int) -> float:
    start = time.perf_counter()
    post(which)
    return 1000 * (time.perf_counter() - start)


def swaps(address: str, count: int) -> dict[str, Any]:
    """What changing adapters costs here: a request more, and the swap alone as the server measures it."""
    with httpx.Client(base_url=address, timeout=60) as client:

        def post(which: int) -> None:
            body = {"model": ("alpha", "beta")[which], "prompt": "import os\n", "max_tokens": 1}
            client.post("/v1/completions", json=body).raise_for_status()

        same, changing = turns(post, count)
        alone = 1000 * metric(client, "swap_seconds_total") / metric(client, "swaps_total")
    return {"same_ms": spread(same), "changing_ms": spread(changing), "swap_alone_ms": round(alone, 4)}


def reloads(address: str, registry: ProjectRegistry, count: int) -> dict[str, Any]:
    """What changing adapters costs in mlx_lm.server."""
    paths = [str(registry.get_adapter(name).directory / "mlx") for name in ("alpha", "beta")]
    with httpx.Client(base_url=address, timeout=120) as client:

        def post(which: int) -> None:
            body = {
                "model": str(seedling_path()),
                "adapters": paths[which],
                "prompt": "import os\n",
                "max_tokens": 1,
            }
            client.post("/v1/completions", json=body).raise_for_status()

        same, changing = turns(post, count)
    return {"same_ms": spread(same), "changing_ms": spread(changing)}


def slope_mib_per_hour(footprints: list[tuple[float, float]]) -> float:
    """Least squares over the samples, the first fifth left out, in which caches fill."""
    kept = footprints[len(footprints) // 5 :]
    return float(np.polyfit([at for at, _ in kept], [value for _, value in kept], 1)[0]) * 3600 / MIB


def measure(seconds: float, clients: int, *, places: int = 16, turn_count: int = 20) -> dict[str, Any]:
    """All of it, in a home of its own."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MLX_GARDENER_HOME"] = str(Path(directory) / "home")
        base = load_base("seedling")
        registry = make_projects(base, Path(directory) / "code", "seedling", list(SHAPES))
        asked = questions(places)
        wanted = offline(base, registry, asked)
        hashes = {
            name: PeftManager(registry)
            .load_adapter(name)
            .manifest["files"]["mlx/adapters.safetensors"]["sha256"]
            for name in SHAPES
        }
        with process(*ours()) as address:
            seen = storm(address, asked, wanted, hashes, seconds=seconds, clients=clients)
            with httpx.Client(base_url=address, timeout=60) as client:
                cached = metric(client, "cached_tokens_total") / max(
                    1.0, metric(client, "prompt_tokens_total")
                )
            here = swaps(address, turn_count)
        with process(*theirs()) as address:
            there = reloads(address, registry, turn_count)
    reload_ms = there["changing_ms"]["median"] - there["same_ms"]["median"]
    swap_ms = max(here["changing_ms"]["median"] - here["same_ms"]["median"], here["swap_alone_ms"])
    own = sum(len({wanted[name, at] for name in SHAPES}) == len(SHAPES) for at in range(places))
    return {
        "machine": describe(),
        "seconds": seconds,
        "clients": clients,
        "projects": len(SHAPES),
        "places": places,
        "places_where_all_projects_answer_differently": own,
        "requests": seen.requests,
        "requests_per_second": round(seen.requests / seconds, 2),
        "different": len(seen.different),
        "different_examples": seen.different[:5],
        "failed": len(seen.failed),
        "failed_examples": seen.failed[:5],
        "first_token_ms": _percentiles(seen.first_token),
        "whole_answer_ms": _percentiles(seen.whole),
        "share_of_prompt_tokens_from_cache": round(cached, 3),
        "footprint_mib": {
            "first": round(seen.footprints[0][1] / MIB, 1),
            "last": round(seen.footprints[-1][1] / MIB, 1),
            "most": round(max(value for _, value in seen.footprints) / MIB, 1),
            "slope_per_hour": round(slope_mib_per_hour(seen.footprints), 2),
            "samples": len(seen.footprints),
        },
        "ours": here,
        "mlx_lm_server": there,
        "swap_ms": round(swap_ms, 3),
        "reload_ms": round(reload_ms, 3),
        "ratio": round(reload_ms / swap_ms, 1),
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    return {
        name: round(1000 * float(np.percentile(values, at)), 1) for name, at in (("p50", 50), ("p99", 99))
    }


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.01, max=30), default=10.0, show_default=True)
@click.option("--clients", type=click.IntRange(1, 32), default=8, show_default=True)
def main(minutes: float, clients: int) -> None:
    """Measure, print and keep."""
    result = measure(60 * minutes, clients)
    memory = result["footprint_mib"]
    flat = abs(memory["slope_per_hour"]) * minutes / 60 <= 0.02 * memory["first"] + 1
    result["bars"] = [
        bar(
            "answers that are not their project's own",
            "offline",
            "0",
            str(result["different"]),
            result["different"] == 0,
        ),
        bar("requests that failed", "", "0", str(result["failed"]), result["failed"] == 0),
        bar(
            "growth over the run",
            "2 % of the footprint",
            "flat",
            f"{memory['slope_per_hour']} MiB an hour",
            flat,
        ),
        bar("cost of another adapter", "mlx_lm.server's reload", "a ratio", f"{result['ratio']}x", None),
    ]
    print(json.dumps(result, indent=2))
    save("serve", result)


if __name__ == "__main__":
    main()
