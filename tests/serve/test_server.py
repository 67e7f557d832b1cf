"""Who may ask, how many may wait, what happens when a client leaves, and what a server refuses to serve."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mlx_gardener.adapter import PeftManager
from mlx_gardener.errors import ConfigError, MemoryBudgetError
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.platform.processes import module_command
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.catalog import Catalog, Target
from mlx_gardener.serve.parts import running
from mlx_gardener.serve.residents import Residents
from mlx_gardener.serve.server import listen, self_test, serving
from mlx_gardener.serve.settings import choose_token
from tests.support.adapters import SHAPES, make_adapter, make_projects
from tests.support.commands import gardener_here
from tests.support.models import write_tiny_model
from tests.support.trainings import until

World = tuple[ProjectRegistry, BaseModel]
BODY = {"model": "alpha", "prompt": "import os\n", "max_tokens": 2}
#: A real answer that takes long: the base repeats itself.
LONG = {"model": "seedling", "prompt": "names = [" + "0, " * 80, "max_tokens": 1500, "n": 8, "stream": True}
TOKEN = "correct-horse-battery-staple"


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"mlx_gardener_{name} ")))


def test_names_of_others_and_pages_of_others_are_refused(address: str) -> None:
    port = address.rpartition(":")[2]

    def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{address}/v1/completions", json=BODY, headers=named, timeout=60).status_code

    assert status(host=f"localhost:{port}") == 200
    assert status(host=f"evil.example:{port}") == 403
    assert status(host="169.254.0.9") == 403
    assert status(origin="https://evil.example") == 403
    assert status(origin="null") == 403
    assert status(origin=address) == 200
    assert status(sec_fetch_site="cross-site") == 403
    form = httpx.post(
        f"{address}/v1/completions", content=json.dumps(BODY), headers={"content-type": "text/plain"}
    )
    assert form.status_code == 415
    assert "access-control-allow-origin" not in httpx.options(f"{address}/v1/models").headers


def test_a_token_is_asked_for_and_must_be_the_right_one(start: Callable[..., str]) -> None:
    address = start(token=TOKEN, projects=("alpha",))

    def get(path: str, **headers: str) -> httpx.Response:
        return httpx.get(address + path, headers=headers, timeout=60)

    assert get("/v1/models").status_code == 401
    assert get("/v1/models", authorization="Bearer wrong").status_code == 401
    assert get("/v1/models", authorization=f"Basic {TOKEN}").status_code == 401
    assert get("/metrics").status_code == 401
    assert get("/v1/models").headers["www-authenticate"] == "Bearer"
    assert get("/health").json()["status"] == "ok"
    assert get("/v1/models", authorization=f"Bearer {TOKEN}").status_code == 200


def test_tokens_are_made_where_others_can_reach_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_token("127.0.0.1", None, home)[0] is None
    assert choose_token("::1", None, home)[0] is None
    made, _ = choose_token("0.0.0.0", None, home)
    assert made is not None and len(made) >= 32
    assert choose_token("192.168.1.5", None, home)[0] == made
    assert stat.S_IMODE((home / "serve-token").stat().st_mode) == 0o600
    monkeypatch.setenv("MLX_GARDENER_TOKEN", TOKEN)
    assert choose_token("127.0.0.1", None, home)[0] == TOKEN
    with pytest.raises(ConfigError, match="16 or more"):
        choose_token("0.0.0.0", "short", home)


def test_bodies_are_bounded_also_when_their_length_is_not_told(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), max_body_bytes=2000)
    long = json.dumps({**BODY, "prompt": "x" * 3000}).encode()
    kind = {"content-type": "application/json"}
    assert httpx.post(f"{address}/v1/completions", content=long, headers=kind).status_code == 413
    parts = (long[at : at + 500] for at in range(0, len(long), 500))
    assert httpx.post(f"{address}/v1/completions", content=parts, headers=kind, timeout=60).status_code == 413
    assert httpx.post(f"{address}/v1/completions", content=b"{", headers=kind).status_code == 400


def test_the_queue_is_bounded_and_a_client_that_leaves_stops_its_answer(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), max_queued=2)
    with ThreadPoolExecutor(4) as pool:
        with (
            httpx.Client(timeout=120) as client,
            client.stream("POST", f"{address}/v1/completions", json=LONG) as stream,
        ):
            lines = stream.iter_lines()  # kept: its end closes the connection
            next(lines)
            waiting = [
                pool.submit(httpx.post, f"{address}/v1/completions", json=BODY, timeout=120) for _ in range(2)
            ]
            until(lambda: metric(address, "queue_requests") == 2, "two that wait")
            refused = httpx.post(f"{address}/v1/completions", json=BODY, timeout=60)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert not any(done.done() for done in waiting)
        # Left in the middle: those who wait are answered at once, and the answer was not written to its end.
        assert [done.result().status_code for done in waiting] == [200, 200]
    assert metric(address, "cancelled_total") == 1
    assert metric(address, "written_tokens_total") < 8 * 1500
    assert metric(address, "busy") == 0


def test_a_client_that_leaves_the_queue_is_not_answered(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",))
    with (
        httpx.Client(timeout=120) as client,
        client.stream("POST", f"{address}/v1/completions", json=LONG) as stream,
    ):
        lines = stream.iter_lines()  # kept: its end closes the connection
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json=BODY, timeout=1.0)
    until(lambda: metric(address, "cancelled_total") == 2, "two that went away")
    assert httpx.post(f"{address}/v1/completions", json=BODY, timeout=60).status_code == 200


def test_an_adapter_that_changes_nothing_is_named_and_not_served(
    home: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    base = load_base(str(tiny_model_dir))
    registry = make_projects(base, tmp_path / "code", str(tiny_model_dir), ["alpha", "beta"])
    make_adapter(registry, "beta", base, SHAPES["beta"], seed=3, strength=0.0)
    settings = ServeSettings(port=0)
    with running(registry, settings) as parts:
        tests = {test.model: test for test in self_test(parts)}
    assert tests["alpha"].problem is None and tests["alpha"].change > 0.001
    assert tests["beta"].problem is not None and "changes nothing" in tests["beta"].problem
    with serving(registry, settings) as address:
        done = httpx.post(f"{address}/v1/completions", json={**BODY, "model": "beta"}, timeout=60)
        assert done.status_code == 500 and "changes nothing" in done.json()["error"]["message"]
        assert httpx.post(f"{address}/v1/completions", json=BODY, timeout=60).status_code == 200


def test_a_damaged_adapter_is_an_error_and_never_the_base(
    home: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    base = load_base(str(tiny_model_dir))
    # With nothing but damaged adapters the server would not begin.
    registry = make_projects(base, tmp_path / "code", str(tiny_model_dir), ["alpha", "beta"])
    weights = registry.get_adapter("alpha").directory / "mlx" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with serving(registry, ServeSettings(port=0)) as address:
        done = httpx.post(f"{address}/v1/completions", json=BODY, timeout=60)
    assert done.status_code == 500 and "not the one that was written" in done.json()["error"]["message"]


def test_the_base_used_longest_ago_makes_room_and_one_that_cannot_fit_is_refused(
    home: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    places = [write_tiny_model(tmp_path / name, tiny_tokenizer_dir, hidden_size=width) for name, width in
              (("one", 48), ("two", 64))]  # fmt: skip
    registry, targets = ProjectRegistry(), []
    for place, name in zip(places, ("alpha", "beta"), strict=True):
        make_projects(load_base(str(place)), tmp_path / "code", str(place), [name])
        targets.append(Catalog(registry).find(name))
    sizes = []
    for target in targets:
        alone = Residents(registry, 2**30)
        alone.enter(target)
        sizes.append(alone.size_bytes)
    both = Residents(registry, sum(sizes))
    for target in (*targets, targets[0]):
        both.enter(target)
    assert both.base_count == 2
    one = Residents(registry, max(sizes))
    for target in (*targets, targets[0]):
        loaded, resident = one.enter(target)
        assert one.base_count == 1 and loaded.current is resident and one.size_bytes <= max(sizes)
    with pytest.raises(MemoryBudgetError, match=r"takes less than 0\.01 GB, and the budget is") as refused:
        Residents(registry, 1000).enter(targets[0])
    advised = float(refused.value.next_step.split("--budget ")[1].rstrip("`."))
    Residents(registry, int(advised * 2**30)).enter(targets[0])


def test_swapping_leaves_the_base_as_it_was(world: World) -> None:
    import mlx.core as mx

    registry, _ = world
    residents = Residents(registry, 2**32)
    catalog = Catalog(registry)
    loaded, _ = residents.enter(Target("seedling", "seedling", "seedling", None))
    tokens = mx.array([loaded.base.tokenizer.encode("def main():\n    return")])
    before = loaded.base.model(tokens)
    logits = {}
    for _ in range(2):
        for name in SHAPES:
            residents.enter(catalog.find(name))
            found = loaded.base.model(tokens)
            assert name not in logits or mx.array_equal(found, logits[name])
            assert not mx.array_equal(found, before)
            logits[name] = found
    residents.enter(Target("seedling", "seedling", "seedling", None))
    assert mx.array_equal(loaded.base.model(tokens), before)
    assert residents.swaps >= 9 and PeftManager(registry).load_adapter("alpha").weights


def test_the_command_tests_serves_and_ends_when_asked(world: World) -> None:
    environment = {**os.environ, "MLX_GARDENER_HOME": str(world[0].home)}
    command = module_command("mlx_gardener", "serve", "alpha", "beta", "--port", "0", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        events = [json.loads(running.stdout.readline()) for _ in range(3)]
        assert [event["event"] for event in events] == ["tested", "tested", "ready"]
        assert {event["model"] for event in events[:2]} == {"alpha", "beta"} and events[0]["change"] > 0
        address = events[2]["address"]
        assert httpx.post(f"{address}/v1/completions", json=BODY, timeout=60).status_code == 200
        not_served = httpx.post(f"{address}/v1/completions", json={**BODY, "model": "gamma"}, timeout=60)
        assert not_served.status_code == 404
        told = [json.loads(running.stdout.readline()) for _ in range(2)]
        assert [(line["event"], line["project"], line["status"]) for line in told] == [
            ("request", "alpha", 200),
            ("request", "", 404),
        ]
        assert "gamma" in told[1]["refused"]
        running.send_signal(signal.SIGINT)
        assert running.wait(240) in (0, 130, -signal.SIGINT)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_tells_people_of_each_request_unless_it_is_to_be_quiet(world: World, quiet: bool) -> None:
    environment = {**os.environ, "MLX_GARDENER_HOME": str(world[0].home), "PYTHONUNBUFFERED": "1"}
    flags = ("--quiet",) if quiet else ()
    command = module_command("mlx_gardener", "serve", "alpha", "--port", "0", *flags)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        ready = next(line for line in running.stdout if line.startswith("Listening on "))
        address = ready.split()[2].rstrip(";")
        agent = {"user-agent": "curl/8\x1b[31m"}
        httpx.post(f"{address}/infill", json={"grammar": "x"}, headers=agent, timeout=60)
        running.send_signal(signal.SIGINT)
        lines = running.stdout.read().splitlines()
        running.wait(240)
    told = [line for line in lines if "POST /infill" in line]
    if quiet:
        assert not told
    else:
        assert len(told) == 1 and " 400 " in told[0] and "grammar: is not supported" in told[0]
        assert "curl/8" in told[0] and "\x1b" not in told[0]


def test_a_pipe_that_nobody_reads_does_not_stop_the_answers(world: World) -> None:
    environment = {**os.environ, "MLX_GARDENER_HOME": str(world[0].home)}
    command = module_command("mlx_gardener", "serve", "alpha", "--port", "0", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        address = [json.loads(running.stdout.readline()) for _ in range(2)][1]["address"]
        with httpx.Client(base_url=address, timeout=60) as client:
            agent = {"user-agent": "x" * 60}
            for _ in range(600):  # more than a pipe of 64 KiB holds
                assert client.get("/projects/alpha/" + "x" * 150, headers=agent).status_code == 404
            running.stdout.close()
            assert client.get("/health").status_code == 200
            assert client.get("/health").status_code == 200
        running.send_signal(signal.SIGINT)
        running.wait(240)


def test_what_has_no_adapter_is_not_served(home: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    registry = ProjectRegistry()
    empty = gardener_here("serve", "--port", "0")
    assert empty.returncode == 1 and "nothing to serve" in empty.stderr and "train" in empty.stderr
    (tmp_path / "bare").mkdir()
    registry.register_project("bare", tmp_path / "bare")
    for names in (("bare",), ()):
        done = gardener_here("serve", *names, "--port", "0")
        assert done.returncode == 1 and "adapter" in done.stderr and "Listening" not in done.stdout
    make_projects(load_base(str(tiny_model_dir)), tmp_path / "code", str(tiny_model_dir), ["alpha"])
    beside = gardener_here("serve", "alpha", "bare", "--port", "0")
    assert beside.returncode == 1 and "'bare' has no adapter yet" in beside.stderr


def test_an_address_that_is_taken_is_an_error_with_a_way_out(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be listened on"):
            with serving(world[0], ServeSettings(port=taken.getsockname()[1])):
                pass


@pytest.mark.parametrize("host", ["nope.invalid", "192.0.2.1", "x" * 70, "a..b"])
def test_an_address_of_another_machine_names_host(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot be listened on") as refused:
        listen(ServeSettings(host=host, port=0))
    assert "--host" in refused.value.next_step and "--port" not in refused.value.next_step
