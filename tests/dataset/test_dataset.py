"""From a repository to rows: nothing leaks between the parts, nothing is learned that should not be."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator, next_line_tasks, split_files
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.dataset.examples import Encoder, Excerpt, choose_span, make_examples, pieces_of
from mlx_gardener.dataset.rows import Document, pack
from mlx_gardener.errors import DataError
from mlx_gardener.evaluate.complete import caret_prompt
from mlx_gardener.model import CodeTokenizer, load_tokenizer
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.source import ChunkType, FileRecord
from mlx_gardener.source.languages import GRAMMARS
from mlx_gardener.source.records import ChunkRecord
from tests.support.datasets import settings
from tests.support.repositories import write_repository
from tests.support.samples import SAMPLES


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def prepare(tokenizer: CodeTokenizer, tmp_path: Path):  # type: ignore[no-untyped-def]
    def go(root: Path, **more: object) -> PreparedData:
        return TrainingDataPreparator(
            settings(**more), tokenizer=tokenizer, cache_dir=tmp_path / "cache"
        ).prepare(root)

    return go


def record(path: str, size: int, cluster: int) -> FileRecord:
    chunk = ChunkRecord(f"{path}-0", ChunkType.FUNCTION, "f", 0, size, 1, 10, 1.0, 0.1)
    return FileRecord(path, "python", size, "0" * 64, cluster, (chunk,), ())


def test_clusters_stay_on_one_side_whatever_the_seed() -> None:
    files = [record(f"{n}.py", 100 + n, cluster=n // 3) for n in range(60)]
    for seed in range(20):
        split = split_files(files, DataConfig(), seed=seed)
        sides = [{item.cluster for item in part} for part in (split.train, split.validation, split.test)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        assert sum(map(len, (split.train, split.validation, split.test))) == 60
        share = sum(item.size_bytes for item in split.test) / sum(item.size_bytes for item in files)
        assert 0.05 < share < 0.2


def test_no_file_outweighs_the_others_of_its_part_where_enough_are_small() -> None:
    """One file of half the part would decide the evidence alone."""
    files = [record(f"{n}.py", 6000 if n % 4 == 0 else 500, cluster=n) for n in range(100)]
    for seed in range(20):
        split = split_files(files, DataConfig(), seed=seed)
        for part in (split.validation, split.test):
            assert {item.size_bytes for item in part} == {500}
            assert (
                0.095 < sum(item.size_bytes for item in part) / sum(item.size_bytes for item in files) < 0.11
            )
        large = split_files([item for item in files if item.size_bytes == 6000][:9], DataConfig(), seed=seed)
        assert len(large.test) == len(large.validation) == 1, "where all are large, large ones are held out"


def test_a_new_file_moves_no_old_one_out_of_the_test_part() -> None:
    files = [record(f"{n}.py", 100, cluster=n) for n in range(50)]
    before = {item.path for item in split_files(files, DataConfig(), seed=0).test}
    after = {
        item.path for item in split_files([*files, record("new.py", 100, 99)], DataConfig(), seed=0).test
    }
    assert len(before - after) <= 1


def test_too_few_files_to_split_is_an_error() -> None:
    with pytest.raises(DataError, match="Only 2 independent files"):
        split_files([record("a.py", 9, 0), record("b.py", 9, 1)], DataConfig(), seed=0)


def test_the_second_run_over_an_unchanged_repository_tokenises_nothing(prepare, repository: Path) -> None:  # type: ignore[no-untyped-def]
    first, second = prepare(repository), prepare(repository)
    assert first.summary.texts_tokenized > 0 and second.summary.texts_tokenized == 0
    assert first.data_sha256 == second.data_sha256
    changed = next(repository.rglob("basket_0.py"))
    changed.write_text(changed.read_text() + "\n\ndef late(value):\n    return value + 1\n")
    third = prepare(repository)
    assert 0 < third.summary.texts_tokenized < first.summary.texts_tokenized / 2


def test_a_damaged_cache_is_made_anew(tokenizer: CodeTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokens.sqlite3").write_bytes(b"not a database, but long enough to be looked at" * 50)
    cache = TokenCache(tmp_path, tokenizer)
    (ids,) = cache.encode_many(["def f(x):"])
    assert tokenizer.decode(ids.tolist()) == "def f(x):" and cache.misses == 1


def test_targets_are_never_padding_a_header_or_the_first_token_of_a_document(  # type: ignore[no-untyped-def]
    prepare, repository: Path, tokenizer: CodeTokenizer
) -> None:
    data = prepare(repository)
    markers = tokenizer.markers
    assert markers is not None
    forbidden = {
        markers.prefix,
        markers.suffix,
        markers.middle,
        tokenizer.file_id,
        tokenizer.repo_id,
        tokenizer.pad_id,
    }
    for rows in (data.train, data.validation, data.test):
        for batch in rows.batches(512, seed=0):
            assert batch.tokens.shape == batch.loss_mask.shape == batch.document_ids.shape
            assert not batch.loss_mask[batch.document_ids == 0].any()
            starts = np.diff(batch.document_ids, axis=1, prepend=-1) != 0
            assert not batch.loss_mask[starts].any()
            assert not forbidden & set(batch.tokens[batch.loss_mask].tolist())
            assert batch.loss_mask.any(axis=1).all(), "no row without a target"


def test_every_kept_byte_of_the_test_part_is_a_target_exactly_once(  # type: ignore[no-untyped-def]
    prepare, repository: Path, tokenizer: CodeTokenizer
) -> None:
    data = prepare(repository)
    expected = sum(len(excerpt.text.encode()) for excerpt in data.test_excerpts)
    assert data.test.source_bytes == expected > 0
    spelled = "".join(
        tokenizer.decode(batch.tokens[0][batch.loss_mask[0]].tolist())
        for batch in data.test.batches(1, seed=None)
    )
    assert sorted(spelled) == sorted("".join(excerpt.text for excerpt in data.test_excerpts))


def test_test_files_are_in_no_other_part(prepare, repository: Path, tokenizer: CodeTokenizer) -> None:  # type: ignore[no-untyped-def]
    data = prepare(repository)
    parts = [
        {item.path for item in part} for part in (data.split.train, data.split.validation, data.split.test)
    ]
    assert all(parts) and not parts[0] & parts[2] and not parts[1] & parts[2] and not parts[0] & parts[1]


def test_a_realistic_repository_is_packed_with_hardly_any_padding(prepare, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = prepare(write_repository(tmp_path / "large", modules=60, functions=12))
    assert data.summary.padding_fraction <= 0.03
    assert set(data.train.widths) <= {64, 128}


def test_an_epoch_takes_every_row_once_and_goes_on_exactly(prepare, repository: Path) -> None:  # type: ignore[no-untyped-def]
    """mlx-lm's length sort counts keys instead of tokens and so sorts nothing; here a batch has one width."""
    rows = prepare(repository).train
    whole = list(rows.batches(512, seed=3, epoch=1))
    assert len(whole) == rows.update_count(512)
    assert sum(len(batch.tokens) for batch in whole) == len(rows)
    assert sum(batch.loss_tokens for batch in whole) == rows.loss_tokens
    rest = list(rows.batches(512, seed=3, epoch=1, start=4))
    assert all(np.array_equal(one.tokens, two.tokens) for one, two in zip(whole[4:], rest, strict=True))
    other = list(rows.batches(512, seed=3, epoch=2))
    assert any(not np.array_equal(one.tokens, two.tokens) for one, two in zip(whole, other, strict=False))


