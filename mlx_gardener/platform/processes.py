"""Python processes that import nothing from the directory they are started in.

``python -m`` and the children of `multiprocessing` look for modules in the working directory first. That is where people
stand when they train on a repository, and a ``psutil.py`` in it would be run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Finds this package where the starting process has it, behind the standard library, as a checkout may not be installed.
_START = """
import runpy, sys
root, module = sys.argv[1:3]
del sys.argv[1:3]
at = next((number for number, place in enumerate(sys.path) if place.endswith("-packages")), len(sys.path))
sys.path.insert(at, root)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package, as ``python -m`` would, without the working directory."""
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", _START, root, module, *arguments]


@contextmanager
def safe_children() -> Iterator[None]:
    """Children of `multiprocessing` that are started in the block import nothing from the working directory."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
