"""mlx-lm without transformers, in processes of our own.

mlx-lm imports transformers, whose every import reads all of its some 3000 files: 1.3 s, most of what a command or a
worker takes to start. mlx-lm needs it for tokenizers alone, and ours come from `tokenizers` (`model.tokens`). So entry
points of our own processes leave it out; in a notebook or program of somebody else's, who may want mlx-lm's tokenizers,
nothing is left out. Cost: nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LEFT_OUT = "transformers"


def leave_out_transformers() -> None:
    """From now on whatever this process imports of transformers is an empty class; nothing where it is imported already."""
    if _LEFT_OUT not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder, Loader):
    """Finds transformers, and all below it, as modules in which every name is a class."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = fullname == _LEFT_OUT or fullname.startswith(f"{_LEFT_OUT}.")
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_LeftOut,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _LeftOut:
    """A class of transformers that is not here: it can be named and inherited from, and not be made."""

    def __init__(self, *arguments: object, **named: object) -> None:
        raise RuntimeError(
            f"{type(self).__qualname__}: {_LEFT_OUT} is left out of mlx-gardener's own processes."
        )

    @classmethod
    def register(cls, *arguments: object, **named: object) -> None:
        """mlx-lm registers a tokenizer of its own with `AutoTokenizer` as it is imported."""
