"""Retrieval by structure: what a place imports and uses is found where it is defined, and shown by its signatures."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.model import CodeTokenizer, load_tokenizer
from mlx_gardener.retrieval import Index, Retriever, index_of_chunks, index_of_files
from mlx_gardener.retrieval.definitions import defining_word, names_defined_in, signatures_of
from mlx_gardener.retrieval.structure import cards_for
from mlx_gardener.source import scan_repository
from mlx_gardener.source.languages import GRAMMARS
from tests.support.samples import SAMPLES

HARBOR = '''class HarborMaster(Person):
    """Weighs what comes in."""

    def __init__(self, name: str, berths: int = 3):
        self.name = name

'''
WEIGH = """    def weigh(
        self,
        cargo: dict[str, int],  # by kind
        tide: float = 0.5,
    ) -> int:
        return round(sum(cargo.values()) * tide)

"""
LATER = """def moor_ship(ship, *, berth):
    return ship, berth
"""
CHUNKS = [
    ("port/harbor.py", HARBOR),
    ("port/harbor.py", WEIGH),
    ("port/harbor.py", LATER),
    ("port/tides.py", "HIGH_WATER: float = 4.2\n"),
    ("inland/locks.py", "def moor_ship(ship, lock):\n    return lock.take(ship)\n"),
    ("inland/boats.py", "def paint(boat, colour):\n    boat.colour = colour\n    return boat\n"),
    (
        "port/looks_alike.py",
        "def use(name):\n    master = HarborMaster(name)\n    return master.weigh({name: 1})\n",
    ),
]
BEFORE = """from port.harbor import (
    HarborMaster,
    moor_ship,
)
from port.tides import HIGH_WATER


def use_all(boats):
    master = HarborMaster("Ida")
    painted = [paint(boat, "red") for boat in boats]
"""


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def index() -> Index:
    return index_of_chunks(CHUNKS, name="harbor")


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_an_index_knows_who_defines_a_name_in_every_language(language: str, tmp_path: Path) -> None:
    path, code, name = SAMPLES[language]
    place = tmp_path / Path(path).name
    place.write_text(code)
    files = scan_repository(tmp_path, DataConfig(), quality_threshold=0).files
    index = index_of_files(tmp_path, files, name="x")
    chunks = index.with_word(defining_word(name.rpartition(".")[2]))
    assert chunks and all(name.rpartition(".")[2] in index.text_of(chunk) for chunk in chunks)
    assert any(
        name.rpartition(".")[2] in line for chunk in chunks for line in signatures_of(index.text_of(chunk))
    )


def test_names_and_signatures_are_told_by_the_text() -> None:
    assert names_defined_in(HARBOR) == ["HarborMaster", "__init__"]
    assert names_defined_in("HIGH_WATER: float = 4.2\nhigh == low\n    inner = 3\n") == ["HIGH_WATER"]
    assert names_defined_in("export const load = async (a) => a\npub(crate) fn run_it<T>(x: T) {}") == [
        "run_it",
        "load",
    ]
    assert signatures_of(WEIGH) == [
        "    def weigh( self, cargo: dict[str, int], # by kind tide: float = 0.5, ) -> int"
    ]
    assert signatures_of("func (p *Port) Moor(ship Ship) (int, error) {\n\treturn 1, nil\n}\n") == [
        "func (p *Port) Moor(ship Ship) (int, error)"
    ]
    java = "@Override\n// says so\npublic int moor(Ship ship, int berth) {\n    return berth;\n}\n"
    assert signatures_of(java) == ["public int moor(Ship ship, int berth)"]
    assert signatures_of("# only words\n\n") == []


@pytest.mark.parametrize(
    "piece",
    [
        "export\n",
        "export ",
        "func (\n",
        "pub(",
        "def a(\n",
        "a\n\n\n",
        "a:b",
        "from x import (\n",
        "const x\n",
        "\t",
        "\n",
    ],
)
def test_text_of_a_stranger_takes_no_longer_than_other_text(piece: str) -> None:
    """Half a MB; where a rule looked beyond its line, a tenth of it took minutes."""
    text = piece * (2**19 // len(piece))
    index = index_of_chunks([("a.py", text), ("b.py", LATER)])
    assert len(names_defined_in(text)) <= 2
    assert [card.text for card in cards_for(index, "c.py", "from b import moor_ship\n" + text[: 2**16])][
        :1
    ] == ["def moor_ship(ship, *, berth)"]


def test_what_is_imported_and_used_comes_first_then_what_is_imported_then_what_is_used(index: Index) -> None:
    cards = list(cards_for(index, "app.py", BEFORE))
    assert [(index.path_of(card.chunk), card.text.split("(")[0].strip()) for card in cards] == [
        ("port/harbor.py", "class HarborMaster"),
        ("port/harbor.py", "def moor_ship"),
        ("port/tides.py", "HIGH_WATER: float = 4.2"),
        ("inland/boats.py", "def paint"),
    ]


def test_of_several_definitions_the_imported_one_is_meant(index: Index) -> None:
    inland = BEFORE.replace("from port.harbor import (", "from inland.locks import (")
    for before, path in ((BEFORE, "port/harbor.py"), (inland, "inland/locks.py")):
        (card,) = (card for card in cards_for(index, "app.py", before) if "moor_ship" in card.text)
        assert index.path_of(card.chunk) == path


def test_a_class_shows_its_methods_also_where_they_are_chunks_of_their_own(index: Index) -> None:
    card = next(cards_for(index, "app.py", BEFORE))
    assert [line.strip().split("(")[0] for line in card.text.splitlines()] == [
        "class HarborMaster",
        "def __init__",
        "def weigh",
    ]
    assert "moor_ship" not in card.text, "a function after the class is none of its methods"
    assert "return" not in card.text and '"""' not in card.text


