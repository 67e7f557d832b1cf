"""What a registered adapter is measured on: nothing that it, or a version it went on from, has learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_gardener.adapter import LoadedAdapter
from mlx_gardener.dataset import Earlier, TrainingDataPreparator
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.evaluate.evidence import Arm, Evidence
from mlx_gardener.evaluate.registered import _keep, _unseen
from mlx_gardener.model import load_base
from mlx_gardener.model.lora import AdapterSettings
from mlx_gardener.registry.evaluations import kept_evaluations
from tests.support.repositories import write_repository
from tests.support.trainings import tiny_settings


def test_files_that_only_an_earlier_version_learned_from_are_no_test_of_the_one_that_went_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    root = write_repository(tmp_path / "repository", modules=20)
    preparator = TrainingDataPreparator(
        tiny_settings(tiny_model_dir, **{"data.split": "files"}),
        tokenizer=load_base(str(tiny_model_dir)).tokenizer,
        cache_dir=tmp_path / "cache",
    )
    first = preparator.prepare(root)
    changed = root / min(record.path for record in first.split.train)
    changed.write_text(changed.read_text() + "\n\ndef added_later(harbor):\n    return harbor.depth + 1\n")
    second = preparator.prepare(root, earlier=Earlier.of_manifest("v1", {"data": first.describe()}))
    assert second.continued_from == "v1"
    now = {record.path for record in second.split.train}
    before = [record for record in first.split.train if record.path not in now]
    assert before, "not all is shown again"

    drawn = replace(
        second,
        split=replace(second.split, test=(*second.split.test, *before)),
        test_excerpts=(
            *second.test_excerpts,
            *(Excerpt(item.path, item.language, "x = 1\n") for item in before),
        ),
        data_sha256="",
    )
    manifest = {"data": second.describe()}
    left, _, notes = _unseen(
        drawn, LoadedAdapter({}, AdapterSettings(2, 4, 2.0, 0.0, ()), manifest, tmp_path)
    )
    assert f"{len(before)} of them were left out because they were trained on." in notes
    assert {item.path for item in left.test_excerpts} == {record.path for record in second.split.test}


def test_evaluations_that_end_in_the_same_second_are_both_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_900_000_000.0)
    arms = (Arm("base", "base", {"bits_per_byte": 1.0}),)
    data: Any = SimpleNamespace(scan=SimpleNamespace(commit=None), data_sha256="")
    for bits in (1.0, 2.0):
        change = {f"bits_per_byte_change{end}": -0.1 for end in ("", "_low", "_high")}
        found = Evidence({"base_bits_per_byte": bits, **change}, (), (), 0, arms=arms)
        _keep(tmp_path, "small", "v1", data, found)
    kept = kept_evaluations(tmp_path)
    assert [item.evidence["metrics"]["base_bits_per_byte"] for item in kept] == [1.0, 2.0]
    assert kept[0].at < kept[1].at
