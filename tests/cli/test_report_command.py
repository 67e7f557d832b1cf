"""``mlx-gardener report``: the short story, the page, and what it says where there is none."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

import mlx_gardener
from mlx_gardener.cli import cli
from tests.support.commands import TRAIN_SETTINGS, gardener

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere


def report(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["report", *arguments])
    return done.exit_code, done.output + (done.stderr or "")


def test_the_report_is_shown_copied_and_opened(
    repository: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report("web")[0] == 1
    settings = {"model": str(tiny_model_dir), **TRAIN_SETTINGS}
    config = mlx_gardener.load_config(environment={}, overrides=settings)
    result = mlx_gardener.train(repository, project="web", config=config, show_progress=False)
    code, text = report("web")
    assert code == 0 and "web v1" in text and result.evidence["reason"][:30] in text.replace("\n", " ")
    assert "expected" in text, "the latest training's evidence has its source texts"
    plain = gardener("report", "web", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0 and "web v1" in plain.stdout and plain.stdout.isascii(), plain.stderr
    told = json.loads(report("web", "--json")[1])
    assert told["evidence"]["verdict"] == result.evidence["verdict"] and told["page"].endswith("report.html")

    page = (result.directory / "report.html").read_text()
    for shown in ("left of the budget", "Memory over time", "sha256", "mlx-gardener train . --project web"):
        assert shown in page, shown
    assert str(tmp_path) not in page and str(tiny_model_dir) not in page, "no path of this machine"

    copy = tmp_path / "copy.html"
    assert report("web", "--output", str(copy))[0] == 0 and copy.read_text() == page
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600, "it quotes source"
    assert report("web", "--output", str(copy))[0] == 1, "an existing file is not overwritten"

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert report("web", "--open")[0] == 0 and opened == [(result.directory / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    code, text = report("web", "--open")
    assert code == 1 and "No web browser" in text

    (result.directory / "report.html").unlink()
    code, text = report("web")
    assert code == 0 and "There is no report.html" in text
    code, text = report("web", "--open")
    assert code == 1 and "has no report.html" in text
    assert report("web", "--version", "v9")[0] == 1
