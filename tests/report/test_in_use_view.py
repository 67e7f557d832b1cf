"""What stayed in use, as the terminal, the page and JSON tell it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

from click.testing import CliRunner
from rich.console import Console

from mlx_gardener.cli import cli
from mlx_gardener.evaluate.in_use import figures, in_use_directory, offer_store
from mlx_gardener.evaluate.offers import Offer, Offered, Seen, line_hash, salt_of
from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report.html import render_report_html
from mlx_gardener.report.in_use_view import page_with, show_in_use
from tests.report.facts import full_events, full_facts
from tests.support.adapters import SHAPES, make_adapter

OFFERED = [Offered("v2", "adapter", 12, 3, 4, 240.0, 31.0), Offered("v2", "base", 12, 3, 4, 200.0, 30.0)]
SEEN = [
    Seen("v2", arm, True, bytes([file]), 1, 2, 2 if good else 1, good)
    for file in range(4)
    for arm, goods in (("adapter", 2), ("base", 1))
    for good in [True] * goods + [False] * (3 - goods)
]


def test_survival_and_the_comparison_with_the_base_are_shown() -> None:
    found = figures(OFFERED, SEEN)
    console = Console(file=io.StringIO(), width=160)
    show_in_use(console, found)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "- where that is still to come" in told
    assert "24 completions offered" in told and "67% / 83% (12)" in told and "33% / 67% (12)" in told
    assert "first line stayed after 1 min" in told and "+33.3" in told
    page = page_with(render_report_html(full_facts(), events=full_events()), found)
    assert page.count('id="in-use"') == 1 and "67% / 83% (12)" in page and "+33.3" in page
    assert page.index('id="in-use"') < page.index('id="words"') and page.count("</main>") == 1


def test_nothing_is_said_where_nothing_was_counted() -> None:
    console = Console(file=io.StringIO(), width=160)
    show_in_use(console, figures([], []))
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_the_command_takes_the_looks_that_are_due_and_writes_a_page_with_them(
    home: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "code"
    tree.mkdir()
    (tree / "a.py").write_text("x = 1\n")
    registry, base = ProjectRegistry(), load_base("seedling")
    registry.register_project("alpha", tree)
    record = make_adapter(registry, "alpha", base, SHAPES["alpha"], seed=1)
    (record.directory / "report.html").write_text("<nav><ul></ul></nav><main></main>")
    salt = salt_of(registry.home)
    hashes = (line_hash(salt, "y = 2"),)
    offer = Offer(time.time() - 700, "v1", "adapter", False, False, 5, 90.0, "a.py", hashes)
    assert offer_store(registry, "alpha").add(offer, tree)
    (tree / "a.py").write_text("x = 1\ny = 2\n")
    done = CliRunner().invoke(cli, ["report", "alpha", "--json"])
    told = json.loads(done.output)
    (version,) = told["in_use"]["versions"]
    assert version["offers"] == 1 and version["stayed"] == [
        {"minutes": 10, "offers": 1, "first_line": 1.0, "lines": 1.0}
    ]
    page = Path(told["page"])
    assert page.parent == in_use_directory(registry, "alpha") and 'id="in-use"' in page.read_text()
    copy = tmp_path / "copy.html"
    shown = CliRunner().invoke(cli, ["report", "alpha", "--output", str(copy)])
    assert "1 completion offered" in shown.output and copy.read_text() == page.read_text()
    assert (record.directory / "report.html").read_text() == "<nav><ul></ul></nav><main></main>"
