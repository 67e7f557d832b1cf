"""A process ends with its exit code, also where other threads come back from MLX meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: A command that ends as its base is loaded for the first of its requests. Small files are read in no time, so it reads on.
LOADING = """
    threading.Thread(target=loads, daemon=True).start()
    begun.wait()
"""
#: A command whose threads have done all and are ended with it; each lets go of what it compiled only then.
ENDED = """
    pool = ThreadPoolExecutor(32)
    list(pool.map(lambda number: (time.sleep(0.05), mx.eval(nn.silu(mx.ones(number)))), range(1, 33)))
"""
_COMMAND = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import mlx_gardener.cli as cli
from mlx_gardener.model import load_base
import mlx.core as mx
import mlx.nn as nn

begun = threading.Event()

def loads():
    while True:
        load_base("seedling")
        begun.set()

@cli.cli.command()
def ends():
    {work}
    print("said")
    atexit.register(print, "ended")
    {last}

cli.COMMANDS["ends"] = ("", "")
cli.CommandTable.get_command = lambda self, context, name: ends
sys.argv[1:] = ["ends"]
cli.main()
"""


@pytest.mark.parametrize("work", [LOADING, ENDED], ids=["loading", "ended"])
@pytest.mark.parametrize(("last", "code"), [("pass", 0), ("raise KeyboardInterrupt", 130)])
def test_a_command_is_not_aborted_at_its_end(work: str, last: str, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "MLX_GARDENER_HOME": str(tmp_path / "home")}
    script = _COMMAND.format(work=work.strip(), last=last)
    for _ in range(4):  # without a mend every second one is aborted
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, "said\nended\n"), done.stderr
