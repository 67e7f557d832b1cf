"""What a request may do to the next one, to memory and to the server: nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import CaretPrompt, complete
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings, chats
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.bodies import CompletionBody, InfillBody, parse
from mlx_gardener.serve.catalog import Catalog
from mlx_gardener.serve.generation import Limits, Sampling
from mlx_gardener.serve.indexes import Lookup
from mlx_gardener.serve.parts import Parts, running
from mlx_gardener.serve.reading import read_json
from mlx_gardener.serve.residents import Residents
from mlx_gardener.serve.server import serving
from mlx_gardener.serve.worker import BadRequestError, Finished, QueuedRequest
from tests.support.adapters import make_projects
from tests.support.requests import JSON, World, connected, ended, message, post
from tests.support.trainings import until


@pytest.fixture
def tiny(tmp_path: Path, tiny_model_dir: Path) -> World:
    """Two projects on the tiny model."""
    base = load_base(str(tiny_model_dir))
    return make_projects(base, tmp_path / "code", str(tiny_model_dir), ["alpha", "beta"]), base


FIELDS = (
    "model", "prompt", "suffix", "max_tokens", "n_predict", "n", "n_cmpl", "stop", "top_k", "top_p", "min_p", "temperature",
    "seed", "samplers", "logprobs", "lora", "options", "input_extra", "messages",
)  # fmt: skip
VALUES = (
    "-1", "0", "640", "1e308", "1e-300", "9" * 400, "NaN", '"x"', '["\\udfff", ""]', '[{"id": 0, "scale": 1e308}]',
)  # fmt: skip
PATHS = ("/v1/completions", "/completion", "/infill", "/v1/chat/completions", "/api/generate", "/api/chat")


def hostile_bodies() -> Iterator[tuple[str, bytes]]:
    """More than 200 requests, each with one field that is not as it should be; and some that are no JSON."""
    for at, (name, value) in enumerate((name, value) for name in FIELDS for value in VALUES):
        fields = {"prompt": '"def run(self"', "temperature": "1.2", "max_tokens": "3", name: value}
        for path in PATHS if name == "top_k" else [PATHS[at % len(PATHS)]]:
            inner = ", ".join(f'"{key}": {content}' for key, content in fields.items())
            yield path, f"{{{inner}}}".encode()
    for data in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', b"{}" * 3, b"\x00"):
        yield "/infill", data


#: So many hostile requests, then one that must be answered as before.
AT_ONCE = 12


def test_no_request_hurts_the_next_one(tiny: World) -> None:
    registry, base = tiny
    with attach_adapter(base, PeftManager(registry).load_adapter("beta")):
        likeliest = complete(base, "class Basket", max_new_tokens=4)
    asked = {"model": "beta", "prompt": "class Basket", "max_tokens": 4}
    sampled = {**asked, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 11}
    bodies = list(hostile_bodies())
    assert len(bodies) > 200
    settings = ServeSettings(port=0, max_answer_tokens=8)
    with serving(registry, settings) as address, httpx.Client(base_url=address, timeout=60) as client:

        def text(body: dict[str, Any]) -> str:
            return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"])

        wanted = text(sampled)
        assert text(asked) == likeliest != wanted
        for start in range(0, len(bodies), AT_ONCE):
            sent = bodies[start : start + AT_ONCE]
            for path, data in sent:
                done = client.post("/projects/alpha" + path, content=data, headers=JSON)
                assert done.status_code in (200, 400, 404), (path, data, done.text)
                if done.status_code != 200:
                    assert message(done)
            assert text(sampled) == wanted, ("one of these", sent)
        assert text(asked) == likeliest


def test_the_computing_threads_state_is_made_anew_after_an_error(tiny: World) -> None:
    import mlx.core as mx

    def poison(base: BaseModel, room: int) -> list[CaretPrompt]:
        def fails(values: mx.array) -> mx.array:
            mx.random.uniform()
            raise ValueError("in the middle of a trace")

        mx.compile(fails, inputs=mx.random.state, outputs=mx.random.state)(mx.zeros(1))
        return []

    async def error_of(
        parts: Parts, prompts: Callable[[BaseModel, int], list[CaretPrompt]]
    ) -> Exception | None:
        target = parts.catalog.find("beta")
        lookup = Lookup(parts.indexes, parts.metrics, target)
        job = QueuedRequest(target, prompts, lookup, Sampling(temperature=1.0, top_p=0.9), Limits(4))
        parts.worker.submit(job)
        while not isinstance(event := await job.events.get(), Finished):
            pass
        return event.error

    with running(tiny[0], ServeSettings(port=0)) as parts:
        assert "trace" in str(asyncio.run(error_of(parts, poison)))
        parts.worker.run(lambda: mx.eval(mx.random.uniform()))  # nothing of the trace is left
        assert asyncio.run(error_of(parts, lambda base, room: [CaretPrompt([5, 6, 7])])) is None


def test_a_seed_of_one_request_does_not_decide_the_next(tiny: World) -> None:
    body = {"model": "beta", "prompt": "class", "max_tokens": 8, "temperature": 1.5}
    with serving(tiny[0], ServeSettings(port=0)) as address:
        after = []
        for _ in range(2):
            post(address, "/v1/completions", {**body, "seed": 7})
            after.append(post(address, "/v1/completions", body).json()["choices"][0]["text"])
    assert after[0] != after[1]


def test_answers_never_end_in_the_middle_of_a_character(tiny: World) -> None:
    registry, base = tiny
    halves = 0
    with serving(registry, ServeSettings(port=0)) as address:
        for tokens in range(1, 7):
            body = {"model": "alpha", "prompt": "caf\u00e9 = ", "max_tokens": tokens}
            asked = [{**body, "temperature": 2.0, "seed": seed, "logprobs": 1} for seed in range(5)]
            for one in (body, *asked):
                choice = post(address, "/v1/completions", one).json()["choices"][0]
                assert not choice["text"].endswith("\ufffd")
                if choice["logprobs"] and choice["logprobs"]["tokens"]:
                    halves += "\ufffd" in choice["logprobs"]["tokens"][-1]
            with attach_adapter(base, PeftManager(registry).load_adapter("alpha")):
                assert not complete(base, "caf\u00e9 = ", max_new_tokens=tokens).endswith("\ufffd")
    assert halves > 3  # else the above would prove little


def test_half_a_surrogate_pair_is_answered(tiny: World) -> None:
    half = '"name = \\ud83d'
    with serving(tiny[0], ServeSettings(port=0)) as address:
        for path, text in (
            ("/v1/completions", f'{{"prompt": {half}", "max_tokens": 2}}'),
            ("/completion", f'{{"prompt": {half}", "n_predict": 2}}'),
            ("/infill", f'{{"input_prefix": {half}", "input_suffix": {half}", "n_predict": 2}}'),
            ("/infill", f'{{"input_extra": [{{"text": {half}", "filename": {half}"}}], "n_predict": 2}}'),
            ("/v1/completions", f'{{"prompt": "x", "stop": [{half}"], "path": {half}", "max_tokens": 2}}'),
        ):
            done = httpx.post(f"{address}/projects/alpha{path}", content=text, headers=JSON, timeout=60)
            assert done.status_code == 200, done.text


def test_a_prompt_of_megabytes_is_refused_after_a_part_of_it(tiny: World) -> None:
    text = "def run(self):\n    return 1\n" * 60_000
    with serving(tiny[0], ServeSettings(port=0)) as address:
        refused = post(address, "/v1/completions", {"model": "alpha", "prompt": text})
        assert refused.status_code == 400 and "tokens" in message(refused)
        body = {"model": "alpha", "input_prefix": text, "input_suffix": text, "n_predict": 4}
        extra = [{"text": text[:500_000], "filename": "a.py"}]
        near = {**body, "input_prefix": text[-60_000:], "input_suffix": text[:20_000]}
        far = post(address, "/infill", body)
        assert (
            far.status_code == 200
            and far.json()["content"] == post(address, "/infill", near).json()["content"]
        )
        assert post(address, "/infill", {**near, "input_extra": extra}).status_code == 200


TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "width": "{{ '%1000000000d' % 1 }}",
    "product": "{{ 'x' * 3000000000 }}",
    "list": "{{ (range(99999) | list * 9999) | length }}",
    "long": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "zero": "{{ 1 // 0 }}",
    "undefined": "{{ nothing.at.all }}",
    "syntax": "{% for %}",
    "attack": "{{ messages.__class__.__mro__ }}{{ cycler.__init__.__globals__.os.getpid() }}",
    "half": "{{ '\\ud800' }}x",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_cannot_stop_the_server(
    name: str, tmp_path: Path, chat_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "loops":  # the others end by themselves, or by what they take
        monkeypatch.setattr(chats, "_MAX_SECONDS", 2.0)
    (chat_model_dir / "chat_template.jinja").write_text(TEMPLATES[name])
    base = load_base(str(chat_model_dir))
    registry = make_projects(base, tmp_path / "code", str(chat_model_dir), ["alpha"])
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with serving(registry, ServeSettings(port=0)) as address:
        done = post(address, "/v1/chat/completions", chat)
        if name == "half":
            assert done.status_code == 200
        else:
            assert done.status_code == 400 and "chat template of chatty" in message(done)
        assert post(address, "/infill", {"input_prefix": "x", "n_predict": 2}).status_code == 200


def test_health_tells_when_the_computing_thread_does_not_answer(tiny: World) -> None:
    import threading

    from mlx_gardener.serve.app import Server

    with running(tiny[0], ServeSettings(port=0, stalled_seconds=0.2)) as parts:
        worker, app = parts.worker, Server(parts).app()

        def health() -> httpx.Response:
            async def ask() -> httpx.Response:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    return await client.get("/health")

            return asyncio.run(ask())

        until(lambda: health().json()["status"] == "ok", "a server in health")
        release, begun = threading.Event(), threading.Event()

        def hang() -> None:
            begun.set()
            release.wait()

        hanging = threading.Thread(target=worker.run, args=(hang,))
        hanging.start()
        begun.wait()
        until(lambda: health().status_code == 503, "a server that is not")
        assert "no sign" in message(health())
        release.set()
        hanging.join()
        until(lambda: health().status_code == 200, "its health again")


def test_the_same_weights_with_another_template_or_tokenizer_are_another_base(
    home: Path, tmp_path: Path, chat_model_dir: Path
) -> None:
    import shutil

    other, twin, narrow = (
        shutil.copytree(chat_model_dir, tmp_path / name) for name in ("other", "twin", "narrow")
    )
    (other / "chat_template.jinja").write_text("class Lantern")
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**config, "rope_theta": 100.0}))
    registry = ProjectRegistry()
    places = {"alpha": chat_model_dir, "beta": other, "gamma": twin, "delta": narrow}
    for name, place in places.items():
        make_projects(load_base(str(place)), tmp_path / "code", str(place), [name])
    residents = Residents(registry, 2**30)
    catalog = Catalog(registry)
    loaded = {name: residents.enter(catalog.find(name))[0] for name in places}
    assert loaded["alpha"] is loaded["gamma"] and residents.base_count == 3
    messages = [{"role": "user", "content": "x"}]
    with serving(registry, ServeSettings(port=0)) as address:
        lengths = {}
        for name in places:
            chat = {"model": name, "messages": messages, "max_tokens": 2}
            lengths[name] = post(address, "/v1/chat/completions", chat).json()["usage"]["prompt_tokens"]
        scores = {}
        for name, place in places.items():
            ask = {"model": place.name, "prompt": "class " * 300, "max_tokens": 1, "logprobs": 1}
            scores[name] = post(address, "/v1/completions", ask).json()["choices"][0]["logprobs"]
    assert lengths["alpha"] == lengths["gamma"] == lengths["delta"] != lengths["beta"]
    assert scores["alpha"] == scores["gamma"] != scores["delta"]


def test_errors_are_json_in_the_dialect_of_the_path(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",))
    for origin in ("http://[", "http://[::1", "//", "null"):
        done = post(address, "/v1/completions", {"prompt": "x"}, origin=origin)
        assert done.status_code == 403 and done.json()["error"]["code"] == "origin_not_allowed"
    for path in (
        "/nowhere",
        "/v1",
        "/infill/",
        "/projects/alpha/infill/",
        "/projects/alpha/nowhere",
        "/v1/embeddings",
    ):
        done = post(address, path, {})
        assert done.status_code == 404 and "POST /infill" in message(done), path
        assert httpx.get(address + path).json()["error"]["code"] == "not_found"
    for path, method in (
        ("/infill", "GET"),
        ("/v1/completions", "PUT"),
        ("/health", "DELETE"),
        ("/v1/models", "PATCH"),
    ):
        done = httpx.request(method, address + path)
        assert done.status_code == 405 and method in message(done) and done.headers["allow"] in message(done)
    for path, openai in (
        ("/infill", False),
        ("/completion", False),
        ("/projects/alpha/completions", False),
        ("/projects/alpha/v1/completions", True),
        ("/v1/chat/completions", True),
    ):
        error = post(address, path, {"prompt": 1, "messages": 1}).json()["error"]
        assert (error["code"], "param" in error) == (("bad_request", True) if openai else (400, False)), path
    broken = connected(address)
    broken.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
    said = ended(broken)
    assert b"400" in said and json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_each_request_leaves_one_line(world: World) -> None:
    seen: list[Access] = []
    with serving(world[0], ServeSettings(port=0, projects=("alpha", "beta")), seen.append) as address:
        agent = {"user-agent": "zed/1.0"}
        for _ in range(2):
            post(
                address,
                "/v1/completions",
                {"model": "beta", "prompt": "x = ", "max_tokens": 3, "wings": 2},
                **agent,
            )
        post(address, "/projects/alpha/infill", {"input_prefix": "x", "grammar": "root ::= x"})
        post(address, "/projects/omega/infill", {"input_prefix": "x"})
        post(address, "/nowhere", {})
        post(address, "/infill", {"input_prefix": "secret"}, host="evil.example")
        streamed = {"prompt": "x = ", "max_tokens": 3, "stream": True}
        post(address, "/projects/beta/v1/completions", streamed)
    assert len(seen) == 7
    first, second, grammar, omega, nowhere, host, stream = seen
    assert (first.method, first.path, first.project, first.status) == ("POST", "/v1/completions", "beta", 200)
    assert first.prompt_tokens > 0 and 0 < first.written_tokens <= 3 and first.seconds > 0
    assert first.client == "127.0.0.1 zed/1.0"
    assert first.ignored == ["wings"] and second.ignored == []
    assert grammar.status == 400 and "grammar" in grammar.refused and "grammar" in grammar.text()
    assert omega.status == 404 and "omega" in omega.refused
    assert nowhere.status == 404 and host.status == 403 and "evil.example" in host.refused
    assert (stream.status, stream.written_tokens > 0) == (200, True)
    assert not any("secret" in access.text() for access in seen)


def test_names_that_are_not_ascii_are_told_in_headers(
    home: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    import shutil

    place = shutil.copytree(tiny_model_dir, tmp_path / "\u6a21\u578b")
    registry = make_projects(load_base(str(place)), tmp_path / "code", str(place), ["alpha"])
    with serving(registry, ServeSettings(port=0)) as address:
        done = post(address, "/v1/completions", {"model": place.name, "prompt": "x", "max_tokens": 1})
    assert done.status_code == 200, done.text
    assert done.headers["x-model"] == "%E6%A8%A1%E5%9E%8B"


@pytest.mark.parametrize(
    "narrow",
    [{"top_p": 1e-300}, {"top_p": 5e-324}, {"min_p": 1.0, "temperature": 10}, {"temperature": 5e-324}],
)
def test_a_choice_as_narrow_as_can_be_is_the_likeliest_token(narrow: dict[str, float]) -> None:
    import mlx.core as mx

    from mlx_gardener.serve.generation import _sampler

    body, _ = parse(CompletionBody, {"prompt": "x", "temperature": 1, **narrow})
    logprobs = mx.log(mx.softmax(mx.arange(640) * 1e-3)).reshape(1, -1)
    chosen = _sampler(body.sampling()) or (lambda values: mx.argmax(values, axis=-1))
    assert {chosen(logprobs).item() for _ in range(16)} == {639}


@pytest.mark.parametrize("kind", [CompletionBody, InfillBody])
def test_a_number_too_large_is_called_so_by_the_name_it_was_sent_by(kind: Any) -> None:
    with pytest.raises(BadRequestError, match="max_tokens: The number is too large"):
        parse(kind, read_json(b'{"prompt": "x", "max_tokens": 1e300}'))
