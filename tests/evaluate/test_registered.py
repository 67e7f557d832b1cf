"""What a registered adapter is measured on: nothing that it, or a version it went on from, has learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlx_gardener.adapter import LoadedAdapter
from mlx_gardener.dataset import Earlier, TrainingDataPreparator
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.evaluate.registered import _unseen
from mlx_gardener.model import load_base
from mlx_gardener.model.lora import AdapterSettings
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
