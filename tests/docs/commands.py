"""The commands that README and docs name: those in ```console blocks, line by line, and those quoted in running text."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Pages for users; the embedded model's card and results are written by programs.
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    ((?:mlx-gardener|python|scripts/) ?.*)$", re.MULTILINE)
_QUOTED = re.compile(r"`((?:mlx-gardener|python benchmarks/|python scripts/|scripts/)[^`\n]*)`")


@dataclass(frozen=True)
class Line:
    """One command of a page, without its comment."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """The command as a shell splits it."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def shown(page: Path) -> list[Line]:
    """What the page's blocks would have a reader type, in order; ``\\`` at a line's end goes on in the next."""
    text = page.read_text()
    lines: list[str] = []
    for block in _BLOCK.findall(text):
        lines += block.replace("\\\n", " ").splitlines()
    lines += _INDENTED.findall(text)
    bare = (line.strip().removeprefix("$ ") for line in lines)
    return [Line(page.name, line) for line in bare if line and not line.startswith("#")]


def quoted(page: Path) -> list[Line]:
    """Commands in running text."""
    return [Line(page.name, text.strip()) for text in _QUOTED.findall(page.read_text())]