def test_the_files_own_definitions_and_names_of_many_are_left_out(index: Index) -> None:
    assert not any(
        index.path_of(card.chunk) == "port/harbor.py" for card in cards_for(index, "port/harbor.py", BEFORE)
    )
    many = index_of_chunks([(f"{at}.py", "def paint(x):\n    return x\n") for at in range(9)])
    assert list(cards_for(many, "app.py", BEFORE)) == []
    assert list(cards_for(index, "app.py", "")) == []


def test_imports_at_the_top_of_a_long_file_are_found(index: Index) -> None:
    long = BEFORE + "\n".join(f"line_{number} = {number}" for number in range(5000)) + "\nlast = "
    assert "HarborMaster" in "".join(card.text for card in cards_for(index, "app.py", long))


def test_signatures_take_their_share_and_chunks_what_is_left(index: Index, tokenizer: CodeTokenizer) -> None:
    def text(share: float, limit: int = 400, **more: object) -> str:
        retriever = Retriever(index, tokenizer, limit_tokens=limit, signatures=share)
        found = retriever.find("app.py", BEFORE, **more)  # type: ignore[arg-type]
        assert len(found.ids) <= limit
        assert found.tokens <= len(found.ids)
        return tokenizer.decode(list(found.ids))

    alone, half = text(0), text(0.5)
    opening = "<|repo_name|>harbor\n<|file_sep|>"
    assert alone.startswith(opening) and half.startswith(f"{opening}port/harbor.py\n")
    assert "def moor_ship(ship, *, berth)" in half.partition("<|file_sep|>port/looks_alike.py")[0]
    assert half.rstrip().endswith("return boat"), "the best chunk stands nearest"
    assert half.count("<|repo_name|>") == 1
    for limit in (40, 64, 100):
        text(0.5, limit), text(1.0, limit)
    assert "port/harbor.py" not in text(1.0, apart={"port/harbor.py"})


def test_a_signature_that_the_open_file_shows_is_not_shown_again(
    index: Index, tokenizer: CodeTokenizer
) -> None:
    retriever = Retriever(index, tokenizer, limit_tokens=400, signatures=1.0)
    before = BEFORE + "\n\ndef paint(boat, colour):\n"
    assert "def paint" in tokenizer.decode(retriever.context("app.py", BEFORE))
    assert "def paint(boat, colour)\n" not in tokenizer.decode(
        retriever.context("app.py", before, shown=[before.replace("colour):", "colour)")])
    )
