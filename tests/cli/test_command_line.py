"""The command line: fast help, clear errors, right exit codes, no traceback unless asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mlx_gardener.api
from mlx_gardener.cli.train import _announce
from mlx_gardener.cli.watch import watch_training
from mlx_gardener.engine import speed
from mlx_gardener.errors import DataError, TrainingError
from mlx_gardener.events import TrainingPhase, TrainingProgress, WarningRaised
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.report.live import LiveView, make_console
from mlx_gardener.runs.manager import TrainingPipeline
from tests.support.commands import gardener, gardener_here, train_flags
from tests.support.trainings import endless, tiny_settings

ENDLESS = {"optimizer.max_steps": 1_000_000, "optimizer.epochs": 100, "evaluation.patience": 10_000}
HEAVY = (
    "mlx",
    "numpy",
    "pydantic",
    "rich",
    "tokenizers",
    "tree_sitter",
    "transformers",
    "sqlite3",
    "starlette",
    "uvicorn",
    "prometheus_client",
)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mlx_gardener.cli import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("train", "scan", "plan", "status", "cancel", "complete", "projects", "export", "doctor"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "scan",
        "plan",
        "status",
        "attach",
        "logs",
        "cancel",
        "complete",
        "serve",
        "mcp",
        "lsp",
        "connect",
        "projects",
        "show",
        "activate",
        "remove",
        "export",
        "doctor",
        "completion",
    ],
)
def test_every_command_in_the_table_has_help(command: str) -> None:
    done = gardener_here(command, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_their_completion(shell: str) -> None:
    done = gardener_here("completion", shell)
    assert done.returncode == 0 and "_MLX_GARDENER_COMPLETE" in done.stdout


def test_completion_offers_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlx_gardener"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_MLX_GARDENER_COMPLETE": "bash_complete",
            "COMP_WORDS": "mlx-gardener tr",
            "COMP_CWORD": "1",
        },
    )
    assert "train" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "/does/not/exist"], 1, ["'/does/not/exist' does not exist", "root directory"]),
        (["train", "README.md"], 1, ["is not a directory"]),
        (["train", ".", "--budget", "0"], 2, ["memory_limit_gb", "greater than 0"]),
        (["train", ".", "--set", "lora.rnk=3"], 2, ["Unknown setting 'lora.rnk'", "lora.rank"]),
        (["train", ".", "--set", "nonsense"], 2, ["KEY=VALUE"]),
        (["train", ".", "--config", "missing.toml"], 2, ["missing.toml", "cannot be read"]),
        (["train", ".", "--project", "../escape"], 2, ["../escape"]),
        (["train", ".", "--resume"], 1, ["never been trained"]),
        (["status", "nobody"], 1, ["nobody"]),
        (["cancel", "nobody"], 1, ["nobody"]),
        (["frobnicate"], 2, ["There is no command"]),
        (["train", "--frobnicate"], 2, ["No such option"]),
    ],
)
def test_bad_input_is_named_with_the_right_exit_code(
    repository: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    done = gardener_here(*arguments, cwd=repository)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_debug_shows_the_traceback_wherever_it_stands(repository: Path) -> None:
    for arguments in (["--debug", "train", "/does/not/exist"], ["train", "/does/not/exist", "--debug"]):
        done = gardener(*arguments, cwd=repository)
        assert done.returncode == 1 and "Traceback" in done.stderr and "DataError" in done.stderr


def test_escape_codes_in_a_path_do_not_reach_the_terminal() -> None:
    done = gardener("train", "evil\x1b[31m\nname")
    assert done.returncode == 1 and "\x1b[31m" not in done.stderr


def test_a_model_directory_that_is_damaged_is_named(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-model"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    done = gardener_here("train", str(repository), *train_flags(broken))
    assert done.returncode == 1 and "broken-model" in done.stderr and "Traceback" not in done.stderr
    shown = gardener_here("projects", "--json")
    assert (
        shown.returncode == 0 and "adapter" not in shown.stdout.replace('"active_adapter": null', "").lower()
    )


def test_a_home_that_cannot_be_written_is_named(repository: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("not a directory")
    done = gardener_here("train", str(repository), MLX_GARDENER_HOME=str(blocked / "home"))
    assert done.returncode == 1 and "a-file" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.usefixtures("known_home")
def test_an_empty_directory_says_that_there_is_nothing(tmp_path: Path, tiny_model_dir: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = gardener_here("train", str(empty), *train_flags(tiny_model_dir))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Error:" in done.stderr


@pytest.mark.usefixtures("known_home")
def test_train_shows_a_run_and_leaves_an_adapter(repository: Path, tiny_model_dir: Path) -> None:
    done = gardener("train", str(repository), "--project", "shown", *train_flags(tiny_model_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bits per byte" in done.stdout.lower() and "in the registry" in done.stdout
    state = json.loads(gardener_here("status", "shown", "--json").stdout)["trainings"][0]
    assert state["status"] == "completed" and state["progress_percent"] == 100
    shown = gardener_here("status").stdout
    assert "completed" in shown and f"{state['details']['loss']:.3f}" in shown, "the last loss is still told"


def test_a_dry_run_shows_data_and_plan_and_writes_nothing(
    repository: Path, tiny_model_dir: Path, known_home: Path
) -> None:
    before = sorted(path for path in repository.rglob("*"))
    done = gardener_here("train", str(repository), "--dry-run", "--json", *train_flags(tiny_model_dir))
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["scan"] and shown["plan"]["predicted_peak_bytes"] > 0
    assert shown["config"]["data"]["sequence_lengths"] == [64, 128]
    assert sorted(path for path in repository.rglob("*")) == before
    assert not (known_home / "projects").exists() and not ProjectRegistry(known_home).exists


@pytest.mark.usefixtures("known_home")
def test_an_output_encoding_that_lacks_letters_and_blocks_is_survived(tmp_path: Path) -> None:
    registry = ProjectRegistry()
    (tmp_path / "码 ✓").mkdir()
    registry.register_project("web", tmp_path / "码 ✓")
    record = registry.begin_training("web", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "no room for 码 ✓", {})
    commands = {
        ("plan", "--model", "seedling"): "Predicted peak",
        ("status",): "web",
        ("projects",): "web",
        ("show", "web"): "web",
    }
    for command, shown in commands.items():
        done = gardener(*command, PYTHONIOENCODING="ascii")
        slow = ["Looking at the base models ..."]  # said on a loaded machine, where that takes seconds
        assert done.returncode == 0 and done.stderr.splitlines() in ([], slow), done.stderr
        assert shown in done.stdout


@pytest.mark.usefixtures("known_home")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_view_that_breaks_off_says_how_to_look_on_again(
    repository: Path, tiny_model_dir: Path, form: list[str]
) -> None:
    flags = [*form, *train_flags(tiny_model_dir, **ENDLESS)]
    command = [sys.executable, "-m", "mlx_gardener", "train", str(repository), "--project", "afar", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        assert watching.stdout.readline()
        watching.stdout.close()  # as `| head -1` does
        said = watching.stderr.read()
        assert watching.wait(600) == 1
    assert "its reader went away); the training goes on" in said and "attach afar" in said, said
    assert "Exception ignored" not in said and "Traceback" not in said
    assert json.loads(gardener_here("status", "afar", "--json").stdout)["trainings"][0]["active"] is True
    assert gardener_here("cancel", "afar").returncode == 0


@pytest.mark.usefixtures("known_home")
def test_a_view_that_fails_says_that_the_training_goes_on(
    repository: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(view: LiveView, event: object) -> None:
        raise UnicodeEncodeError("ascii", "▁", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr(LiveView, "__call__", broken)
    registry = ProjectRegistry()
    registry.register_project("afar", repository)
    pipeline = TrainingPipeline(endless(tiny_model_dir), registry=registry)
    pipeline.start_training("afar")
    try:
        with pytest.raises(TrainingError, match=r"broke off \(UnicodeEncodeError.*goes on") as caught:
            watch_training(pipeline, "afar", as_json=False, cancel_on_interrupt=True)
        assert "attach afar" in caught.value.next_step
        with pytest.raises(TrainingError, match=r"broke off \(UnicodeEncodeError.*goes on"):
            mlx_gardener.api._show(LiveView(make_console(), project="afar"), WarningRaised("x"), "afar")
    finally:
        pipeline.cancel_training("afar")
        pipeline.wait_for_training_completion("afar", timeout=600)


@pytest.mark.usefixtures("known_home")
def test_a_training_that_fails_is_told_by_its_own_class_and_code(
    repository: Path, tiny_model_dir: Path
) -> None:
    few = tiny_settings(tiny_model_dir, min_training_chunks=900)
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    pipeline = TrainingPipeline(few, registry=registry)
    pipeline.start_training("small")
    with pytest.raises(DataError) as caught:
        watch_training(pipeline, "small", as_json=True, cancel_on_interrupt=True)
    assert caught.value.next_step and caught.value.next_step not in caught.value.message
    flags = train_flags(tiny_model_dir, min_training_chunks=900)
    done = gardener_here("train", str(repository), *flags, "--json")
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and told["event"] == "Error"
    assert told["error"]["next_step"] == caught.value.next_step


def test_a_home_that_cannot_be_written_hinders_no_look(
    repository: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = speed.measure_backend()  # each measures it anew, as it cannot be kept
    monkeypatch.setattr(speed, "measure_backend", lambda: measured)
    blocked = tmp_path / "a-file"
    blocked.write_text("not a directory")  # for root, too, nothing can be made below it
    flags = train_flags(tiny_model_dir)
    for command in (
        ["scan", str(repository), *flags],
        ["plan", str(repository), *flags],
        ["train", str(repository), "--dry-run", *flags],
    ):
        done = gardener_here(*command, MLX_GARDENER_HOME=str(blocked / "home"))
        assert done.returncode == 0, done.stderr


def test_a_home_may_be_named_with_a_tilde(tmp_path: Path) -> None:
    place = {"HOME": str(tmp_path), "MLX_GARDENER_HOME": "~/garden"}
    done = gardener_here("registry", "check", cwd=tmp_path, **place)
    assert done.returncode == 0 and str(tmp_path / "garden") in done.stdout, done.stderr
    assert (tmp_path / "garden").is_dir() and not (tmp_path / "~").exists()
    nobody = gardener_here("projects", cwd=tmp_path, MLX_GARDENER_HOME="~nobody-of-this-name/x")
    assert nobody.returncode == 2 and "no such user" in nobody.stderr, nobody.stderr


def test_a_clock_that_was_set_back_makes_no_negative_ages(repository: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("web", repository)
    record = registry.begin_training("web", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "ended", {})
    for hours, words in ((2, "just now"), (-2, "2 h 00 min ago")):
        with registry._database.write() as connection:
            connection.execute("UPDATE trainings SET updated_at = ?", (time.time() + hours * 3600,))
        assert words in gardener_here("status").stdout


def test_the_status_has_a_column_for_losses_only_where_there_are_any(repository: Path) -> None:
    registry = ProjectRegistry()
    for name in ("first", "second"):
        registry.register_project(name, repository)
    record = registry.begin_training("first", {})
    assert "loss" not in gardener_here("status").stdout
    registry.update_training(
        record.id, TrainingProgress(TrainingPhase.TRAINING, 50, "Step 1 of 2", {"loss": 1.5})
    )
    registry.finish_training(record.id, TrainingStatus.COMPLETED, "Done", {})
    head, first, second = gardener_here("status").stdout.splitlines()
    assert "loss" in head and "1.500" in first and " - " in second


@pytest.mark.parametrize(
    ("wish", "said", "version"),
    [
        ("auto:v1", "It goes on from v1 if base, lora.* settings and most of the files are the same", "v1"),
        ("v1", "It goes on from v1.", "v1"),
        ("never", "", None),
    ],
)
def test_a_training_in_the_background_says_at_once_what_version_it_goes_on_from(
    registry: ProjectRegistry, capsys: pytest.CaptureFixture[str], wish: str, said: str, version: str | None
) -> None:
    registry.begin_training("small", {"continue_from": wish})
    pipeline = TrainingPipeline(registry=registry)
    _announce(pipeline, "small", as_json=False, goes_on=False)
    first, second = (*capsys.readouterr().out.splitlines(), "")[:2]
    assert first == "Training small in the background: `mlx-gardener attach small` shows it."
    assert second.startswith(said) and bool(second) == bool(said)
    _announce(pipeline, "small", as_json=True, goes_on=False)
    assert json.loads(capsys.readouterr().out)["from_version"] == version
