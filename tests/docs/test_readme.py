"""The README is short, leads to every page, and says what a stranger needs before the first command."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.commands import PAGES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
_ANCHOR = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
#: Cards and notes that lead to other files, too.
_NOTES = sorted({*(ROOT / "benchmarks" / "results").glob("*.md"), *ROOT.glob("mlx_gardener/**/README.md")})


def test_the_readme_leads_to_every_page_of_the_docs() -> None:
    assert "docs/README.md" in _LINK.findall(README)
    index = ROOT / "docs" / "README.md"
    linked = set(_LINK.findall(index.read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {index.name} <= linked


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links: GitHub's rule."""
    titles = _HEADING.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    return {re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *_NOTES], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_what_a_page_links_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in _LINK.findall(text):
        assert (page.parent / target).exists(), target
    for target, anchor in _ANCHOR.findall(text):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_a_link_to_a_heading_that_is_not_there_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What `train` does, and why\n```sh\n# not a heading\n```\n[x](#what-train-does-and-why)"
    )
    assert anchors(page) == {"what-train-does-and-why"}


def test_pages_that_messages_name_are_there() -> None:
    """Errors and advice send readers to ``docs/NAME.md``."""
    named = set()
    for file in (ROOT / "mlx_gardener").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        spoken = [text for text in texts if isinstance(text, str) and "\n" not in text]
        named |= {name for text in spoken for name in re.findall(r"\bdocs/[\w-]+\.md\b", text)}
    assert len(named) >= 4, "else nothing is proved"
    assert all((ROOT / name).is_file() for name in named), named


def test_the_readme_is_at_most_two_screens() -> None:
    assert len(README.splitlines()) <= 90


def test_the_readme_says_how_it_comes_and_goes_and_where_data_lie() -> None:
    for told in (
        "pipx install .", "pipx uninstall mlx-gardener", "MLX_GARDENER_HOME", "~/.local/share/mlx-gardener",
        "~/Library/Application Support/mlx-gardener", "of disk", "network", "![",
    ):  # fmt: skip
        assert told in README, told


def test_the_sample_in_the_readme_is_what_is_printed_today() -> None:
    """Its lines that are no figures come from the texts that are tested."""
    texts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "report" / "texts").glob("*.txt")
    )
    sample = README.split("```text\n")[1].split("```")[0]
    for line in (
        "✓ It predicts your code better; its answers are not measurably better yet.", "What to do now",
        "- Use it, in the terminal:",
        "✓ passed: Other projects' code is not forgotten. On other projects' code it",
    ):  # fmt: skip
        assert line in sample and line in texts, line


def test_the_disk_that_it_takes_is_the_same_everywhere() -> None:
    set_up = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    assert re.findall(r"about ([\d.]+ GB) of (?:disk|packages)", README + set_up) == ["1.5 GB", "1.5 GB"]


def test_the_readme_says_what_the_adapter_of_the_quickstart_cannot() -> None:
    assert "no fill-in-the-middle markers" in README and "editors need a base that has them" in README


def test_the_quickstart_ends_with_where_its_adapter_is_found() -> None:
    """What it prints at its end is a line that a shell can take, also where a directory has a space."""
    last = (ROOT / "scripts" / "quickstart").read_text(encoding="utf-8").rstrip().splitlines()[-1]
    environment = os.environ | {"MLX_GARDENER_HOME": "/some where/home"}
    printed = subprocess.run(("bash", "-c", last), env=environment, capture_output=True, text=True, check=True).stdout  # fmt: skip
    home = subprocess.run(
        ("bash", "-c", f'{printed}\nprintf "%s" "$MLX_GARDENER_HOME"'), env=os.environ, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert home == "/some where/home"
