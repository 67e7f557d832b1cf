"""The command line: run as a user would, or in this process; flags of a short training."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from mlx_gardener.cli import cli


def gardener(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mlx_gardener", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        timeout=6000,
    )


def gardener_here(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, where nothing depends on one of its own: in a tenth of the time."""
    import mlx.core as mx

    limits = (
        (mx.set_memory_limit, mx.set_memory_limit(2**40)),
        (mx.set_cache_limit, mx.set_cache_limit(2**26)),
    )
    runner = CliRunner(env={"COLUMNS": "120", **environment})
    try:
        with contextlib.chdir(cwd or Path.cwd()):
            found = runner.invoke(cli, arguments, prog_name="mlx-gardener", catch_exceptions=False)
    finally:
        for set_limit, before in limits:  # a command that loads a base sets them for the whole process
            set_limit(before)
    return subprocess.CompletedProcess(arguments, found.exit_code, found.stdout, found.stderr)


#: Those of a training by a command here.
TRAIN_SETTINGS: dict[str, object] = {
    "min_training_chunks": 5,
    "training_data_quality_threshold": 0.1,
    "optimizer.tokens_per_update": 512,
    "optimizer.max_steps": 3,
    "data.sequence_lengths": [64, 128],
    "evaluation.tasks": 2,
    "evaluation.max_new_tokens": 4,
    "throttling.low_priority": False,  # see tests/runs/test_manager.py
}


def train_flags(model: Path, **more: object) -> list[str]:
    flags = ["--model", str(model)]
    for key, value in {**TRAIN_SETTINGS, **more}.items():
        flags += ["--set", f"{key}={value}"]
    return flags
