"""The sizes that CONTRIBUTING.md promises: of a module, and of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.docs.commands import ROOT

PACKAGE = ROOT / "mlx_gardener"
MOST_LINES, MOST_ROOMS = 400, 25


def says_why(module: Path) -> bool:
    """Whether the docstring speaks of its module's lines."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.search(r"\blines\b", docstring) is not None


def test_a_module_of_more_than_400_lines_says_why() -> None:
    modules = {path: path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    long = {str(path.relative_to(ROOT)): lines for path, lines in modules.items() if lines > MOST_LINES}
    assert len(modules) > 100
    assert [name for name in long if not says_why(ROOT / name)] == [], long


def test_the_package_has_at_most_25_rooms_and_top_level_modules() -> None:
    modules = [path.stem for path in PACKAGE.glob("*.py")]
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert len(modules) + len(rooms) <= MOST_ROOMS, sorted(modules + rooms)
