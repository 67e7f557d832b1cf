"""What a large or deep body costs: at most ten times its size, whatever it is made of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.model import load_base
from mlx_gardener.platform.processes import module_command
from mlx_gardener.serve.bodies import ChatBody, CompletionBody, InfillBody, parse
from mlx_gardener.serve.ollama_bodies import GenerateBody, OllamaChatBody
from mlx_gardener.serve.reading import read_json
from mlx_gardener.serve.worker import BadRequestError
from tests.support.adapters import make_projects
from tests.support.requests import JSON

BIG = 4 * 2**20
SHAPES_OF_BODIES = {
    "objects": b'{"prompt":[' + b"{}," * (BIG // 3 - 9) + b"{}]}",
    "texts": b'{"prompt":[' + b'"a",' * (BIG // 4 - 9) + b'"a"]}',
    "numbers": b'{"prompt":[' + b"1," * (BIG // 2 - 9) + b"1]}",
    "few numbers": b'{"prompt":[' + b"12345," * 80_000 + b'"x"]}',
    "lists": b'{"prompt":[' + b"[1]," * (BIG // 4 - 9) + b"[1]]}",
    "messages": b'{"messages":[' + b'{"role":"x"},' * (BIG // 13 - 9) + b"{}]}",
    "few messages": b'{"messages":[' + b'{"role":"x"},' * 4000 + b"{}]}",
    "files": b'{"input_extra":[' + b'{"text":""},' * (BIG // 12 - 9) + b"{}]}",
    "names": b"{" + b",".join(b'"%d":0' % at for at in range(BIG // 12)) + b"}",
    "deep": b"[" * BIG,
    "wide text and an escape": b'{"prompt":"' + b"a" * (BIG - 99) + "\U0001f600\\n".encode() + b'"}',
    "wide text": b'{"prompt":"' + "\U0001f600".encode() * (BIG // 4 - 9) + b'"}',
    "mixed text": '{"prompt":"\U0001f600\\ud83d'.encode() + b"a" * (BIG - 99) + b'"}',
    "escapes": b'{"prompt":"' + b'\\"' * (BIG // 2 - 9) + b'"}',
    "quotes": b'"' * BIG,
    "no JSON": b'\\"\\\\"' * (BIG // 5),
    "blanks": b" " * BIG,
}


@pytest.mark.parametrize("shape", SHAPES_OF_BODIES)
def test_no_body_costs_more_than_ten_times_its_size(shape: str) -> None:
    data = SHAPES_OF_BODIES[shape]
    peaks: dict[str, int] = {}

    def peak_of(name: str, function: Callable[..., Any], *arguments: object) -> Any:
        tracemalloc.reset_peak()
        try:
            return function(*arguments)
        except BadRequestError as error:
            assert len(str(error)) < 500
        finally:
            peaks[name] = tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        body = peak_of("reading", read_json, data)
        if body is not None:  # most shapes are refused before any kind is asked
            for kind in (CompletionBody, ChatBody, InfillBody, GenerateBody, OllamaChatBody):
                peak_of(kind.__name__, parse, kind, body)
    finally:
        tracemalloc.stop()
    assert max(peaks.values()) < max(10 * len(data), 2**20), peaks


#: Texts of about 4 MB on the wire, as JSON spells them; what they take in memory differs most.
WIRE_TEXTS = {
    "emoji": "\U0001f600".encode() * (BIG // 4 - 99),
    "an emoji and an escape at the end": b"a" * (BIG - 400) + "\U0001f600\\n".encode(),
    "halves at both ends": b"\\ude00" + b"a" * (BIG - 400) + b"\\ud83d",
    "escaped emoji": b"\\ud83d\\ude00" * (BIG // 12 - 99),
    "escapes": b'\\"' * (BIG // 2 - 99),
    "slashes": b"a/" * (BIG // 2 - 99),
    "latin": "\u00e9".encode() * (BIG // 2 - 99),
    "as long a chat as is read": "\U0001f600".encode() * 819_000,
}
WIRE_BODIES = {
    "/infill": (
        b'{"input_prefix":"%s","n_predict":1}',
        b'{"input_suffix":"%s","n_predict":1}',
        b'{"input_extra":[{"text":"%s","filename":"a.py"}],"n_predict":1}',
        b'{"input_extra":[{"text":"","filename":"%s"}],"n_predict":1}',
        b'{"prompt":"%s","n_predict":1}',
        b'{"response_fields":["%s"],"n_predict":1}',
        b'{"wings":"%s","n_predict":1}',
        b'{"%s":1,"n_predict":1}',
    ),
    "/completion": (b'{"prompt":"%s","n_predict":1}', b'{"prompt":"x","model":"%s","n_predict":1}'),
    "/v1/completions": (
        b'{"prompt":"%s","max_tokens":1}',
        b'{"prompt":["%s"],"max_tokens":1,"echo":true}',
        b'{"prompt":"x","suffix":"%s","max_tokens":1}',
        b'{"prompt":"x","stop":["%s"],"max_tokens":1}',
        b'{"prompt":"x","user":"%s","max_tokens":1}',
        b'{"prompt":"x","path":"%s","max_tokens":1}',
    ),
    "/api/generate": (
        b'{"prompt":"%s","suffix":"x","options":{"num_predict":1}}',
        b'{"prompt":"x","suffix":"%s","options":{"num_predict":1}}',
        b'{"prompt":"%s","options":{"num_predict":1}}',
        b'{"prompt":"x","options":{"%s":1,"num_predict":1}}',
        b'{"prompt":"x","images":["%s"],"options":{"num_predict":1}}',
    ),
    "/v1/chat/completions": (
        b'{"messages":[{"role":"user","content":"%s"}],"max_tokens":1}',
        b'{"messages":[{"role":"user","content":[{"type":"text","text":"%s"}]}],"max_tokens":1}',
        b'{"messages":[{"role":"%s","content":""}],"max_tokens":1}',
    ),
}


def wire_bodies(texts_a_form: int) -> Iterator[tuple[str, str, bytes]]:
    """Every path, form and text; each form with so many of the texts, in turn."""
    texts = cycle(WIRE_TEXTS.items())
    for path, forms in WIRE_BODIES.items():
        for form in forms:
            for name, text in islice(texts, texts_a_form):
                yield path, f"{form[:40]!r}: {name}", form.replace(b"%s", text)
        for name in ("few numbers", "few messages", "names", "deep"):
            yield path, name, SHAPES_OF_BODIES[name]


def peak_kib(process: int) -> int:
    """The most memory that a process has taken since its ``clear_refs`` was written."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux measures a peak anew")
