"""Ollama's API: its own Python client and editors' recorded requests get the answers of /infill, under names that they know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.base_cards import base_card, library_name
from mlx_gardener.serve.server import serving
from tests.support.adapters import make_projects
from tests.support.models import write_chat_model, write_tiny_model
from tests.support.requests import World, post

REQUESTS = Path(__file__).parent / "requests"
PREFIX = "import math\n\n\nclass Basket:\n    def area(self):\n        return "
SUFFIX = "\n\n    def name(self):\n        return 'basket'\n"
#: What the last line of an answer says of it, beside the text.
TOLD = {
    "model", "created_at", "done", "done_reason", "total_duration", "load_duration", "prompt_eval_count",
    "prompt_eval_duration", "eval_count", "eval_duration",
}  # fmt: skip


def request(name: str) -> dict[str, Any]:
    return dict(json.loads((REQUESTS / f"{name}.json").read_text()))


def client_of(address: str) -> ollama.Client:
    return ollama.Client(address, timeout=600)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def streamed(answer: httpx.Response) -> str:
    found = lines(answer)
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    assert set(found[-1]) == {*TOLD, "response"} and found[-1]["eval_count"] > 0
    return "".join(line["response"] for line in found)


def infill(address: str, project: str, **fields: Any) -> str:
    done = post(address, f"/projects/{project}/infill", fields)
    assert done.status_code == 200, done.text
    return str(done.json()["content"])


def raw(address: str, project: str, prompt: str, tokens: int) -> str:
    body = {"model": project, "prompt": prompt, "max_tokens": tokens}
    return str(post(address, "/v1/completions", body).json()["choices"][0]["text"])


def test_ollamas_client_gets_the_answer_of_infill_whole_and_in_pieces(address: str) -> None:
    client = client_of(address)
    wanted = infill(address, "beta", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=24)
    options = {"num_predict": 24, "temperature": 0.0}
    done = client.generate("beta", PREFIX, suffix=SUFFIX, options=options)
    assert done.response == wanted != ""
    assert done.model == "beta" and done.done and done.done_reason in ("stop", "length")
    assert done.created_at is not None and datetime.fromisoformat(done.created_at).tzinfo is not None
    assert done.prompt_eval_count and done.eval_count and 0 < done.eval_count <= 24
    spent = (done.load_duration, done.prompt_eval_duration, done.eval_duration)
    assert done.total_duration and all(part is not None for part in spent)
    assert sum(part or 0 for part in spent) == done.total_duration
    pieces = list(client.generate("beta:latest", PREFIX, suffix=SUFFIX, options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == wanted and len(pieces) > 2
    assert [piece.done for piece in pieces][-2:] == [False, True] and pieces[-1].eval_count == done.eval_count
    assert {piece.model for piece in pieces} == {"beta:latest"}


def test_options_are_kept_and_others_named_once(world: World) -> None:
    seen: list[Access] = []
    with serving(world[0], ServeSettings(port=0, projects=("alpha",)), seen.append) as address:
        client = client_of(address)
        warm = {"num_predict": 16, "temperature": 1.2, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 7}
        drawn = [client.generate("alpha", PREFIX, suffix=SUFFIX, options=warm).response for _ in range(2)]
        other = client.generate("alpha", PREFIX, suffix=SUFFIX, options={**warm, "seed": 8}).response
        assert drawn[0] == drawn[1] != other
        more = {**warm, "num_ctx": 4096, "repeat_penalty": 1.1, "mirostat": 0, "wings": 2}
        assert (
            post(
                address,
                "/api/generate",
                {"prompt": PREFIX, "suffix": SUFFIX, "stream": False, "options": more},
            ).json()["response"]
            == drawn[0]
        )
        text = infill(address, "alpha", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=24)
        stopped = client.generate(
            "alpha", PREFIX, suffix=SUFFIX, options={"num_predict": 24, "stop": [text[4:6]]}
        )
        assert stopped.response == text[: text.index(text[4:6])] and stopped.done_reason == "stop"
        short = client.generate("alpha", PREFIX, suffix=SUFFIX, options={"num_predict": 1})
        assert (short.eval_count, short.done_reason) == (1, "length")
        wrong = post(address, "/api/generate", {"prompt": "x", "options": {"top_k": "many"}})
        assert wrong.status_code == 400 and "top_k" in wrong.json()["error"]
        alone = {"prompt": "x = ", "path": "a.py", "stream": False, "options": {"num_predict": 1}}
        assert post(address, "/api/generate", alone).status_code == 200
    ignored = [name for access in seen for name in access.ignored]
    unused = [f"options.{name}" for name in ("num_ctx", "repeat_penalty", "mirostat", "wings")]
    assert ignored == [*unused, "path"], "a prompt alone is read as it was written"
    asked = [access for access in seen if access.path == "/api/generate"]
    assert all(access.project == "alpha" and access.status in (200, 400) for access in asked)
    assert asked[0].written_tokens > 0 and asked[0].client.startswith("127.0.0.1 ollama-python")


def test_a_prompt_alone_is_read_as_it_was_written(address: str) -> None:
    marked = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
    client = client_of(address)
    for prompt in ("import os\n", marked):
        wanted = raw(address, "gamma", prompt, 12)
        for fields in ({}, {"raw": True}, {"suffix": ""}, {"raw": True, "suffix": SUFFIX}):
            done = client.generate("gamma", prompt, options={"num_predict": 12}, **fields)
            assert done.response == wanted, fields
    # A file that begins at the caret is one, too.
    start = client.generate("gamma", "", suffix=SUFFIX, options={"num_predict": 12})
    assert start.response == infill(address, "gamma", input_suffix=SUFFIX, n_predict=12)
    assert start.done_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("continue_ollama", ("input_prefix", "input_suffix")),
        ("continue_ollama_files", ("input_prefix", "input_suffix", "input_extra", "path")),
    ],
)
def test_continue_gets_the_answer_of_infill(address: str, name: str, sides: tuple[str, ...]) -> None:
    shown = post(address, "/api/show", request("continue_ollama_show")).json()
    assert ".Suffix" in shown["template"]  # else it sends a prompt of its own
    body = request(name)
    prefix = body["prompt"].rpartition("<|system_separator_istruction_repository_level|>")[2]
    wanted = {
        "input_prefix": prefix,
        "input_suffix": body["suffix"],
        "input_extra": [
            {"filename": "shop/tools.py", "text": "def helper(value):\n    return value + 1\n\n"}
        ],
        "path": "shop/basket.py",
    }
    sent = {side: wanted[side] for side in sides}
    cold = {**body, "options": {**body["options"], "temperature": 0, "num_predict": 48}}
    same = infill(address, "beta", **sent, n_predict=48, stop=body["options"]["stop"])
    assert streamed(post(address, "/api/generate", cold)) == same != ""
    assert streamed(
        post(address, "/api/generate", {**body, "options": {**cold["options"], "temperature": 0.01}})
    )


@pytest.mark.parametrize("name", ["twinny_ollama", "zed_ollama", "cmp_ai_ollama"])
def test_prompts_that_editors_form_themselves_are_left_as_they_are(address: str, name: str) -> None:
    body = request(name)
    body["options"] = {**body["options"], "temperature": 0, "num_predict": 24}
    answer = post(address, "/api/generate", body)
    assert answer.status_code == 200, answer.text
    wanted = raw(address, "beta", body["prompt"], 24)
    if body["stream"]:
        assert streamed(answer) == wanted != ""
    else:
        assert answer.json()["response"] == wanted and answer.json()["created_at"]
    assert answer.headers["x-model"] == "beta"


def test_an_empty_prompt_loads_and_lets_go(world: World, start: Callable[..., str]) -> None:
    address = start(projects=("alpha", "beta"))
    client = client_of(address)

    def loaded() -> list[str | None]:
        return sorted(model.name or "" for model in client.ps().models)

    assert loaded() == ["alpha:latest", "beta:latest"]  # the server tests each at its start
    goes = post(address, "/api/generate", request("cmp_ai_ollama_exit")).json()
    assert (goes["model"], goes["response"], goes["done_reason"]) == ("beta", "", "unload")
    assert loaded() == ["alpha:latest"]
    comes = client.generate("beta", keep_alive="5m")
    assert (comes.response, comes.done, comes.done_reason) == ("", True, "load")
    assert loaded() == ["alpha:latest", "beta:latest"]
    wanted = infill(address, "beta", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=8)
    for name in ("alpha", "beta:v1"):
        assert client.chat(name, keep_alive="0s").done_reason == "unload"
    assert loaded() == [] and httpx.get(f"{address}/metrics").text.count("bases_loaded 0") == 1
    again = client.generate("beta", PREFIX, suffix=SUFFIX, options={"num_predict": 8})
    assert again.response == wanted and loaded() == ["beta:latest"]
    assert client.generate("seedling").done_reason == "load" and loaded() == ["beta:latest"]
    for name in ("beta", "seedling"):
        client.generate(name, keep_alive=0)
    client.generate("seedling")
    assert loaded() == ["seedling:latest"]  # a base alone
    client.generate("beta")
    held = client.ps().models[0]
    assert held.digest == world[0].get_adapter("beta").manifest_sha256
    assert held.size and held.expires_at is not None and held.expires_at > datetime.now(UTC)
    assert held.context_length and held.context_length >= 128
    missing = post(address, "/api/generate", {"model": "omega", "keep_alive": 0})
    assert missing.status_code == 404 and "omega" in missing.json()["error"]


def test_projects_are_listed_under_names_that_editors_know(world: World, address: str) -> None:
    client = client_of(address)
    listed = {model.model: model for model in client.list().models}
    projects = ["alpha", "beta", "delta", "gamma"]
    assert list(listed) == [f"{name}:latest" for name in projects] + [
        f"{family}:{name}" for name in projects for family in ("qwen2.5-coder", "sweep-next-edit")
    ]
    one = listed["alpha:latest"]
    assert one.digest == world[0].get_adapter("alpha").manifest_sha256 and one.size
    assert one.modified_at is not None and one.details is not None
    assert one.details.parent_model == "seedling" and one.details.parameter_size
    entry = httpx.get(f"{address}/api/tags", timeout=60).json()["models"][0]
    assert entry["capabilities"] == ["completion", "insert"] and entry["name"] == entry["model"]
    for name in listed:
        assert client.show(str(name)).details is not None
    shown = client.show("qwen2.5-coder:beta")
    assert shown.template is not None and shown.modelinfo is not None and shown.parameters is not None
    assert "{{ .Prompt }}" in shown.template and "<|fim_suffix|>{{ .Suffix }}<|fim_middle|>" in shown.template
    assert shown.capabilities == ["completion", "insert"]
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] >= 128
    assert f"num_ctx {shown.modelinfo[f'{architecture}.context_length']}" in " ".join(
        shown.parameters.split()
    )
    assert (shown.modelinfo["mlx_gardener.project"], shown.modelinfo["mlx_gardener.version"]) == (
        "beta",
        "v1",
    )
    others = (
        "qwen2.5-coder:alpha-new",
        "sweep-next-edit:alpha-2",
    )  # no size, behind which Ollama's tags go on
    for name in ("omega", "qwen2.5-coder:omega", "llama3:8b", "alpha:v9", "alpha:latest:latest:x", *others):
        missing = post(address, "/api/show", {"model": name})
        assert missing.status_code == 404 and name.rpartition(":")[2] in missing.json()["error"], name
    some = post(address, "/api/show", {"model": "qwen2.5-coder"})  # four of them, none the active one
    assert some.status_code == 404 and "alpha or beta" in some.json()["error"]


def test_every_dialect_knows_these_names(address: str) -> None:
    for name in (
        "beta:latest",
        "beta:v1",
        "qwen2.5-coder:beta",
        "Qwen2.5-Coder:beta",
        "sweep-next-edit:beta",
    ):
        done = post(address, "/v1/completions", {"model": name, "prompt": "x = ", "max_tokens": 1})
        assert done.status_code == 200, done.text
        assert done.headers["x-model"].partition("@")[0] == "beta"
    assert (
        post(
            address, "/v1/completions", {"model": "seedling:latest", "prompt": "x", "max_tokens": 1}
        ).headers["x-adapter"]
        == "none"
    )


def test_names_of_ollamas_library_stand_for_the_project_on_that_base(
    home: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    registry = ProjectRegistry()
    for name, size in (("alpha", "1.5B"), ("beta", "0.5B"), ("gamma", "0.5B-Instruct")):
        place = write_tiny_model(tmp_path / f"Qwen2.5-Coder-{size}", tiny_tokenizer_dir)
        make_projects(load_base(str(place)), tmp_path / "code", str(place), [name])
    with serving(registry, ServeSettings(port=0)) as address:

        def answers(name: str) -> str:
            body = {"model": name, "prompt": "x", "stream": False, "options": {"num_predict": 2}}
            done = post(address, "/api/generate", body)
            return done.headers["x-model"] if done.status_code == 200 else done.json()["error"]

        for name in ("qwen2.5-coder:1.5b", "qwen2.5-coder:1.5b-base", "qwen2.5-coder:1.5b-instruct-q4_K_M"):
            assert answers(name) == "alpha"
        assert "beta or gamma" in answers("qwen2.5-coder:0.5b")
        assert "no model" in answers("qwen2.5-coder:7b")
        names = [entry["name"] for entry in httpx.get(f"{address}/api/tags").json()["models"]]
        assert "qwen2.5-coder:1.5b" in names and "qwen2.5-coder:0.5b" not in names
        registry.set_active_project("gamma")
        assert answers("qwen2.5-coder:0.5b") == answers("qwen2.5-coder") == "gamma"
        assert answers("qwen2.5-coder:beta") == "beta"


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("Qwen/Qwen2.5-Coder-1.5B", "qwen2.5-coder:1.5b"),
        ("mlx-community/Qwen2.5-Coder-0.5B-Instruct-4bit", "qwen2.5-coder:0.5b"),
        ("ollama:qwen2.5-coder:7b-base", "qwen2.5-coder:7b"),
        ("deepseek-ai/deepseek-coder-1.3b-base", "deepseek-coder:1.3b"),
        ("bigcode/starcoder2-3b", "starcoder2:3b"),
        ("codellama/CodeLlama-7b-hf", "codellama:7b"),
        ("HuggingFaceTB/SmolLM2-135M", None),
        ("seedling", None),
    ],
)
def test_a_base_has_the_name_of_ollamas_library(base: str, name: str | None) -> None:
    assert library_name(base) == name


def test_a_card_is_read_anew_when_the_base_changes_and_missing_bases_have_none(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    place = write_tiny_model(tmp_path / "model", tiny_tokenizer_dir)
    first = base_card(str(place))
    assert first is not None and first.has_fim and first.family == "qwen2.5-coder"
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}))
    second = base_card(str(place))
    assert second is not None and second.facts.max_tokens == 77
    assert base_card(str(tmp_path / "nothing")) is None


@pytest.fixture
def chats(home: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> Iterator[str]:
    """A server of one project whose base has a chat template."""
    place = str(write_chat_model(tmp_path / "chatty", tiny_tokenizer_dir))
    registry = make_projects(load_base(place), tmp_path / "code", place, ["alpha"])
    with serving(registry, ServeSettings(port=0)) as address:
        yield address


def test_chats_are_those_of_openais_endpoint(chats: str) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "class Lantern"}]
    body = {"model": "alpha", "messages": messages, "max_tokens": 12}
    wanted = post(chats, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    client = client_of(chats)
    done = client.chat("alpha", messages, options={"num_predict": 12})
    assert done.message.content == wanted and done.message.role == "assistant"
    assert done.done and done.done_reason in ("stop", "length") and done.eval_count
    pieces = list(client.chat("alpha", messages, options={"num_predict": 12}, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == wanted
    assert client.chat("alpha").done_reason == "load"
    asked = request("continue_ollama_chat")
    found = lines(post(chats, "/api/chat", {**asked, "options": {**asked["options"], "num_predict": 4}}))
    assert found[-1]["done"] and set(found[-1]) == {*TOLD, "message"}
    loud = post(chats, "/api/chat", {"messages": [{"role": "USER", "content": None}], "stream": False})
    assert loud.status_code == 200, loud.text


def test_what_cannot_be_done_is_refused_in_ollamas_form(address: str) -> None:
    def refused(path: str, body: dict[str, Any], status: int = 400) -> str:
        done = post(address, path, {"model": "alpha", **body})
        assert done.status_code == status, done.text
        assert set(done.json()) == {"error"}
        return str(done.json()["error"])

    prompt = {"prompt": "x"}
    for fields, word in (
        ({"images": ["aGVsbG8="]}, "images"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"format": "json"}, "format"),
        ({"format": {"type": "object"}}, "format"),
        ({"think": True}, "thinking"),
        ({"raw": True, "system": "Be short."}, "raw"),
        ({"prompt": 3}, "prompt"),
        ({"stream": "maybe"}, "stream"),
    ):
        assert word in refused("/api/generate", {**prompt, **fields})
    neutral = {"images": [], "format": "", "think": False, "context": [], "template": "", "system": ""}
    short = {"stream": False, "options": {"num_predict": 2}}
    fine = post(address, "/api/generate", {"model": "alpha", **short, **prompt, **neutral})
    assert fine.status_code == 200, fine.text
    hello = [{"role": "user", "content": "hello"}]
    tool = {"type": "function", "function": {"name": "look"}}
    assert "tools" in refused("/api/chat", {"messages": hello, "tools": [tool]})
    assert "images" in refused("/api/chat", {"messages": [{**hello[0], "images": ["aGVsbG8="]}]})
    assert "role" in refused("/api/chat", {"messages": [{"role": "tool", "content": "x"}]})
    assert "chat template" in refused("/api/chat", {"messages": hello})
    for path in ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/embed", "/api/embeddings"):
        assert path in refused(path, {}, 501) and path in refused(f"/projects/alpha{path}", {}, 501)
    client = client_of(address)
    with pytest.raises(ollama.ResponseError, match="train") as pull:
        client.pull("qwen2.5-coder:1.5b")
    assert pull.value.status_code == 501
    with pytest.raises(ollama.ResponseError, match="remove"):
        client.delete("alpha")
    with pytest.raises(ollama.ResponseError, match="no model 'omega'"):
        client.generate("omega", "x")
    with pytest.raises(ollama.ResponseError, match="no model 'omega'"):
        list(client.generate("omega", "x", stream=True))
    assert "takes GET" in httpx.post(f"{address}/api/tags", json={}).json()["error"]
    assert "There is no /api/blobs" in httpx.get(f"{address}/api/blobs/sha256:0").json()["error"]
    evil = httpx.get(f"{address}/api/tags", headers={"host": "evil.example"})
    assert evil.status_code == 403 and "evil.example" in evil.json()["error"]


def test_a_base_without_markers_inserts_nothing_and_says_so(
    home: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    place = write_tiny_model(tmp_path / "plain", tiny_tokenizer_dir)
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("fim_", "other_")
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    registry = make_projects(load_base(str(place)), tmp_path / "code", str(place), ["alpha"])
    with serving(registry, ServeSettings(port=0)) as address:
        client = client_of(address)
        shown = client.show("alpha")
        assert shown.template == "{{ .Prompt }}" and shown.capabilities == ["completion"]
        assert [model.model for model in client.list().models] == ["alpha:latest"]
        with pytest.raises(ollama.ResponseError, match="does not support insert"):
            client.generate("alpha", PREFIX, suffix=SUFFIX)
        assert client.generate("alpha", PREFIX, options={"num_predict": 2}).eval_count


def test_somebody_answers_where_clients_look_first(address: str, start: Callable[..., str]) -> None:
    for place in ("/", "/projects/alpha/"):
        here = httpx.get(address + place)
        assert (here.status_code, here.text) == (200, "Ollama is running")
        assert httpx.head(address + place).status_code == 200
        version = httpx.get(f"{address}{place}api/version").json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 6, 4)  # what Copilot Chat asks for
        assert httpx.head(f"{address}{place}api/tags").status_code == 200
    gone = httpx.get(f"{address}/projects/omega/")
    assert gone.status_code == 404 and "omega" in gone.json()["error"]
    below = client_of(f"{address}/projects/gamma")
    wanted = infill(address, "gamma", input_prefix=PREFIX, input_suffix=SUFFIX, n_predict=8)
    done = below.generate("codellama:7b", PREFIX, suffix=SUFFIX, options={"num_predict": 8})
    assert done.response == wanted
    token = "correct-horse-battery-staple"
    guarded = start(token=token, projects=("alpha",))
    for path in ("/", "/api/tags"):
        closed = httpx.get(guarded + path)
        assert closed.status_code == 401 and "token" in closed.json()["error"]
        assert httpx.get(guarded + path, headers={"authorization": f"Bearer {token}"}).status_code == 200
