"""Models that other programs keep on this machine: all are found, by their owners' names, and no store leads out of itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gardener.config import load_config
from mlx_gardener.engine.bases import list_bases, look_at
from mlx_gardener.errors import ModelError
from mlx_gardener.model.choose import absolute_model, choose_model, resolve_model
from mlx_gardener.model.stores import StoredBase, find_base, find_bases, is_store_name
from mlx_gardener.platform.store_places import store_places
from tests.model.store_worlds import MEDIA, OllamaStore, hub_snapshot, into_blobs, write_gguf
from tests.support.models import write_tiny_model


@pytest.fixture
def user() -> Path:
    """The user's home, which is empty."""
    place = Path(os.environ["HOME"])
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture
def ollama(user: Path, monkeypatch: pytest.MonkeyPatch) -> OllamaStore:
    monkeypatch.delenv("OLLAMA_MODELS")
    return OllamaStore(user / ".ollama" / "models")


def found() -> dict[str, StoredBase]:
    return {base.name: base for base in find_bases()}


def reasons() -> dict[str, str]:
    return {name: base.why_not for name, base in found().items() if base.why_not is not None}


def test_without_any_store_nothing_is_found() -> None:
    assert find_bases() == []


def test_ollama_s_models_have_ollama_s_names_and_their_blobs(ollama: OllamaStore, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "a.gguf").read_bytes()
    model = ollama.layer("model", data)
    licence = ollama.layer("license", b"                                 Apache License\n  Version 2.0\n")
    ollama.add("qwen2.5-coder", "1.5b", [model, licence, ollama.layer("template", b"{{ .Prompt }}")])
    ollama.add("qwen2.5-coder", "latest", [model])
    ollama.add("Mellum-4b-base", "latest", [model], namespace="JetBrains")
    ollama.add("tiny-GGUF", "Q4_K_M", [model], host="hf.co", namespace="org")
    names = found()
    assert set(names) == {
        "ollama:qwen2.5-coder:1.5b",
        "ollama:qwen2.5-coder:latest",
        "ollama:JetBrains/Mellum-4b-base:latest",
        "ollama:hf.co/org/tiny-GGUF:Q4_K_M",
    }
    base = names["ollama:qwen2.5-coder:1.5b"]
    assert base.path.parent.name == "blobs" and base.path.read_bytes() == data and base.is_gguf
    assert base.licence == "apache-2.0" and base.why_not is None
    assert find_base("ollama:qwen2.5-coder").name == "ollama:qwen2.5-coder:latest"
    assert choose_model("ollama:qwen2.5-coder:1.5b").gguf == base.path


def test_what_ollama_has_and_cannot_be_trained_on_is_named_with_the_reason(
    ollama: OllamaStore, tmp_path: Path
) -> None:
    model = ollama.layer("model", write_gguf(tmp_path / "a.gguf").read_bytes())
    tensors = [ollama.layer("tensor", f"{at}".encode(), name=f"layer.{at}") for at in range(3)]
    ollama.add("new", "mlx", [*tensors, ollama.layer("json", b"{}", name="config.json")])
    ollama.add("mine", "latest", [model, ollama.layer("adapter", b"GGUF")])
    gone = {"mediaType": f"{MEDIA}model", "digest": f"sha256:{'ab' * 32}", "size": 5}
    ollama.add("half", "latest", [gone])
    ollama.add("none", "latest", [ollama.layer("system", b"You are")])
    told = reasons()
    assert "3 safetensors layers" in told["ollama:new:mlx"]
    assert "an adapter on top" in told["ollama:mine:latest"]
    assert "ollama pull" in told["ollama:half:latest"]
    assert "names no model" in told["ollama:none:latest"]
    with pytest.raises(ModelError, match="3 safetensors layers"):
        choose_model("ollama:new:mlx")


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32, 7, None, "sha256:" + "0" * 63],
)
def test_a_digest_that_is_none_leads_nowhere(ollama: OllamaStore, digest: object) -> None:
    ollama.add("bad", "latest", [{"mediaType": f"{MEDIA}model", "digest": digest, "size": 1}])
    assert "no sha256" in reasons()["ollama:bad:latest"]


@pytest.mark.parametrize(
    "text", ["", "[", "[]", '{"layers": 3}', '{"layers": [3]}', "[" * 100_000, '{"layers": []}', "\x00\xff"]
)
def test_a_manifest_may_hold_anything(ollama: OllamaStore, text: str) -> None:
    ollama.add("bad", "latest", []).write_bytes(text.encode("latin-1"))
    assert list(reasons()) == ["ollama:bad:latest"]


