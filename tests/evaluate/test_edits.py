"""Next edits as evidence: of held-out files, right word for word, and quiet where nothing is due."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlx_gardener.dataset import EditTask, edit_tasks
from mlx_gardener.evaluate.evidence import ANSWERS
from mlx_gardener.evaluate.measure import ArmResult, Tasks, score
from mlx_gardener.evaluate.stages import EDITS, stages_of
from mlx_gardener.report.story import kinds_table
from tests.support.evaluations import World
from tests.support.histories import renamings


def task(path: str, *, is_due: bool) -> EditTask:
    return EditTask(path, 1, (5, 6), (7,), is_due)


def test_edits_and_quiet_windows_are_scored_apart_and_from_other_answers() -> None:
    edits = [task("a.py", is_due=True), task("b.py", is_due=True), task("b.py", is_due=False)]
    found = score(ArmResult(edits=[True, False, True]), Tasks([], [], frozenset(), edits=edits))
    assert found.means() == {"edit_exact": 0.5, "edit_quiet": 1.0}
    assert found.files["edit_exact"] == ["a.py", "b.py"]
    assert not set(ANSWERS) & set(found.values), "a base that does not know the form would lose them all"


def test_edits_are_asked_of_base_and_adapter_without_retrieval() -> None:
    tasks = Tasks([], [], frozenset(), edits=[task("a.py", is_due=True)])
    arms = ("base", "base_bm25", "adapter", "adapter_bm25", "control")
    assert [stage.arms for stage in stages_of(arms, tasks) if stage.kind == EDITS] == [("base", "adapter")]


def test_held_out_edits_are_a_part_of_the_evidence(tmp_path: Path, tiny_model_dir: Path) -> None:
    renamings(tmp_path / "ledger")
    settings = {
        "data.sequence_lengths": [512, 1024], "data.test_fraction": 0.2, "evaluation.arms": ["base", "adapter"],
        "evaluation.least_tasks": 2, "evaluation.least_rows": 4, "evaluation.memorisation_places": 0,
        "evaluation.max_new_tokens": 4,
    }  # fmt: skip
    world = World(str(tiny_model_dir), tmp_path / "ledger", tmp_path / "home", **settings)
    held_out, tokenizer = world.data.held_out_edits, world.base.tokenizer
    assert held_out
    few, more = (edit_tasks(held_out, count, tokenizer, 1024, seed=0) for count in (1, 2))
    assert [item.is_due for item in few] == [True, False] and set(few) < set(more)
    assert edit_tasks(held_out, 2, tokenizer, 30, seed=0) == [], "too long for a row"
    found = world.evidence(world.random_adapter(0.0))
    for arm in found.arms:
        assert arm.metrics["edit_exact"] == arm.metrics["edit_quiet"] == 0.0, "it knows no code at all"
    assert found.work["edit_tasks"] == found.work["quiet_tasks"] == 2
    changed = {item.metric: item for item in found.comparisons if item.against == "base"}
    assert changed["edit_exact"].tasks == changed["edit_quiet"].tasks == 2
    titles = [row[0] for row in kinds_table(found.to_json()).rows]
    assert "next edits" in titles and "windows left as they are where no edit is due" in titles
    world.data = replace(world.data, held_out_edits=())
    without = world.evidence(world.random_adapter(0.0))
    assert "No next edits were asked: no commit that is held out edits a test file." in without.notes
    assert "edit_exact" not in without.arms[0].metrics and without.work["edit_tasks"] == 0
