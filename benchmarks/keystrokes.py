"""Somebody types, and every pause asks for a completion: what is read anew, how many steps an answer takes, and is it the same?

    python benchmarks/keystrokes.py [--requests 220] [--llama-python .venv-llama/bin/python]

Replays ``sessions/click.json`` (made by ``keystroke_session.py``) on the embedded base. Each pause is llama.vim's ``/infill``: up to
256 lines before the caret's, its own up to the caret, the rest of it and 64 lines. Ours are computed as the server computes them, with
the keys and values of earlier prompts and with drafts; and once more without either, as `mlx-gardener complete` does, which gives
the answers that they have to be equal to. Prompt by prompt in turn, so that what else the machine does slows both alike.

llama.cpp's server is asked the same, with the same weights in a GGUF file of float32: by ``xllamacpp`` (PyPI), which is that server in
a Python process, from its own environment. Twice: as it starts by itself, and with the settings of its ``--fim-qwen-*-default``
(batches of 1024, chunks of 256 tokens moved in its cache: an approximation). It takes up to three quarters of a batch before the
caret and a quarter after; ours are 640 and 192. Tokens read anew are its own ``timings.prompt_n``. Wall times are told as they are.
Writes ``results/keystrokes.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import httpx

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from keystroke_session import replayed
from machine import bar, describe, save, spread

from mlx_gardener.adapter.exports import export_adapter
from mlx_gardener.evaluate.complete import build_prompt, whole_characters, written_ids
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.serve.bodies import InfillBody
from mlx_gardener.serve.generation import Ending, Limits, Piece, Sampling, answer
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.prompt_caches import PromptCaches
from mlx_gardener.serve.prompts import infill_prompt
from tests.serve.conftest import make_projects

SESSION = Path(__file__).parent / "sessions" / "click.json"
TOKENS, LINES_BEFORE, LINES_AFTER = 32, 256, 64
#: llama.cpp's own, and what its presets for FIM set.
SETTINGS: dict[str, dict[str, int]] = {
    "llama_cpp": {},
    "llama_cpp_fim_preset": {"n_batch": 1024, "n_ubatch": 1024, "n_cache_reuse": 256},
}
_SERVER = """
import json, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel, parameters.port = 8192, 1, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(sys.argv[3])
for name, value in json.loads(sys.argv[2]).items():
    setattr(parameters, name, value)
server = xllamacpp.Server(parameters)
print(json.dumps({"address": server.listening_address, "build": str(xllamacpp.BUILD_INFO)}), flush=True)
sys.stdin.read()
"""


def requests(count: int) -> list[dict[str, Any]]:
    """The session's requests, as llama.vim sends them."""
    found = []
    for key, text, caret in replayed(json.loads(SESSION.read_text(encoding="utf-8"))):
        if key.asks and len(found) < count:
            above, _, own = text[:caret].rpartition("\n")
            lines = above.split("\n") if above or "\n" in text[:caret] else []
            prefix = "".join(f"{line}\n" for line in lines[-LINES_BEFORE:])
            suffix = "\n".join(text[caret:].split("\n")[: LINES_AFTER + 1])
            found.append({"input_prefix": prefix, "prompt": own, "input_suffix": suffix})
    return found


class _NoLookup(Lookup):
    """A base alone has no repository to look into."""

    def __init__(self) -> None: ...

    def in_front(self, *args: Any, **more: Any) -> list[int]:
        return list(more.get("sent", ()))


def behind_the_middle(base: BaseModel, asked: list[dict[str, Any]]) -> int:
    """Tokens read anew if what is typed of a line stood behind the marker of the middle: another prompt, so only counted here."""
    kept: list[list[int]] = []
    anew = 0
    for request in asked:
        own = build_prompt(base.tokenizer, request["input_prefix"], request["input_suffix"], "")
        prompt = own + base.tokenizer.encode(request["prompt"])
        alike = [
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, other, strict=False)))
            for other in kept
        ]
        most = min(max(alike, default=0), len(prompt) - 1)
        anew += len(prompt) - most
        if kept and 2 * most >= len(kept[alike.index(max(alike))]):
            del kept[alike.index(max(alike))]
        kept = [*kept, prompt][-8:]
    return anew


