"""Every Python snippet in the docs is run, page by page, as a reader would in a new home.

Where they name the embedded model they get the tiny one of the reader's hub, which takes a tenth of the time.
"""

from __future__ import annotations

import builtins
import dataclasses
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import mlx_gardener
from tests.docs.commands import PAGES, ROOT
from tests.support.reader import HUB_MODEL, World

_SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_SNIPPETS = [page for page in PAGES if _SNIPPET.search(page.read_text())]


def test_the_page_on_python_has_snippets() -> None:
    assert "python.md" in {page.name for page in WITH_SNIPPETS}


def test_the_names_on_the_page_on_python_are_public_and_have_what_it_says() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([A-Z][a-z]\w+)`", text):
        assert hasattr(mlx_gardener, name) or hasattr(builtins, name), name
    rows = re.findall(r"^\| `mlx-gardener \w+` \| `(\w+)\(.*?\)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 7, "one a command"
    for function, result in rows:
        assert callable(getattr(mlx_gardener, function))
        kind, *attributes = re.findall(r"`(\w+)`", result)
        fields = {field.name for field in dataclasses.fields(getattr(mlx_gardener, kind))}
        assert set(attributes) <= fields, kind


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, trained_cache: Path) -> Path:
    """What homes here know: the second page need not measure again what the first one's home does of the embedded model."""
    return Path(shutil.copytree(trained_cache, tmp_path_factory.mktemp("known") / "cache"))


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, tiny_tokenizer_dir: Path, cache: Path
) -> None:
    world = World(tmp_path, tiny_tokenizer_dir, cache)
    snippets = "\n".join(_SNIPPET.findall(page.read_text()))
    snippets = re.sub(r'(model"?[=:] ?)"seedling"', rf'\1"{HUB_MODEL}"', snippets)
    assert '"seedling"' not in snippets
    world.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(snippets)}")
    shutil.copytree(world.root / "home" / "cache", cache, dirs_exist_ok=True)