def test_special_tokens_written_in_source_are_text(
    prepare, repository: Path, tokenizer: CodeTokenizer
) -> None:  # type: ignore[no-untyped-def]
    line = 'MARK = "<|fim_prefix|><|fim_middle|><|endoftext|><|file_sep|>"'
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == line and not set(ids) & set(range(7))
    for number in range(4):
        (repository / f"marks_{number}.py").write_text(
            f"{line}\n\n\ndef use_{number}(x):\n    return MARK, x, {number}\n"
        )
    data = prepare(repository)
    for batch in data.train.batches(512, seed=0):
        middles = (batch.tokens == 2).sum(axis=1)
        prefixes = (batch.tokens == 1).sum(axis=1)
        assert (middles == prefixes).all(), "markers come in pairs, only where an example put them"


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_spans_lie_inside_the_text_in_every_language(language: str) -> None:
    text = SAMPLES[language][1] * 3
    for seed in range(40):
        span = choose_span(text, language, random.Random(seed))
        assert span is not None
        start, end = span
        assert 0 <= start < end <= len(text) and text[start:end].strip()


def test_a_span_and_its_surroundings_are_the_piece(tokenizer: CodeTokenizer) -> None:
    text = "".join(f"def step_{n}(value):\n    return value * {n} + 'é'\n\n\n" for n in range(400))
    examples = list(
        make_examples([Excerpt("a.py", "python", text)], DataConfig(fim_rate=0.5), can_fill=True, seed=0)
    )
    assert "".join(item.prefix + (item.middle or "") + item.suffix for item in examples) == text
    kinds = {item.middle is None for item in examples}
    assert kinds == {True, False}
    alone = list(make_examples([Excerpt("a.py", "python", text)], DataConfig(), can_fill=False, seed=0))
    assert all(item.middle is None for item in alone)