def ours(base: BaseModel, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every request with drafts and earlier prompts, and then without."""
    caches, found = PromptCaches(), []
    for number, request in enumerate(asked):
        limits = Limits(TOKENS, as_fits=True)
        prompt = infill_prompt(InfillBody(**request), base, 2048, limits, _NoLookup())[0]
        seconds, cpu = [], []
        text, ending = "", None
        seconds.append(-time.perf_counter())
        cpu.append(-time.process_time())
        for event in answer(base, prompt, Sampling(), limits, caches=caches, key=("", "")):
            if isinstance(event, Piece):
                text += event.text
            else:
                ending = event
        seconds[-1] += time.perf_counter()
        cpu[-1] += time.process_time()
        assert isinstance(ending, Ending)
        seconds.append(-time.perf_counter())
        cpu.append(-time.process_time())
        ids = [token for token, _ in written_ids(base, prompt, max_new_tokens=TOKENS)]
        seconds[-1] += time.perf_counter()
        cpu[-1] += time.process_time()
        offline = whole_characters(base.tokenizer.decode(ids))
        found.append(
            {
                "prompt": len(prompt),
                "anew": len(prompt) - ending.cached_tokens,
                "written": len(ids),
                "steps": ending.decode_steps,
                "steps_without": len(ids) + (len(ids) < TOKENS),
                "same": text == offline,
                "seconds": seconds,
                "cpu": cpu,
            }
        )
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {len(asked)} requests", file=sys.stderr, flush=True)
    return found


@contextmanager
def llama_cpp(python: str, model: Path, settings: dict[str, int]) -> Iterator[dict[str, str]]:
    """llama.cpp's server while the block runs: its address and build."""
    with subprocess.Popen(
        [python, "-c", _SERVER, str(model), json.dumps(settings), str(os.cpu_count() or 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdin is not None and running.stdout is not None
        for line in running.stdout:
            if line.startswith("{"):
                yield json.loads(line)
                break
        else:
            raise click.ClickException("llama.cpp's server did not start.")
        running.terminate()


def theirs(python: str, model: Path, settings: dict[str, int], asked: list[dict[str, Any]]) -> dict[str, Any]:
    """What llama.cpp's server reads anew and how long it takes, request by request."""
    with (
        llama_cpp(python, model, settings) as told,
        httpx.Client(base_url=told["address"], timeout=600) as client,
    ):
        anew, seconds, written, prompts = [], [], 0, []
        for request in asked:
            body = {
                **request,
                "input_extra": [],
                "n_predict": TOKENS,
                "temperature": 0.0,
                "cache_prompt": True,
                "id_slot": 0,
            }
            start = time.perf_counter()
            done = client.post("/infill", json=body).raise_for_status().json()
            seconds.append(time.perf_counter() - start)
            anew.append(done["timings"]["prompt_n"])
            prompts.append(done["tokens_evaluated"])
            written += done["timings"]["predicted_n"]
    return {
        "build": told["build"],
        "settings": settings,
        "prompt_tokens": sum(prompts),
        "anew_tokens": sum(anew),
        "anew_per_request": spread(anew),
        "written_tokens": written,
        "seconds": round(sum(seconds), 2),
    }


def measure(count: int, llama_python: str | None) -> dict[str, Any]:
    """All of it."""
    asked = requests(count)
    base = load_base("seedling")
    before = describe()
    rows = ours(base, asked)
    result: dict[str, Any] = {
        "machine": before,
        "session": json.loads(SESSION.read_text(encoding="utf-8"))["source"],
        "requests": len(asked),
        "base": "seedling, float32",
        "answer_tokens_at_most": TOKENS,
        "prompt_tokens": sum(row["prompt"] for row in rows),
        "anew_tokens": sum(row["anew"] for row in rows),
        "anew_per_request": spread([row["anew"] for row in rows]),
        "anew_tokens_if_the_line_stood_behind_the_middle": behind_the_middle(base, asked),
        "written_tokens": sum(row["written"] for row in rows),
        "decode_steps": sum(row["steps"] for row in rows),
        "decode_steps_without_drafts": sum(row["steps_without"] for row in rows),
        "answers_changed": sum(not row["same"] for row in rows),
        "seconds": [round(sum(row["seconds"][at] for row in rows), 2) for at in (0, 1)],
        "cpu_seconds": [round(sum(row["cpu"][at] for row in rows), 2) for at in (0, 1)],
    }
    save("keystrokes", {**result, "bars": bars(result)})  # what comes now takes long
    if llama_python is not None:
        with tempfile.TemporaryDirectory() as directory:
            os.environ["MLX_GARDENER_HOME"] = str(Path(directory) / "home")
            registry = make_projects(base, Path(directory) / "code", "seedling", ["alpha"])
            place = Path(directory) / "gguf"
            export_adapter(registry, "alpha", None, "gguf-base", place, dtype="float32")
            model = next(place.glob("*.gguf"))
            for name, settings in SETTINGS.items():
                result[name] = theirs(llama_python, model, settings, asked)
                save("keystrokes", {**result, "bars": bars(result)})
    return {**result, "bars": bars(result)}


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was wanted, and what was seen."""
    steps = result["decode_steps"] / result["decode_steps_without_drafts"]
    faster = result["seconds"][1] / result["seconds"][0]
    rows = [
        bar("answers", "ours without drafts and reuse", "unchanged", f"{result['answers_changed']} changed",
            result["answers_changed"] == 0),
        bar("decode steps", "ours without drafts", "at most 0.6", f"{steps:.2f}", steps <= 0.6),
        bar("wall time", "ours without drafts and reuse", "at least 1.5x", f"{faster:.2f}x", faster >= 1.5),
    ]  # fmt: skip
    for name in SETTINGS:
        if name in result:
            share = result["anew_tokens"] / result[name]["anew_tokens"]
            rows.append(bar("prompt tokens read anew", name, "at most 0.5", f"{share:.2f}", share <= 0.5))
    return rows


@click.command()
@click.option(
    "--requests", "count", default=1000, show_default=True, help="At most so many of the session's."
)
@click.option("--llama-python", help="A Python that has xllamacpp; without one llama.cpp is left out.")
def main(count: int, llama_python: str | None) -> None:
    result = measure(count, llama_python)
    print(save("keystrokes", result))
    for row in result["bars"]:
        print(f"{row['measure']} against {row['against']}: {row['seen']} (bar: {row['bar']})")


if __name__ == "__main__":
    main()
