"""Priority: really lowered, in a process of its own because there is no way back; and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mlx_gardener.platform import priority
from mlx_gardener.platform.priority import lower_priority


def _in_a_process(code: str) -> list[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_process_gives_way_once_with_the_threads_it_has() -> None:
    code = """
import os, threading, psutil
from mlx_gardener.platform.priority import lower_priority
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
print(lower_priority())
print(lower_priority())
print(psutil.Process().nice(), os.getpriority(os.PRIO_PROCESS, thread.native_id if os.path.isdir("/proc/self/task") else 0))
done.set()
"""
    first, second, nices = _in_a_process(code)
    assert first == second
    expected = max(10, os.getpriority(os.PRIO_PROCESS, 0))
    assert first.startswith(f"nice {expected}") and nices == f"{expected} {expected}"
    if sys.platform.startswith("linux"):
        assert first.split(", ")[1].startswith("disk ")


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="cores are not shared out among sessions here"
)
def test_a_run_in_a_session_of_its_own_lowers_that_session_and_no_terminal_s() -> None:
    code = """
from mlx_gardener.platform.priority import lower_priority
print(lower_priority())
print(open("/proc/self/autogroup").read())
"""
    command = [sys.executable, "-c", code]
    own = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True).stdout
    assert "session nice 10" in own and "nice 10\n" in own.splitlines(keepends=True)[1]
    # As in a terminal, whose shell began the session: what else runs there keeps its share.
    below = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])",
    ]
    shell = subprocess.run(
        ["sh", "-c", '"$0" "$@"; true', *below],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    ).stdout
    assert "session" not in shell and shell.splitlines()[1].endswith("nice 0")


def test_what_is_lower_already_stays_so() -> None:
    code = """
import os
from mlx_gardener.platform.priority import lower_priority
os.setpriority(os.PRIO_PROCESS, 0, 19)
print(lower_priority())
"""
    assert _in_a_process(code)[0].startswith("nice 19")


def test_a_refusal_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def deny(*_arguments: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(priority.os, "getpriority", lambda *_arguments: 0)
    monkeypatch.setattr(priority.os, "setpriority", refuse)
    monkeypatch.setattr(priority.psutil.Process, "ionice", deny, raising=False)
    monkeypatch.setattr(
        priority.os, "getsid", lambda _process: -1
    )  # a suite in a session of its own keeps it
    done = lower_priority()
    assert done.startswith("nice unchanged (Operation not permitted)")
    if sys.platform.startswith("linux"):
        assert done.endswith("disk unchanged (AccessDenied)")


def test_macos_lowers_nice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority.sys, "platform", "darwin")
    monkeypatch.setattr(priority, "_threads", lambda: [0])
    nice = {0: 0}
    monkeypatch.setattr(priority.os, "getpriority", lambda _which, who: nice[who])
    monkeypatch.setattr(priority.os, "setpriority", lambda _which, who, value: nice.update({who: value}))
    assert lower_priority() == "nice 10"


def test_threads_are_listed_where_nice_is_theirs(tmp_path: Path) -> None:
    assert priority._threads(tmp_path) == [0]
    for task in ("41", "7"):
        (tmp_path / "proc/self/task" / task).mkdir(parents=True)
    assert priority._threads(tmp_path) == [7, 41]