@pytest.mark.parametrize("texts_a_form", [1, pytest.param(len(WIRE_TEXTS), marks=pytest.mark.slow)])
def test_no_body_costs_the_server_more_than_ten_times_its_size(
    home: Path, tmp_path: Path, chat_model_dir: Path, texts_a_form: int
) -> None:
    base = load_base(str(chat_model_dir))
    make_projects(base, tmp_path / "code", str(chat_model_dir), ["alpha"])
    command = module_command("mlx_gardener", "serve", "alpha", "--port", "0", "--json", "--quiet")
    # Large pieces of memory go back to the system at once, so that each body's own peak shows.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    costs: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        address = [json.loads(running.stdout.readline()) for _ in range(2)][1]["address"]
        with httpx.Client(base_url=address, headers=JSON, timeout=120) as client:
            for path in WIRE_BODIES:  # what is loaded and compiled once
                near = b"x = 1; " * 900
                for form in WIRE_BODIES[path]:
                    client.post(path, content=form.replace(b"%s", near))
            for path, name, data in wire_bodies(texts_a_form):
                Path(f"/proc/{running.pid}/clear_refs").write_text("5")
                before = peak_kib(running.pid)
                done = client.post(path, content=data)
                assert done.status_code in (200, 400, 404), (path, name, done.text[:500])
                costs[f"{path} {name}"] = (peak_kib(running.pid) - before) * 1024 / max(len(data), 2**20)
        running.send_signal(signal.SIGINT)
        running.wait(60)
    worst = sorted(costs.items(), key=lambda item: -item[1])[:5]
    assert worst[0][1] < 10, worst
