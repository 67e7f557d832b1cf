"""Every client's newest request is answered as that client reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import complete
from mlx_gardener.model import load_base
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.support.adapters import make_projects
from tests.support.requests import REQUESTS, World, events, post, request


def content(answer: httpx.Response) -> str:
    return str(answer.json()["content"])


def streamed_content(answer: httpx.Response) -> str:
    found = events(answer)
    assert found[-1]["stop"] is True and found[-1]["tokens_predicted"] > 0
    return "".join(event["content"] for event in found)


def text(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["text"])


def streamed_text(answer: httpx.Response) -> str:
    return "".join(event["choices"][0]["text"] for event in events(answer))


def offline(world: World, project: str, prefix: str, suffix: str, tokens: int) -> str:
    with attach_adapter(world[1], PeftManager(world[0]).load_adapter(project)):
        return complete(world[1], prefix, suffix, max_new_tokens=tokens)


@pytest.mark.parametrize(
    ("name", "path", "read"),
    [
        ("continue_llama_cpp", "/projects/beta/completion", streamed_content),
        ("zed", "/v1/completions", text),
        ("cursortab", "/v1/completions", streamed_text),
        ("minuet", "/v1/completions", streamed_text),
    ],
)
def test_who_asks_for_the_likeliest_gets_the_same_as_offline(
    world: World, address: str, name: str, path: str, read: Callable[[httpx.Response], str]
) -> None:
    body = request(name)
    if "suffix" in body:
        prefix, suffix = body["prompt"], body["suffix"]
    else:
        prefix, suffix = body["prompt"].removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
        suffix = suffix.removesuffix("<|fim_middle|>")
    answer = post(address, path, body)
    assert answer.status_code == 200, answer.text
    tokens = body.get("max_tokens", body.get("n_predict"))
    assert read(answer) == offline(world, "beta", prefix, suffix, tokens) != ""


@pytest.mark.parametrize(
    ("name", "path", "read", "most"),
    [
        ("llama_vscode_openai", "/projects/beta/v1/completions", text, 128),
        ("twinny_llamacpp", "/projects/beta/completion", streamed_content, 64),
        ("twinny_openai_compatible", "/v1/completions", streamed_text, 12),
        ("twinny_default", "/projects/beta/v1/completions", streamed_text, 12),
        ("llm_ls", "/v1/completions", text, 60),
    ],
)
def test_who_asks_for_a_temperature_gets_an_answer_within_its_limit(
    world: World, address: str, name: str, path: str, read: Callable[[httpx.Response], str], most: int
) -> None:
    body = {**request(name), "seed": 3}
    answer = post(address, path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model"] == "beta"
    written = read(answer)
    assert 0 < len(world[1].tokenizer.encode(written)) <= most
    assert read(post(address, path, body)) == written  # a seed decides it


def test_every_recorded_request_is_sent_by_a_test() -> None:
    places = (
        Path(__file__),
        Path(__file__).parent / "test_ollama.py",
        Path(__file__).parent / "test_next_edits.py",
        Path(__file__).parents[1] / "editors" / "test_proof.py",
    )
    source = "".join(place.read_text() for place in places)
    recorded = {file.stem for file in REQUESTS.glob("*.json")} - {"clients"}
    assert recorded and {name for name in recorded if f'"{name}"' not in source} == set()


def test_the_script_that_asks_as_clients_do_knows_each_with_its_source(address: str) -> None:
    """All of them are sent by ``scripts/clients``; one here, and one that is not answered."""
    from scripts.ask_as_clients import answered, clients

    known = clients()
    sent = [name for client in known for name, _ in client["requests"]]
    assert sorted(sent) == sorted({file.stem for file in REQUESTS.glob("*.json")} - {"clients"})
    assert all(re.search(r"\b20\d\d-\d\d", client["source"]) for client in known)
    assert answered(address, "minuet", "/v1/completions") == ""
    assert answered(address, "minuet", "/v1/models").startswith("405")
    assert answered(address, "llama_vscode_chat", "/projects/beta/v1/chat/completions").startswith("400")


def test_the_script_asks_for_chats_where_they_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.ask_as_clients import answered, clients, served

    monkeypatch.setenv("MLX_GARDENER_HOME", str(tmp_path / "home"))
    sent = [one for client in clients() if "needs" in client for one in client["requests"]]
    with served(tmp_path, with_chats=True) as (address, _):
        wrong = {name: answered(address, name, path) for name, path in sent}
    assert len(wrong) >= 3 and not any(wrong.values()), wrong


def test_llama_vscode_gets_a_list_of_as_many_answers_as_it_asks_for(world: World, address: str) -> None:
    body = request("llama_vscode")
    answer = post(address, "/projects/gamma/infill", body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [entry["index"] for entry in found] == [0, 1, 2]
    for entry in found:
        assert entry["stop"] is True and entry["tokens_cached"] > 0 and entry["truncated"] is False
        assert {"prompt_n", "prompt_ms", "predicted_n", "predicted_ms"} <= set(entry["timings"])
    one = post(address, "/projects/gamma/infill", {**body, "n_cmpl": 1}).json()
    assert {entry["content"] for entry in found} == {one["content"]}
    warm = {**body, "samplers": ["top_k", "temperature"], "temperature": 1.5, "seed": 5}
    drawn = [entry["content"] for entry in post(address, "/projects/gamma/infill", warm).json()]
    assert len(set(drawn)) == 3


def test_lora_of_id_0_is_the_projects_adapter_at_that_strength(world: World, address: str) -> None:
    body = {**request("llama_vscode_lora"), "n_cmpl": None}
    half = post(address, "/infill", body)
    assert half.status_code == 200, half.text

    def written(scale: float) -> str:
        return content(post(address, "/infill", {**body, "lora": [{"id": 0, "scale": scale}]}))

    whole = content(post(address, "/infill", {**body, "lora": []}))
    base = content(post(address, "/infill", {**body, "lora": None, "model": "seedling"}))
    assert written(1.0) == whole != base == written(0.0)
    assert content(half) == written(0.5)
    assert content(post(address, "/infill", {**body, "lora": None})) == whole  # the next one has it whole
    other = post(address, "/infill", {**body, "lora": [{"id": 1, "scale": 1.0}]})
    assert other.status_code == 400 and "lora" in other.json()["error"]["message"]
    openai = {"model": "gamma", "prompt": "import os\n", "n_predict": 8, "lora": [{"id": 0, "scale": 0.5}]}
    assert post(address, "/v1/completions", openai).json()["usage"]["completion_tokens"] <= 8


def test_llama_vims_request_is_answered_as_it_reads_it(address: str) -> None:
    body = request("llama_vim")
    done = post(address, "/projects/alpha/infill", body, authorization="Bearer")
    assert done.status_code == 200, done.text
    answer = done.json()
    assert set(answer) == set(body["response_fields"])
    assert isinstance(answer["content"], str) and answer["timings/prompt_n"] > 0
    warm = post(address, "/projects/alpha/infill", request("llama_vim_warm"))
    assert warm.status_code == 200 and warm.json() == {}
    assert content(post(address, "/projects/gamma/infill", request("llama_vscode_warm"))) == ""


def test_an_over_large_number_of_tokens_is_as_many_as_fit(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), max_context_tokens=200)
    prefix = "names = [" + "0, " * 40
    for wanted in (10**6, 190, -1):
        done = post(address, "/infill", {"input_prefix": prefix, "n_predict": wanted})
        assert done.status_code == 200, done.text
        answer = done.json()
        assert 0 < answer["tokens_predicted"] <= 200 - answer["tokens_evaluated"]
        body = {"prompt": prefix, "n_predict": wanted}
        assert post(address, "/v1/completions", body).json()["usage"]["total_tokens"] <= 200
    full = post(address, "/infill", {"input_prefix": "names = [" + "0, " * 900, "n_predict": 64})
    assert full.status_code == 400 and "tokens" in full.json()["error"]["message"]


def test_null_is_absent(world: World, address: str) -> None:
    names = (
        "temperature", "top_p", "top_k", "seed", "stop", "stream", "n", "suffix", "logprobs", "echo", "presence_penalty",
        "logit_bias", "stream_options", "max_tokens", "n_predict", "lora", "options", "path",
    )  # fmt: skip
    body = {"model": "alpha", "prompt": "import os\n"}
    nulls = {**body, **dict.fromkeys(names)}
    assert text(post(address, "/v1/completions", nulls)) == text(post(address, "/v1/completions", body))


def test_props_tell_llama_cpps_clients_the_context(address: str) -> None:
    for path in ("/projects/alpha/props", "/props?model=alpha&autoload=false"):
        answer = httpx.get(address + path, timeout=60).json()
        assert 128 <= answer["default_generation_settings"]["n_ctx"] <= 8192
        assert answer["model_alias"] == "alpha" and answer["total_slots"] == 1
    assert httpx.get(f"{address}/props?model=omega", timeout=60).status_code == 404
    assert httpx.get(f"{address}/projects/alpha/models", timeout=60).json()["data"]


@pytest.fixture
def chats(tmp_path: Path, chat_model_dir: Path) -> Iterator[str]:
    """A server of one project whose base has a chat template."""
    registry = make_projects(
        load_base(str(chat_model_dir)), tmp_path / "code", str(chat_model_dir), ["alpha"]
    )
    with serving(registry, ServeSettings(port=0)) as address:
        yield address


def test_chats_of_llama_vim_and_llama_vscode_are_answered(chats: str) -> None:
    warm = post(chats, "/v1/chat/completions", request("llama_vim_instruct_warm"))
    assert warm.status_code == 200 and warm.json()["choices"][0]["message"]["content"] == ""
    asked = post(chats, "/v1/chat/completions", request("llama_vim_instruct"))
    assert asked.status_code == 200, asked.text
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events(asked))
    edited = post(chats, "/projects/alpha/v1/chat/completions", request("llama_vscode_chat"))
    assert edited.status_code == 200 and edited.json()["choices"][0]["message"]["role"] == "assistant"


def test_a_chat_with_a_base_that_cannot_says_what_to_set(address: str) -> None:
    for name in ("llama_vim_instruct", "llama_vscode_chat"):
        asked = post(address, "/projects/alpha/v1/chat/completions", request(name))
        assert asked.status_code == 400
        assert "endpoint_inst" in asked.json()["error"]["message"]
        assert "endpoint_chat" in asked.json()["error"]["message"]


def test_tabby_is_answered_as_its_agent_asks(world: World, address: str) -> None:
    health = httpx.get(f"{address}/v1/health", timeout=60).json()
    assert health["model"]  # else the agent asks for nothing
    body = request("tabby")
    around = body["segments"]
    answer = post(address, "/projects/beta/v1/completions", body)
    assert answer.status_code == 200, answer.text
    with attach_adapter(world[1], PeftManager(world[0]).load_adapter("beta")):
        wanted = complete(
            world[1], around["prefix"], around["suffix"], path=around["filepath"], max_new_tokens=128
        )
    assert text(answer) == wanted != "" and answer.json()["id"]
    shown = {"type": "view", "completion_id": answer.json()["id"], "choice_index": 0}
    assert post(address, "/projects/beta/v1/events", shown).status_code == 200
    empty = {**body, "segments": {**around, "suffix": None, "filepath": None}}
    assert post(address, "/projects/beta/v1/completions", empty).status_code == 200
    wrong = post(address, "/projects/beta/v1/completions", {**body, "segments": {"prefix": 3}})
    assert wrong.status_code == 400 and "prompt" in wrong.json()["error"]["message"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_what_the_page_shows_for_curl_is_answered(address: str, chats: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    completion, chat = re.findall(r"^```sh\n(curl .*?)^```", page, re.MULTILINE | re.DOTALL)

    def answered(command: str, server: str) -> dict[str, Any]:
        typed = command.replace("http://127.0.0.1:8012", server).replace("my-project", "alpha")
        done = subprocess.run(
            ["sh", "-c", typed],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "NO_PROXY": "*"},
        )
        return dict(json.loads(done.stdout))

    assert answered(completion, address)["choices"][0]["text"]
    assert answered(chat, chats)["choices"][0]["message"]["content"]
    assert "chat template" in answered(chat, address)["error"]["message"], "the embedded base has none"
