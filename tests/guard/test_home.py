"""The home: nothing leads out of it, nobody else reads in it, and nothing in it is more than data."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gardener.adapter import PeftManager
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.errors import AdapterError, ConfigError, ModelError, RegistryError
from mlx_gardener.model import BaseModel, load_base, load_tokenizer
from mlx_gardener.platform.untrusted import read_header
from mlx_gardener.registry import ProjectRegistry, check_project_name, project_name_for
from tests.guard.seeds import safetensors
from tests.support.adapters import create
from tests.support.adapters import manager as manager
from tests.support.commands import train_flags
from tests.support.models import write_tiny_model

NO_NETWORK = Path(__file__).parent / "no_network"


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def open_to_others(directory: Path) -> list[str]:
    """What somebody else could read, write or enter."""
    found = [directory, *directory.rglob("*")]
    return [f"{path} {oct(path.lstat().st_mode)}" for path in found if path.lstat().st_mode & 0o077]


# Names.


@pytest.mark.parametrize(
    "name",
    [
        "..", ".", "", "../x", "a/b", "/etc", "a\\b", "C:", "-rf", ".hidden", "a\0b", "a\nb", "a.", "x" * 65,
        "nul", "CON", "com1", "Lpt9.txt", "aux.tar.gz", "\uff0e\uff0e", "a\u2215b", "\u202eab", "na\u00efve", "a b",
    ],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a project name"):
        check_project_name(name)
    with pytest.raises(ConfigError):
        ProjectRegistry().project_directory(name)


@settings(max_examples=300)
@given(st.text(min_size=1, max_size=80))
def test_every_directory_has_a_good_name(name: str) -> None:
    if "\0" not in name:
        assert check_project_name(project_name_for(Path("/somewhere") / name.replace("/", "")))


def test_names_that_differ_in_case_only_do_not_share_a_directory(tmp_path: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("Garden", tmp_path)
    with pytest.raises(RegistryError, match="upper and lower case"):
        registry.register_project("garden", tmp_path)


# Places.


PLACES = [
    "/etc",
    "../outside",
    "projects/small/../../..",
    "projects/other/adapters/v1",
    "projects/small",
    "",
    ".",
]


def tamper(registry: ProjectRegistry, statement: str, *values: str) -> None:
    with sqlite3.connect(registry.home / "registry.sqlite3") as database:
        assert database.execute(statement, values).rowcount > 0
    database.close()


@pytest.mark.parametrize("place", PLACES)
def test_an_adapter_row_cannot_point_out_of_its_project(
    manager: PeftManager, base: BaseModel, tmp_path: Path, place: str
) -> None:
    create(manager, base)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("kept")
    tamper(manager.registry, "UPDATE adapters SET directory = ?", place)
    for call in (manager.load_adapter, manager.registry.get_adapter):
        with pytest.raises(RegistryError, match="outside of its home"):
            call("small")
    assert manager.list_adapters("small") == []
    with pytest.raises(RegistryError, match="outside of its home"):
        manager.delete_adapter("small", "v1")
    assert (outside / "precious.txt").exists() and manager.registry.home.exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_training_row_cannot_point_out_of_its_project(manager: PeftManager, place: str) -> None:
    record = manager.registry.begin_training("small", {})
    tamper(manager.registry, "UPDATE trainings SET run_dir = ?", place)
    with pytest.raises(RegistryError, match="outside of its home"):
        manager.registry.get_training(record.id)


def test_a_link_in_the_home_leads_nowhere(manager: PeftManager, base: BaseModel, tmp_path: Path) -> None:
    record = create(manager, base)
    moved = tmp_path / "moved"
    record.directory.rename(moved)
    record.directory.symlink_to(moved)
    with pytest.raises(RegistryError, match="outside of its home"):
        manager.load_adapter("small")


def test_the_home_itself_may_lie_behind_a_link(tmp_path: Path, repository: Path, base: BaseModel) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    registry = ProjectRegistry(tmp_path / "link")
    registry.register_project("small", repository)
    create(PeftManager(registry), base)
    assert PeftManager(registry).load_adapter("small").weights


# Adapters.


@pytest.mark.parametrize(
    "name", ["manifest.json", "mlx", "mlx/adapters.safetensors", "mlx/adapter_config.json", "x.txt"]
)
def test_an_adapter_with_a_link_in_it_is_refused(
    manager: PeftManager, base: BaseModel, tmp_path: Path, name: str
) -> None:
    """Also where the link leads to the very same content."""
    place = create(manager, base).directory / name
    place.rename(tmp_path / "same")
    place.symlink_to(tmp_path / "same")
    with pytest.raises(AdapterError, match="symbolic link"):
        manager.load_adapter("small")
    with pytest.raises(AdapterError, match="symbolic link"):
        manager.export_adapter("small", None, "mlx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["../../../../secret", "/etc/passwd", "mlx/../../v1/x.txt", "C:\\x", "a\nb", "./x.txt"]
)
def test_a_manifest_cannot_name_files_elsewhere(manager: PeftManager, base: BaseModel, name: str) -> None:
    from mlx_gardener.adapter.manifest import read_manifest, verify_files

    record = create(manager, base)
    manifest = read_manifest(record.directory)
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(AdapterError, match="outside of it"):
        verify_files(record.directory, manifest)


def test_a_pipe_in_an_adapter_is_not_waited_for(manager: PeftManager, base: BaseModel) -> None:
    file = create(manager, base).directory / "mlx" / "adapters.safetensors"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(AdapterError, match="no plain file"):
        manager.load_adapter("small")


class _Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["pickle", "npz", "zip of torch"])
def test_pickles_in_the_place_of_weights_are_never_opened(
    manager: PeftManager, base: BaseModel, tmp_path: Path, kind: str
) -> None:
    import zipfile

    from mlx_gardener.adapter.manifest import load_adapter_directory

    directory, marker = create(manager, base).directory, tmp_path / "marker"
    file = directory / "mlx" / "adapters.safetensors"
    bomb = pickle.dumps(_Bomb(marker))
    if kind == "pickle":
        file.write_bytes(bomb)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl" if "torch" in kind else "weights.npy", bomb)
    for name in ("adapters.npz", "adapters.pkl", "adapter_model.bin", "model.py", "__init__.py"):
        (directory / "mlx" / name).write_bytes(bomb)
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter_directory(directory)
    assert not marker.exists()
    pickle.loads(bomb)
    assert marker.exists(), "the bomb was none"


def test_an_export_holds_only_what_the_manifest_names(
    manager: PeftManager, base: BaseModel, tmp_path: Path
) -> None:
    record = create(manager, base)
    (record.directory / "mlx" / "more.py").write_text("raise SystemExit")
    with umask(0o022):
        written = manager.export_adapter("small", None, "mlx", tmp_path / "out")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in written.iterdir()}
    assert modes == dict.fromkeys(("adapters.safetensors", "adapter_config.json", "README.md"), 0o644)
    assert stat.S_IMODE(written.stat().st_mode) == 0o755


def test_no_module_of_the_package_can_unpickle_or_run_text() -> None:
    import re

    import mlx_gardener

    unsafe = re.compile(
        r"\b(pickle|marshal|shelve|joblib|torch\.load)\b|np\.load|allow_pickle|(?<![.\w])(eval|exec)\(|shell=True|os\.system|"
        r"trust_remote_code=True"
    )
    for file in Path(mlx_gardener.__file__).parent.rglob("*.py"):
        assert not unsafe.search(file.read_text()), file


# Models.


@pytest.mark.parametrize("file", ["custom.py", "../custom.py"])
def test_code_of_a_model_is_never_run(tmp_path: Path, tiny_tokenizer_dir: Path, file: str) -> None:
    marker = tmp_path / "marker"
    directory = write_tiny_model(tmp_path / "model", tiny_tokenizer_dir)
    (directory / file).write_text(
        f"open({str(marker)!r}, 'w')\nfrom mlx_lm.models.llama import Model, ModelArgs\n"
    )
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_file": file}))
    with pytest.raises(ModelError, match=r"brings its own code .*model_file.*No setting allows it"):
        load_base(str(directory))
    assert not marker.exists()
    config |= {"auto_map": {"AutoModelForCausalLM": "custom.Model", "AutoTokenizer": "custom.Tokenizer"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"eos_token": "<|endoftext|>", "auto_map": config["auto_map"], "tokenizer_class": "custom.T"}
        )
    )
    assert load_base(str(directory)).config["model_type"] == "llama"
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["../evil", "evil.deeper", "os", "..", "llama\0", 7, None, ["llama"]])
def test_a_model_type_names_nothing_but_an_architecture(
    tmp_path: Path, tiny_tokenizer_dir: Path, kind: object
) -> None:
    directory = write_tiny_model(tmp_path / "model", tiny_tokenizer_dir)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(ModelError):
        load_base(str(directory))


def test_headers_that_claim_too_much_take_no_memory(tmp_path: Path) -> None:
    """2**60 bytes claimed by eight: refused before any array is made."""
    file = tmp_path / "model.safetensors"
    huge = {"dtype": "F32", "shape": [2**29, 2**29], "data_offsets": [0, 2**60]}
    for data in (
        safetensors({"a": huge}, b"\0" * 8),
        safetensors({}, length=2**60),
        safetensors({"a": {**huge, "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors({"a": {**huge, "shape": [2**63, 2**63]}}, b"\0" * 8),
        safetensors(b"[" * 100_000),
        b"\0" * 7,
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError):
            read_header(file)


# Rights.


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_what_the_library_writes_is_the_owner_s_alone(
    repository: Path, base: BaseModel, tmp_path: Path, tiny_model_dir: Path, mask: int
) -> None:
    with umask(mask):
        registry = ProjectRegistry(tmp_path / "own")
        registry.register_project("small", repository)
        create(PeftManager(registry), base)
        registry.begin_training("small", {})
        cache = TokenCache(registry.home / "cache" / "tokens", load_tokenizer(tiny_model_dir))
        cache.encode_many(["def f():\n    return 1\n"])
        assert {path.name for path in (registry.home / "cache" / "tokens").iterdir()} >= {
            "tokens.sqlite3-wal"
        }
        assert open_to_others(registry.home) == []
        cache.close()


def test_a_training_works_without_a_network_and_shows_nothing_to_others(
    repository: Path, tiny_model_dir: Path, tmp_path: Path, home: Path
) -> None:
    short: dict[str, object] = {"optimizer.max_steps": 1, "evaluation.arms": '["base", "adapter"]'}
    tried = tmp_path / "tried"
    environment = {**os.environ, "PYTHONPATH": str(NO_NETWORK), "TRIED_FILE": str(tried)}
    environment.pop("HF_HUB_OFFLINE")  # it must not be needed
    command = [
        sys.executable,
        "-m",
        "mlx_gardener",
        "train",
        str(repository),
        *train_flags(tiny_model_dir, **short),
    ]
    if (
        shutil.which("unshare")
        and not subprocess.run(("unshare", "-rn", "true"), capture_output=True).returncode
    ):
        command = ["unshare", "-rn", *command]  # not even a loopback interface that is up
    with umask(0):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not tried.exists(), tried.read_text()
    names = {path.name for path in home.rglob("*")}
    assert {"events.jsonl", "worker.log", "job.json", "result.json", "report.html", "tokens.sqlite3"} <= names
    assert open_to_others(home) == []
    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)"
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert tried.exists(), "the network was not cut off"


def test_arrays_are_what_the_file_says(tmp_path: Path) -> None:
    from mlx_gardener.model.lora import load_arrays

    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"b": mx.arange(4), "a": mx.zeros((0, 3))})
    assert {name: array.shape for name, array in load_arrays(file).items()} == {"a": (0, 3), "b": (4,)}
    (tmp_path / "link.safetensors").symlink_to(file)
    with pytest.raises(OSError):
        load_arrays(tmp_path / "link.safetensors")