def test_a_huge_manifest_is_not_read_and_a_pipe_not_waited_for(ollama: OllamaStore) -> None:
    with ollama.add("huge", "latest", []).open("ab") as stream:
        stream.truncate(9 * 2**20)
    pipe = ollama.add("pipe", "latest", [])
    pipe.unlink()
    os.mkfifo(pipe)
    assert list(reasons()) == ["ollama:huge:latest"] and "longer than" in reasons()["ollama:huge:latest"]


def test_no_link_in_ollama_s_store_leads_out_of_it(ollama: OllamaStore, tmp_path: Path) -> None:
    outside = write_gguf(tmp_path / "outside.gguf")
    layer = ollama.layer("model", outside.read_bytes())
    blob = ollama.root / "blobs" / str(layer["digest"]).replace(":", "-")
    blob.unlink()
    blob.symlink_to(outside)
    ollama.add("linked", "latest", [layer])
    manifest = ollama.add("manifest", "latest", [layer])
    (tmp_path / "manifest").write_bytes(manifest.read_bytes())
    manifest.unlink()
    manifest.symlink_to(tmp_path / "manifest")
    told = reasons()
    assert (
        "link out of the store" in told["ollama:linked:latest"]
        and str(outside) in told["ollama:linked:latest"]
    )
    assert "damaged" in told["ollama:manifest:latest"]


