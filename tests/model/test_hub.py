"""Models that come from a hub: a real client against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.errors import ModelError
from mlx_gardener.model.hub import cached_model, fetch_model
from tests.model.hub import REVISION, hub_with
from tests.support.models import write_tiny_model

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere

NAME = "mlx-community/Qwen2.5-Coder-1.5B-4bit"
SETTINGS = {
    "MIN_TRAINING_CHUNKS": "5",
    "OPTIMIZER__MAX_STEPS": "1",
    "OPTIMIZER__TOKENS_PER_UPDATE": "512",
    "DATA__SEQUENCE_LENGTHS": "[128]",
    "EVALUATION__ARMS": '["base", "adapter"]',
    "EVALUATION__TASKS": "0",
    "EVALUATION__TIME_SHARE": "0",
    "THROTTLING__LOW_PRIORITY": "false",
}


def train(repository: Path, place: Path, address: str) -> tuple[dict[str, object], str]:
    """The result of `mlx-gardener train --model auto` by a user whose cache is empty, and what was said of the model."""
    environment = os.environ | {f"MLX_GARDENER_{name}": value for name, value in SETTINGS.items()}
    environment |= {
        "MLX_GARDENER_HOME": str(place / "home"),
        "HF_HOME": str(place / "hub"),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
    }
    command = (sys.executable, "-m", "mlx_gardener", "train", str(repository), "--budget", "4", "--json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    journal = next((place / "home").rglob("events.jsonl")).read_text().splitlines()
    said = [event.get("message", "") for event in map(json.loads, journal)]
    return json.loads(done.stdout.splitlines()[-1]), "\n".join(said)


def run_with_hub(script: str, place: Path, address: str) -> str:
    """What a script prints in a process that asks this hub and has an empty cache."""
    environment = os.environ | {"HF_HOME": str(place / "hub"), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    environment["PIP_INDEX_URL"] = address  # which has no packages; never the real one
    command = (sys.executable, "-c", script)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout.strip()


@pytest.fixture
def model(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    return write_tiny_model(tmp_path / "published", tiny_tokenizer_dir)


def test_auto_fetches_the_best_model_that_fits_and_shows_how_far_it_is(
    tmp_path: Path, repository: Path, model: Path
) -> None:
    with hub_with(NAME, model, seconds_a_file=0.2) as address:
        _, said = train(repository, tmp_path, address)
    assert f"Base model: {NAME} (the best recommended model that fits the budget" in said
    assert f"Fetching {NAME}: 0 of" in said
    manifest = json.loads(next((tmp_path / "home").rglob("manifest.json")).read_text())
    assert manifest["base"]["id"] == NAME


def test_looking_first_names_the_model_and_the_figures_of_the_training_and_fetches_no_weights(
    tmp_path: Path, repository: Path, model: Path
) -> None:
    environment = {f"MLX_GARDENER_{name}": value for name, value in SETTINGS.items()}
    commands = [
        ("scan", str(repository)),
        ("train", str(repository), "--dry-run"),
        ("plan", str(repository)),
        ("plan", "--model", NAME),
    ]
    script = f"""
import json
from mlx_gardener.platform.lean_imports import import_lean
import_lean()
from tests.support.commands import gardener_here
for command in {commands!r}:
    done = gardener_here(*command, "--json", **{environment!r})
    assert done.returncode == 0, done.stderr[-3000:]
    print(json.dumps(json.loads(done.stdout)))
"""

    def figures() -> list[dict[str, Any]]:
        told = [json.loads(line) for line in run_with_hub(script, tmp_path, address).splitlines()]
        return [*(one["estimate"] for one in told[:3]), told[3]["predicted_parts"]]

    with hub_with(NAME, model) as address:
        before = figures()
        assert all(estimate.pop("model") == NAME for estimate in before[:3])
        reasons = {estimate.pop("model_reason") for estimate in before[:3]}
        assert reasons == {"the best recommended model that fits the budget; 0.0 GB to be fetched"}
        assert not list((tmp_path / "hub").rglob("*.safetensors"))
        run_with_hub(
            f"from mlx_gardener.model.hub import fetch_model\nfetch_model({NAME!r})", tmp_path, address
        )
        after = figures()
    assert all(estimate.pop("model") == NAME for estimate in after[:3])
    assert all("in the local cache" in estimate.pop("model_reason") for estimate in after[:3])
    assert before == after


def test_auto_takes_the_embedded_model_where_the_hub_has_not_what_fits(tmp_path: Path, model: Path) -> None:
    script = (
        "from mlx_gardener.engine.choosing import choose_base\n"
        "from mlx_gardener.config import TrainingConfig\n"
        "found = choose_base(TrainingConfig(), may_fetch=True)\n"
        "print(found.name, found.reason)"
    )
    with hub_with("somebody/else", model) as address:
        said = run_with_hub(script, tmp_path, address)
    assert said.startswith(f"seedling the embedded model: {NAME} would fit, but it is not in the local cache")
    assert said.count(NAME) == 1, said


def test_what_anybody_fetched_is_at_hand_if_it_is_whole(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    store = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(REVISION)
    (store / "trees").mkdir()  # the hub's library keeps a list of all files, README.md too
    listed = [{"path": "README.md"}, *({"path": file.name} for file in model.iterdir())]
    (store / "trees" / f"{REVISION}.json").write_text(json.dumps(listed))
    (store / "snapshots").mkdir()
    model.rename(store / "snapshots" / REVISION)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cached_model(NAME) == store / "snapshots" / REVISION
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (store / "snapshots" / REVISION / "model.safetensors.index.json").write_text(json.dumps(index))
    assert cached_model(NAME) is None, "a shard is missing"
    (store / "trees" / f"{REVISION}.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"has no model-1\.safetensors in the local cache"):
        fetch_model(NAME)
    assert cached_model("some/other") is None and cached_model("no/name/at/all") is None


def test_fetching_can_be_stopped(tmp_path: Path, model: Path) -> None:
    script = (
        "import sys\nfrom mlx_gardener.model.hub import fetch_model\n"
        "def stop(done, total):\n    assert total > 0\n    raise KeyboardInterrupt\n"
        f"try:\n    fetch_model({NAME!r}, stop)\nexcept KeyboardInterrupt:\n    print('stopped')\n"
    )
    with hub_with(NAME, model, seconds_a_file=3600) as address:
        assert run_with_hub(script, tmp_path, address) == "stopped"
