"""What somebody meets in the first hour: questions nobody answers, waits, projects without an adapter, nothing to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from tests.cli.test_command_line import gardener, train_flags
from tests.registry.worlds import install_adapter


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    """A registry with the project ``small``, which has an adapter that cannot be loaded."""
    made = ProjectRegistry()
    made.register_project("small", repository)
    install_adapter(made, "small", "v1")
    made.activate_adapter("small", "v1")
    return made


def command(*arguments: str, given: bytes | None = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_gardener", *arguments], input=given, capture_output=True, timeout=120
    )


@pytest.mark.parametrize(
    "arguments", [("remove", "small"), ("remove", "small", "v1"), ("forget", "small", "core")]
)
def test_a_question_that_nobody_can_answer_names_yes(
    registry: ProjectRegistry, arguments: tuple[str, ...]
) -> None:
    done = command(*arguments)
    assert done.returncode == 2 and b"say --yes" in done.stderr, done.stderr
    refused = command(*arguments, given=b"n\n")
    assert refused.returncode == 1 and b"Nothing was changed" in refused.stderr, refused.stderr
    assert [item.version for item in registry.list_adapters("small")] == ["v1"]
    assert registry.forgotten_paths("small") == []


@pytest.mark.usefixtures("registry")
def test_code_to_go_on_with_is_asked_for_where_there_is_none() -> None:
    done = command("complete", "small")
    assert done.returncode == 2 and b"FILE:LINE" in done.stderr and b"defect" not in done.stderr, done.stderr
    binary = command("complete", "small", given=b"def caf\xe9")
    assert binary.returncode == 1 and b"no UTF-8 text, as byte 7" in binary.stderr, binary.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "mlx_gardener", "complete", "small"],
        capture_output=True,
    )
    assert closed.returncode == 2 and b"FILE:LINE" in closed.stderr, closed.stderr


@pytest.mark.usefixtures("registry")
def test_a_completion_that_waits_for_a_terminal_says_so() -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "mlx_gardener", "complete", "small"],
        stdin=theirs,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as waiting:
        os.close(theirs)
        assert waiting.stderr is not None
        assert b"Ctrl-D" in waiting.stderr.readline()
        os.write(ours, b"\x04")
        assert waiting.wait(60) == 2
    os.close(ours)


@pytest.mark.usefixtures("registry")
def test_what_the_system_says_comes_without_its_number() -> None:
    done = gardener("complete", "small", "nowhere.py:1")
    assert done.returncode == 1 and "(No such file or directory)" in done.stderr, done.stderr
    offline = gardener("plan", "--model", "some/model", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "HF_HUB_OFFLINE forbids" in offline.stderr, offline.stderr
    for said in (done.stderr, offline.stderr):
        assert "Errno" not in said and "Error(" not in said.replace("Error:", "")


@pytest.mark.parametrize("name", ["complete", "report", "export", "serve"])
def test_a_project_without_an_adapter_says_what_it_waits_for(
    repository: Path, tmp_path: Path, name: str
) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    more = [str(tmp_path / "out")] if name == "export" else []

    def said() -> str:
        done = gardener(name, "small", *more)
        assert done.returncode == 1 and "has no adapter yet" in done.stderr, done.stderr
        return done.stderr

    assert f"mlx-gardener train {repository}" in said()
    record = registry.begin_training("small", {})
    assert "attach small" in said() and "train " + str(repository) not in said()
    registry.finish_training(record.id, TrainingStatus.FAILED, "no room", {})
    assert "Its last training failed: `mlx-gardener status small`" in said()


def test_a_busy_project_names_attach(repository: Path, tiny_model_dir: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    registry.begin_training("small", {})
    done = gardener("train", str(repository), "--project", "small", *train_flags(tiny_model_dir))
    assert done.returncode == 1 and "attach small" in done.stderr and "cancel small" in done.stderr


def test_training_again_without_a_change_says_so_and_trains_nothing(
    repository: Path, tiny_model_dir: Path
) -> None:
    registry = ProjectRegistry()

    def train(*more: str, **settings: object) -> str:
        flags = train_flags(tiny_model_dir, **settings)
        done = gardener("train", str(repository), "--project", "small", *more, *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def versions() -> list[str]:
        return sorted(item.version for item in registry.list_adapters("small"))

    train()
    registry.activate_adapter("small", "v1")  # whatever its evidence says
    again = train()
    assert "have changed since v1" in again and "--fresh" in again and versions() == ["v1"], again
    ended = json.loads(train("--json").splitlines()[-1])
    assert ended["result"]["unchanged_since"] == "v1" and "nothing was trained" in ended["message"]
    other = train(seed=5)
    assert "settings have (seed)" in other.replace("\n", " ") and versions() == ["v1", "v2"], other
    train("--fresh")
    assert versions() == ["v1", "v2", "v3"]