def test_the_variable_that_moves_ollama_s_store_is_obeyed(
    ollama: OllamaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ollama.layer("model", write_gguf(tmp_path / "a.gguf").read_bytes())
    ollama.add("here", "latest", [model])
    moved = OllamaStore(tmp_path / "moved")
    moved.add("there", "latest", [moved.layer("model", (tmp_path / "a.gguf").read_bytes())])
    assert list(found()) == ["ollama:here:latest"]
    monkeypatch.setenv("OLLAMA_MODELS", str(moved.root))
    assert list(found()) == ["ollama:there:latest"]


def test_lm_studio_s_models_are_found_where_its_pointer_and_settings_say(user: Path, tmp_path: Path) -> None:
    write_gguf(user / ".cache/lm-studio/models/pub/old/a.gguf")
    assert list(found()) == ["lmstudio:pub/old/a.gguf"]
    write_gguf(user / ".lmstudio/models/pub/new/a.gguf")
    assert list(found()) == ["lmstudio:pub/new/a.gguf"]
    write_gguf(tmp_path / "elsewhere/models/pub/pointed/a.gguf")
    (user / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'elsewhere'}\n")
    assert list(found()) == ["lmstudio:pub/pointed/a.gguf"]
    write_gguf(tmp_path / "disk/pub/moved/a.gguf")
    settings = tmp_path / "elsewhere/settings.json"
    settings.write_text(json.dumps({"downloadsFolder": str(tmp_path / "disk")}))
    assert list(found()) == ["lmstudio:pub/moved/a.gguf"]
    settings.write_text('{"downloadsFolder": 3}')
    assert list(found()) == ["lmstudio:pub/pointed/a.gguf"]


def test_shards_are_one_model_and_a_missing_one_is_said(user: Path, tmp_path: Path) -> None:
    place = user / ".lmstudio/models/pub/big"
    write_gguf(place / "big-Q4_K_M.gguf", tensors_a_shard=10)
    base = found()["lmstudio:pub/big/big-Q4_K_M.gguf"]
    assert len(found()) == 1 and len(base.files) == 3 and base.why_not is None
    assert base.path.name.endswith("00001-of-00003.gguf")
    assert find_base("lmstudio:pub/big/big-Q4_K_M") == base == find_base("lmstudio:pub/big")
    whole = resolve_model(choose_model(str(write_gguf(tmp_path / "whole.gguf"))))
    read = resolve_model(choose_model("lmstudio:pub/big"))
    assert (read / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    (place / "big-Q4_K_M-00002-of-00003.gguf").unlink()
    assert "1 of its 3 shards are not here" in reasons()["lmstudio:pub/big/big-Q4_K_M.gguf"]


def test_shards_in_the_hub_s_cache_are_links_to_blobs_and_still_one_model(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_snapshot(hub_cache, "org/big-GGUF")
    first = write_gguf(snapshot / "Q8_0" / "big.gguf", tensors_a_shard=10)
    into_blobs(snapshot)
    assert first.is_symlink() and list(found()) == ["hf:org/big-GGUF/Q8_0/big.gguf"] and not reasons()
    monkeypatch.chdir(first.parent)
    read = resolve_model(choose_model("hf:org/big-GGUF/Q8_0/big"))
    for name in (str(first), str(first.parent), first.name, absolute_model(first.name), absolute_model(".")):
        assert resolve_model(choose_model(name)) == read, name
    config = load_config(environment={})
    stored, named, in_folder, _ = list_bases(config, [first, first.parent])
    assert stored.parameters == named.parameters == in_folder.parameters and named.name == str(first)


def test_a_file_that_goes_while_stores_are_looked_at_stops_nothing(user: Path) -> None:
    for name in ("a", "b"):
        write_gguf(user / f".lmstudio/models/pub/{name}/{name}.gguf")
    stored = find_bases()
    stored[0].path.unlink()
    gone, here = look_at(stored)
    assert "it cannot be read (" in str(gone.base.why_not) and here.base.why_not is None


def test_a_link_out_of_a_store_is_named_and_not_followed(
    user: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    outside = write_gguf(tmp_path / "outside.gguf")
    place = user / ".lmstudio/models/pub"
    (place / "linked").mkdir(parents=True)
    (place / "linked" / "a.gguf").symlink_to(outside)
    (place / "folder").symlink_to(tiny_model_dir)
    (place / "loop").symlink_to(place)
    told = reasons()
    assert set(told) == set(found()) == {"lmstudio:pub/linked/a.gguf", "lmstudio:pub/folder"}
    assert f"name {outside} itself" in told["lmstudio:pub/linked/a.gguf"]
    assert choose_model(str(outside)).gguf == outside


def test_the_hub_s_cache_has_folders_and_gguf_files(
    user: Path, tiny_model_dir: Path, hub_cache: Path, tmp_path: Path
) -> None:
    snapshot = hub_snapshot(hub_cache, "org/tiny")
    shutil.copytree(tiny_model_dir, snapshot, dirs_exist_ok=True)
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n")
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text("{}")
    into_blobs(snapshot)
    packed = hub_snapshot(hub_cache, "org/tiny-GGUF", main=False)
    write_gguf(packed / "tiny-Q4_K_M.gguf")
    write_gguf(packed / "UD" / "tiny-Q2_K.gguf")
    (packed / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-research\n---\n")
    into_blobs(packed)
    outside = hub_snapshot(hub_cache, "org/outside")
    (outside / "a.gguf").symlink_to(write_gguf(tmp_path / "a.gguf"))
    names = found()
    assert {name: base.licence for name, base in names.items()} == {
        "hf:org/outside/a.gguf": None,
        "hf:org/tiny": "mit",
        "hf:org/tiny-GGUF/UD/tiny-Q2_K.gguf": "tiny-research",
        "hf:org/tiny-GGUF/tiny-Q4_K_M.gguf": "tiny-research",
    }
    assert list(reasons()) == ["hf:org/outside/a.gguf"]
    choice = choose_model("hf:org/tiny")
    assert (choice.name, choice.path, choice.id) == ("org/tiny", snapshot, "org/tiny")
    assert choose_model("hf:org/tiny-GGUF/tiny-Q4_K_M").gguf == packed / "tiny-Q4_K_M.gguf"
    with pytest.raises(ModelError, match="no one model") as caught:
        choose_model("hf:org/tiny-GGUF")
    assert "tiny-Q4_K_M.gguf" in caught.value.next_step


def test_llama_cpp_s_old_and_new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "cache" / "ggml-org_tiny-GGUF_tiny-Q8_0.gguf")
    (tmp_path / "cache" / "manifest=ggml-org=tiny-GGUF=latest.json").write_text("{}")
    write_gguf(hub_snapshot(tmp_path / "cache", "ggml-org/new-GGUF") / "new.gguf")
    assert list(found()) == [
        "llamacpp:ggml-org/new-GGUF/new.gguf",
        "llamacpp:ggml-org_tiny-GGUF_tiny-Q8_0.gguf",
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="the places are those of Linux")
def test_jan_and_omlx(
    user: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(user / ".local/share/Jan/data/llamacpp/models/org/tiny/model.gguf")
    (user / ".local/share/Jan/data/llamacpp/models/org/tiny/model.yml").write_text("name: tiny\n")
    shutil.copytree(tiny_model_dir, user / ".local/share/Jan/data/mlx/models/folder")
    shutil.copytree(tiny_model_dir, user / ".omlx/models/org/tiny-4bit")
    assert list(found()) == ["jan:org/tiny/model.gguf", "jan:folder", "omlx:org/tiny-4bit"]
    assert choose_model("jan:org/tiny").gguf is not None
    moved = user / ".omlx" / "settings.json"
    moved.write_text(json.dumps({"model": {"model_dirs": [str(tmp_path / "disk")]}}))
    shutil.copytree(tiny_model_dir, tmp_path / "disk/moved")
    assert [name for name in found() if name.startswith("omlx")] == ["omlx:moved"]
    monkeypatch.setenv("OMLX_MODEL_DIR", str(user / ".omlx/models"))
    assert [name for name in found() if name.startswith("omlx")] == ["omlx:org/tiny-4bit"]


def test_the_variables_that_move_the_hub_s_and_llama_cpp_s_caches_are_obeyed(tmp_path: Path) -> None:
    """Read by the hub's library when it is imported, so in a process of its own; the last one wins over those before it."""
    code = (
        "from mlx_gardener.platform.store_places import store_places\n"
        "print(*(f'{place.store}={place.root}' for place in store_places()))"
    )
    places = {
        "XDG_CACHE_HOME": ("xdg", "xdg/huggingface/hub"),
        "HF_HOME": ("home", "home/hub"),
        "HF_HUB_CACHE": ("cache", "cache"),
    }
    (tmp_path / "xdg/llama.cpp").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    for name, (value, hub) in places.items():
        (tmp_path / hub).mkdir(parents=True, exist_ok=True)
        environment[name] = str(tmp_path / value)
        done = subprocess.run((sys.executable, "-c", code), env=environment, capture_output=True, text=True)
        wanted = [f"hf={tmp_path / hub}"]
        wanted += [f"llamacpp={tmp_path / 'xdg/llama.cpp'}"] if sys.platform != "darwin" else []
        assert done.stdout.split() == wanted, done.stderr


def test_settings_of_other_programs_may_hold_anything(user: Path) -> None:
    (user / ".lmstudio" / "models").mkdir(parents=True)
    (user / ".omlx" / "models").mkdir(parents=True)
    for text in (
        "",
        "[]",
        "[" * 100_000,
        '{"downloadsFolder": {}, "model": 3}',
        '{"downloadsFolder": "\\u0000"}',
    ):
        (user / ".lmstudio" / "settings.json").write_text(text)
        (user / ".omlx" / "settings.json").write_text(text)
        (user / ".lmstudio-home-pointer").write_bytes(b"\xff\x00" if text else b"~nobody-of-that-name/x")
        assert find_bases() == [] and isinstance(store_places(), list)


def test_a_name_that_no_store_has_names_the_nearest(ollama: OllamaStore, tmp_path: Path) -> None:
    model = ollama.layer("model", write_gguf(tmp_path / "a.gguf").read_bytes())
    ollama.add("qwen2.5-coder", "1.5b", [model])
    with pytest.raises(ModelError, match="Ollama has no model 'ollama:qwen2\\.5-coder:15b'") as caught:
        choose_model("ollama:qwen2.5-coder:15b")
    assert "ollama:qwen2.5-coder:1.5b" in caught.value.next_step
    assert not is_store_name("C:/models") and not is_store_name("org/name") and not is_store_name("path:x")


def test_a_file_and_a_folder_with_one_are_bases_by_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "models" / "tiny.gguf")
    choice = choose_model(str(file))
    assert (choice.gguf, choice.path, choice.id, choice.is_here) == (file, None, "tiny.gguf", True)
    assert choose_model(str(file.parent)).gguf == file and choose_model(str(file.parent)).id == "models"
    monkeypatch.chdir(tmp_path)
    assert absolute_model("models/tiny.gguf") == str(file)
    write_gguf(tmp_path / "models" / "other.gguf")
    with pytest.raises(ModelError, match=r"several models: other\.gguf, tiny\.gguf"):
        choose_model("models")
    (tmp_path / "notes.gguf").write_text("no model")
    with pytest.raises(ModelError, match=r"'notes\.gguf' is no GGUF file"):
        choose_model("notes.gguf")


def test_a_folder_of_an_mlx_model_stays_one_though_a_gguf_file_lies_in_it(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    directory = write_tiny_model(tmp_path / "both", tiny_tokenizer_dir)
    write_gguf(directory / "tiny.gguf")
    assert choose_model(str(directory)).path == directory
