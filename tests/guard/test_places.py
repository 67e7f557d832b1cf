"""Places that are no files: pipes, devices, links that lead back to themselves, names that no file can have."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from click import BadParameter

from mlx_gardener.cli.complete import _read_place
from mlx_gardener.config import ParallelConfig, load_config
from mlx_gardener.errors import ConfigError, DataError, GardenerError
from mlx_gardener.platform.untrusted import cached_file, read_text
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.ranks import hosts_of
from mlx_gardener.serve.settings import stored_token
from tests.support.commands import gardener_here


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe. Whoever waits for it is given nothing, so that a test fails instead of waiting too."""
    place = tmp_path / "pipe"
    os.mkfifo(place)
    threading.Thread(target=lambda: os.close(os.open(place, os.O_WRONLY)), daemon=True).start()
    return place


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """A symbolic link to itself."""
    place = tmp_path / "loop"
    place.symlink_to(place)
    return place


@pytest.mark.parametrize("command", ["train", "scan", "plan", "models"])
def test_settings_in_a_pipe_are_refused(command: str, pipe: Path) -> None:
    done = gardener_here(command, "--config", str(pipe))
    assert done.returncode == 2
    assert f"The settings file {pipe} cannot be read (pipe is no plain file)." in done.stderr


def test_no_pipe_and_no_device_is_completed_at(pipe: Path, tmp_path: Path) -> None:
    for name in ("pipe", str(pipe), "/dev/null", str(tmp_path)):
        with pytest.raises(DataError, match=r"is (no plain file|a directory)"):
            _read_place(f"{name}:1", tmp_path)


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.toml"
    large.touch()
    os.truncate(large, 2**40)
    with pytest.raises(ConfigError, match="is longer than"):
        load_config(large, environment={})
    with pytest.raises(DataError, match="is longer than"):
        _read_place(f"{large}:1", tmp_path)
    with pytest.raises(ConfigError, match="is longer than"):
        hosts_of(ParallelConfig(hosts=str(large)))


def test_hosts_in_a_pipe_are_refused(pipe: Path) -> None:
    with pytest.raises(ConfigError, match="pipe is no plain file"):
        hosts_of(ParallelConfig(hosts=str(pipe)))


def test_a_token_in_a_pipe_is_none(home: Path, pipe: Path) -> None:
    home.mkdir()
    pipe.rename(home / "serve-token")
    assert stored_token(home) is None


def test_a_text_is_read_as_python_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes("a\r\nb\rc\u2028d\n".encode())
    assert read_text(file) == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "place", ["a.py:\u00b2", "a.py:" + "9" * 5000, "a.py:0", "a.py:-1", ":1", "a.py:\u0663"]
)
def test_what_is_no_line_number_is_said(place: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\n")
    with pytest.raises(BadParameter, match="is not FILE:LINE"):
        _read_place(place, tmp_path)


@pytest.mark.parametrize(
    "command",
    [("scan",), ("plan",), ("train",), ("train", ".", "--hosts"),
     ("registry", "backup"), ("models",), ("scan", ".", "--config")],
)  # fmt: skip
def test_a_link_to_itself_is_named(command: tuple[str, ...], loop: Path, repository: Path) -> None:
    for place in (loop, loop / "below"):
        done = gardener_here(*command, str(place), cwd=repository)
        assert done.returncode in (1, 2) and str(place) in done.stderr and "defect" not in done.stderr
        assert "link" in done.stderr or "There is no" in done.stderr, done.stderr


def test_a_link_to_itself_is_no_repository_no_settings_file_and_no_model(loop: Path, tmp_path: Path) -> None:
    from mlx_gardener.editors.change import _write
    from mlx_gardener.registry.restore import restore

    for use in (
        lambda: ProjectRegistry().register_project("loop", loop),
        lambda: _write(loop, "text"),
        lambda: restore(tmp_path / "archive.tar", loop),
    ):
        with pytest.raises(GardenerError, match="leads nowhere"):
            use()
    with pytest.raises(OSError, match="symbolic links"):
        cached_file(loop)
    done = gardener_here("plan", "--model", str(loop))
    assert done.returncode == 1 and "defect" not in done.stderr


@pytest.mark.parametrize("arguments", [("plan", "--model", "~nobody-here/x"), ("models", "~nobody-here/x")])
def test_the_home_of_nobody_is_not_there(arguments: tuple[str, ...]) -> None:
    done = gardener_here(*arguments)
    assert done.returncode == 1 and "There is no" in done.stderr.replace("there is no", "There is no")


def test_models_are_not_looked_for_in_a_pipe(pipe: Path) -> None:
    done = gardener_here("models", str(pipe))
    assert done.returncode == 1 and f"{str(pipe)!r} is no directory." in done.stderr
