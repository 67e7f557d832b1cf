"""FILE:LINE is the line that editors show under this number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlx_gardener
from mlx_gardener.cli.complete import _read_place
from mlx_gardener.runs.indexed import index_place
from tests.serve.test_retrieval import World, evidence
from tests.support.commands import gardener_here


def test_form_feeds_and_other_separators_end_no_line(tmp_path: Path) -> None:
    lines = ["one = 1\n", "\x0c\n", "two = 'a\u2028b\x85c\x1c'\n", "three = 3\r\n", "four = 4\n"]
    (tmp_path / "a.py").write_bytes("".join(lines).encode())
    for number in range(1, 6):
        prefix, suffix, path = _read_place(f"a.py:{number}", tmp_path)
        read = [line.replace("\r\n", "\n") for line in lines]
        assert (prefix, suffix) == ("".join(read[: number - 1]), "".join(read[number:])), number
        assert path == "a.py"


@pytest.fixture
def world(home: Path, tmp_path: Path, tiny_model_dir: Path) -> World:
    made = World(tmp_path, tiny_model_dir)
    made.adapter(evidence())
    return made


def test_a_completion_has_code_of_the_repository_in_front_and_says_which(world: World) -> None:
    """The index is made where there is none, and follows the tree."""
    place = ("complete", "small", "core/ledger_1.py:9", "--max-tokens", "4", "--json")
    assert not index_place(world.registry, "small").exists()
    told = json.loads(gardener_here(*place).stdout)
    found = told["retrieval"]
    assert found["chunks"] and found["tokens"] == sum(chunk["tokens"] for chunk in found["chunks"])
    assert found["why"].startswith("-8.3% bits per byte") and index_place(world.registry, "small").exists()
    assert all(chunk["path"] != "core/ledger_1.py" for chunk in found["chunks"])
    off = json.loads(gardener_here(*place, "--retrieval", "off").stdout)
    assert off["retrieval"] == {"why": "serve.retrieval is off", "tokens": 0, "chunks": []}
    base = json.loads(gardener_here(*place, "--base").stdout)
    assert base["retrieval"]["why"] == "its evidence has no arm of the base with retrieval"
    assert json.loads(gardener_here(*place, "--base", "--retrieval", "on").stdout)["retrieval"]["chunks"]
    setting = world.tree.parent / "settings.toml"
    setting.write_text("[serve]\nretrieval = 'off'\n")
    assert not json.loads(gardener_here(*place, "--config", str(setting)).stdout)["retrieval"]["chunks"]
    assert gardener_here(*place, "--retrieval", "perhaps").returncode == 2


def test_python_completes_as_the_server_does(world: World) -> None:
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.server import serving
    from tests.serve.test_retrieval import ASKED, infill, told

    found = mlx_gardener.complete("small", ASKED, "\n", path="core/new.py", max_tokens=4)
    with serving(world.registry, ServeSettings(port=0)) as address:
        answer = infill(address)
    assert answer.json()["content"] == found.text
    places = [f"{piece.path}:{piece.start_line}-{piece.end_line}" for piece in found.retrieved]
    assert places and told(answer).partition("; ")[2] == ", ".join(places)
    assert mlx_gardener.complete("small", ASKED, max_tokens=2).retrieved == (), (
        "nothing tells where it would end"
    )
    with pytest.raises(mlx_gardener.ConfigError, match="retrieval"):
        mlx_gardener.complete("small", ASKED, retrieval="perhaps")  # type: ignore[arg-type]
