"""The index: BM25 as its authors' formula says, identifiers whole and in parts, and the same however it came about."""

from __future__ import annotations

import random
from collections import Counter

import bm25s
import numpy as np
import pytest

from mlx_gardener.retrieval import index as index_module
from mlx_gardener.retrieval import index_of_chunks
from mlx_gardener.retrieval.index import merged
from mlx_gardener.retrieval.parts import file_part
from mlx_gardener.retrieval.words import code_words, query_words, words_of
from tests.support.indexes import CHUNKS, equal


def random_chunks(count: int, *, seed: int = 0, files: int = 20) -> list[tuple[str, str]]:
    """Chunks with words that are as unevenly common as in code."""
    choose = random.Random(seed)
    names = [f"name{number}" for number in range(300)]
    shares = [1 / (number + 1) for number in range(len(names))]
    return [
        (f"d/f{at % files:03d}.py", " ".join(choose.choices(names, shares, k=choose.randrange(5, 60))))
        for at in range(count)
    ]


def test_identifiers_count_whole_and_by_their_parts() -> None:
    assert code_words("parseHTTPHeader snake_case x") == [
        "parsehttpheader", "parse", "http", "header", "snake_case", "snake", "case", "x",
    ]  # fmt: skip
    assert query_words("src/tides.py", "tides x") == ["src", "tides", "x"]


def test_scores_are_those_of_bm25s() -> None:
    chunks = random_chunks(200)
    index = index_of_chunks(sorted(chunks))
    theirs = bm25s.BM25()
    theirs.index([words_of(path, text) for path, text in sorted(chunks)], show_progress=False)
    for query in (["name3", "name77", "name0"], ["name250", "d"], ["f003", "name12", "nowhere"]):
        expected = theirs.get_scores([word for word in query if word != "nowhere"])
        found = index.search(query, 20)
        assert found == np.argsort(-expected, kind="stable")[:20].tolist()
        assert index.search(query, 500) == [
            at for at in np.argsort(-expected, kind="stable") if expected[at] > 0
        ]


def test_a_large_index_finds_by_rare_words_what_all_words_find(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of_chunks(random_chunks(2000))
    queries = [query_words("", text) for _, text in random_chunks(60, seed=9)]
    exact = [index.search(query, 8) for query in queries]

    def agreement() -> float:
        same = sum(
            len(set(index.search(query, 8)) & set(best)) for query, best in zip(queries, exact, strict=True)
        )
        return same / sum(map(len, exact))

    assert agreement() == 1
    monkeypatch.setattr(index_module, "_MOST_POSTINGS", 2000)  # a tenth of what the queries' words have
    assert agreement() > 0.95
    monkeypatch.setattr(index_module, "_CANDIDATES", 8)
    assert agreement() < 0.95


def test_chunks_of_the_open_file_are_not_found() -> None:
    index = index_of_chunks(CHUNKS)
    assert [index.path_of(at) for at in index.search(["tidetable", "src"], 1)] == ["src/tides.py"]
    assert "src/tides.py" not in [
        index.path_of(at) for at in index.search(["tidetable", "src"], 9, without="src/tides.py")
    ]
    assert index.search(["nowhere"], 3) == index.search([], 3) == index_of_chunks([]).search(["a"], 3) == []


def test_an_index_that_was_changed_file_by_file_equals_one_made_anew() -> None:
    chunks = random_chunks(120)
    by_file: dict[str, list[str]] = {}
    for path, text in chunks:
        by_file.setdefault(path, []).append(text)

    def part(path: str, texts: list[str]) -> index_module.FilePart:
        return file_part(path, [text.encode() for text in texts], [(1, 2)] * len(texts), stamp=(1, 2, 3, 4))

    index = merged(None, [part(path, texts) for path, texts in by_file.items()], name="r")
    choose = random.Random(4)
    for step in range(6):
        changed = set(choose.sample(sorted(by_file), 3))
        gone = changed.pop()
        del by_file[gone]
        for path in [*changed, f"d/new{step}.py"]:
            by_file[path] = [text for _, text in random_chunks(step, seed=step + 50)]  # none at first
        now = {*changed, f"d/new{step}.py"}
        kept = [at for at, path in enumerate(index.paths) if path in by_file and path not in now]
        index = merged(index, [part(path, by_file[path]) for path in now], name="r", kept=kept)
        anew = merged(None, [part(path, texts) for path, texts in by_file.items()], name="r")
        assert equal(index, anew), step
    texts = [index.text_of(at) for at in range(index.chunk_count)]
    assert Counter(texts) == Counter(text for found in by_file.values() for text in found)
    assert index.paths == tuple(sorted(by_file))
