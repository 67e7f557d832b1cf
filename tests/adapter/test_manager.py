"""Adapters are written whole or not at all, and what is read back is what was written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.errors import AdapterError, RegistryError
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.lora import lora_parameters
from mlx_gardener.registry import ProjectRegistry
from tests.support.adapters import create, trained
from tests.support.adapters import manager as manager


@pytest.fixture
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


def left_behind(manager: PeftManager) -> list[str]:
    directory = manager.registry.project_directory("small") / "adapters"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def test_what_is_read_back_is_what_was_written(manager: PeftManager, base: BaseModel) -> None:
    record = create(manager, base)
    adapter = manager.load_adapter("small")
    weights, settings = trained(base)
    assert all(mx.array_equal(adapter.weights[name], value) for name, value in weights.items())
    assert adapter.settings == settings
    written = json.loads((record.directory / "mlx" / "adapter_config.json").read_text())
    assert written == {
        "fine_tune_type": "lora",
        "model": base.id,
        "num_layers": settings.layers,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": sorted(settings.keys)},
    }, "as mlx-lm reads it"
    assert record.version == "v1" and record.active and left_behind(manager) == ["v1"]
    tokens = mx.array([[5, 6, 7]])
    before = base.model(tokens)
    with attach_adapter(base, adapter):
        assert not mx.allclose(before, base.model(tokens))
    assert mx.array_equal(before, base.model(tokens))


def test_mlx_lm_loads_it(manager: PeftManager, base: BaseModel, tiny_model_dir: Path) -> None:
    import mlx_lm

    record = create(manager, base)
    model, _ = mlx_lm.load(str(tiny_model_dir), adapter_path=str(record.directory / "mlx"))
    tokens = mx.array([[5, 6, 7, 8]])
    with attach_adapter(base, manager.load_adapter("small")):
        assert mx.allclose(model(tokens), base.model(tokens), rtol=1e-4, atol=1e-5)


def test_the_peft_form_is_what_peft_expects(manager: PeftManager, base: BaseModel) -> None:
    record = create(manager, base)
    config = json.loads((record.directory / "peft" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    weights = mx.load(str(record.directory / "peft" / "adapter_model.safetensors"))
    assert weights["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (4, 48)  # type: ignore[index]


def test_the_manifest_names_every_file_and_no_place(manager: PeftManager, base: BaseModel) -> None:
    record = create(manager, base)
    text = (record.directory / "manifest.json").read_text()
    manifest = json.loads(text)
    on_disk = {
        path.relative_to(record.directory).as_posix()
        for path in record.directory.rglob("*")
        if path.is_file()
    }
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    assert "/secret/place" not in text and str(manager.registry.home) not in text
    assert manifest["base"]["weights_sha256"] == base.weights_sha256 and manifest["versions"]["mlx"]


def test_versions_count_up_and_are_never_used_twice(manager: PeftManager, base: BaseModel) -> None:
    assert [create(manager, base).version for _ in range(3)] == ["v1", "v2", "v3"]
    manager.delete_adapter("small", "v2")
    assert create(manager, base).version == "v4"
    assert left_behind(manager) == ["v1", "v3", "v4"]
    assert manager.registry.check() == []


@pytest.mark.parametrize(
    "name", ["mlx/adapters.safetensors", "mlx/adapter_config.json", "manifest.json", "x.txt"]
)
def test_a_changed_file_is_refused(manager: PeftManager, base: BaseModel, name: str) -> None:
    record = create(manager, base)
    with (record.directory / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(AdapterError, match="not the one that was written"):
        manager.load_adapter("small")


def test_a_missing_file_is_refused(manager: PeftManager, base: BaseModel) -> None:
    record = create(manager, base)
    (record.directory / "mlx" / "adapters.safetensors").unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        manager.load_adapter("small")


def test_leaving_without_a_commit_leaves_nothing(manager: PeftManager, base: BaseModel) -> None:
    weights, settings = trained(base)
    with pytest.raises(KeyboardInterrupt):
        with manager.stage_adapter("small", weights, base=base, settings=settings) as staged:
            assert staged.load().weights
            raise KeyboardInterrupt
    assert left_behind(manager) == [] and manager.list_adapters("small") == []


def test_a_registry_that_fails_leaves_no_files(
    manager: PeftManager, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RegistryError("the database is gone")

    monkeypatch.setattr(manager.registry, "add_adapter", fails)
    with pytest.raises(RegistryError):
        create(manager, base)
    assert left_behind(manager) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, base: BaseModel, repository: Path
) -> None:
    small = tmp_path / "small-disk"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let tests mount a file system")
    try:
        registry = ProjectRegistry(small / "home")
        registry.register_project("small", repository)
        filler = small / "filler"
        filler.write_bytes(b"\0" * (shutil.disk_usage(small).free - 24_000))
        manager = PeftManager(registry)
        with pytest.raises(AdapterError, match="cannot be written"):
            create(manager, base)
        assert left_behind(manager) == [] and manager.list_adapters("small") == []
        filler.unlink()
        assert create(manager, base).version == "v1"
    finally:
        registry.close()
        subprocess.run(["umount", str(small)], check=True)


def test_an_adapter_of_another_shape_is_refused_and_the_base_stays_bare(
    manager: PeftManager, base: BaseModel, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    from tests.support.models import write_tiny_model

    create(manager, base)
    other = load_base(str(write_tiny_model(tmp_path / "other", tiny_tokenizer_dir, hidden_size=32)))
    with pytest.raises(AdapterError, match="does not fit other"):
        with attach_adapter(other, manager.load_adapter("small")):
            pass
    assert not lora_parameters(other.model)


def test_an_export_is_whole_and_overwrites_nothing(
    manager: PeftManager, base: BaseModel, tmp_path: Path
) -> None:
    create(manager, base)
    written = manager.export_adapter("small", None, "peft", tmp_path / "out" / "adapter")
    assert sorted(path.name for path in written.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with pytest.raises(AdapterError, match="exists already"):
        manager.export_adapter("small", None, "peft", written)
    with pytest.raises(AdapterError, match="no form 'onnx'"):
        manager.export_adapter("small", None, "onnx", tmp_path / "elsewhere")
