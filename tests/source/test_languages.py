"""Parsing, from several threads of one process as a server does it."""

from __future__ import annotations

import subprocess
import sys

#: In a process of its own: what goes wrong here ends the process.
_TOGETHER = """
import threading
from mlx_gardener.source.languages import parse
text = b"".join(b"def f%d(a, b):\\n    return [a + b * %d for _ in range(b)]\\n\\n" % (n, n) for n in range(1500))
alone = str(parse(text, "python").root_node)
same = []
threads = [threading.Thread(target=lambda: same.append(str(parse(text, "python").root_node) == alone)) for _ in range(6)]
for one in threads: one.start()
for one in threads: one.join()
assert same == [True] * 6, same
"""


def test_threads_parse_at_the_same_time() -> None:
    done = subprocess.run((sys.executable, "-c", _TOGETHER), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
