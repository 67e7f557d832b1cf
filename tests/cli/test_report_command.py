"""``mlx-gardener report``: the short story, the page, and what it says where there is none."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.cli import cli
from mlx_gardener.platform.files import make_private, write_whole
from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener


def report(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["report", *arguments])
    return done.exit_code, done.output + (done.stderr or "")


def test_the_report_is_shown_copied_and_opened(
    trained_home: Path, trained_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report("nobody")[0] == 1
    directory = ProjectRegistry().get_adapter("small", "v1").directory
    evidence = read_manifest(directory)["evidence"]
    code, text = report("small")
    assert code == 0 and "small v1" in text and evidence["reason"][:30] in text.replace("\n", " ")
    assert "expected" in text, "the latest training's evidence has its source texts"
    plain = gardener("report", "small", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0 and "small v1" in plain.stdout and plain.stdout.isascii(), plain.stderr
    told = json.loads(report("small", "--json")[1])
    assert told["evidence"]["verdict"] == evidence["verdict"] and told["page"].endswith("report.html")

    page = (directory / "report.html").read_text()
    for shown in ("left of the budget", "Memory over time", "sha256", "mlx-gardener train . --project small"):
        assert shown in page, shown
    assert str(trained_cache.parent) not in page, (
        "no path of this machine: all that it was made from lies there"
    )

    copy = tmp_path / "copy.html"
    assert report("small", "--output", str(copy))[0] == 0 and copy.read_text() == page
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600, "it quotes source"
    assert report("small", "--output", str(copy))[0] == 1, "an existing file is not overwritten"

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert report("small", "--open")[0] == 0 and opened == [(directory / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    code, text = report("small", "--open")
    assert code == 1 and "No web browser" in text

    (directory / "report.html").unlink()
    code, text = report("small")
    assert code == 0 and "There is no report.html" in text
    code, text = report("small", "--open")
    assert code == 1 and "has no report.html" in text
    assert report("small", "--version", "v9")[0] == 1


def test_the_newest_evaluation_is_what_is_reported_and_shown(trained_home: Path) -> None:
    record = ProjectRegistry().get_adapter("small", "v1")
    written = (record.directory / "report.html").read_text()
    evidence = {
        **read_manifest(record.directory)["evidence"],
        "reason": "Told by the newest.",
        "notes": ["Few."],
    }
    evidence["metrics"] = {**evidence["metrics"], "adapter_bits_per_byte": 0.1234}
    make_private(record.directory / "evaluations")
    for stamp, reason in (("2031-01-01T10-20-30Z", "Told by the newest."), ("2030-01-01T00-00-00Z", "Told.")):
        kept = json.dumps({"evidence": {**evidence, "reason": reason}})
        write_whole(record.directory / "evaluations" / f"{stamp}.json", kept)
    write_whole(record.directory / "evaluations" / "2032-01-01T00-00-00Z.json", "cut off")

    again = "Measured again by `mlx-gardener eval` on 2031-01-01 10:20 UTC."
    code, text = report("small")
    assert code == 0 and "Told by the newest." in text and again in text and "0.123 bits per byte" in text, (
        text
    )
    told = json.loads(report("small", "--json")[1])
    assert told["evidence"]["reason"] == "Told by the newest." and told["evidence"]["notes"] == [
        again,
        "Few.",
    ]
    assert time.gmtime(told["evaluated_at"])[:5] == (2031, 1, 1, 10, 20)
    page = Path(told["page"]).read_text()
    assert "Told by the newest." in page and again.split("`")[2] in page and "Memory over time" in page
    assert (record.directory / "report.html").read_text() == written, "the training's own page stays"
    assert ProjectRegistry().check() == []

    shown = CliRunner().invoke(cli, ["show", "small"]).output
    assert "0.1234" in shown and "v1 was measured again by `mlx-gardener eval` on 2031-01-01" in shown
    (version,) = json.loads(CliRunner().invoke(cli, ["show", "small", "--json"]).output)["adapters"]
    assert version["metrics"] == evidence["metrics"] and version["evaluated_at"] == told["evaluated_at"]
