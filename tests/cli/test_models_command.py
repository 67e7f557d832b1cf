"""`mlx-gardener models`: what is on this machine, for people and for machines."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_gardener.cli import cli
from tests.model.store_worlds import OllamaStore, hub_snapshot, write_gguf


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments])


@pytest.fixture
def machine(hub_cache: Path, tiny_model_dir: Path, tmp_path: Path) -> Path:
    user = Path(os.environ["HOME"])
    shutil.copytree(tiny_model_dir, hub_snapshot(hub_cache, "org/tiny"), dirs_exist_ok=True)
    ollama = OllamaStore(user / ".ollama" / "models")
    ollama.add("tiny", "1b", [ollama.layer("model", write_gguf(tmp_path / "a.gguf").read_bytes())])
    ollama.add("evil\x1b[2J", "latest", [])
    return user


def test_a_machine_without_models_says_so() -> None:
    assert "no base models on this machine" in run().stdout
    assert json.loads(run("--json").stdout) == {"budget_gb": 4.0, "models": []}


def test_people_see_a_table_and_the_reasons_below(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    done = run("--budget", "3")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[0] == "model" and "fits 3 GB" in lines[0] and "1,024 tokens" in lines[0]
    (folder,) = (line for line in lines if line.startswith("hf:org/tiny"))
    (packed,) = (line for line in lines if line.startswith("ollama:tiny:1b"))
    assert "float32" in folder and "yes, 0." in folder and folder.rstrip().endswith(" s")
    assert "F16" in packed and "apache-2.0" in packed and "Ollama" in packed
    assert lines.index("Not to be trained on:") > lines.index(packed)
    assert "\x1b[2J" not in done.stdout and "ollama:evil\\x1b[2J:latest: its manifest names no model" in lines


def test_machines_get_the_same_and_more(machine: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "mine.gguf", fim=False)
    told = json.loads(run(str(file), "--json", "--budget", "3").stdout)
    assert told["budget_gb"] == 3.0
    models = {model["name"]: model for model in told["models"]}
    assert models[str(file)]["has_fim"] is False and models[str(file)]["fits"] is True
    assert models["ollama:tiny:1b"]["update_seconds"] > 0
    assert models["ollama:evil\x1b[2J:latest"]["why_not"]


def test_a_place_that_is_not_there_is_an_error_with_a_next_step() -> None:
    done = run("/nowhere/at/all")
    assert done.exit_code == 1 and "There is no '/nowhere/at/all'" in done.stderr
    assert "Name a directory" in done.stderr
