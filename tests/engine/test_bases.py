"""What the bases on this machine are, whether they can be trained on, fit the budget, and how long an update takes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import mlx_gardener
from mlx_gardener.engine.bases import Base
from mlx_gardener.engine.facts import gguf_model_facts, model_facts
from mlx_gardener.model.gguf import gguf_header, read_gguf
from tests.model.store_worlds import OllamaStore, hub_snapshot, into_blobs, write_gguf

pytestmark = pytest.mark.usefixtures("two_idle_cores")


@pytest.fixture
def machine(hub_cache: Path, tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The home of somebody who has Ollama, LM Studio and a hub cache; the user's directory."""
    user = Path(os.environ["HOME"])
    snapshot = hub_snapshot(hub_cache, "org/tiny")
    shutil.copytree(tiny_model_dir, snapshot, dirs_exist_ok=True)
    into_blobs(snapshot)
    ollama = OllamaStore(user / ".ollama" / "models")
    layers = [ollama.layer("model", write_gguf(tmp_path / "a.gguf").read_bytes())]
    ollama.add("qwen2.5-coder", "1.5b", [*layers, ollama.layer("license", b"Apache License")])
    write_gguf(user / ".lmstudio/models/pub/plain/plain.gguf", fim=False, licence=None)
    write_gguf(user / ".lmstudio/models/pub/plain/mmproj-plain.gguf", architecture="clip", kind="mmproj")
    return user


def by_name(*places: str | Path, **settings: object) -> dict[str, Base]:
    return {base.name: base for base in mlx_gardener.models(*places, **settings)}


def test_all_stores_are_listed_with_what_decides(machine: Path) -> None:
    found = by_name()
    assert set(found) == {
        "hf:org/tiny",
        "ollama:qwen2.5-coder:1.5b",
        "lmstudio:pub/plain/plain.gguf",
        "lmstudio:pub/plain/mmproj-plain.gguf",
        "seedling",
    }
    folder, packed = found["hf:org/tiny"], found["ollama:qwen2.5-coder:1.5b"]
    assert (folder.store, folder.quantisation, folder.has_fim) == ("Hugging Face cache", "float32", True)
    assert (packed.store, packed.quantisation, packed.has_fim) == ("Ollama", "F16", True)
    assert packed.licence == "apache-2.0" and packed.size_bytes == packed.path.stat().st_size
    assert found["lmstudio:pub/plain/plain.gguf"].has_fim is False
    assert found["lmstudio:pub/plain/plain.gguf"].licence is None
    assert found["lmstudio:pub/plain/mmproj-plain.gguf"].why_not
    for base in (folder, packed):
        assert base.fits and base.why_not is None and base.speed_from
        assert base.parameters and base.update_seconds and base.peak_bytes and base.peak_bytes < 4 * 2**30


def test_the_weights_of_a_folder_are_counted_as_they_are(machine: Path, tiny_model_dir: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(tiny_model_dir / "model.safetensors")).items())
    assert by_name()["hf:org/tiny"].parameters == sum(value.size for value in weights.values())


def test_what_does_not_fit_says_the_budget_that_does(machine: Path) -> None:
    small = by_name(memory_limit_gb=0.1)["hf:org/tiny"]
    assert small.fits is False and small.update_seconds is None
    assert small.least_budget_bytes and small.least_budget_bytes > 0.1 * 2**30
    enough = by_name(memory_limit_gb=small.least_budget_bytes / 2**30 + 0.01)["hf:org/tiny"]
    assert enough.fits


def test_a_place_that_is_named_is_looked_at_too(machine: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "mine" / "folder")
    file = write_gguf(tmp_path / "mine" / "file.gguf")
    found = by_name(tmp_path / "mine")
    assert found[str(tmp_path / "mine" / "folder")].store == "path" and found[str(file)].fits
    assert str(file) in by_name(file)
    with pytest.raises(mlx_gardener.DataError, match="nowhere"):
        mlx_gardener.models(tmp_path / "nowhere")


