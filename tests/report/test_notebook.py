"""The example notebook runs, shows itself as HTML, and holds nothing of the machine that ran it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.api import TrainingResult
from mlx_gardener.events import ProgressChanged, TrainingPhase
from mlx_gardener.report.notebook import NotebookView, in_notebook
from scripts.run_notebook import NOTEBOOK, execute
from tests.report.facts import full_events, full_evidence, full_facts
from tests.support.commands import TRAIN_SETTINGS
from tests.support.repositories import write_repository

HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J"
_PATHS = re.compile(
    r"(?<![\w.:/<])/(?:home|Users|root|tmp|var|work|usr|opt|private)/[\w./-]+|[A-Z]:\\\\Users", re.I
)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(notebook: Any) -> None:
    """Progress and report are there as HTML, no cell failed, and no output names a place of this machine."""
    shown = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs(notebook)]
    live = [text for text in shown if 'class="mlx-gardener-live"' in text]
    assert len(live) == 1 and "100 %" in live[0] and "<svg" in live[0] and "peak memory" in live[0]
    result = [text for text in shown if 'class="mlx-gardener"' in text]
    assert len(result) == 1 and "bits per byte" in result[0] and "Memory against the budget" in result[0]
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert all(output.get("name") != "stderr" for output in outputs(notebook))
    text = json.dumps([dict(output) for output in outputs(notebook)])
    assert not _PATHS.search(text), _PATHS.search(text)
    assert len(text) < 100_000


@pytest.mark.usefixtures("known_home")
def test_the_notebook_runs_and_shows_itself(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells as they are, but for the base, as the embedded one takes ten times as long, and a smaller repository."""
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("MLX_GARDENER_ENGINE__DRY_RUN", "false")
    monkeypatch.setenv("MLX_GARDENER_THROTTLING__LOW_PRIORITY", "false")
    compiled = Path(tempfile.gettempdir(), "mlx")  # what MLX compiled for other tests is not compiled again
    compiled.mkdir(exist_ok=True)
    (tmp_path / "mlx").symlink_to(compiled)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = NOTEBOOK.read_text(encoding="utf-8")
    named = json.dumps(f'model="{tiny_model_dir}"')[1:-1]
    assert text.count('model=\\"seedling\\"') == 2
    text = text.replace('model=\\"seedling\\"', named)
    assert text.count("Path(click.__file__).parent") == 1
    text = text.replace("Path(click.__file__).parent", f"Path('{write_repository(tmp_path / 'code')}')")
    (tmp_path / "short.ipynb").write_text(text, encoding="utf-8")
    check(execute(tmp_path / "short.ipynb"))


def test_the_committed_notebook_is_executed() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    check(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < 120_000


def test_a_path_of_this_machine_would_be_seen() -> None:
    assert _PATHS.search("in /home/someone/code") and _PATHS.search(json.dumps("C:\\Users\\x"))
    assert not _PATHS.search("</tmp/> see https://example.org/usr/x and mlx/adapters")


def test_the_live_display_updates_one_output_and_cannot_be_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    handle = types.SimpleNamespace(update=lambda html: drawn.append(html.data))

    def display(html: Any, *, display_id: bool) -> Any:
        drawn.append(html.data)
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    with NotebookView(project=HOSTILE) as view:
        view(ProgressChanged(TrainingPhase.TRAINING, 45.0, HOSTILE))
        for event in full_events():
            view(event)
    assert len(drawn) >= 2 and "choosing a model" in drawn[0]
    last = drawn[-1]
    assert (
        "45 %" in last
        and "update 120 of 120" in last
        and "<polyline" in last
        and "2.00 GB of 4.00 GB" in last
    )
    assert "<img" not in last and "&lt;img" in last and "\x1b" not in last
    assert len(last) < 12_000


@pytest.mark.usefixtures("known_home")
def test_without_a_kernel_ipython_is_not_imported_and_progress_is_lines(
    tmp_path: Path, repository: Path, tiny_model_dir: Path
) -> None:
    assert not in_notebook()
    script = (
        "import sys, mlx_gardener\n"
        f"config = mlx_gardener.load_config(overrides={ {'model': str(tiny_model_dir), **TRAIN_SETTINGS}!r})\n"
        f"result = mlx_gardener.train({str(repository)!r}, config=config)\n"
        "assert 'IPython' not in sys.modules\n"
        "assert result.events and 'Memory against the budget' in result._repr_html_()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert "Step 1 of 3" in done.stderr and done.stdout == "", "progress does not mix with a script's output"


def test_a_result_tells_the_story_also_where_its_adapter_is_gone(tmp_path: Path) -> None:
    facts = full_facts()
    result = TrainingResult(
        HOSTILE,
        "v1",
        tmp_path / "gone",
        facts["metrics"],
        full_evidence(),
        facts["training"],
        tuple(full_events()),
    )
    page = result._repr_html_()
    for told in (
        "It helped.",
        "adapter + retrieval",
        "✗ failed",
        "Where the adapter gained most",
        "Where it lost most",
        "process",
    ):
        assert told in page, told
    assert "<img" not in page and "<script" not in page and "\x1b" not in page
    assert "data-jp-theme-light" in page and "vscode-dark" in page
