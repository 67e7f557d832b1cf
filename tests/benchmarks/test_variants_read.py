"""Adapters beside each other on held-out lines: what is read, what is made of it, and that what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks import variants_read as variants
from mlx_gardener.model import load_base
from tests.support.repositories import write_linked_repository


def entry(kind: str, nats: float, exact: bool = False) -> dict[str, Any]:
    return {"kind": kind, "nats": nats, "bytes": 10, "exact": exact}


def test_a_base_reads_lines_and_code_with_nothing_and_with_retrieved_code_in_front(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    root, base = write_linked_repository(tmp_path / "harbor"), load_base(str(tiny_model_dir))
    told: dict[str, Any] = {}

    def tell(name: str, front: str, entries: Any) -> None:
        told[f"{name}|{front}"] = entries

    variants.read(root, base, {"base": root}, lines=2, windows=1, tell=tell, done=[("base", "nothing")])
    assert set(told) == {"base|retrieved"}, "what is done is not done again"
    variants.read(root, base, {"base": root}, lines=2, windows=1, tell=tell)
    plain, rich = (variants.figures(told[f"base|{front}"]) for front in variants.FRONTS)
    assert set(plain) == set(rich) >= {"code bits", "next_line bits", "next_line exact", "cross_file bits"}
    assert plain["code bits"] != rich["code bits"] and min(plain["code bits"], rich["code bits"]) > 1


def test_an_adapter_reads_what_it_never_saw_and_nothing_else(
    trained_home: Path, trained_model_dir: Path, repository: Path
) -> None:
    base, told = load_base(str(trained_model_dir)), dict[str, Any]()

    def tell(name: str, front: str, entries: Any) -> None:
        told[f"{name}|{front}"] = variants.figures(entries)

    adapters = {"base": repository, "own": variants.adapter_of(f"{trained_home}:{{}}", "small")}
    variants.read(repository, base, adapters, lines=2, windows=1, tell=tell)
    assert told["own|nothing"]["code bits"] != told["base|nothing"]["code bits"]
    assert told["own|retrieved"]["code bits"] != told["own|nothing"]["code bits"]
    for file in list(repository.rglob("*.py"))[::2]:
        file.unlink()
    with pytest.raises(click.ClickException, match="held out other files"):
        variants.read(repository, base, adapters, lines=2, windows=1, tell=tell)


def test_variants_are_compared_with_the_first_one_with_the_same_in_front(tmp_path: Path) -> None:
    found = {
        repository: {
            "none|nothing": [entry("code", 8.0), entry("next_line", 4.0)],
            "none|retrieved": [entry("code", 4.0), entry("next_line", 4.0)],
            "0.3|nothing": [entry("code", 8.0 * worse), entry("next_line", 4.0, True)],
            "0.3|retrieved": [entry("code", 2.0), entry("next_line", 2.0, True)],
        }
        for repository, worse in (("one", 1.1), ("two", 1.3))
    }
    variants.write("tried", found, "none", tmp_path, model="tiny", lines=2, windows=1)
    result = json.loads((tmp_path / "variants_tried.json").read_text())
    assert result["changes"]["0.3|nothing"]["code bits"]["change"] == pytest.approx(0.2)
    assert result["changes"]["0.3|retrieved"]["code bits"]["change"] == pytest.approx(-0.5)
    assert result["changes"]["0.3|retrieved"]["next_line exact"]["change"] == 1
    assert "none|retrieved" not in result["changes"]
    page = (tmp_path / "variants_tried.md").read_text()
    assert "| 0.3 | retrieved | -50.0%" in page and "| none | retrieved |" in page
