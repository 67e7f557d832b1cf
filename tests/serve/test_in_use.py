"""What stays of served completions: counted only where it is asked for, by every way that names a file, and across restarts."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

import mlx_gardener
from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.cli import cli
from mlx_gardener.config import load_config
from mlx_gardener.errors import ConfigError
from mlx_gardener.evaluate.complete import caret_prompt, complete, written_ids
from mlx_gardener.evaluate.in_use import in_use_directory, read_in_use
from mlx_gardener.registry import GarbagePolicy
from mlx_gardener.serve import ServeSettings, in_use
from mlx_gardener.serve.server import serving
from mlx_gardener.ui import make_page
from tests.support.retrieving import ASKED, World, evidence
from tests.support.trainings import until

FILE = "core/use.py"
ON = ServeSettings(port=0, evidence_in_use=True)


@pytest.fixture
def world(home: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, tiny_model_dir)
    made.adapter(evidence(1.1, 1.2))
    (made.tree / FILE).write_text(f"{ASKED}\n")
    monkeypatch.setattr(in_use, "_TICK_SECONDS", 0.05)
    return made


def infill(address: str, **more: Any) -> httpx.Response:
    body = {"input_prefix": ASKED, "input_suffix": "\n", "path": FILE, "n_predict": 16, **more}
    answer = httpx.post(f"{address}/infill", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer


def ended(world: World, path: str = FILE) -> tuple[str, str]:
    """What the adapter writes up to a text that ends it, and that text: an answer that is cut ends with half a line."""
    with attach_adapter(world.base, PeftManager(world.registry).load_adapter("small")):
        return cut(complete(world.base, ASKED, "\n", path=path, max_new_tokens=16))


def cut(text: str) -> tuple[str, str]:
    for at, stop in enumerate(text):
        first, whole = text[:at].split("\n")[0], not text[:at].endswith("\ufffd")
        if text.index(stop) == at and whole and any(map(str.isalnum, first)):
            return text[:at], stop
    raise AssertionError(f"nothing ends {text!r}")


def numbers(address: str) -> dict[str, float]:
    lines = httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("mlx_gardener_"): float(value) for name, value in told.items()}


def later(world: World, minutes: float) -> None:
    """Let all offers be so much older."""
    place = next(in_use_directory(world.registry, "small").glob("*.sqlite3"))
    with closing(sqlite3.connect(place, timeout=30)) as connection, connection:
        connection.execute("UPDATE offers SET at = at - ?", (60 * minutes,))


def test_nothing_is_kept_unless_it_is_asked_for(world: World) -> None:
    with serving(world.registry, ServeSettings(port=0)) as address:
        infill(address)
    assert not in_use_directory(world.registry, "small").exists()
    assert not (world.registry.home / "in-use-salt").exists()
    assert read_in_use(world.registry, "small").survival == ()
    assert not load_config(environment={}).serve.evidence_in_use
    with pytest.raises(ConfigError, match="compare needs evidence_in_use"):
        load_config(environment={}, overrides={"serve.compare": 0.1})


def test_every_way_that_names_a_file_is_counted_and_what_stays_is_seen_by_the_next_server(
    world: World,
) -> None:
    with serving(world.registry, ON) as address:
        infill(address, path="")
        assert numbers(address)["offers_without_file_total"] == 1, "llama.vim names none"
        files = [FILE, "core/b.py", "core/c.py", "core/d.py"]
        for file in files[1:]:
            (world.tree / file).write_text(f"{ASKED}\n")
        text, stops = ended(world)[0], [ended(world, file)[1] for file in files]
        infill(address, stop=stops[0])
        sides = {"prompt": ASKED, "suffix": "\n", "max_tokens": 16}
        named = {**sides, "path": files[1], "stop": stops[1]}
        httpx.post(f"{address}/v1/completions", json=named, timeout=300)
        segments = {"prefix": ASKED, "suffix": "\n", "filepath": files[2]}
        tabby = {"segments": segments, "stop": stops[2], "max_tokens": 16, "stream": True}
        httpx.post(f"{address}/v1/completions", json=tabby, timeout=300)
        options = {"stop": [stops[3]], "num_predict": 16}
        ollama = {**sides, "model": "small", "path": str(world.tree / files[3]), "options": options}
        httpx.post(f"{address}/api/generate", json=ollama, timeout=300)
        for elsewhere in ("../other.py", "core/gone.py"):
            infill(address, path=elsewhere)
        infill(address, stop=stops[0], n_cmpl=2)
        until(lambda: numbers(address)["offers_without_file_total"] == 3, "three offers without a file")
        assert numbers(address)["offers_total"] == 4
        first = f"{ASKED}{text}".splitlines()[len(ASKED.splitlines()) - 1]
        (world.tree / FILE).write_text(f"{ASKED}\n{first}\n")
        later(world, 2)
        until(lambda: numbers(address)["looks_total"] == 4, "four looks")
    later(world, 60)
    with serving(world.registry, ON) as address:
        until(lambda: numbers(address)["looks_total"] == 4, "what was due before")
    (survival,) = read_in_use(world.registry, "small").survival
    assert (survival.offered.version, survival.offered.offers, survival.offered.files) == ("v1", 4, 4)
    assert [(one.minutes, one.offers, one.first_line) for one in survival.stayed] == [
        (1, 4, 0.25),
        (60, 4, 0.25),
    ]


def test_chance_gives_a_share_to_the_base_and_the_header_says_which_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServeSettings(port=0, evidence_in_use=True, compare=0.5)
    draws = iter([0.9, 0.1] * 50)
    monkeypatch.setattr("random.Random.random", lambda self: next(draws))
    with serving(world.registry, settings) as address:
        own, own_stop = ended(world)
        drawn = {"temperature": 3.0, "seed": 5, "samplers": ["temperature"]}  # a random model repeats itself
        others, others_stop = cut(infill(address, model=world.base.id, **drawn).json()["content"])
        adapter, base = infill(address, stop=own_stop), infill(address, stop=others_stop, **drawn)
        assert adapter.json()["content"] == own and adapter.headers["x-adapter-version"] == "v1"
        assert base.json()["content"] == others and base.headers["x-adapter"] == "none"
        assert base.headers["x-model"] == "small"
        asked = [infill(address, model="small@v1", stop=own_stop) for _ in range(2)]
        assert all(answer.headers["x-adapter-version"] == "v1" for answer in asked), "what is named answers"
        until(lambda: numbers(address)["offers_total"] >= 2, "two offers")
    arms = {item.offered.arm for item in read_in_use(world.registry, "small").survival}
    assert arms == {"adapter", "base"}


@pytest.mark.parametrize("how", ["forget", "gc", "remove"])
def test_what_is_known_of_use_goes_with_what_it_is_about(world: World, how: str) -> None:
    with serving(world.registry, ON) as address:
        infill(address, stop=ended(world)[1])
        until(lambda: numbers(address)["offers_total"] == 1, "an offer")
    directory = in_use_directory(world.registry, "small")
    assert directory.is_dir()
    assert [item for item in world.registry.collect_garbage(GarbagePolicy()) if item.kind == "in_use"] == []
    if how == "forget":
        world.registry.forget_path("small", FILE)
    elif how == "remove":
        world.registry.remove_project("small")
    else:
        world.registry.remove_adapter("small", "v1")
        assert "in_use" in [item.kind for item in world.registry.collect_garbage(GarbagePolicy())]
    assert not directory.exists()


def test_what_is_to_be_forgotten_is_not_counted_either(world: World) -> None:
    world.registry.forget_path("small", "core")
    with serving(world.registry, ON) as address:
        infill(address, stop=ended(world)[1])
        until(lambda: numbers(address)["offers_without_file_total"] == 1, "an offer without a file")
    assert not in_use_directory(world.registry, "small").exists()


def test_the_terminals_completions_are_counted_where_that_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attach_adapter(world.base, PeftManager(world.registry).load_adapter("small")):
        place = caret_prompt(world.base.tokenizer, ASKED, "\n", FILE)
        written = written_ids(world.base, place.ids, max_new_tokens=16, begins=place.begins)
        ids = [token for token, _ in written]
    texts = [world.base.tokenizer.decode(ids[:at]) for at in range(len(ids))]
    end = next(  # it ends by itself there
        token
        for at, token in enumerate(ids)
        if token not in ids[:at] and any(map(str.isalnum, texts[at].split("\n")[0]))
    )
    monkeypatch.setattr(
        sys.modules["mlx_gardener.evaluate.complete"], "stop_ids", lambda tokenizer: frozenset({end})
    )
    mlx_gardener.complete("small", ASKED, "\n", path=FILE, max_tokens=16)
    assert read_in_use(world.registry, "small").survival == ()
    for with_adapter in (True, False):
        mlx_gardener.complete(
            "small", ASKED, "\n", path=FILE, max_tokens=16, evidence_in_use=True, with_adapter=with_adapter
        )
    found = read_in_use(world.registry, "small").survival
    assert ("v1", "adapter", 1) in [
        (item.offered.version, item.offered.arm, item.offered.offers) for item in found
    ]
    assert read_in_use(world.registry, "small").changes == (), "what somebody chose is no comparison"


def test_what_is_tried_on_the_page_or_at_another_strength_is_no_offer_and_no_comparison(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.Random.random", lambda self: 0.0)  # chance would give all to the base
    settings = ServeSettings(port=0, evidence_in_use=True, compare=0.5)
    stop = ended(world)[1]
    with serving(world.registry, settings, page=make_page("a-token-of-the-tests-only")) as address:
        tried = httpx.post(
            f"{address}/ui/api/try",
            headers={"authorization": "Bearer a-token-of-the-tests-only"},
            json={"project": "small", "input_prefix": ASKED, "input_suffix": "\n", "path": FILE, "n_predict": 16, "stop": stop},
            timeout=300,
        )  # fmt: skip
        assert tried.status_code == 200 and tried.json()["ended_by"] == "stop"
        stronger = infill(address, stop=stop, lora=[{"id": 0, "scale": 1.0001}])
        assert stronger.headers["x-adapter"] != "none"
    assert read_in_use(world.registry, "small").survival == ()


def test_the_command_takes_it_as_flags(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[ServeSettings] = []
    monkeypatch.setattr(
        "mlx_gardener.serve.server.serve", lambda registry, settings, **more: seen.append(settings)
    )
    settings = tmp_path / "settings.toml"
    settings.write_text("[serve]\nevidence_in_use = true\ncompare = 0.3\n")
    for flags in ([], ["--in-use"], ["--compare", "0.1"], ["--config", str(settings), "--compare", "0"]):
        assert CliRunner().invoke(cli, ["serve", "small", *flags]).exit_code == 0
    assert [(one.evidence_in_use, one.compare) for one in seen] == [
        (False, 0.0),
        (True, 0.0),
        (True, 0.1),
        (True, 0.0),
    ]
