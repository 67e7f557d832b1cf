"""The ablation of ways to retrieve: what a line needs is looked for in what each way shows, and a base answers in each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import retrieval_ablation as ablation
from mlx_gardener.dataset import NextLineTask
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.model import load_base, load_tokenizer
from tests.support.repositories import write_linked_repository


def test_the_names_that_a_line_needs_are_those_of_other_files() -> None:
    text = "from far import weigh_boat\n\n\ndef use(a):\n    return weigh_boat(use(a), 'weigh_boat') + weigh_boat(1)\n"
    excerpt = Excerpt("near.py", "python", text)
    task = NextLineTask("near.py", 5, "".join(text.splitlines(keepends=True)[:4]), "")
    defined = {"weigh_boat": frozenset({"far.py"}), "use": frozenset({"far.py", "near.py"})}
    assert ablation.needed_names(task, excerpt, defined) == ["weigh_boat"]


def test_signatures_show_definitions_and_a_base_is_asked_in_every_way(
    tmp_path: Path, tiny_tokenizer_dir: Path, tiny_model_dir: Path
) -> None:
    root = write_linked_repository(tmp_path / "harbor")
    found = ablation.measure(root, load_tokenizer(tiny_tokenizer_dir), tasks=20, context_tokens=384)
    assert found["lines"] > 0 and set(found["ways"]) == set(ablation.WAYS)
    chunks, half = found["ways"]["chunks by BM25"], found["ways"]["half signatures"]
    assert half["definition"] == 1 > chunks["definition"]
    for values in found["ways"].values():
        assert values["all_names"] <= values["name"] <= 1 and values["tokens"] <= 384
    base = load_base(str(tiny_model_dir))
    asked = ablation.measure(
        root, base.tokenizer, tasks=20, context_tokens=64, base=base, answers=2, windows_measured=2
    )
    for way in (ablation.NOTHING, *ablation.ANSWERING):
        assert set(ablation.ANSWERS) <= set(asked["ways"][way])
        assert asked["ways"][way]["cross_file_answers"] == 2 and asked["ways"][way]["bits_per_byte"] > 1


def test_what_is_done_of_a_repository_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_linked_repository(tmp_path / "harbor")
    flags = [
        "--repositories",
        str(root),
        "--work",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path),
        "--tasks",
        "4",
    ]
    first = CliRunner().invoke(ablation.main, flags, catch_exceptions=False)
    assert first.exit_code == 0 and "| half signatures | " in first.output
    monkeypatch.setattr(ablation, "measure", None)
    assert CliRunner().invoke(ablation.main, flags, catch_exceptions=False).exit_code == 0
    assert (
        json.loads((tmp_path / "retrieval_ablation.json").read_text())["repositories"]["harbor"]["lines"] > 0
    )
