"""Processes of our own do without transformers and the hub's client where they import mlx-lm; other people's keep both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import gardener

#: Whatever the package imports of mlx-lm, and every architecture that asks for no package of its own.
ALL_OF_MLX_LM = """
import importlib, json, pkgutil, sys, mlx_gardener
from mlx_gardener.platform.lean_imports import import_lean
import_lean()
import mlx_lm.generate, mlx_lm.models, mlx_lm.sample_utils, mlx_lm.tuner.utils, mlx_lm.utils
names = [found.name for found in pkgutil.iter_modules(mlx_lm.models.__path__) if found.name != "olmo"]
for name in names:
    importlib.import_module(f"mlx_lm.models.{name}")
from mlx_lm.tokenizer_utils import NewlineTokenizer
try:
    NewlineTokenizer()
except RuntimeError as error:
    said = str(error)
read = [name for name, module in sys.modules.items() if "transformers" in (getattr(module, "__file__", None) or "")]
read += [name for name in sys.modules if name == "huggingface_hub.hf_api"]
import huggingface_hub
before = mlx_lm.utils.snapshot_download is huggingface_hub.snapshot_download
try:
    mlx_lm.utils.snapshot_download("no/model", local_files_only=True)
except huggingface_hub.errors.LocalEntryNotFoundError:
    fetched = mlx_lm.utils.snapshot_download is not huggingface_hub.snapshot_download
print(json.dumps([len(names), read, "transformers" in sys.modules, said, [before, fetched]]))
"""
IMPORTED_BEFORE = """
import json, mlx_gardener, transformers
from mlx_gardener.platform.lean_imports import import_lean
import_lean()
import mlx_lm.tokenizer_utils
print(json.dumps(mlx_lm.tokenizer_utils.AutoTokenizer is transformers.AutoTokenizer))
"""


def printed(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_mlx_lm_is_imported_without_what_is_not_used_of_it() -> None:
    architectures, read, is_asked_for, said, hub = printed(ALL_OF_MLX_LM)
    assert architectures > 100 and read == []
    assert is_asked_for, "mlx-lm needs transformers no more, and nothing has to be left out"
    assert said.startswith("NewlineTokenizer: transformers is left out")
    assert hub == [True, True], "the hub's own function comes when somebody fetches something"


def test_what_is_imported_already_stays() -> None:
    assert printed(IMPORTED_BEFORE) is True


def test_a_command_looks_at_a_base_without_it(repository: Path, tiny_model_dir: Path) -> None:
    done = gardener("plan", str(repository), "--model", str(tiny_model_dir), PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mlx_lm.tokenizer_utils" in done.stderr and "transformers.utils" not in done.stderr


#: One thread is within the hub's client, which imports on, when another imports mlx-lm.
TWO_THREADS = """
import sys, threading, mlx_gardener
from mlx_gardener.platform.lean_imports import import_lean
import_lean()
begun = sys.begun = threading.Event()
other = threading.Thread(target=lambda: (begun.wait(), __import__("mlx_lm")))
other.start()
import huggingface_hub
other.join()
print("[1]")
"""


def test_threads_that_import_the_hub_and_mlx_lm_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve` hung so where its computing thread imported mlx-lm while the main one looked for a base of the hub."""
    hub = "import sys, time\nsys.begun.set()\ntime.sleep(0.5)\nimport colorsys\nsnapshot_download = 1\n"
    for name, code in {"huggingface_hub": hub, "mlx_lm": "import huggingface_hub\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert printed(TWO_THREADS) == [1]
