"""`mlx-gardener models`: what is on this machine, for people and for machines."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_gardener.cli import cli
from mlx_gardener.model.choose import choose_model
from mlx_gardener.model.stores import is_store_name
from tests.model.store_worlds import OllamaStore, hub_snapshot, into_blobs, write_gguf


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


def test_a_machine_without_models_has_the_embedded_one_and_says_so() -> None:
    said = run().stdout
    assert "no other base models on this machine" in said and "mlx-gardener (embedded)" in said
    (model,) = json.loads(run("--json").stdout)["models"]
    assert (
        model["name"] == "seedling"
        and model["has_fim"]
        and model["fits"]
        and model["licence"] == "apache-2.0"
    )
    assert choose_model(model["name"]).is_here and not is_store_name("embedded:seedling")


def test_the_doctor_says_what_auto_takes_only_as_far_as_nothing_is_fetched() -> None:
    from mlx_gardener.cli.doctor import _models

    seen = _models().seen
    assert seen.startswith("--model auto without fetching: seedling") and "`train` fetches it" in seen


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


@pytest.mark.skipif(sys.platform == "darwin", reason="Jan's place is that of Linux")
def test_every_store_in_its_true_layout_is_listed_and_every_name_is_taken(
    hub_cache: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, data = Path(os.environ["HOME"]), write_gguf(tmp_path / "a.gguf").read_bytes()
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    folder = hub_snapshot(hub_cache, "org/tiny-4bit")
    shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    into_blobs(folder)
    shards = hub_snapshot(hub_cache, "org/big-GGUF", main=False)
    write_gguf(shards / "big.gguf", tensors_a_shard=10)
    into_blobs(shards)
    ollama = OllamaStore(user / ".ollama" / "models")
    told = [
        ollama.layer("template", b"{{ .Prompt }}"),
        ollama.layer("params", b'{"stop": ["<|endoftext|>"]}'),
    ]
    ollama.add("coder", "1b", [ollama.layer("model", data), *told])
    ollama.add("tiny-GGUF", "Q8_0", [ollama.layer("model", data)], host="hf.co", namespace="org")
    ollama.add(
        "new",
        "mlx",
        [ollama.layer("tensor", b"1", name="a"), ollama.layer("json", b"{}", name="config.json")],
    )
    write_gguf(user / ".lmstudio/models/pub/big/big.gguf", tensors_a_shard=10)
    shutil.copytree(tiny_model_dir, user / ".lmstudio/models/mlx-community/tiny-4bit")
    write_gguf(tmp_path / "llama/ggml-org_tiny-GGUF_tiny-Q8_0.gguf")
    jan = user / ".config/Jan/data/llamacpp/models/huggingface.co/org/tiny"
    write_gguf(jan / "model.gguf")
    (jan / "model.yml").write_text("name: tiny\n")
    shutil.copytree(tiny_model_dir, user / ".omlx/models/org/tiny-4bit")
    models = {model["name"]: model for model in json.loads(run("--json", "--budget", "3").stdout)["models"]}
    assert set(models) == {
        "hf:org/tiny-4bit", "hf:org/big-GGUF/big.gguf",
        "ollama:coder:1b", "ollama:hf.co/org/tiny-GGUF:Q8_0", "ollama:new:mlx",
        "lmstudio:pub/big/big.gguf", "lmstudio:mlx-community/tiny-4bit",
        "llamacpp:ggml-org_tiny-GGUF_tiny-Q8_0.gguf",
        "jan:huggingface.co/org/tiny/model.gguf", "omlx:org/tiny-4bit", "seedling",
    }  # fmt: skip
    assert "1 safetensors layers" in models.pop("ollama:new:mlx")["why_not"]
    for name, model in models.items():
        assert model["why_not"] is None and model["fits"] and model["update_seconds"] > 0, model
        assert choose_model(name).is_here


def test_what_takes_long_shows_how_far_it_is(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_gardener.cli.models._PATIENCE_SECONDS", -1.0)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "Reading headers" in run().stderr and "Reading headers" not in run("--json").stderr
    monkeypatch.setattr("mlx_gardener.cli.models._PATIENCE_SECONDS", 1e9)
    assert "Reading headers" not in run().stderr


def test_a_place_that_is_not_there_is_an_error_with_a_next_step() -> None:
    done = run("/nowhere/at/all")
    assert done.exit_code == 1 and "There is no '/nowhere/at/all'" in done.stderr
    assert "Name a directory" in done.stderr
