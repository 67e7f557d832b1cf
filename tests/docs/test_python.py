"""Every Python snippet in README and docs is run, page by page, as a reader would on a fresh machine."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.commands import PAGES
from tests.docs.test_commands import World

_SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_SNIPPETS = [page for page in PAGES if _SNIPPET.search(page.read_text())]


def test_readme_and_the_page_on_python_have_snippets() -> None:
    assert {"README.md", "python.md"} <= {page.name for page in WITH_SNIPPETS}


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    world = World(tmp_path, tiny_tokenizer_dir)
    snippets = "\n".join(_SNIPPET.findall(page.read_text()))
    world.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(snippets)}")
