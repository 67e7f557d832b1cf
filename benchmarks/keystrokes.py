"""Somebody types, and every pause asks for a completion: what is read anew, how many steps an answer takes, and is it the same?

    python benchmarks/keystrokes.py [--requests 220] [--llama-python .venv-llama/bin/python]

Replays ``sessions/click.json`` (made by ``keystroke_session.py``) on the embedded base. Each pause is llama.vim's ``/infill``: up to
256 lines before the caret's, its own up to the caret, the rest of it and 64 lines. Ours are computed as the server computes them, with
the keys and values of earlier prompts and with drafts; and once more without either, as `mlx-gardener complete` does, which gives
the answers that they have to be equal to. Prompt by prompt in turn, so that what else the machine does slows both alike.

llama.cpp's server is asked the same, with the same weights in a GGUF file of float32: by ``xllamacpp`` (PyPI), which is that server in
a Python process, from its own environment. Twice: with batches of 1024, and with all settings of its ``--fim-qwen-*-default`` (these
batches, and chunks of 256 tokens moved in its cache: an approximation). It takes up to three quarters of a batch before the
caret and a quarter after; ours are 640 and 192. Tokens read anew are its own ``timings.prompt_n``; wall times are told as they are.
For the whole session the tokens that each reads anew are also counted by its rules, which takes no computing.
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
from mlx_gardener.evaluate.complete import (
    build_prompt,
    caret_prompt,
    rest_of,
    whole_characters,
    written_ids,
)
from mlx_gardener.model import BaseModel, CodeTokenizer, load_base
from mlx_gardener.serve.bodies import InfillBody
from mlx_gardener.serve.generation import Ending, Limits, Piece, Sampling, answer
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.prompt_caches import PromptCaches
from mlx_gardener.serve.prompts import infill_prompt
from tests.support.adapters import make_projects

SESSION = Path(__file__).parent / "sessions" / "click.json"
TOKENS, LINES_BEFORE, LINES_AFTER = 32, 256, 64
#: llama.cpp's server with batches that the embedded base's 2,048 tokens have room for, and with all that its presets for FIM set.
SETTINGS: dict[str, dict[str, int]] = {
    "llama_cpp": {"n_batch": 1024, "n_ubatch": 1024},
    "llama_cpp_fim_preset": {"n_batch": 1024, "n_ubatch": 1024, "n_cache_reuse": 256},
}
#: As it starts by itself: its prompts leave this base no room, so that they are only counted.
COUNTED = {**SETTINGS, "llama_cpp_by_itself": {"n_batch": 2048}}
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


def alike(first: list[int], second: list[int]) -> int:
    """How many tokens two prompts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def anew_here(prompts: list[list[int]]) -> list[int]:
    """Tokens that are read anew of each prompt, by the rules of `PromptCaches`."""
    kept: list[list[int]] = []
    found = []
    for prompt in prompts:
        common = [min(alike(other, prompt), len(prompt) - 1) for other in kept]
        most = max(common, default=0)
        found.append(len(prompt) - (most if most >= 16 else 0))
        if most >= 16 and 2 * most >= len(kept[common.index(most)]):
            del kept[common.index(most)]
        kept = [*kept, prompt][-8:]
    return found


def llama_prompts(asked: list[dict[str, Any]], tokenizer: CodeTokenizer, batch: int) -> list[list[int]]:
    """What llama.cpp's server makes of the requests (its tools/server, ``format_prompt_infill``)."""
    marks = tokenizer.markers
    assert marks is not None and marks.middle is not None
    found = []
    for request in asked:
        before, own, after = (
            tokenizer.encode(request[name]) for name in ("input_prefix", "prompt", "input_suffix")
        )
        shown = [*before[-3 * (batch // 4) :], *own], after[: max(0, batch // 4 - 2 - len(own))]
        found.append([marks.prefix, *shown[0], marks.suffix, *shown[1], marks.middle])
    return found


def anew_there(prompts: list[list[int]], reuse: int) -> list[int]:
    """Tokens that are read anew of each prompt, by llama.cpp's rules for one slot: what it begins with alike, and then chunks of
    ``reuse`` and more that it moves."""
    cached: list[int] = []
    found = []
    for prompt in prompts:
        known = here = there = alike(cached, prompt)
        while reuse and here < len(cached) and there < len(prompt):
            chunk = alike(cached[here:], prompt[there:])
            if chunk >= reuse:
                here, there, known = here + chunk, there + chunk, known + chunk
            else:
                here += 1
        found.append(len(prompt) - min(known, len(prompt) - 1))
        cached = prompt
    return found


def counted(asked: list[dict[str, Any]], tokenizer: CodeTokenizer) -> dict[str, Any]:
    """Tokens read anew in the whole session, by each one's rules: nothing is computed."""
    parts = [(request["input_prefix"], request["prompt"], request["input_suffix"]) for request in asked]
    ours = [caret_prompt(tokenizer, above + own, after, "").ids for above, own, after in parts]
    # As it was until 2026-11-29, so only counted: what is typed of a line before the suffix.
    before = [build_prompt(tokenizer, above + own, after, "") for above, own, after in parts]
    found = {"ours": anew_here(ours), "ours_with_the_line_before_the_suffix": anew_here(before)}
    for name, settings in COUNTED.items():
        prompts = llama_prompts(asked, tokenizer, settings["n_batch"])
        found[name] = anew_there(prompts, settings.get("n_cache_reuse", 0))
    return {
        name: {"anew_tokens": sum(values), "mean": round(sum(values) / len(values), 1), **spread(values)}
        for name, values in found.items()
    }


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
        plain = written_ids(base, prompt.ids, max_new_tokens=TOKENS, begins=prompt.begins)
        ids = [token for token, _ in plain]
        seconds[-1] += time.perf_counter()
        cpu[-1] += time.process_time()
        offline = whole_characters(rest_of(base.tokenizer, ids, prompt.begins))
        found.append(
            {
                "prompt": len(prompt.ids),
                "anew": len(prompt.ids) - ending.cached_tokens,
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
    session, asked = requests(10**6), requests(count)
    base = load_base("seedling")
    before = describe()
    rows = ours(base, asked)
    result: dict[str, Any] = {
        "machine": before,
        "session": json.loads(SESSION.read_text(encoding="utf-8"))["source"],
        "base": "seedling, float32",
        "requests": len(session),
        "counted": counted(session, base.tokenizer),
        "requests_computed": len(asked),
        "answer_tokens_at_most": TOKENS,
        "prompt_tokens": sum(row["prompt"] for row in rows),
        "anew_tokens": sum(row["anew"] for row in rows),
        "anew_per_request": spread([row["anew"] for row in rows]),
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
    faster, cheaper = (result[name][1] / result[name][0] for name in ("seconds", "cpu_seconds"))
    rows = [
        bar("answers", "ours without drafts and reuse", "unchanged", f"{result['answers_changed']} changed",
            result["answers_changed"] == 0),
        bar("decode steps", "ours without drafts", "at most 0.6", f"{steps:.2f}", steps <= 0.6),
        bar("wall time", "ours without drafts and reuse", "at least 1.5x", f"{faster:.2f}x", faster >= 1.5),
        bar("processor time", "ours without drafts and reuse", "at least 1.5x", f"{cheaper:.2f}x", cheaper >= 1.5),
    ]  # fmt: skip
    for name in COUNTED:
        share = result["counted"]["ours"]["anew_tokens"] / result["counted"][name]["anew_tokens"]
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
