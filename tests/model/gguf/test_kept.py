"""The list of what GGUF files were read into, written by several processes at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mlx_gardener.model.gguf.kept import note_source
from mlx_gardener.platform.read_folders import SOURCES, identity, sources
from mlx_gardener.registry import ProjectRegistry


def test_two_writers_of_the_list_do_not_take_each_others_file_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first := tmp_path / "first.gguf").touch()
    (second := tmp_path / "second.gguf").touch()
    replace, process = Path.replace, os.getpid()

    def another_comes_between(staged: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(os, "getpid", lambda: process + 1)
        note_source((second,), tmp_path, "2" * 64)
        return replace(staged, target)

    monkeypatch.setattr(Path, "replace", another_comes_between)
    note_source((first,), tmp_path, "1" * 64)
    assert sources(tmp_path)[identity((first,))] == "1" * 64
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_writer_of_the_list_leaves_is_swept(home: Path) -> None:
    left = home / "cache" / "bases" / f".{SOURCES}.4711.new"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (time.time() - 3600,) * 2)
    registry = ProjectRegistry()
    assert [problem.kind for problem in registry.check()] == ["leftover"]
    registry.collect_garbage()
    assert not left.exists()
