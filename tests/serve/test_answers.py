"""Every answer is its own project's, the same as offline, in each shape that clients send."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import complete, written_ids
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.support.adapters import SHAPES, make_adapter, make_projects

World = tuple[ProjectRegistry, BaseModel]
PREFIX, SUFFIX = "import os\n\n\ndef read_lines(path):\n    with ", "\n\n\ndef write_lines(path):\n    pass\n"


def offline(
    world: World, project: str | None, prefix: str, suffix: str | None, path: str = "", tokens: int = 20
) -> str:
    registry, base = world
    if project is None:
        return complete(base, prefix, suffix, path=path, max_new_tokens=tokens)
    name, _, version = project.partition("@")
    with attach_adapter(base, PeftManager(registry).load_adapter(name, version or None)):
        return complete(base, prefix, suffix, path=path, max_new_tokens=tokens)


def post(address: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(address + path, json=body, timeout=600)


def openai_client(address: str) -> Any:
    """The client of the package, whose import takes as long as all other imports of the tests together."""
    import openai

    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_openais_client_gets_each_projects_own_answer(world: World, address: str) -> None:
    client = openai_client(address)
    answers = {}
    for project in (*SHAPES, "seedling"):
        done = client.completions.create(
            model=project, prompt=PREFIX, suffix=SUFFIX, max_tokens=20, extra_body={"path": "tools/lines.py"}
        )
        answers[project] = done.choices[0].text
        own = None if project == "seedling" else project
        assert answers[project] == offline(world, own, PREFIX, SUFFIX, "tools/lines.py")
        assert done.usage is not None and done.usage.prompt_tokens > 20
        assert done.choices[0].finish_reason in ("stop", "length")
    assert len(set(answers.values())) >= 4, answers  # else equality would prove little


def test_a_stream_says_the_same_piece_by_piece(world: World, address: str) -> None:
    client = openai_client(address)
    pieces = list(
        client.completions.create(
            model="alpha",
            prompt=PREFIX,
            suffix=SUFFIX,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert text == offline(world, "alpha", PREFIX, SUFFIX)
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens > 0
    assert pieces[-2].choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_after_a_line_break_is_the_offline_one_up_to_its_own_line_break(
    world: World, address: str, stream: bool
) -> None:
    """A stop of a newline ends the line that is written, not the one that the client ended."""
    prefix = "import os\n\n\ndef read_lines(path):\n"
    whole = offline(world, "alpha", prefix, None, "tools/lines.py")
    assert whole.strip("\n")
    body = {"prompt": prefix, "path": "tools/lines.py", "max_tokens": 20, "stream": stream}
    for stop in ([], ["\n"]):
        answer = post(address, "/projects/alpha/v1/completions", {**body, "stop": stop})
        if stream:
            lines = [
                line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")
            ]
            text = "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])
        else:
            text = answer.json()["choices"][0]["text"]
        assert text == (whole.partition("\n")[0] if stop else whole)


def test_models_are_projects_versions_and_bases(address: str) -> None:
    client = openai_client(address)
    names = [model.id for model in client.models.list()]
    assert names == sorted(SHAPES) + [f"{name}@v1" for name in sorted(SHAPES)] + ["seedling"]
    assert client.models.retrieve("beta@v1").id == "beta@v1"


def test_an_unknown_model_is_an_error_and_never_the_base(address: str) -> None:
    import openai

    client = openai_client(address)
    for name, words in (
        ("omega", "no model 'omega'"),
        ("alpha@v9", "'alpha' has no adapter version 'v9'"),
        ("gpt-4o", "no model 'gpt-4o'"),
    ):
        with pytest.raises(openai.NotFoundError, match=words):
            client.completions.create(model=name, prompt="x")
    missing = post(address, "/v1/completions", {"prompt": "x"})  # four projects, none of them active
    assert missing.status_code == 404 and "activate" in missing.json()["error"]["message"]


def test_headers_name_the_adapter(world: World, address: str) -> None:
    manifest = PeftManager(world[0]).load_adapter("gamma").manifest
    done = post(address, "/v1/completions", {"model": "gamma", "prompt": "x", "max_tokens": 1})
    assert done.headers["x-adapter"] == manifest["files"]["mlx/adapters.safetensors"]["sha256"]
    assert (done.headers["x-model"], done.headers["x-adapter-version"]) == ("gamma", "v1")
    base = post(address, "/v1/completions", {"model": "seedling", "prompt": "x", "max_tokens": 1})
    assert base.headers["x-adapter"] == "none"


def test_four_projects_at_once_never_mix(world: World, address: str) -> None:
    wanted = {name: offline(world, name, PREFIX, SUFFIX, tokens=12) for name in SHAPES}
    assert len(set(wanted.values())) == len(SHAPES)  # else equality would prove little

    def one(number: int) -> bool:
        project = sorted(SHAPES)[number % 4]
        body = {"model": project, "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 12}
        return post(address, "/v1/completions", body).json()["choices"][0]["text"] == wanted[project]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))


def test_a_growing_prompt_is_not_read_again_and_answered_the_same(world: World, address: str) -> None:
    registry, base = world
    source = (Path(__file__).parent / "sample_source.txt").read_text()
    ids = base.tokenizer.encode(source)[:350]
    seen = []
    turned = [*ids[:150], *ids[200:350]]  # begins as what was asked before
    for prompt in (ids[:280], ids[:295], ids[:295], ids[:350], turned, ids[9:280]):
        body = {"model": "delta", "prompt": prompt, "max_tokens": 12}
        done = post(address, "/v1/completions", body).json()
        seen.append(done["usage"]["prompt_tokens_details"]["cached_tokens"])
        with attach_adapter(base, PeftManager(registry).load_adapter("delta")):
            fresh = [token for token, _ in written_ids(base, prompt, max_new_tokens=12)]
        assert done["choices"][0]["text"] == base.tokenizer.decode(fresh)
    assert seen == [0, 280, 294, 295, 150, 0]


def test_infill_answers_as_offline(world: World, address: str) -> None:
    body = {
        "model": "beta",
        "input_prefix": PREFIX.rpartition("\n")[0] + "\n",
        "prompt": PREFIX.rpartition("\n")[2],
        "input_suffix": SUFFIX,
        "filename": "tools/lines.py",
        "n_predict": 20,
    }
    assert post(address, "/infill", body).json()["content"] == offline(
        world, "beta", PREFIX, SUFFIX, "tools/lines.py"
    )
    lines = httpx.post(address + "/infill", json={**body, "stream": True}, timeout=60).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(event["content"] for event in events) == offline(
        world, "beta", PREFIX, SUFFIX, "tools/lines.py"
    )
    assert events[-1]["stop"] is True


def test_markers_in_a_files_text_are_text(world: World, address: str) -> None:
    prefix = 'MARKER = "<|fim_middle|>"\nEND = "<|endoftext|>"\nnames = ['
    body = {"model": "alpha", "prompt": prefix, "suffix": "]\n", "max_tokens": 12}
    answer = post(address, "/v1/completions", body).json()
    assert answer["choices"][0]["text"] == offline(world, "alpha", prefix, "]\n", tokens=12)


def test_stops_seeds_scores_and_copies(world: World, address: str) -> None:
    prompt = "def read_lines(path):\n"
    body = {"model": "seedling", "prompt": prompt, "max_tokens": 24}
    whole = post(address, "/v1/completions", body).json()["choices"][0]["text"]
    assert len(whole) > 4
    stop = whole[2:4]
    cut = post(address, "/v1/completions", {**body, "stop": [stop]}).json()["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    streamed = post(address, "/v1/completions", {**body, "stop": stop, "stream": True}).text
    texts = [
        json.loads(line[6:])["choices"][0]["text"] for line in streamed.split("\n\n") if line[:7] == "data: {"
    ]
    assert "".join(texts) == cut["text"]

    warm = {**body, "temperature": 1.0, "top_p": 0.9, "n": 2, "seed": 7}
    first, second = (post(address, "/v1/completions", warm).json()["choices"] for _ in range(2))
    assert [choice["text"] for choice in first] == [choice["text"] for choice in second]
    assert [choice["index"] for choice in first] == [0, 1]

    scored = post(address, "/v1/completions", {**body, "logprobs": 3, "max_tokens": 4}).json()["choices"][0][
        "logprobs"
    ]
    assert len(scored["tokens"]) == len(scored["token_logprobs"]) == 4
    for token, score, best in zip(
        scored["tokens"], scored["token_logprobs"], scored["top_logprobs"], strict=True
    ):
        assert best[token] == max(best.values()) == pytest.approx(score) and score <= 0

    echoed = post(address, "/v1/completions", {**body, "echo": True}).json()["choices"][0]["text"]
    assert echoed == prompt + whole


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v1/completions", {"prompt": "x", "presence_penalty": 1.0}, "presence_penalty"),
        ("/v1/completions", {"prompt": "x", "best_of": 3}, "best_of"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10**6}, "max_tokens"),
        ("/v1/completions", {"prompt": ""}, "empty"),
        ("/v1/completions", {"prompt": [10**7]}, "token ids"),
        ("/v1/completions", {"prompt": "word " * 4000}, "tokens"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, "temperature"),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, "stop"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "chat template"),
        ("/infill", {"input_prefix": "x", "lora": [{"id": 2, "scale": 0.5}]}, "lora"),
        ("/completion", {"prompt": ["x", "y"]}, "prompt"),
        ("/completion", {"prompt": "x", "n_cmpl": 2, "stream": True}, "n_cmpl"),
        ("/infill", {"input_prefix": "x", "grammar": "root ::= x"}, "grammar"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    address: str, path: str, body: dict[str, Any], word: str
) -> None:
    done = post(address, path, {"model": "alpha", **body})
    assert done.status_code == 400 and word in done.json()["error"]["message"]


def test_a_version_that_is_activated_is_served_from_the_next_request_on(
    home: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    base = load_base(str(tiny_model_dir))
    registry = make_projects(base, tmp_path / "code", str(tiny_model_dir), ["alpha"])
    first = PeftManager(registry).load_adapter("alpha").manifest
    second = make_adapter(registry, "alpha", base, SHAPES["beta"], seed=9, activate=False)
    body = {"prompt": "def run(self", "max_tokens": 12}
    with serving(registry, ServeSettings(port=0)) as address:
        before = post(address, "/v1/completions", {**body, "model": "alpha"})
        newer = post(address, "/v1/completions", {**body, "model": "alpha@v2"})
        registry.activate_adapter("alpha", second.version)
        after = post(address, "/v1/completions", {**body, "model": "alpha"})
    assert before.headers["x-adapter"] == first["files"]["mlx/adapters.safetensors"]["sha256"]
    assert after.headers["x-adapter"] == newer.headers["x-adapter"] != before.headers["x-adapter"]
    assert after.json()["choices"][0]["text"] == newer.json()["choices"][0]["text"]


def test_chats_follow_the_models_template(home: Path, tmp_path: Path, chat_model_dir: Path) -> None:
    import openai

    base = load_base(str(chat_model_dir))
    registry = make_projects(base, tmp_path / "code", str(chat_model_dir), ["alpha"])
    messages: Any = [{"role": "system", "content": "Short."}, {"role": "user", "content": "class Basket"}]
    text = "<|file_sep|>system\nShort.\n<|file_sep|>user\nclass Basket\n<|file_sep|>assistant\n"
    with attach_adapter(base, PeftManager(registry).load_adapter("alpha")):
        prompt = base.tokenizer.encode_with_markers(text)
        wanted = base.tokenizer.decode([token for token, _ in written_ids(base, prompt, max_new_tokens=10)])
    with serving(registry, ServeSettings(port=0)) as address:
        client = openai_client(address)
        done = client.chat.completions.create(model="alpha", messages=messages, max_tokens=10)
        assert done.choices[0].message.content == wanted and done.choices[0].message.role == "assistant"
        stream = client.chat.completions.create(model="alpha", messages=messages, max_tokens=10, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == wanted
        with pytest.raises(openai.BadRequestError, match="unknown role"):
            client.chat.completions.create(model="alpha", messages=[{"role": "developer", "content": "x"}])
        with pytest.raises(openai.BadRequestError, match="tools"):
            client.chat.completions.create(
                model="alpha",
                messages=messages,
                tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
            )
