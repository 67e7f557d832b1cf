"""Training examples with retrieved code in front: made as evidence and server make a prompt, without what is to be learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.dataset.examples import (
    Encoder,
    RetrievedExample,
    example_of,
    excerpts_of,
    make_examples,
    training_pieces,
)
from mlx_gardener.dataset.retrieved import RetrievedExamples
from mlx_gardener.model import CodeTokenizer, load_tokenizer
from mlx_gardener.retrieval import Retriever, index_of_files
from mlx_gardener.source import Scan, read_source, scan_repository
from tests.support.repositories import NOUNS, write_linked_repository, write_repository


def settings(**more: object) -> TrainingConfig:
    chosen = {
        "min_training_chunks": 5,
        "training_data_quality_threshold": 0.1,
        "data.sequence_lengths": [128, 256],
        "data.repository_row_share": 0,
        "data.retrieval_share": 0.5,
    }
    return load_config(environment={}, overrides={**chosen, **more})


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    return write_linked_repository(tmp_path / "harbor")


@pytest.fixture
def prepare(tokenizer: CodeTokenizer, tmp_path: Path):  # type: ignore[no-untyped-def]
    def go(root: Path, **more: object) -> PreparedData:
        config = settings(**more)
        return TrainingDataPreparator(config, tokenizer=tokenizer, cache_dir=tmp_path / "cache").prepare(root)

    return go


def made_of(
    scan: Scan, tokenizer: CodeTokenizer, config: TrainingConfig
) -> tuple[RetrievedExamples, list[RetrievedExample], list[str]]:
    """(what makes examples, those with retrieved code, the texts of what is learned without)."""
    maker = RetrievedExamples(scan.root, scan.files, tokenizer, config, name=scan.name)
    excerpts = [item for record in scan.files for item in excerpts_of(read_source(scan.root, record), record)]
    made, plain, left = maker.taken_from(training_pieces(excerpts, config.data, seed=config.seed))
    return maker, made, [*(example.prefix for example in plain), *(piece.text for piece in left)]


def scanned(root: Path, config: TrainingConfig) -> Scan:
    return scan_repository(root, config.data, quality_threshold=config.training_data_quality_threshold)


def test_a_context_is_what_retrieval_shows_for_the_place(linked: Path, tokenizer: CodeTokenizer) -> None:
    """The same index, search and form as evidence and server use, by the path and the code before the place alone."""
    config = settings(**{"data.retrieval_share": 1})
    scan = scanned(linked, config)
    _, made, _ = made_of(scan, tokenizer, config)
    retriever = Retriever(
        index_of_files(scan.root, scan.files, name=scan.name), tokenizer, limit_tokens=256 // 2
    )
    assert len(made) >= 20
    for example in made:
        whole = (linked / example.path).read_text()
        assert whole.startswith(example.before), "all of these files are shorter than a row"
        after = whole[len(example.before) :]
        shown = (example.before, (example.middle or "") + example.after)
        assert list(example.context) == retriever.context(example.path, example.before, shown=shown)
        assert tokenizer.decode(list(example.context)).startswith("<|repo_name|>harbor\n<|file_sep|>ports/")
        assert (example.middle or "") + example.after in after


def test_places_that_need_another_file_are_preferred(linked: Path, tokenizer: CodeTokenizer) -> None:
    config = settings(**{"data.retrieval_share": 0.5})
    _, made, _ = made_of(scanned(linked, config), tokenizer, config)
    assert len(made) >= 5 and all(Path(example.path).name.startswith("use_") for example in made), (
        "half of the files use names of others, and fewer than that are wanted"
    )
    wanted = [f"weigh_{NOUNS[(NOUNS.index(Path(item.path).stem[4:]) + 3) % len(NOUNS)]}" for item in made]
    needed = [
        name in (example.middle or "") + example.after for name, example in zip(wanted, made, strict=True)
    ]
    assert sum(needed) >= len(made) / 2


def test_neither_the_file_nor_its_near_duplicates_are_shown_to_it(
    tmp_path: Path, tokenizer: CodeTokenizer
) -> None:
    root = write_linked_repository(tmp_path / "harbor")
    for noun in NOUNS[:5]:
        text = (root / "ports" / f"use_{noun}.py").read_text()
        (root / "ports" / f"copy_of_{noun}.py").write_text(text.replace("ship.gone", "ship.away"))
        (root / "ports" / f"part_of_{noun}.py").write_text(
            text.partition("def leave")[0]
            + f"\n\ndef other_{noun}(a, b, c):\n    return a * b * c, {noun!r}\n" * 5
        )
    config = settings(**{"data.retrieval_share": 1})
    _, made, _ = made_of(scanned(root, config), tokenizer, config)
    assert len(made) >= 20
    learned = 0
    for example in made:
        shown = tokenizer.decode(list(example.context))
        kind, _, noun = Path(example.path).stem.rpartition("_")
        assert f"{example.path}\n" not in shown
        if kind in ("use", "copy_of") and noun in NOUNS[:5]:
            assert f"use_{noun}.py" not in shown and f"copy_of_{noun}.py" not in shown
        if f"def visit_{noun}(ships)" in (example.middle or "") + example.after:
            learned += 1
            assert f"def visit_{noun}(ships)" not in shown, "the same function stands in three files"
    assert learned >= 5


def test_nothing_is_learned_of_context_and_what_chose_it(
    linked: Path, tokenizer: CodeTokenizer, tmp_path: Path
) -> None:
    encoder = Encoder(TokenCache(tmp_path / "tokens", tokenizer), repository="harbor")
    context = (tokenizer.file_id or 0, *tokenizer.encode("far.py\ndef far(x): ...\n"))
    filled = RetrievedExample("a.py", context, "def near(y):\n    return ", "far(y)", "\n\nlast = 1\n")
    (document,) = encoder.retrieved_documents([filled], 128)
    learned, middle = document.tokens[document.loss_mask].tolist(), tokenizer.encode("    return far(y)")
    assert learned == [*tokenizer.encode(filled.after), *middle, tokenizer.eos_id]
    told = document.tokens.tolist()
    marks = tokenizer.markers
    assert marks is not None
    assert told[: len(context)] == list(context)
    prompt = marks.prompt(tokenizer.encode("def near(y):\n"), tokenizer.encode(filled.after))
    file = [tokenizer.file_id, *tokenizer.encode("a.py\n")]
    assert told == [*context, *file, *prompt, *middle, marks.end]
    on = replace(filled, middle=None)
    (document,) = encoder.retrieved_documents([on], 128)
    assert document.tokens[document.loss_mask].tolist() == tokenizer.encode(on.after)
    opened = replace(tokenizer, bos_id=7)
    (document,) = Encoder(TokenCache(tmp_path / "tokens", opened), repository="harbor").retrieved_documents(
        [on], 128
    )
    assert document.tokens.tolist()[: len(context) + 1] == [7, *context], "as `with_context` puts it"


@pytest.mark.parametrize("width", [56, 64, 96, 4096])
def test_an_example_is_never_longer_than_a_row_and_keeps_what_is_near(
    width: int, tokenizer: CodeTokenizer, tmp_path: Path
) -> None:
    encoder = Encoder(TokenCache(tmp_path / "tokens", tokenizer), repository="harbor")
    above = "".join(f"line_{n} = {n}\n" for n in range(100))
    before = f"{above}near = "
    after = "\n" + "".join(f"after_{n} = {n}\n" for n in range(100))
    for middle in ("far(y)", "far(y) + " * 60, None):
        for path in ("a.py", "long/" * 60 + "a.py"):
            example = RetrievedExample(path, tuple(tokenizer.encode("x" * 20)), before, middle, after)
            (document,) = encoder.retrieved_documents([example], width)
            assert document.loss_mask.any()
            if path == "a.py":
                text = tokenizer.decode(document.tokens.tolist())
                assert len(document.tokens) <= width and "ear = " in text
                assert (middle or "")[:6] in text
                if width == 4096:
                    assert above in text and after in text
                elif middle == "far(y)":
                    assert text.endswith("far(y)<|endoftext|>"), "a span that fits is learned to its end"


def test_every_byte_is_still_learned_from(linked: Path, tokenizer: CodeTokenizer) -> None:
    config = settings(**{"data.retrieval_share": 0.6})
    scan = scanned(linked, config)
    _, made, plain = made_of(scan, tokenizer, config)
    for record in scan.files:
        whole = (linked / record.path).read_text()
        own = [example for example in made if example.path == record.path]
        if not own:
            continue
        covered = np.zeros(len(whole), dtype=bool)
        for example in own:
            at = len(example.before)
            covered[at : at + len(example.middle or "") + len(example.after)] = True
        for text in plain:
            if (at := whole.find(text)) >= 0:
                covered[at : at + len(text)] = True
        lost = "".join(letter for letter, is_covered in zip(whole, covered, strict=True) if not is_covered)
        assert len(lost.strip()) < 40, lost  # a few characters before a place make no example


def test_rows_are_the_same_for_the_same_seed_and_keep_their_lengths(prepare, linked: Path) -> None:  # type: ignore[no-untyped-def]
    first, second = prepare(linked), prepare(linked)
    assert first.data_sha256 == second.data_sha256
    assert first.data_sha256 != prepare(linked, seed=1).data_sha256
    assert set(first.train.widths) <= {128, 256}
    for batch in first.train.batches(512, seed=0):
        assert not batch.loss_mask[batch.document_ids == 0].any()
        assert batch.loss_mask.any(axis=1).all(), "no row without a target"
    assert first.summary.retrieval is not None
    assert first.summary.to_json()["retrieval"] == first.summary.retrieval
    assert first.summary.retrieval["examples"] > 0 < first.summary.retrieval["context_tokens"]


def test_a_share_of_nothing_changes_nothing_and_all_is_all(prepare, linked: Path) -> None:  # type: ignore[no-untyped-def]
    none = prepare(linked, **{"data.retrieval_share": 0})
    assert none.summary.retrieval is None and "retrieval" not in none.summary.to_json()
    counts = [
        prepare(linked, **{"data.retrieval_share": share}).summary.retrieval["examples"]
        for share in (0.25, 0.5, 1)
    ]
    assert 0 < counts[0] < counts[1] < counts[2]
    assert none.test.sha256() == prepare(linked).test.sha256(), "held-out rows are what they were"


def test_the_share_is_of_the_rows(prepare, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = write_repository(tmp_path / "large", modules=40, functions=8)
    for share in (0.2, 0.5):
        data = prepare(root, **{"data.retrieval_share": share})
        assert data.summary.retrieval is not None
        seen = 256 * data.summary.retrieval["examples"] / data.train.total_tokens
        assert share - 0.1 < seen < share + 0.15, "most of these examples fill a row of the widest kind"


def test_pieces_that_are_not_taken_become_what_they_were(linked: Path) -> None:
    config = settings().data
    files = scanned(linked, settings()).files
    excerpts = [item for record in files for item in excerpts_of(read_source(linked, record), record)]
    pieces = training_pieces(excerpts, config, seed=3)
    assert [example_of(piece, config, can_fill=True) for piece in pieces] == list(
        make_examples(excerpts, config, can_fill=True, seed=3)
    )
    for excerpt in excerpts:
        own = [piece for piece in pieces if piece.excerpt == excerpt]
        assert all(excerpt.text.startswith(piece.text, piece.start) for piece in own)


def test_more_examples_than_the_bound_are_spread_over_all_files(
    tmp_path: Path, tokenizer: CodeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_repository(tmp_path / "large", modules=40, functions=8)
    config = settings(**{"data.retrieval_share": 1})
    scan = scanned(root, config)
    monkeypatch.setattr("mlx_gardener.dataset.retrieved.MOST_EXAMPLES", 40)
    _, made, plain = made_of(scan, tokenizer, config)
    assert 10 <= len(made) <= 60 < len(plain)
    places = {sorted(item.path for item in scan.files).index(example.path) // 10 for example in made}
    assert len(places) >= 3