def test_pieces_are_cut_at_blank_lines_and_lose_nothing() -> None:
    text = "".join(f"block {n}\nmore\n\n\n" for n in range(100))
    pieces = list(pieces_of(text, 200))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 200
    assert all(piece.endswith("\n\n\n") for piece in pieces)
    assert "".join(pieces_of("x" * 1000, 300)) == "x" * 1000


def test_a_fill_in_the_middle_document_learns_context_middle_and_its_end(
    tokenizer: CodeTokenizer, tmp_path: Path
) -> None:
    from mlx_gardener.dataset.examples import Example

    encoder = Encoder(TokenCache(tmp_path, tokenizer), repository="r")
    example = Example("a.py", "def f(x):\n    return ", "\n", "x + 1")
    (document,) = encoder.documents([example])
    learned = document.tokens[document.loss_mask].tolist()
    parts = ("def f(x):\n", example.suffix, "    return x + 1")
    assert learned == [*(token for part in parts for token in tokenizer.encode(part)), tokenizer.eos_id]
    assert document.target_bytes == sum(map(len, parts))


@pytest.mark.parametrize("order", ["PSM", "SPM"])
def test_a_span_is_learned_in_the_form_of_prompts(
    order: str, tokenizer: CodeTokenizer, tmp_path: Path
) -> None:
    from mlx_gardener.dataset.examples import Example

    assert tokenizer.markers is not None
    other = replace(tokenizer, markers=replace(tokenizer.markers, order=order))
    prefix, suffix, middle = "import math\n\ndef f(x):\n    return ", "\n\nprint(f(2))\n", "x + 1\n"
    (document,) = Encoder(TokenCache(tmp_path, other), repository="r").documents(
        [Example("a.py", prefix, suffix, middle)]
    )
    place = caret_prompt(other, prefix, suffix, "a.py")
    shown = len(place.ids)
    told = document.tokens.tolist()
    if order == "PSM":  # the line is one piece, of which somebody has typed a part
        assert told[:shown] == place.ids
        assert tokenizer.decode(told[shown:-1]) == place.begins + middle
    else:
        before = [other.file_id, *other.encode("a.py\n")]
        assert other.markers is not None
        asked = other.markers.prompt(other.encode(prefix), other.encode(suffix))
        assert told == [*before, *asked, *other.encode(middle), other.markers.end]


