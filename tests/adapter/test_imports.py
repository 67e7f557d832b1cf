"""Adapters of PEFT become versions with the same sum in every module, or are refused with the reason."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gardener.adapter import PeftManager
from mlx_gardener.adapter.imports import import_adapter
from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.errors import AdapterError
from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener_here
from tests.support.peft import HIDDEN, INNER, write_peft


@pytest.fixture
def manager(repository: Path) -> PeftManager:
    registry = ProjectRegistry()
    registry.register_project("web", repository)
    return PeftManager(registry)


def delta(directory: Path, module: str, scale: float) -> np.ndarray:
    loaded: Any = mx.load(str(directory / "adapter_model.safetensors"))
    pair = [np.array(loaded[f"base_model.model.{module}.lora_{side}.weight"]) for side in "BA"]
    return scale * pair[0] @ pair[1]


def test_ranks_alphas_and_places_of_their_own_keep_their_sum(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path
) -> None:
    first, second, third = (
        "model.layers.1.self_attn.q_proj",
        "model.layers.2.mlp.up_proj",
        "model.layers.2.self_attn.q_proj",
    )
    source = write_peft(
        tmp_path / "peft", {first: 4, second: 2, third: 6}, target_modules=r".*\.(q_proj|up_proj)", use_rslora=True,
        rank_pattern={r"layers\.2\.self_attn\.q_proj": 6, "up_proj": 2}, alpha_pattern={"up_proj": 3},
    )  # fmt: skip
    record = import_adapter(manager, "web", source, base=str(tiny_model_dir))
    adapter = manager.load_adapter("web", record.version)
    assert (adapter.settings.layers, adapter.settings.rank) == (2, 6) and not record.active
    wanted = {
        first: delta(source, first, 8 / 4**0.5),
        second: delta(source, second, 3 / 2**0.5),
        third: delta(source, third, 8 / 6**0.5),
        "model.layers.1.mlp.up_proj": np.zeros((INNER, HIDDEN)),
    }
    for module, value in wanted.items():
        pair = [np.array(adapter.weights[f"{module}.lora_{side}"]) for side in "ab"]
        np.testing.assert_allclose(
            adapter.settings.scale * (pair[0] @ pair[1]).T, value, rtol=1e-4, atol=1e-4
        )
    manifest = read_manifest(record.directory)
    assert (
        manifest["training"]["imported"] is True and manifest["evidence"] == {} and manifest["metrics"] == {}
    )
    assert manager.registry.check() == []


def test_what_is_exported_comes_back(manager: PeftManager, tiny_model_dir: Path, tmp_path: Path) -> None:
    source = write_peft(tmp_path / "peft", {"model.layers.0.self_attn.q_proj": 4})
    import_adapter(manager, "web", source, base=str(tiny_model_dir), activate=True)
    out = manager.export_adapter("web", None, "peft", tmp_path / "out")
    again = import_adapter(manager, "web", out, base=str(tiny_model_dir))
    first, second = (manager.load_adapter("web", version).weights for version in ("v1", again.version))
    assert all(mx.array_equal(first[name], second[name]).item() for name in first)


def test_a_pickle_is_never_opened(manager: PeftManager, tmp_path: Path, tiny_model_dir: Path) -> None:
    source = write_peft(tmp_path / "peft", {"model.layers.0.self_attn.q_proj": 4})
    (source / "adapter_model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    (source / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterError, match="pickled"):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))
    assert not (tmp_path / "exploded").exists() and manager.list_adapters("web") == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "not LORA"),
        ({"bias": "all"}, "uses bias"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"fan_in_fan_out": True}, "uses fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "changes the base too"),
        ({"r": 0}, "r is no positive number"),
        ({"r": 8}, "configuration says 8"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
        ({"rank_pattern": {"(" * 400: 3}}, "no regular expression"),
        ({"rank_pattern": {"(.|..|...)*[!?]": 4}}, "takes too long"),
        ({"rank_pattern": {"{" + " " * 100_000: 4}}, "takes too long"),
        ({"rank_pattern": {"{" + " " * 450 + "(": 4}}, "no regular expression"),
        ({"alpha_pattern": {"((a{1000}){1000}){1000}": 4}}, "takes too long"),
        ({"alpha_pattern": {f"(.|..)*[!?]|z{at}": 4 for at in range(1000)}}, "takes too long"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "no table of positive numbers"),
        ({"target_modules": 5}, "target_modules is neither a text nor a list"),
        ({"target_modules": ["q_proj", 5]}, "target_modules is neither a text nor a list"),
        ({"use_rslora": "false"}, "use_rslora is neither true nor false"),
        ({"use_dora": True}, "q_proj' has no magnitudes"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    source = write_peft(tmp_path / "peft", {"model.layers.0.self_attn.q_proj": 4}, **config)
    with pytest.raises(AdapterError, match=words):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))
    assert manager.list_adapters("web") == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("model.layers.0.self_attn.nothing", "no module|no such|does not fit|cannot take"),
        ("model.layers.9.self_attn.q_proj", "no such linear layer"),
        ("lm_head", "outside of the model's layers"),
        ("model.layers.0.self_attn.k_proj", "wants"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, module: str, words: str
) -> None:
    source = write_peft(tmp_path / "peft", {module: 4})
    with pytest.raises(AdapterError, match=words):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))
    assert manager.list_adapters("web") == []


def test_dora_comes_with_its_magnitudes(manager: PeftManager, tiny_model_dir: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    magnitude = mx.arange(1, HIDDEN + 1).astype(mx.float32)
    source = write_peft(
        tmp_path / "peft",
        {name: 4},
        {f"base_model.model.{name}.lora_magnitude_vector": magnitude},
        use_dora=True,
    )
    import_adapter(manager, "web", source, base=str(tiny_model_dir))
    adapter = manager.load_adapter("web", "v1")
    assert adapter.settings.is_dora
    assert mx.array_equal(adapter.weights[f"{name}.m"], magnitude).item()
    other: Any = mx.load(str(tiny_model_dir / "model.safetensors"))
    norm = mx.linalg.norm(other["model.layers.1.self_attn.q_proj.weight"], axis=1)
    assert mx.allclose(adapter.weights["model.layers.1.self_attn.q_proj.m"], norm, rtol=1e-5).item()


def test_the_command_registers_without_evidence(
    repository: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    source = write_peft(tmp_path / "peft", {"model.layers.0.self_attn.q_proj": 4})
    arguments = ("import", str(source), "--project", "web", "--repository", str(repository))
    named = gardener_here(*arguments)
    assert named.returncode == 1 and "--base" in named.stderr
    assert json.loads(gardener_here("projects", "--json").stdout) == {"projects": []}, "nothing is half done"
    done = gardener_here(*arguments, "--base", str(tiny_model_dir), "--activate")
    assert done.returncode == 0 and "without evidence" in done.stdout, done.stderr
    assert "not measured" in gardener_here("show", "web").stdout
    piped = gardener_here("complete", "web", "core/ledger_1.py:9", "--max-tokens", "2")
    assert piped.returncode == 0, piped.stderr


SMALL = {"model.layers.0.self_attn.q_proj": 4}


def in_hub_cache(cache: Path, source: Path) -> Path:
    """The snapshot of ``source`` as `hf download` leaves it: every file a link to a blob."""
    repository = cache / "models--someone--adapter"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        (repository / "blobs" / f"{number:064x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_links_of_the_hub_s_cache_are_followed(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path
) -> None:
    snapshot = in_hub_cache(tmp_path / "hub", write_peft(tmp_path / "peft", SMALL))
    record = import_adapter(manager, "web", snapshot, base=str(tiny_model_dir))
    assert manager.load_adapter("web", record.version).weights
    assert manager.registry.check() == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("cached", [True, False])
def test_links_that_lead_elsewhere_are_refused_with_that_reason(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, name: str, cached: bool
) -> None:
    source = write_peft(tmp_path / "peft", SMALL)
    place = in_hub_cache(tmp_path / "hub", source) if cached else write_peft(tmp_path / "copy", SMALL)
    (place / name).unlink()
    (place / name).symlink_to(source / name)
    reason = "that leads out of the hub's cache" if cached else "which is followed in the hub's cache only"
    with pytest.raises(AdapterError, match=f"{name} is a symbolic link,? {reason}"):
        import_adapter(manager, "web", place, base=str(tiny_model_dir))
    assert manager.list_adapters("web") == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_that_holds_no_numbers_is_named(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, wrong: float
) -> None:
    source = write_peft(tmp_path / "peft", {**SMALL, "model.layers.1.self_attn.q_proj": 4})
    file = str(source / "adapter_model.safetensors")
    weights: Any = dict(mx.load(file).items())
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    weights[name][3, 2] = wrong
    mx.save_safetensors(file, weights)
    with pytest.raises(AdapterError, match=f"'{name}' holds NaN or infinity"):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))
    assert manager.list_adapters("web") == []


def test_a_scale_beyond_all_numbers_is_refused(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path
) -> None:
    modules = {**SMALL, "model.layers.1.self_attn.q_proj": 4}
    source = write_peft(tmp_path / "peft", modules, alpha_pattern={r"layers\.1\..*": 1e6}, lora_alpha=1e-40)
    with pytest.raises(AdapterError, match=r"layers\.1\..* is beyond what float32 holds"):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))


def test_magnitudes_without_dora_are_named(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path
) -> None:
    magnitudes = {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": mx.ones(HIDDEN)}
    source = write_peft(tmp_path / "peft", SMALL, magnitudes)
    with pytest.raises(AdapterError, match="does not say use_dora"):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_changes_nothing_is_refused(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, dora: bool
) -> None:
    module = "model.layers.0.self_attn.q_proj"
    base: Any = mx.load(str(tiny_model_dir / "model.safetensors"))
    magnitudes = {
        f"base_model.model.{module}.lora_magnitude_vector": mx.linalg.norm(base[f"{module}.weight"], axis=1)
    }
    source = write_peft(tmp_path / "peft", {}, magnitudes if dora else {}, use_dora=dora)
    file = str(source / "adapter_model.safetensors")
    weights: Any = dict(mx.load(file).items())
    weights[f"base_model.model.{module}.lora_A.weight"] = mx.random.normal((4, HIDDEN))
    weights[f"base_model.model.{module}.lora_B.weight"] = mx.zeros((HIDDEN, 4))
    mx.save_safetensors(file, weights)
    with pytest.raises(AdapterError, match="changes nothing"):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))
    assert manager.list_adapters("web") == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pointer_of_git_lfs_is_called_one(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, name: str
) -> None:
    source = write_peft(tmp_path / "peft", SMALL)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    (source / name).write_text(pointer)
    with pytest.raises(AdapterError, match=f"{name} is a Git LFS pointer"):
        import_adapter(manager, "web", source, base=str(tiny_model_dir))


def test_an_unregistered_directory_that_cannot_be_judged_is_left_and_named(
    manager: PeftManager, tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_peft(tmp_path / "peft", SMALL)
    damaged = manager.registry.project_directory("web") / "adapters" / "v7"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text('{"training": ')
    record = import_adapter(manager, "web", source, base=str(tiny_model_dir))
    assert record.version and (damaged / "manifest.json").exists()
    (said,) = [entry.getMessage() for entry in caplog.records if entry.name == "mlx_gardener.adapter.imports"]
    assert said.startswith("web/v7 is not registered") and "no readable manifest.json" in said
    assert any("v7" in problem.subject for problem in manager.registry.check()), "as it says"
    manager.registry.repair()
    assert not damaged.exists() and manager.registry.check() == [], "as it says"
