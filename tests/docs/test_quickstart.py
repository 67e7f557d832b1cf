"""`scripts/quickstart` runs to its end in a checkout that is set up, without a network: with the best base that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT
from tests.support.repositories import write_repository

#: Small enough for a test; what the script itself sets stays.
SETTINGS = {
    "MIN_TRAINING_CHUNKS": "5",
    "EVALUATION__TASKS": "2",
    "EVALUATION__TIME_SHARE": "0",
    "EVALUATION__ARMS": '["base", "adapter"]',
    "EVALUATION__MAX_NEW_TOKENS": "8",
    "ENGINE__DRY_RUN": "false",
    "THROTTLING__LOW_PRIORITY": "false",  # beside a busy machine's other work it would take for ever
    "OPTIMIZER__LEARNING_RATE": "0.01",
}


@pytest.mark.usefixtures("known_home")
def test_the_quickstart_ends_with_a_verdict_and_both_completions(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    write_repository(checkout / ".quickstart" / "click", modules=4)  # as if it had been fetched
    shutil.copy(ROOT / "pyproject.toml", checkout)
    commands = checkout / ".venv" / "bin"
    commands.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", checkout / ".venv" / ".installed")
    (commands / "mlx-gardener").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlx_gardener "$@"\n')
    (commands / "mlx-gardener").chmod(0o755)
    shutil.copytree(tiny_model_dir, Path(os.environ["HOME"]) / ".lmstudio/models/org/tiny-coder")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"MLX_GARDENER_{name}", value)
    done = subprocess.run(
        ("bash", str(checkout / "scripts" / "quickstart")), capture_output=True, text=True, timeout=1200
    )
    said = done.stdout
    assert done.returncode == 0, said[-3000:] + done.stderr[-3000:]
    assert "Base model: lmstudio:org/tiny-coder (the best base on this machine" in " ".join(said.split())
    assert "Step 1 of" in said
    told = (
        "What to do now",
        "A new file begins",
        "The base goes on:",
        "The adapter goes on:",
        "The adapter lies",
    )
    places = [said.find(words) for words in told]
    assert -1 not in places and places == sorted(places), said[-3000:] + done.stderr[-3000:]