def test_whole_documents_stay_whole_and_split_ones_lose_one_target_a_cut() -> None:
    def document(length: int, splittable: bool) -> Document:
        mask = np.ones(length, dtype=bool)
        mask[0] = False
        return Document(np.arange(length, dtype=np.int32) + 10, mask, length - 1, splittable)

    rows = pack([document(50, False), document(40, False), document(500, True)], (64, 128), pad_id=4)
    tokens = sum(int((batch.document_ids > 0).sum()) for batch in rows.batches(1, seed=None))
    assert tokens == 590
    assert rows.padding_tokens / rows.total_tokens < 0.15
    pieces = sum(int(batch.document_ids.max()) for batch in rows.batches(1, seed=None))
    assert rows.loss_tokens == 590 - pieces


def test_too_few_chunks_says_what_took_them(prepare, repository: Path) -> None:  # type: ignore[no-untyped-def]
    (repository / "blob.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError) as caught:
        prepare(repository, min_training_chunks=4000)
    assert "4000 are needed" in caught.value.message and "binary 1 file." in caught.value.message
    assert "min_training_chunks" in caught.value.next_step
    one = repository.parent / "one"
    one.mkdir()
    (one / "a.py").write_text("def double(value):\n    return value + value\n")
    with pytest.raises(DataError, match="Only 1 good chunk was found in 1 file; 50 are needed"):
        prepare(one, min_training_chunks=50)


def test_only_the_best_chunks_are_kept_when_there_are_too_many(prepare, repository: Path) -> None:  # type: ignore[no-untyped-def]
    data = prepare(repository, max_training_chunks=30)
    assert data.summary.chunks_kept == 30 and data.summary.chunks_over_maximum > 0


def test_a_file_that_changes_after_the_scan_is_left_out_and_counted(  # type: ignore[no-untyped-def]
    prepare, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.dataset import prepare as module

    real = module.scan_repository

    def scan_then_change(root: Path, *arguments: object, **options: object) -> object:
        found = real(root, *arguments, **options)  # type: ignore[arg-type]
        victim = root / found.files[0].path
        victim.write_text(victim.read_text() + "# changed\n")
        return found

    monkeypatch.setattr(module, "scan_repository", scan_then_change)
    assert prepare(repository).summary.files_changed_while_reading == 1


def test_a_registered_project_is_prepared_by_name(
    tokenizer: CodeTokenizer, repository: Path, tmp_path: Path
) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    preparator = TrainingDataPreparator(settings(), tokenizer=tokenizer, cache_dir=tmp_path / "cache")
    assert len(preparator.prepare_training_data("small", registry=registry).train)


def test_next_line_tasks_ask_nothing_trivial() -> None:
    text = (
        "import os\n\n\ndef f(x):\n    {\n    }\n    # note\n    return os.path.join(x)\n\n\nvalue = f(1)\n"
    )
    tasks = next_line_tasks([Excerpt("a.py", "python", text)], 50, seed=0)
    assert {task.target.strip() for task in tasks} == {"def f(x):", "return os.path.join(x)", "value = f(1)"}
    for task in tasks:
        assert text.startswith(task.prefix) and text[len(task.prefix) :].startswith(task.target)


def test_next_line_tasks_count_lines_as_editors_do() -> None:
    text = "first = one(1)\nsecond = 'a\u2028b'\nthird = two(\x0c2)\nfourth = 'c\x85d'\r\nfifth = three(3)\n"
    tasks = next_line_tasks([Excerpt("a.py", "python", text)], 50, seed=0)
    assert {(task.line, task.target) for task in tasks} == {(4, "fourth = 'c\x85d'"), (5, "fifth = three(3)")}
    for task in tasks:
        assert text[len(task.prefix) :].startswith(task.target)
