"""The reference page of the Python API, made from the docstrings: ``.venv/bin/python scripts/make_api_page.py [FILE]``.

In: the public names of ``mlx_gardener``. Out: docs/api.md, or FILE, in Markdown: functions, classes with their methods, events,
settings, errors. Cost: a second or two, as every room is imported.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import mlx_gardener
from mlx_gardener.errors import GardenerError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
_HEAD = """# The Python API

All public names of `mlx_gardener`, from their docstrings (by `scripts/make_api_page.py`); [python.md](python.md) shows them at work.
"""
_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")


def prose(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown: its sections become bold words with a list."""
    within = False
    for line in inspect.cleandoc(docstring or "").replace("``", "`").splitlines():
        if _SECTION.fullmatch(line):
            within = True
            yield f"**{line[:-1]}**"
            yield ""
        elif within and (found := re.fullmatch(r"    (\w[\w, *]*): (.+)", line)):
            yield f"- `{found[1]}`: {found[2]}"
        elif within and line.startswith("    "):
            yield f"  {line.strip()}"
        else:
            within = within and not line
            yield line
    yield ""


class _Bare(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return self.replace("mlx_gardener.", "")


def signature(name: str, value: Any) -> Iterator[str]:
    """How it is called, as a block."""
    found = inspect.signature(value)
    shown = [
        parameter
        if parameter.annotation is parameter.empty
        else parameter.replace(annotation=_Bare(parameter.annotation))
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    returned = found.return_annotation
    returned = returned if returned in (found.empty, None) else _Bare(returned)
    told = f"{name}{found.replace(parameters=shown, return_annotation=returned)}"
    yield "```text"
    yield from textwrap.wrap(told, 100, subsequent_indent="    ", break_long_words=False)
    yield "```"
    yield ""


def members(kind: type) -> Iterator[str]:
    """The public methods and properties of a class, without those that a public class above it shows already."""
    for name, value in inspect.getmembers(kind):
        owner = next(above for above in kind.__mro__ if name in vars(above))
        inherited = owner is not kind and owner.__name__ in mlx_gardener.__all__
        if name.startswith("_") or inherited or not getattr(value, "__doc__", None):
            continue
        if isinstance(value, property):
            yield f"#### {kind.__name__}.{name}"
            yield ""
            yield from prose(value.__doc__)
        elif inspect.isfunction(value) and value.__module__.startswith("mlx_gardener"):
            yield f"#### {kind.__name__}.{name}"
            yield ""
            yield from signature(name, value)
            yield from prose(value.__doc__)


def entry(name: str, value: Any) -> Iterator[str]:
    """One public name."""
    yield f"### {name}"
    yield ""
    if isinstance(value, type) and issubclass(value, enum.Enum):
        yield from prose(value.__doc__)
        yield "One of " + ", ".join(f"`{member.name}`" for member in value) + "."
        yield ""
    elif isinstance(value, type) and issubclass(value, GardenerError | BaseModel):
        yield from prose(value.__doc__)
    elif isinstance(value, type):
        yield from signature(name, value)
        yield from prose(value.__doc__)
        yield from members(value)
    elif callable(value) and inspect.isfunction(value):
        yield from signature(name, value)
        yield from prose(value.__doc__)
    else:
        yield f"`{value}`".replace("mlx_gardener.", "").replace("collections.abc.", "")
        yield ""


def chapter_of(value: Any) -> str:
    """Under which heading a name stands."""
    if inspect.isfunction(value):
        return "Functions"
    if not isinstance(value, type):
        return "Types"
    if issubclass(value, GardenerError):
        return "Errors"
    if issubclass(value, BaseModel):
        return "Settings"
    events = value.__module__.startswith("mlx_gardener.events") and dataclasses.is_dataclass(value)
    return "Events" if events else "Classes"


def page() -> str:
    """The whole page."""
    chapters: dict[str, list[str]] = {
        title: [] for title in ("Functions", "Classes", "Events", "Settings", "Errors", "Types")
    }
    for name in mlx_gardener.__all__:
        if name != "__version__":
            value = getattr(mlx_gardener, name)
            chapters[chapter_of(value)] += entry(name, value)
    text = "\n".join(
        [_HEAD, *(line for title, lines in chapters.items() for line in (f"## {title}", "", *lines))]
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else PAGE).write_text(page(), encoding="utf-8")
