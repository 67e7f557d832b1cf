"""A process ends with its exit code, also while MLX works for a thread that cannot be stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: A command that ends as its base is loaded for the first of its requests. Small files are read in no time, so it reads on.
_ENDS_MEANWHILE = """
import sys, threading, time
import mlx_gardener.cli as cli
from mlx_gardener.model import load_base

begun = threading.Event()

def loads():
    while True:
        load_base("seedling")
        begun.set()

@cli.cli.command()
def ends():
    threading.Thread(target=loads, daemon=True).start()
    begun.wait()
    print("said")
    {last}

cli.COMMANDS["ends"] = ("", "")
cli.CommandTable.get_command = lambda self, context, name: ends
sys.argv[1:] = ["ends"]
cli.main()
"""


@pytest.mark.parametrize(("last", "code"), [("pass", 0), ("raise KeyboardInterrupt", 130)])
def test_a_command_that_ends_while_a_base_is_loaded_is_not_aborted(
    last: str, code: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "MLX_GARDENER_HOME": str(tmp_path / "home")}
    for _ in range(3):  # without a mend two of three are aborted
        done = subprocess.run(
            [sys.executable, "-c", _ENDS_MEANWHILE.format(last=last)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (code, "said\n"), done.stderr
