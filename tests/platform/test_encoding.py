"""What an encoding cannot hold is replaced by something that looks alike, and nothing fails over it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlx_gardener.events import TrainingPhase
from mlx_gardener.platform.encoding import replace_what_cannot_be_written
from mlx_gardener.report.evidence_view import show_evidence
from mlx_gardener.report.live import LiveView
from tests.report.facts import EVENTS, EVIDENCE


def stream(encoding: str) -> io.TextIOWrapper:
    made = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    replace_what_cannot_be_written(made)
    return made


def written(made: io.TextIOWrapper) -> str:
    made.flush()
    assert isinstance(made.buffer, io.BytesIO)
    return made.buffer.getvalue().decode(made.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_view_is_drawn_in_any_encoding(encoding: str) -> None:
    made = stream(encoding)
    console = Console(file=made, force_terminal=True, width=100, markup=False, highlight=False)
    with LiveView(console, project="demo") as view:
        for event in EVENTS:
            view(event)
    show_evidence(console, EVIDENCE)
    text = written(made)
    assert "peak memory" in text and "demo" in text and TrainingPhase.TRAINING.value in text


def test_marks_and_blocks_become_plain_ones_and_the_rest_question_marks() -> None:
    made = stream("ascii")
    made.write("▁▄█░ ✓ ✗ é 码 \udcff…")
    assert written(made) == "_:#. + x ? ? ?~"


def test_what_can_be_written_is_left_alone() -> None:
    made = stream("utf-8")
    made.write("▁█ é 码 \udcff")
    assert written(made) == "▁█ é 码 ?"
