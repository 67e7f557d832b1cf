"""Next edits from past commits: replayed as they could have been typed, and nothing that is held out among them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.dataset.edit_forms import edit_documents, edit_form, edit_prompt, ended
from mlx_gardener.dataset.edit_steps import ReplayedFile, hunks_of, row_before, typed_parts, typing_order
from mlx_gardener.dataset.edits import (
    QUIET_SHARE,
    EditExample,
    Edits,
    collect_edits,
    example_at,
    examples_of,
)
from mlx_gardener.dataset.split import Split
from mlx_gardener.model import CodeTokenizer, load_tokenizer
from mlx_gardener.source.commits import FileChange, PastCommit
from tests.support.datasets import EXAMPLE
from tests.support.histories import renamings
from tests.support.trainings import tiny_settings


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


def rows(count: int, **changed: str) -> str:
    """A text of so many rows; ``r3`` is what row 3 is instead."""
    return "\n".join(changed.get(f"r{at}", f"value_{at} = {at}") for at in range(count)) + "\n"


def past(*changes: FileChange) -> PastCommit:
    return PastCommit("c" * 40, 0, changes)


def all_examples(commit: PastCommit, seeds: int = 20) -> list[EditExample]:
    return [found for seed in range(seeds) for found in examples_of(commit, seed=seed)]


# From a commit to steps.


def test_whatever_the_order_all_steps_together_make_the_commit() -> None:
    choose = random.Random(3)
    for _ in range(60):
        old = [f"line_{choose.randrange(40)}" for _ in range(choose.randrange(1, 60))]
        new = [row for row in old if choose.random() > 0.2]
        for _ in range(choose.randrange(6)):
            at = choose.randint(0, len(new))
            new[at:at] = [f"new_{choose.randrange(99)}" for _ in range(choose.randint(1, 5))]
        change = FileChange("a.py", "\n".join(old), "\n".join(new))
        file = ReplayedFile(old)
        steps = [part for step in hunks_of(change) for part in typed_parts(step, choose)]
        choose.shuffle(steps)
        steps.sort(key=lambda step: step.number)  # the first part of a step is typed first
        file.waiting += steps
        for step in steps:
            before, at = file.now(), file.place(step)
            file.make(step)
            assert file.now() == [*before[:at], *step.rows, *before[at + step.end - step.start :]]
            assert file.now(without=step) == before
        assert file.now() == new


def test_a_name_is_defined_before_it_is_used_and_tests_come_last() -> None:
    changes = [
        FileChange("a.py", rows(9), rows(9, r4="total = measure_all(basket)")),
        FileChange("b.py", rows(9), rows(9, r4="def measure_all(basket):")),
        FileChange("a_test.py", rows(9), rows(9, r2="check = 1")),
    ]
    files = {change.path: ReplayedFile(change.before.split("\n")) for change in changes}
    hunks = [step for change in changes for step in hunks_of(change)]
    assert [step.path for step in typing_order(hunks, files)] == ["b.py", "a.py", "a_test.py"]


def test_what_only_braces_part_is_one_edit_and_what_changes_everything_is_none() -> None:
    old = "if a:\n{\n    one()\n}\n\nelse:\n"
    assert len(hunks_of(FileChange("a.c", old, "if b:\n{\n    two()\n}\n\nelsewhere:\n"))) == 2
    assert hunks_of(FileChange("a.py", rows(2000), "\n".join(f"x{at}" for at in range(2000)))) == []


@pytest.mark.parametrize(("row", "expected"), [(0, 0), (5, 5), (6, 6), (7, 6), (8, 6), (9, 7)], ids=str)
def test_rows_are_mapped_to_where_they_stood_before_an_edit(row: int, expected: int) -> None:
    """One row at 5 became three."""
    assert row_before(row, 5, 1, 3) == expected


# Windows.


def test_a_window_has_ten_lines_around_the_caret_before_and_after_the_last_edit_and_what_becomes_of_it() -> (
    None
):
    change = FileChange("a.py", rows(60), rows(60, r20="first = 20", r24="second = 24", r50="third = 50"))
    found = all_examples(past(change))
    assert any(example.is_due for example in found) and any(not example.is_due for example in found)
    after = change.after.split("\n")
    for example in found:
        current = example.current.split("\n")
        first = example.line - 1
        assert len(current) <= 21 and 0 <= example.caret < len(current)
        assert example.updated.split("\n") == after[first : first + len(current)], (
            "no line was added or taken out"
        )
        assert current[example.caret] == (current + example.below.split("\n"))[example.caret]
        assert example.changes, "an edit came before"
        last = example.changes[-1]
        assert last.path == "a.py" and last.updated.count("\n") == 6
        if last.updated in example.current and last.original != last.updated:
            assert last.original in example.original
    due = next(example for example in found if example.is_due and example.line < 20)
    assert "second = 24" in due.updated and "second = 24" not in due.current
    assert (
        "first = 20" in due.current and "first = 20" not in due.original and "value_20 = 20" in due.original
    )


def test_no_edit_is_due_only_where_nothing_is_left_to_do_in_the_window() -> None:
    change = FileChange("a.py", rows(60), rows(60, r20="first = 20", r24="second = 24", r50="third = 50"))
    after = change.after.split("\n")
    quiet = [example for example in all_examples(past(change)) if not example.is_due]
    for example in quiet:
        shown = example.current.split("\n")
        assert after[example.line - 1 : example.line - 1 + len(shown)] == shown
    assert any(example.original != example.current for example in quiet), "right after an edit"
    assert any(example.original == example.current for example in quiet), "where the caret was moved to"


def test_a_commit_that_only_changes_white_space_gives_none() -> None:
    change = FileChange("a.py", rows(60), rows(60, r20="  value_20  =  20", r24="value_24=24", r50="x = 1"))
    assert examples_of(past(change), seed=0) == []


def test_the_first_edit_of_a_commit_is_never_asked_for() -> None:
    change = FileChange("a.py", rows(60), rows(60, r20="first = 20"))
    assert not any(example.is_due for example in all_examples(past(change)))


def test_at_a_place_the_nearest_change_is_the_last_and_the_window_before_it_is_the_original() -> None:
    text = rows(60, r20="first = 20", r50="third = 50")
    text = text.replace("value_5 = 5\n", "value_5 = 5\nadded = 5\n")
    recent = [FileChange("a.py", rows(60), text), FileChange("b.py", rows(9), rows(9, r3="other = 3"))]
    found = example_at("a.py", text, 22, recent)
    assert not found.is_due and (found.line, found.caret) == (13, 10)
    assert found.current.split("\n") == text.split("\n")[12:33]
    assert found.original == found.current.replace("first = 20", "value_20 = 20")
    assert [change.path for change in found.changes] == ["a.py", "a.py", "a.py"]
    assert "third = 50" in found.changes[0].updated and "first = 20" in found.changes[-1].updated
    before = example_at("c.py", text, 60, [])
    assert (
        before.original == before.current
        and before.changes == ()
        and before.current.endswith("\nvalue_59 = 59\n")
    )
    elsewhere = example_at("c.py", text, 0, recent[1:])
    assert [change.path for change in elsewhere.changes] == ["b.py"] and elsewhere.caret == 0


# What is held out.


class Record:
    """As much of a `FileRecord` as is asked for."""

    def __init__(self, path: str) -> None:
        self.path = path


def collected(
    root: Path,
    *,
    train: list[str],
    test: list[str],
    texts: tuple[str, ...] = (),
    since_age: int | None = None,
) -> Edits:
    split = Split(tuple(map(Record, train)), (), tuple(map(Record, test)))  # type: ignore[arg-type]
    return collect_edits(root, split, texts, DataConfig(), since_age=since_age, wanted_tokens=1e6, seed=0)


def test_training_sees_training_files_before_the_held_out_commits_and_tests_see_test_files_since(
    tmp_path: Path,
) -> None:
    commits = renamings(tmp_path)
    early, late = [f"module_{at}.py" for at in range(8)], [f"module_{at}.py" for at in range(8, 12)]
    found = collected(tmp_path, train=early, test=late, since_age=7)
    assert {example.commit for example in found.train} <= set(commits[:12])
    assert {example.path for example in found.train} <= set(early) and len(found.train) >= 10
    assert {example.commit for example in found.held_out} <= set(commits[12:])
    assert {example.path for example in found.held_out} <= set(late) and len(found.held_out) >= 4
    ages = [commits.index(example.commit) for example in found.train]
    assert ages == sorted(ages, reverse=True), "the newest first"
    quiet = sum(not example.is_due for example in found.train)
    assert 0 < quiet <= QUIET_SHARE * len(found.train) + 1
    everything = collected(tmp_path, train=[*early, *late], test=[], since_age=7)
    assert {example.commit for example in everything.train} <= set(commits[:12])


def test_without_a_commit_to_go_by_files_are_what_is_held_out(tmp_path: Path) -> None:
    commits = renamings(tmp_path)
    names = [f"module_{at}.py" for at in range(8)]
    found = collected(tmp_path, train=names[1:], test=names[:1])
    assert found.train and names[0] not in {example.path for example in found.train}
    assert found.held_out and {example.path for example in found.held_out} == {names[0]}
    assert {example.commit for example in found.held_out} <= set(commits)
    shown = {change.path for example in found.train for change in example.changes}
    assert names[0] not in shown


def test_code_that_was_moved_into_a_held_out_file_is_not_learned_from_its_old_place(tmp_path: Path) -> None:
    renamings(tmp_path)
    names = [f"module_{at}.py" for at in range(8)]
    moved = "\n".join((tmp_path / names[3]).read_text().split("\n")[:40])
    free = collected(tmp_path, train=names, test=[])
    found = collected(tmp_path, train=names, test=[], texts=(moved,))
    assert any(example.path == names[3] and example.line < 30 for example in free.train)
    assert not any(example.path == names[3] and example.line < 30 for example in found.train)
    assert found.counts["examples that show held-out lines"] > 0


# The form.


#: What Zed's `build_prompt` makes of these windows and changes.
ZED = (
    "<|file_sep|>lib.py.diff\noriginal:\n\nupdated:\nx = 1\n"
    "<|file_sep|>src/app.py.diff\noriginal:\none = 1\nupdated:\none = 11\n"
    "<|file_sep|>original/src/app.py\none = 1\ntwo = 2\n"
    "<|file_sep|>current/src/app.py\none = 11\ntwo = 2\n"
    "<|file_sep|>updated/src/app.py\n"
)


def test_with_qwens_markers_a_prompt_is_what_zed_sends_token_for_token(tokenizer: CodeTokenizer) -> None:
    assert edit_form(tokenizer) == "sweep"
    found = edit_prompt(EXAMPLE, tokenizer, 1000)
    assert found is not None
    prompt, answer = found
    assert prompt == tokenizer.encode_with_markers(ZED)
    assert tokenizer.decode(answer) == "one = 11\ntwo = 22\nthree = 3\n"


def test_only_the_updated_window_and_its_end_are_targets(tokenizer: CodeTokenizer, tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, tokenizer)
    (document,) = edit_documents([EXAMPLE], cache, 1000)
    assert document is not None and tokenizer.markers is not None and not document.splittable
    learned = document.tokens[document.loss_mask].tolist()
    assert tokenizer.decode(learned[:-1]) == ended(EXAMPLE.updated) and learned[-1] == tokenizer.markers.end
    assert document.target_bytes == len(ended(EXAMPLE.updated).encode())
    assert tokenizer.decode(document.tokens[~document.loss_mask].tolist()) == ZED


def test_where_there_is_no_room_the_oldest_changes_are_left_out_and_windows_never(
    tokenizer: CodeTokenizer, tmp_path: Path
) -> None:
    cache = TokenCache(tmp_path, tokenizer)
    (whole,) = edit_documents([EXAMPLE], cache, 1000)
    assert whole is not None
    (shorter,) = edit_documents([EXAMPLE], cache, len(whole.tokens) - 1)
    assert shorter is not None
    text = tokenizer.decode(shorter.tokens.tolist())
    assert "lib.py" not in text and "src/app.py.diff" in text and "original/src/app.py" in text
    assert edit_documents([EXAMPLE], cache, 20) == [None]


def with_markers(directory: Path, source: Path, names: dict[str, str]) -> CodeTokenizer:
    """The tokenizer at ``source`` with other names for its control tokens."""
    text = (source / "tokenizer.json").read_text()
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    directory.mkdir()
    (directory / "tokenizer.json").write_text(text)
    settings = {"eos_token": names.get("<|endoftext|>", "<|endoftext|>")}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(directory)


SEED = {
    "<|fim_prefix|>": "<[fim-prefix]>", "<|fim_suffix|>": "<[fim-suffix]>", "<|fim_middle|>": "<[fim-middle]>",
    "<|file_sep|>": "<filename>", "<|endoftext|>": "<[end\u2581of\u2581sentence]>", "<|repo_name|>": "<reponame>",
}  # fmt: skip


def test_with_seed_coders_markers_a_prompt_has_zetas_second_form(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    tokenizer = with_markers(tmp_path / "seed", tiny_tokenizer_dir, SEED)
    assert (
        edit_form(tokenizer) == "zeta2" and tokenizer.markers is not None and tokenizer.markers.order == "SPM"
    )
    found = edit_prompt(EXAMPLE, tokenizer, 1000)
    assert found is not None
    prompt, answer = found
    text = tokenizer.decode(prompt)
    assert prompt == tokenizer.encode_with_markers(text)
    assert text.startswith(
        "<[fim-suffix]>\nbelow = 9\n<[fim-prefix]><filename>edit_history\n--- a/lib.py\n+++ b/lib.py\n@@"
    )
    assert text.endswith(
        "<filename>src/app.py\nabove = 0\n<<<<<<< CURRENT\none = 11\ntwo = 2<|user_cursor|>\n=======\n<[fim-middle]>"
    )
    assert tokenizer.decode(answer) == "one = 11\ntwo = 22\nthree = 3\n>>>>>>> UPDATED\n"
    last = edit_prompt(replace(EXAMPLE, below=""), tokenizer, 1000)
    assert last is not None and tokenizer.decode(last[0]).startswith("<[fim-suffix]>\n<[fim-prefix]>")


def test_on_seed_coder_half_of_the_examples_have_zetas_later_form(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    tokenizer = with_markers(tmp_path / "seed", tiny_tokenizer_dir, SEED)
    found = edit_prompt(EXAMPLE, tokenizer, 1000, "zeta2.1")
    assert found is not None
    prompt, answer = found
    text = tokenizer.decode(prompt)
    assert prompt == tokenizer.encode_with_markers(text)
    assert text.startswith("<[fim-suffix]>\nbelow = 9\n<[fim-prefix]><filename>edit_history\n--- a/lib.py\n")
    assert text.endswith(
        "\n<filename>src/app.py\nabove = 0\n<|marker_1|>one = 11\ntwo = 2<|user_cursor|><|marker_2|>\n<[fim-middle]>"
    )
    assert tokenizer.decode(answer) == "<|marker_1|>one = 11\ntwo = 22\nthree = 3<|marker_2|>"
    examples = [replace(EXAMPLE, line=line) for line in range(1, 41)]
    made = edit_documents(examples, TokenCache(tmp_path / "cache", tokenizer), 1000)
    learned = [item.tokens[item.loss_mask].tolist() for item in made if item is not None]
    tagged = [ids for ids in learned if tokenizer.decode(ids).startswith("<|marker_1|>")]
    assert 10 <= len(tagged) <= 30 and len(learned) == 40
    assert all(ids == [*answer, tokenizer.eos_id] for ids in tagged)
    spelled = replace(EXAMPLE, current="<|marker_1|>", caret=0)
    texts = [replace(spelled, line=line) for line in range(1, 41)]
    for item in edit_documents(texts, TokenCache(tmp_path / "cache", tokenizer), 1000):
        assert item is not None and ">>>>>>> UPDATED" in tokenizer.decode(item.tokens.tolist())


def test_other_markers_have_no_form(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    star = {
        "<|fim_prefix|>": "<fim_prefix>", "<|fim_suffix|>": "<fim_suffix>",
        "<|fim_middle|>": "<fim_middle>", "<|file_sep|>": "<file_sep>",
    }  # fmt: skip
    assert edit_form(with_markers(tmp_path / "star", tiny_tokenizer_dir, star)) is None
    bare = with_markers(tmp_path / "bare", tiny_tokenizer_dir, {"<|file_sep|>": "<|other|>"})
    assert edit_form(bare) is None


# Prepared data.


def prepared(root: Path, tmp_path: Path, tokenizer: CodeTokenizer, **more: object) -> PreparedData:
    config = tiny_settings(
        tmp_path, **{"data.sequence_lengths": [512, 1024], "data.test_fraction": 0.2, **more}
    )
    return TrainingDataPreparator(config, tokenizer=tokenizer, cache_dir=tmp_path / "cache").prepare(root)


def test_a_share_of_the_rows_comes_from_history_and_the_summary_says_so(
    tmp_path: Path, tokenizer: CodeTokenizer
) -> None:
    commits = renamings(tmp_path / "ledger")
    root = tmp_path / "ledger"
    share = {"data.edit_share": 0.4}
    data, without = (
        prepared(root, tmp_path, tokenizer, **share),
        prepared(root, tmp_path, tokenizer, **{"data.edit_share": 0}),
    )
    told = data.describe()["summary"]["edits"]
    assert told["form"] == "sweep" and told["commits"] == len(commits) + 5
    assert 0 < told["no_edit_due"] < told["examples"]
    assert 0.25 < told["tokens"] / (told["tokens"] + without.train.total_tokens) <= 0.4
    assert data.train.loss_tokens > without.train.loss_tokens
    assert data.test.sha256() == without.test.sha256() and data.data_sha256 != without.data_sha256
    assert without.summary.edits is None and without.held_out_edits == ()
    tested = {record.path for record in data.split.test}
    assert data.split.since is not None and told["held_out"] == len(data.held_out_edits) > 0
    assert {example.path for example in data.held_out_edits} <= tested
    again = prepared(root, tmp_path, tokenizer, **share)
    assert again.data_sha256 == data.data_sha256 and again.held_out_edits == data.held_out_edits
    assert again.summary.texts_tokenized == 0


def test_without_history_or_markers_there_are_none_and_it_is_said(
    tmp_path: Path, tokenizer: CodeTokenizer, tiny_tokenizer_dir: Path, repository: Path
) -> None:
    bare = prepared(repository, tmp_path, tokenizer)
    assert bare.summary.edits == {"why": "there is no history"}
    renamings(tmp_path / "ledger")
    other = with_markers(tmp_path / "bare", tiny_tokenizer_dir, {"<|file_sep|>": "<|other|>"})
    found = prepared(tmp_path / "ledger", tmp_path, other)
    assert found.summary.edits == {"why": "the base has no markers for a form of next edits"}
