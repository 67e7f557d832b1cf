"""Next edits as evidence: of held-out files, right word for word, and quiet where nothing is due."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlx_gardener.adapter import attach_adapter
from mlx_gardener.dataset import EditTask, edit_tasks
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.dataset.edit_forms import edit_documents, edit_prompt, ended
from mlx_gardener.dataset.rows import pack
from mlx_gardener.evaluate.complete import written_ids
from mlx_gardener.evaluate.evidence import ANSWERS
from mlx_gardener.evaluate.exact import writes_exactly
from mlx_gardener.evaluate.measure import ArmResult, Tasks, score
from mlx_gardener.evaluate.stages import EDITS, stages_of
from mlx_gardener.model import load_tokenizer
from mlx_gardener.report.story import kinds_table
from mlx_gardener.serve.next_edits import finished
from tests.support.datasets import EXAMPLE
from tests.support.evaluations import World
from tests.support.histories import renamings
from tests.support.repositories import write_repository


def task(path: str, *, is_due: bool) -> EditTask:
    return EditTask(path, 1, (5, 6), (7,), is_due)


def test_edits_and_quiet_windows_are_scored_apart_and_from_other_answers() -> None:
    edits = [task("a.py", is_due=True), task("b.py", is_due=True), task("b.py", is_due=False)]
    found = score(ArmResult(edits=[True, False, True]), Tasks([], [], frozenset(), edits=edits))
    assert found.means() == {"edit_exact": 0.5, "edit_quiet": 1.0}
    assert found.files["edit_exact"] == ["a.py", "b.py"]
    assert not set(ANSWERS) & set(found.values), "a base that does not know the form would lose them all"


def test_edits_come_from_files_in_turn(tiny_tokenizer_dir: Path) -> None:
    examples = [replace(EXAMPLE, path="large.py", line=line) for line in range(1, 40)]
    examples += [replace(EXAMPLE, path=f"{at}.py") for at in range(4)]
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    few, more = (edit_tasks(examples, count, tokenizer, 4096, seed=0) for count in (5, 8))
    assert len({task.path for task in few}) == 5 and more[:5] == few and len(set(more)) == 8


def test_edits_are_asked_of_base_and_adapter_without_retrieval() -> None:
    tasks = Tasks([], [], frozenset(), edits=[task("a.py", is_due=True)])
    arms = ("base", "base_bm25", "adapter", "adapter_bm25", "control")
    assert [stage.arms for stage in stages_of(arms, tasks) if stage.kind == EDITS] == [("base", "adapter")]


def test_held_out_edits_are_a_part_of_the_evidence(tmp_path: Path, tiny_model_dir: Path) -> None:
    renamings(tmp_path / "ledger")
    settings = {
        "data.sequence_lengths": [512, 1024], "data.test_fraction": 0.2, "evaluation.arms": ["base", "adapter"],
        "evaluation.tasks": 2, "evaluation.max_new_tokens": 4,
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


def test_an_edit_that_was_learned_is_written_word_for_word(tmp_path: Path, tiny_model_dir: Path) -> None:
    """From the rows that training takes to what a server would send; the random base writes no such thing."""
    settings = {
        "data.sequence_lengths": [256], "optimizer.learning_rate": 0.02, "optimizer.tokens_per_update": 256,
    }  # fmt: skip
    repository = write_repository(tmp_path / "repository", modules=9, functions=2)
    world = World(str(tiny_model_dir), repository, tmp_path / "home", **settings)
    tokenizer = world.base.tokenizer
    (document,), asked = (
        edit_documents([EXAMPLE], TokenCache(tmp_path / "cache", tokenizer), 256),
        edit_prompt(EXAMPLE, tokenizer, 256),
    )
    assert document is not None and asked is not None
    rows = pack([document] * 100, (256,), pad_id=tokenizer.pad_id)
    adapter = world.trained(replace(world.data, train=rows), 60, tmp_path / "run")
    assert writes_exactly(world.base, [asked], engine=world.engine) == [False]
    with attach_adapter(world.base, adapter):
        assert writes_exactly(world.base, [asked], engine=world.engine) == [True]
        ids = [token for token, _ in written_ids(world.base, asked[0], max_new_tokens=64)]
    written = tokenizer.decode(ids)
    assert written == ended(EXAMPLE.updated)
    assert finished(ended(EXAMPLE.current), written) == EXAMPLE.updated
