"""Trainings and long scans as the page sees them: started, watched, stopped, judged and tried, with streams that end."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.source import Scan, scan_repository
from mlx_gardener.ui.training import Trainings
from tests.support.adapters import make_projects
from tests.support.models import write_tiny_model
from tests.support.pages import Asking, tiny
from tests.support.trainings import until


def events_of(page: Asking, project: str, until_: Callable[[dict[str, dict]], bool]) -> dict[str, dict]:
    """The newest of each event of the stream, when ``until_`` is true of them."""
    seen: dict[str, dict] = {}
    lines: list[str] = []
    with httpx.stream(
        "GET", f"{page.address}/ui/api/projects/{project}/training", headers=page.headers, timeout=600
    ) as stream:
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told = json.loads(line.removeprefix("data: "))
                if name == "log":
                    lines = ([] if told["from_start"] else lines) + told["lines"]
                    told = {"lines": lines}
                seen[name] = told
                if until_(seen):
                    return seen
    raise AssertionError(f"the stream ended: {seen}")


def test_a_training_is_started_watched_stopped_and_gone_on_with(
    page: Asking, small: str, registry: ProjectRegistry, tiny_model_dir: Path, known_home: Path
) -> None:
    assert events_of(page, small, lambda seen: "training" in seen)["training"] == {"status": "not_started"}
    settings = tiny(tiny_model_dir, **{"optimizer.max_steps": 100_000, "evaluation.patience": 1000})
    assert page.post("train", project=small, **settings) == {"goes_on": False}
    assert "already being trained" in page.refused("train", project=small, **settings)
    seen = events_of(
        page,
        small,
        lambda seen: (seen.get("training", {}).get("step") or 0) >= 3 and bool(seen["charts"]["loss"]["svg"]),
    )
    training = seen["training"]
    assert (
        training["status"] == "training"
        and training["budget_bytes"] == 2**30
        and training["tokens_per_second"] > 0
    )
    assert seen["charts"]["loss"]["svg"].startswith("<svg") and "validation" in seen["charts"]["loss"]["alt"]
    assert seen["log"]["lines"]
    # A page that is loaded again begins with all of it.
    again = events_of(page, small, lambda seen: {"training", "charts", "log"} <= seen.keys())
    assert (
        again["training"]["step"] >= training["step"]
        and again["log"]["lines"][:3] == seen["log"]["lines"][:3]
    )
    assert page.post("cancel", project=small) == {"stops": True}
    stopped = events_of(page, small, lambda seen: seen["training"]["status"] == "cancelled")["training"]
    assert stopped["can_resume"] and stopped["step"] >= 3
    assert page.post("cancel", project=small) == {"stops": False}
    page.post("resume", project=small)
    on = events_of(
        page,
        small,
        lambda seen: seen["training"]["status"] == "training" and seen["training"]["step"] > stopped["step"],
    )
    assert on["training"]["id"] != stopped["id"]
    page.post("cancel", project=small)
    until(lambda: not registry.active_trainings(), "the end")
    settings = page.get(f"projects/{small}/settings")
    assert (
        settings["model"] == str(tiny_model_dir)
        and settings["budget"] == 1.0
        and "lora.rank=4" in settings["more"]
    )


def test_a_training_that_a_terminal_started_is_judged_and_tried_on_the_page(
    page: Asking, small: str, registry: ProjectRegistry, tiny_model_dir: Path, known_home: Path
) -> None:
    from mlx_gardener import TrainingPipeline
    from tests.support.trainings import tiny_settings

    TrainingPipeline(tiny_settings(tiny_model_dir), registry=registry).start_training(small)
    seen = events_of(page, small, lambda seen: seen["training"]["status"] == "completed")
    version = seen["training"]["version"]
    told = page.get(f"projects/{small}/verdict")
    assert told["version"] == version and told["evidence"]["headline"] and told["evidence"]["arms"]["rows"]
    assert all(plot["svg"].startswith("<svg") and plot["alt"] for plot in told["evidence"]["plots"])
    samples = told["evidence"]["samples"]
    assert samples and all(sample["language"] and isinstance(sample["expected"], str) for sample in samples)
    ask = {
        "project": small,
        "version": version,
        "input_prefix": "import math\n\ndef ",
        "input_suffix": "\n",
        "n_predict": 8,
    }
    found = {
        (adapter, retrieval): page.post(
            "try", **ask, path="core/new.py", adapter=adapter, retrieval=retrieval
        )
        for adapter in (False, True)
        for retrieval in (False, True)
    }
    assert all(one["written_tokens"] >= 0 and one["prompt_tokens"] > 0 for one in found.values())
    assert not found[True, False]["pieces"] and not found[False, False]["front"]
    with_code = page.post("try", **ask, path="core/new.py", adapter=False, retrieval=True)
    assert all(piece["path"] in with_code["front"] for piece in with_code["pieces"]) and with_code["pieces"]
    assert with_code["prompt_tokens"] > found[False, False]["prompt_tokens"]
    stale = page.get(f"projects/{small}/staleness")
    assert stale["version"] == version and "no file has changed" in stale["sentence"]


def test_on_a_base_without_markers_what_is_tried_is_what_is_served(
    registry: ProjectRegistry, open_page: Callable[..., Asking], tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    place = write_tiny_model(tmp_path / "plain", tiny_tokenizer_dir)
    words = (place / "tokenizer.json").read_text()
    (place / "tokenizer.json").write_text(words.replace("fim_", "other_"))
    make_projects(load_base(str(place)), tmp_path / "code", str(place), ["alpha"])
    page, before = open_page(), "import math\n\n\n"
    tried = page.post("try", project="alpha", input_prefix=before, path="core/new.py", n_predict=12)
    asked = {"model": "alpha", "prompt": before, "path": "core/new.py", "max_tokens": 12}
    served = httpx.post(f"{page.address}/v1/completions", json=asked, timeout=600).json()
    assert tried["text"] == served["choices"][0]["text"]
    assert tried["written_tokens"] == served["usage"]["completion_tokens"]
    assert tried["prompt_tokens"] == served["usage"]["prompt_tokens"], "the breaks are left to the model"


def test_scans_that_take_long_keep_neither_editors_nor_streams_waiting(
    page: Asking, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def held(*arguments: object, **names: object) -> Scan:
        begun.set()
        let_go.wait()
        return scan_repository(*arguments, **names)  # type: ignore[arg-type]

    monkeypatch.setattr("mlx_gardener.ui.scanning.scan_repository", held)
    more_than_there_are_threads = 40
    with ThreadPoolExecutor(more_than_there_are_threads) as pool:
        asked = [pool.submit(page.get, "projects/small/scan") for _ in range(more_than_there_are_threads)]
        try:
            assert begun.wait(600)
            until(lambda: _open_connections(page) >= more_than_there_are_threads, "all have asked")
            stream = httpx.stream(
                "GET", f"{page.address}/ui/api/projects/small/training", headers=page.headers, timeout=120
            )
            with stream as told:
                assert next(told.iter_lines()) == "event: training"
        finally:
            let_go.set()
        assert all(one.result()["files_kept"] for one in asked)


def _open_connections(page: Asking) -> int:
    port = int(page.address.rsplit(":", 1)[1])
    own = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == port and one.status == "ESTABLISHED" for one in own)


def test_a_stream_ends_when_the_page_is_left(
    page: Asking, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()
    events = Trainings._events

    async def watched(trainings: Trainings, project: str) -> AsyncIterator[str]:
        try:
            async for text in events(trainings, project):
                begun.set()
                yield text
        finally:
            ended.set()

    monkeypatch.setattr(Trainings, "_events", watched)
    place = f"{page.address}/ui/api/projects/small/training"
    with httpx.stream("GET", place, headers=page.headers, timeout=600) as told:
        assert next(told.iter_lines()) == "event: training" and begun.is_set() and not ended.is_set()
    assert ended.wait(600)
