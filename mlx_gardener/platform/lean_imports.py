"""mlx-lm without what it imports for uses that we do not make of it, in processes of our own.

mlx-lm imports transformers, whose every import reads all of its some 3000 files, and the client of the hub: 1.6 s, most of
what a command or a worker takes to start. It needs the one for tokenizers, and ours come from `tokenizers`
(`model.tokens`); the other to fetch models, which `model.hub` does. So entry points of our own processes leave the first
out and put off the second; in a notebook or program of somebody else's, who may want mlx-lm's tokenizers, all is as it is.
Cost: nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # whose import would take a tenth of what a command takes to start

_LEFT_OUT = "transformers"


def import_lean() -> None:
    """From now on this process imports mlx-lm without transformers, in whose place is nothing but empty classes.

    Nothing is changed where it is imported already.
    """
    if _LEFT_OUT not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds transformers, and all below it, as modules in which every name is a class; and mlx-lm, which then has the hub put off.

    Nothing is imported while it looks: Python holds its lock of all imports then, and another thread that imports the same would
    wait for that, and this one for it, for ever.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "mlx_lm":
            return self._with_the_hub_put_off(fullname, path, target)
        found = fullname == _LEFT_OUT or fullname.startswith(f"{_LEFT_OUT}.")
        return ModuleSpec(fullname, cast("Loader", self), is_package=True) if found else None

    def _with_the_hub_put_off(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """What the other finders find, which puts the hub off before it runs."""
        found = (other.find_spec(fullname, path, target) for other in sys.meta_path if other is not self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_then(module: ModuleType) -> None:
                _put_off_the_hub()
                run(module)

            spec.loader.exec_module = run_then  # type: ignore[method-assign]
        return spec

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


def _put_off_the_hub() -> None:
    """Let the client of the hub be imported when somebody fetches something, and not by the name of its function."""
    import huggingface_hub

    names = vars(huggingface_hub)

    def snapshot_download(*arguments: Any, **named: Any) -> Any:
        names.pop("snapshot_download", None)  # it is imported by its name from here on
        return huggingface_hub.snapshot_download(*arguments, **named)

    names.setdefault("snapshot_download", snapshot_download)