def change(directory: Path, **values: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("an architecture of tomorrow", "'tomorrow' is not known to mlx-lm"),
        ("a classifier", "writes no text"),
        ("sentence transformers", "embeddings"),
        ("a name", "embeddings"),
        ("code of its own", "its own code"),
        ("no weights", "no model.safetensors"),
        ("damaged weights", "is damaged"),
        ("no tokenizer", "no tokenizer.json"),
        ("an adapter", "an adapter, not a base"),
        ("a short memory", "reads at most 256 tokens"),
        ("no JSON", "no usable config.json"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_says_why(
    tmp_path: Path, tiny_model_dir: Path, what: str, reason: str
) -> None:
    name = "Tiny-Embedding-4bit" if what == "a name" else "folder"
    directory = shutil.copytree(tiny_model_dir, tmp_path / "mine" / name)
    if what == "an architecture of tomorrow":
        change(directory, model_type="tomorrow")
    elif what == "a classifier":
        change(directory, architectures=["LlamaForSequenceClassification"])
    elif what == "sentence transformers":
        (directory / "modules.json").write_text("[]")
    elif what == "code of its own":
        change(directory, model_file="model.py")
    elif what == "no weights":
        (directory / "model.safetensors").unlink()
    elif what == "damaged weights":
        (directory / "model.safetensors").write_bytes(b"\xff" * 64)
    elif what == "no tokenizer":
        (directory / "tokenizer.json").unlink()
    elif what == "an adapter":
        (directory / "config.json").rename(directory / "adapter_config.json")
    elif what == "a short memory":
        change(directory, max_position_embeddings=256)
    elif what == "no JSON":
        (directory / "config.json").write_text("{")
    base, _ = mlx_gardener.models(tmp_path / "mine")
    assert base.why_not is not None and reason in base.why_not and base.fits is None, base


def test_markers_are_found_wherever_the_tokenizer_has_them(tmp_path: Path, tiny_model_dir: Path) -> None:
    directory = shutil.copytree(tiny_model_dir, tmp_path / "mine")
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())

    def has_fim() -> bool | None:
        base, _ = mlx_gardener.models(tmp_path / "mine")
        return base.has_fim

    assert has_fim() is True
    added = tokenizer.pop("added_tokens")
    file.write_text(json.dumps(tokenizer | {"added_tokens": added}))  # behind the vocabulary
    assert has_fim() is True
    file.write_text(json.dumps({"added_tokens": added[:1], **tokenizer}))
    assert has_fim() is False
    file.write_text("{")
    assert has_fim() is None


def test_what_was_seen_of_a_gguf_file_is_kept_until_the_file_is_another(tmp_path: Path, home: Path) -> None:
    file = write_gguf(tmp_path / "mine" / "a.gguf")
    first = mlx_gardener.models(tmp_path / "mine")
    kept = json.loads((home / "cache" / "gguf_facts.json").read_text())
    (told,) = kept["files"].values()
    told["base"]["quantisation"] = "from the cache"
    (home / "cache" / "gguf_facts.json").write_text(json.dumps(kept))
    second, _ = mlx_gardener.models(tmp_path / "mine")
    assert second.quantisation == "from the cache" and second.parameters == first[0].parameters
    write_gguf(file, layers=3)
    third, _ = mlx_gardener.models(tmp_path / "mine")
    assert third.quantisation == "F16" and (third.parameters or 0) > (second.parameters or 0)
    kept = json.loads((home / "cache" / "gguf_facts.json").read_text())
    damaged = ([], {**kept, "files": 3}, {**kept, "files": dict.fromkeys(kept["files"], 3)})
    last = list(kept["files"].values())[-1]
    worse = ({"base": 3, "facts": None}, {"base": {"x": 1}, "facts": {}}, {**last, "facts": {"x": 1}})
    for value in (*damaged, *({**kept, "files": dict.fromkeys(kept["files"], told)} for told in worse)):
        (home / "cache" / "gguf_facts.json").write_text(json.dumps(value))
        assert mlx_gardener.models(tmp_path / "mine")[:-1] == [third]


def test_a_damaged_gguf_file_hinders_no_other(machine: Path) -> None:
    (machine / ".lmstudio/models/pub/plain/broken.gguf").write_bytes(b"GGUF" + b"\xff" * 50)
    found = by_name()
    assert found["lmstudio:pub/plain/broken.gguf"].why_not and found["lmstudio:pub/plain/plain.gguf"].fits


def test_a_gguf_file_is_planned_for_as_the_folder_that_it_will_be(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf")
    folder = read_gguf(file, tmp_path / "cache")
    assert replace(gguf_model_facts(gguf_header(file)[0]), name="") == replace(model_facts(folder), name="")
