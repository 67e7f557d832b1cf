"""``mlx-gardener eval`` as a user runs it, on adapters that were trained before."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener import evaluate
from mlx_gardener.dataset.prepare import path_hash
from mlx_gardener.engine import verify
from mlx_gardener.errors import DataError
from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener_here, train_flags
from tests.support.repositories import write_repository


@pytest.mark.usefixtures("trained_home")
def test_an_adapter_is_evaluated_again_without_touching_its_files_also_where_its_repository_changed(
    repository: Path, trained_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No step is tried where nothing is trained: minutes on a real base.
    monkeypatch.setattr(verify, "after_dry_run", None)
    registry = ProjectRegistry()
    directory = registry.get_adapter("small").directory
    manifest = (directory / "manifest.json").read_bytes()
    recorded = json.loads(manifest)
    assert any("The control was left out" in note for note in recorded["evidence"]["notes"])
    assert len(recorded["data"]["trained_files"]["content_sha256"]) >= 10

    first = gardener_here("eval", "small", "--json", "--output", str(tmp_path / "out.json"))
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told == json.loads((tmp_path / "out.json").read_text())
    assert told["metrics"] == recorded["metrics"], (
        "the same adapter, data and tasks as at the end of its training"
    )
    assert [arm["name"] for arm in told["arms"]] == ["base", "base_bm25", "adapter", "adapter_bm25"]
    kept = list((directory / "evaluations").glob("*.json"))
    assert len(kept) == 1 and kept[0].stat().st_mode & 0o777 == 0o600
    assert str(repository.parent) not in kept[0].read_text()
    assert (directory / "manifest.json").read_bytes() == manifest and registry.check() == []

    large = {**told, "files": [{**file, "bytes": 100 * file["bytes"]} for file in told["files"]]}
    earlier = kept[0].with_name("2020-01-01T00-00-00Z.json")
    earlier.write_text(json.dumps({"evidence": large}))
    shown = gardener_here("eval", "small", "--arms", "base,adapter", "--tasks", "2")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "bits per byte",
        "is not forgotten",
        "known by heart",
        "What to do now",
        "Kept as evaluations/",
        "It measured less than half of what was measured before",
    ):
        assert words in shown.stdout
    assert (
        json.loads(gardener_here("show", "small", "--json").stdout)["adapters"][0]["evaluated_at"]
        == 1577836800
    )
    earlier.unlink()
    assert "retrieval" not in shown.stdout

    other = write_repository(tmp_path / "other", modules=2)
    (other / "more.py").write_text("def only_here(value):\n    return value * 17\n" * 3)
    done = gardener_here("train", str(other), "--project", "other", *train_flags(trained_model_dir))
    assert done.returncode == 0, done.stderr
    manifest_of_other = json.loads((registry.get_adapter("other").directory / "manifest.json").read_text())
    known = manifest_of_other["evidence"]
    assert known["arms"][-1]["title"] == "adapter of small/v1"
    thorough = json.loads(
        gardener_here("eval", "other", "--arms", "base,adapter", "--thorough", "--json").stdout
    )
    assert "469 tasks of each kind were asked for" in thorough["work"]["reason"]
    assert thorough["next_line_tasks"] > known["next_line_tasks"]
    assert thorough["answers_power"]["tasks"] > known["answers_power"]["tasks"]
    controlled = json.loads(
        gardener_here(
            "eval", "small", "--control", "other", "--arms", "base,adapter,control", "--tasks", "2", "--json"
        ).stdout
    )
    assert controlled["arms"][-1]["title"] == "adapter of other/v1"

    # A repository that changed is said, and trained files are left out.
    write_repository(repository / "added", modules=6)
    for file in (repository / "added").rglob("*.py"):
        file.write_text(file.read_text().replace("amount", "quantity").replace("limit", "bound"))
    done = gardener_here("eval", "small", "--arms", "base,adapter", "--json", "--tasks", "2")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert any("has changed since the training" in note for note in told["notes"])
    trained_paths = recorded["data"]["trained_files"]["path_sha256"]
    assert not {path_hash(item["path"]) for item in told["files"]} & set(trained_paths)


def test_a_time_limit_is_for_reading_and_loading_too_and_what_is_left_of_it_is_measured_in(
    trained_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def compare(*_: object, **named: object) -> None:
        asked.update(named)
        raise DataError("seen")

    directory = ProjectRegistry(trained_home).get_adapter("small").directory
    monkeypatch.setattr(evaluate, "compare", compare)
    over = gardener_here("eval", "small", "--timeout", "0.00001")
    assert over.returncode == 1 and "was over before anything was measured" in over.stderr and not asked
    assert not (directory / "evaluations").exists(), "it would be told as the newest"
    assert "seen" in gardener_here("eval", "small", "--timeout", "10").stderr
    assert 300 < asked["seconds"] < 600 and asked["forward_tokens_per_second"] > 1
    assert "seen" in gardener_here("eval", "small").stderr and math.isinf(asked["seconds"])


def test_wrong_words_are_usage_errors() -> None:
    limit = gardener_here("eval", "small", "--timeout", "-1")
    assert limit.returncode == 2 and "time limit of -1 minutes" in limit.stderr
    assert gardener_here("eval", "small", "--arms", "base,bm25").returncode == 2
    assert gardener_here("eval", "small", "--arms", "base", "--control", "other").returncode == 2
    both = gardener_here("eval", "small", "--thorough", "--tasks", "2")
    assert both.returncode == 2 and "choose one" in both.stderr
    unknown = gardener_here("eval", "nobody")
    assert unknown.returncode == 1 and "nobody" in unknown.stderr
