"""Homes that earlier versions wrote, as tests/data has them: everything in them opens, and trainings go on or say why not."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_gardener.config import load_config
from mlx_gardener.errors import AdapterError
from mlx_gardener.model import choose_model
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.parent import find_parent
from mlx_gardener.training.checkpoint import load_checkpoint
from tests.support.commands import gardener_here

DATA = Path(__file__).parents[1] / "data"
FIRST, LATER = "registry-2026-11-23", "registry-2026-11-24"
#: Those that a version has to share with the training that goes on from it, and a small repository needs.
SETTINGS = (
    "model=seedling", "min_training_chunks=5", "training_data_quality_threshold=0.1", "lora.rank=1", "lora.num_layers=1",
)  # fmt: skip


def unpack(name: str, home: Path) -> Path:
    """Make ``home`` what the archive has; the repository that was trained on, beside it."""
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(home.parent)
    return home.parent / "orchard"


def said(*arguments: str | Path) -> str:
    """What a command says, all of it on one line; it has to succeed."""
    done = gardener_here(*map(str, arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("name", [FIRST, LATER])
def test_it_is_listed_and_shown_and_nothing_in_it_is_amiss(home: Path, name: str) -> None:
    unpack(name, home)
    assert "orchard" in said("projects") and "/home/ada/orchard" in said("projects")
    assert "* v1" in said("show", "orchard") and "seedling" in said("show", "orchard")
    assert ("cancelled 40 %" if name == FIRST else "completed 100 %") in said("status", "orchard")
    assert "All is well" in said("registry", "check")
    assert "no clear difference" in said("diff", "orchard", "v1", "v1")


@pytest.mark.parametrize("name", [FIRST, LATER])
def test_its_evidence_is_reported_and_its_settings_are_ones_of_this_version(home: Path, name: str) -> None:
    unpack(name, home)
    shown, told = said("report", "orchard"), json.loads(said("report", "orchard", "--json"))
    assert "No clear difference." in shown and "'data.sequence_lengths=[64, 128]'" in shown
    assert {"base_bits_per_byte", "adapter_bits_per_byte"} <= told["evidence"]["metrics"].keys()


@pytest.mark.parametrize(
    ("name", "form", "file"),
    [(FIRST, "mlx", "adapters.safetensors"), (LATER, "peft", "adapter_model.safetensors")],
)
def test_its_adapter_is_loaded_onto_its_base_and_exported_as_it_was(
    home: Path, tmp_path: Path, name: str, form: str, file: str
) -> None:
    unpack(name, home)
    assert "Loaded back and compared" in said("export", "orchard", tmp_path / "out", "--form", form)
    written = mx.load(str(tmp_path / "out" / file))
    kept = mx.load(str(ProjectRegistry().get_adapter("orchard").directory / form / file))
    assert written.keys() == kept.keys() and len(kept) > 0
    assert all(mx.array_equal(written[key], kept[key]) for key in kept)


def test_a_training_goes_on_from_a_version_that_says_which_files_it_knows(home: Path) -> None:
    repository = unpack(LATER, home)
    with (repository / "tools" / "basket_0.py").open("a") as file:
        file.write(
            "\n\ndef prune(trees, limit=3):\n    return [tree for tree in trees if tree.fruit > limit]\n"
        )
    flags = [part for setting in SETTINGS for part in ("--set", setting)]
    shown = said("train", repository, "--project", "orchard", "--dry-run", "--from-version", "v1", *flags)
    assert "Training goes on from v1 with 1 file that changed" in shown


def test_one_that_does_not_say_so_is_not_gone_on_from_and_the_training_says_why(home: Path) -> None:
    unpack(FIRST, home)
    registry, config = ProjectRegistry(), load_config(environment={}, overrides={"continue_from": "v1"})
    run = SimpleNamespace(registry=registry, project=registry.get_project("orchard"), config=config)
    why = "Training cannot go on from v1: its manifest does not say which files it knows."
    with pytest.raises(AdapterError, match=why):
        find_parent(run, choose_model("seedling"))  # type: ignore[arg-type]


def test_a_checkpoint_of_an_earlier_version_is_named_as_such_and_not_as_damaged(home: Path) -> None:
    unpack(FIRST, home)
    record, warnings = ProjectRegistry().latest_training("orchard"), list[str]()
    assert record is not None
    assert load_checkpoint(record.run_dir / "checkpoints", fingerprint="", warn=warnings.append) is None
    (warning,) = warnings
    assert warning.startswith(
        "The checkpoint step-00000006 cannot be used (it was written by another version)"
    )
