"""Retrieval: what fits is found, what is asked is never shown, and rows with context have the same targets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.dataset.tasks import continuation_places, fim_tasks
from mlx_gardener.evaluate.metrics import parses
from mlx_gardener.evaluate.retrieval import Retriever, code_words
from mlx_gardener.evaluate.rows import draw_windows, make_windows, plain_rows, rows_with_context
from mlx_gardener.model import CodeTokenizer, load_tokenizer

CHUNKS = [
    ("src/parser.py", "def parse_arguments(argv):\n    return splitWords(argv)\n"),
    ("src/tides.py", "class TideTable:\n    def height_at(self, hour):\n        return self.heights[hour]\n"),
    ("src/mail.py", "def send_mail(recipient, body):\n    connection.deliver(recipient, body)\n"),
]


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


def test_identifiers_count_whole_and_by_their_parts() -> None:
    assert code_words("parseHTTPHeader snake_case x") == [
        "parsehttpheader", "parse", "http", "header", "snake_case", "snake", "case", "x",
    ]  # fmt: skip


def test_the_chunk_that_fits_stands_nearest_and_in_the_models_form(tokenizer: CodeTokenizer) -> None:
    retriever = Retriever(CHUNKS, tokenizer, limit_tokens=400)
    ids = retriever.context("tests/test_boat.py", "table = TideTable()\nassert table.height_at(")
    assert ids[0] == tokenizer.file_id and len(ids) <= 400
    last = tokenizer.decode(ids).rsplit("<|file_sep|>", 1)[1]
    assert last.startswith("src/tides.py\nclass TideTable")
    assert retriever.context("a.py", "zzz qqq") == []


def test_the_ranking_writes_no_lines_of_its_own_into_a_runs_log(
    tokenizer: CodeTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    logging.getLogger("bm25s").setLevel(logging.DEBUG)  # as the library sets it when it is imported
    try:
        Retriever(CHUNKS, tokenizer, limit_tokens=40).context("x.py", "TideTable")
    finally:
        logging.getLogger().removeHandler(handler)
    said = capfd.readouterr()
    assert not said.out and not said.err


def test_a_context_keeps_to_its_limit_and_shows_no_chunk_of_the_file_itself(tokenizer: CodeTokenizer) -> None:
    retriever = Retriever(CHUNKS, tokenizer, limit_tokens=40)
    assert len(retriever.context("x.py", "TideTable height_at send_mail parse_arguments")) <= 40
    own = tokenizer.decode(
        Retriever(CHUNKS, tokenizer, limit_tokens=400).context("src/tides.py", "TideTable height")
    )
    assert "class TideTable" not in own


def test_nothing_that_is_asked_for_is_part_of_the_query(tokenizer: CodeTokenizer) -> None:
    """The rows' contexts are the same whatever stands in the rows' own targets."""
    retriever = Retriever(CHUNKS, tokenizer, limit_tokens=200)
    seen: list[str] = []
    context = retriever.context
    retriever.context = lambda path, before: (seen.append(before), context(path, before))[1]  # type: ignore[method-assign]
    text = "".join(f"value_{n} = {n}\n" for n in range(80))
    windows = make_windows([Excerpt("a.py", "python", text)], tokenizer, 128)
    rows_with_context(windows, tokenizer, retriever, (64, 128))
    assert seen[0] == "" and len(seen) == 2 * len(windows)
    place = 0
    for before, (window, half) in zip(seen, [(w, h) for w in windows for h in (0, 1)], strict=True):
        middle = window.start + (window.end - window.start + 1) // 2
        place = window.start if half == 0 else middle
        assert tokenizer.decode(list(window.tokens[:place])).endswith(before)


def test_rows_with_context_have_the_same_targets_as_plain_ones(tokenizer: CodeTokenizer) -> None:
    text = "".join(f"def height_{n}(hour):\n    return TideTable({n}).height_at(hour)\n" for n in range(40))
    excerpts = [Excerpt("a.py", "python", text), Excerpt("b.py", "python", text[:200])]
    windows = make_windows(excerpts, tokenizer, 128)
    plain = plain_rows(windows, tokenizer, (64, 128))
    rich = rows_with_context(windows, tokenizer, Retriever(CHUNKS, tokenizer, limit_tokens=96), (64, 128))
    assert plain.source_bytes == rich.source_bytes == len(text.encode()) + len(text[:200].encode())
    assert plain.loss_tokens == rich.loss_tokens and rich.total_tokens > plain.total_tokens


def test_drawn_windows_come_from_every_file(tokenizer: CodeTokenizer) -> None:
    excerpts = [Excerpt(f"{n}.py", "python", f"value = {n}\n" * 60) for n in range(5)]
    windows = make_windows(excerpts, tokenizer, 64)
    drawn = draw_windows(windows, 7, seed=1)
    assert len(drawn) == 7 and {window.path for window in drawn} == {f"{n}.py" for n in range(5)}
    assert drawn == draw_windows(windows, 7, seed=1) and draw_windows(windows, 10_000, seed=1) == windows


def test_spans_are_syntax_nodes_of_files_that_parse() -> None:
    text = "".join(f"def area_{n}(width, height):\n    return width * height + {n}\n\n" for n in range(20))
    excerpts = [Excerpt("a.py", "python", text), Excerpt("b.py", "python", "def broken(:\n    pass\n" * 20)]
    tasks = fim_tasks(excerpts, 10, seed=2)
    assert len(tasks) == 10 and {task.path for task in tasks} == {"a.py"}
    assert all(task.prefix + task.target + task.suffix == text for task in tasks)
    assert tasks == fim_tasks(excerpts, 10, seed=2)
    assert parses(text, "python") and not parses(text + "def (", "python")


def test_places_to_continue_have_lines_before_and_enough_after() -> None:
    text = "line of text\n" * 30
    places = continuation_places([Excerpt("a.txt", "text", text)], 8, least_rest=100, seed=0)
    assert len(places) == 8
    assert all(place.prefix + place.rest == text and place.rest.startswith("\n") for place in places)
    assert all(place.prefix.count("\n") >= 2 and len(place.rest) >= 100 for place in places)
