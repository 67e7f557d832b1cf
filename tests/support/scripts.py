"""The scripts beside the package, as modules of a test's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_script(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script by its path in the checkout (``scripts/audit.py``), imported anew, with its own folder to import from."""
    file = ROOT / path
    monkeypatch.syspath_prepend(str(file.parent))
    sys.modules.pop(file.stem, None)
    return __import__(file.stem)
