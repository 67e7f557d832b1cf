"""How far an evaluation is, and how long it takes yet: foretold by what is computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlx_gardener.evaluate.progress import Part, Progress
from mlx_gardener.report import waiting


def test_parts_count_by_their_tokens_and_what_was_known_before_does_not() -> None:
    told: list[float] = []
    progress = Progress(lambda share, message: told.append(share), 1000.0)
    asked: list[str] = []
    for tokens, is_known in ((100.0, True), (300.0, False), (200.0, True), (400.0, False)):
        part = Part(progress, tokens, "Measuring", lambda: asked.append("asked"))
        for share in (0.5, 1.0):
            if not is_known:
                part.computes()
            part.tell(share)
        part.end()
    assert told == pytest.approx([150 / 900, 300 / 900, 500 / 700, 1.0]) and len(asked) == 4


def test_what_is_left_is_foretold_by_the_pace_since_measuring_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading and loading stood for 30 % that went by in no time, so that the forecast rose while it ran."""
    now = [0.0]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with waiting.progress_line(0.0, paced_from=0.3) as tell:
        for at, share in ((0, 0.0), (2, 0.25), (4, 0.3), (104, 0.4), (204, 0.5), (704, 1.0)):
            now[0] = at
            tell(share, "Measuring")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", about ")[2] for line in lines] == [
        "",
        "",
        "",
        "10 min left",
        "8 min 20 s left",
        "",
    ]
