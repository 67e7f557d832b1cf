"""What somebody meets in the first hour: questions nobody answers, waits, projects without an adapter, nothing to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import mlx_gardener
from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.config import validate_config
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.report.waiting import said_if_slow
from mlx_gardener.runs.manager import TrainingPipeline
from tests.support.commands import gardener, gardener_here, train_flags
from tests.support.trainings import tiny_settings


def quotes_source(evidence: dict[str, Any], repository: Path) -> bool:
    """Whether a sample of the evidence shows a line of the repository."""
    files = [path for path in repository.rglob("*") if path.is_file() and ".git" not in path.parts]
    texts = [path.read_text() for path in files]
    return any(sample["expected"] in text for sample in evidence["samples"] for text in texts)


def command(*arguments: str, given: bytes | None = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "mlx_gardener", *arguments], input=given, capture_output=True, timeout=600
    )


@pytest.mark.parametrize(
    "arguments", [("remove", "small"), ("remove", "small", "v1"), ("forget", "small", "core")]
)
def test_a_question_that_nobody_can_answer_names_yes(
    registry: ProjectRegistry, arguments: tuple[str, ...]
) -> None:
    done = command(*arguments)
    assert done.returncode == 2 and b"say --yes" in done.stderr and not done.stdout, done.stderr
    assert b"Usage" not in done.stderr, done.stderr
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
        assert waiting.wait(600) == 2
    os.close(ours)


def test_continuing_takes_up_no_training_that_went_on_from_elsewhere(
    registry: ProjectRegistry, tiny_model_dir: Path
) -> None:
    def pipeline(begin: str) -> TrainingPipeline:
        return TrainingPipeline(tiny_settings(tiny_model_dir, continue_from=begin), registry=registry)

    def interrupted(begin: str) -> TrainingRecord:
        config = {**pipeline("auto").config.model_dump(mode="json"), "continue_from": begin}
        record = registry.begin_training("small", config)
        (record.run_dir / "checkpoints" / "step-1").mkdir(parents=True)
        registry.finish_training(record.id, TrainingStatus.CANCELLED, "stopped", {})
        return record

    plain = interrupted("auto:v1")  # began anew, as nothing had changed, or went on by itself
    for wish, taken in (("auto", plain.id), ("active", None), ("v1", None)):
        found = pipeline(wish).unfinished_training("small")
        assert (found and found.id) == taken, wish
    asked = interrupted("v1")
    for wish in ("auto", "active", "v1"):
        found = pipeline(wish).unfinished_training("small")
        assert found is not None and found.id == asked.id, wish


@pytest.mark.usefixtures("registry")
def test_what_the_system_says_comes_without_its_number() -> None:
    done = gardener("complete", "small", "nowhere.py:1")
    assert done.returncode == 1 and "(No such file or directory, " in done.stderr, done.stderr
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
        done = gardener_here(name, "small", *more)
        assert done.returncode == 1 and "has no adapter yet" in done.stderr, done.stderr
        return done.stderr

    assert f"mlx-gardener train {repository} --project small" in said()
    shown = gardener_here("show", "small").stdout
    assert f"mlx-gardener train {repository} --project small" in shown.replace("\n", "")
    record = registry.begin_training("small", {})
    assert "attach small" in gardener_here("show", "small").stdout
    assert "attach small" in said() and "train " + str(repository) not in said()
    registry.finish_training(record.id, TrainingStatus.FAILED, "no room", {})
    assert "Its last training failed: `mlx-gardener status small`" in said()


@pytest.mark.usefixtures("registry")
def test_nothing_that_can_be_served_is_an_error() -> None:
    done = gardener("serve", "small", "--port", "0")
    assert done.returncode == 1 and "Nothing can be served: small" in done.stderr, done.stderr
    assert "Listening" not in done.stdout


def test_what_cannot_begin_registers_no_project(repository: Path) -> None:
    for option in ("--resume", "--continue"):
        refused = gardener("train", str(repository), "--project", "small", "--model", "seedling", option)
        assert refused.returncode == 1, refused.stderr
        assert ProjectRegistry().list_projects() == []


@pytest.mark.usefixtures("known_home")
def test_a_known_project_is_trained_where_it_is_from_anywhere(
    repository: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    registry = ProjectRegistry()
    registry.register_project("known", repository)
    flags = ("--project", "known", "--dry-run", *train_flags(tiny_model_dir))
    from_elsewhere = gardener_here("train", *flags, cwd=tmp_path)
    assert from_elsewhere.returncode == 0, from_elsewhere.stderr
    assert f"The repository of known is {repository}." in from_elsewhere.stderr.replace("\n", "")
    assert f"{repository.name}: " in from_elsewhere.stdout


def test_a_dry_run_refuses_the_place_that_training_refuses(
    repository: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    flags = ("--project", "known", *train_flags(tiny_model_dir))
    ProjectRegistry().register_project("known", repository)
    other = tmp_path / "other"
    shutil.copytree(repository, other)
    for more in ((), ("--dry-run",)):
        refused = gardener_here("train", str(other), *flags, *more)
        assert refused.returncode == 1 and "already stands for" in refused.stderr, (more, refused.stderr)
    unnamed = gardener_here("train", str(other), "--project", "a/b", "--dry-run")
    assert unnamed.returncode == 2 and "cannot be a project name" in unnamed.stderr


@pytest.mark.usefixtures("registry")
def test_a_second_try_that_failed_says_that_the_first_version_is_still_active() -> None:
    registry = ProjectRegistry()
    assert "active as before" not in gardener_here("status").stdout
    record = registry.begin_training("small", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "no room", {})
    assert "small: v1 is active as before" in gardener_here("status").stdout
    told = json.loads(gardener_here("status", "--json").stdout)
    assert told["trainings"][0]["active_adapter"] == "v1"


@pytest.mark.usefixtures("registry")
def test_a_training_that_was_cancelled_after_its_adapter_was_made_is_not_said_to_have_changed_nothing() -> (
    None
):
    registry = ProjectRegistry()
    record = registry.begin_training("small", {})
    registry.finish_training(record.id, TrainingStatus.CANCELLED, "late", {"adapter_version": "v1"})
    assert "active as before" not in gardener_here("status").stdout


@pytest.mark.parametrize(
    ("typed", "meant"), [("list", "projects or models"), ("atach", "attach"), ("zzz", "--help")]
)
def test_a_command_that_is_not_there_says_which_is(typed: str, meant: str) -> None:
    done = gardener_here(typed)
    assert done.returncode == 2 and f"no command '{typed}'" in done.stderr and meant in done.stderr


@pytest.mark.parametrize("group", ["registry", "queue"])
def test_the_short_help_of_commands_is_whole(group: str) -> None:
    told = gardener_here(group, "--help", COLUMNS="80").stdout.partition("Commands:")[2]
    assert told and "..." not in told
    assert all(line.endswith(".") for line in told.strip().splitlines()), told


def test_what_is_waited_for_is_said_also_where_stderr_is_no_terminal(
    repository: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mlx_gardener.report.waiting.PATIENCE_SECONDS", 0.0)
    done = gardener_here("scan", str(repository), "--model", str(tiny_model_dir))
    assert "%  " in done.stderr and "base models" not in done.stdout and "%  " not in done.stdout[:20]
    quiet = gardener_here("scan", str(repository), "--model", str(tiny_model_dir), "--json")
    assert not quiet.stderr, quiet.stderr
    with said_if_slow("Loading it"):
        time.sleep(1.0)
    with said_if_slow("Loading more", silent=True):
        time.sleep(0.1)
    assert capsys.readouterr().err == "Loading it ...\n"


@pytest.mark.usefixtures("known_home")
def test_what_no_budget_allows_is_refused_before_the_repository_is_read(repository: Path) -> None:
    seen: list[str] = []
    with pytest.raises(MemoryBudgetError) as refused:
        mlx_gardener.train(
            repository, project="small", model="seedling", memory_limit_gb=0.05,
            throttling={"low_priority": False},
            on_event=lambda event: seen.append(str(event.to_json())),
        )  # fmt: skip
    assert refused.value.least_bytes > 0.05 * 2**30
    assert seen and not any("Reading the repository" in told for told in seen)


def test_a_busy_project_names_attach(repository: Path, tiny_model_dir: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    registry.begin_training("small", {})
    done = gardener_here("train", str(repository), "--project", "small", *train_flags(tiny_model_dir))
    assert done.returncode == 1 and "attach small" in done.stderr and "cancel small" in done.stderr


@pytest.mark.usefixtures("trained_home")
def test_training_again_without_a_change_says_so_and_trains_nothing(
    repository: Path, trained_model_dir: Path
) -> None:
    registry = ProjectRegistry()

    def train(*more: str, **settings: object) -> str:
        flags = train_flags(trained_model_dir, **settings)
        done = gardener_here("train", str(repository), "--project", "small", *more, *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def versions() -> list[str]:
        return sorted(item.version for item in registry.list_adapters("small"))

    registry.activate_adapter("small", "v1")  # whatever its evidence says
    again = train()
    assert "have changed since v1" in again and "--fresh" in again and versions() == ["v1"], again
    page = json.loads(gardener_here("report", "small", "--json").stdout)
    assert quotes_source(page["evidence"], repository), "with its source, as before"
    last = registry.latest_training("small")
    assert last is not None
    config = validate_config({**last.config, "continue_from": "auto"})
    assert mlx_gardener.train(repository, project="small", config=config).adapter_version == "v1"
    ended = json.loads(train("--json").splitlines()[-1])
    assert ended["result"]["unchanged_since"] == "v1" and "nothing was trained" in ended["message"]
    other = train(seed=5, **{"evaluation.arms": '["base", "adapter"]', "evaluation.tasks": 0})
    assert "settings have (evaluation, seed)" in other.replace("\n", " ") and versions() == ["v1", "v2"], (
        other
    )
    registry.activate_adapter("small", "v1")  # from which nothing has changed
    train("--fresh")
    assert versions() == ["v1", "v2", "v3"]
    assert read_manifest(registry.get_adapter("small", "v3").directory)["training"]["parent"] is None


def offered(*words: str) -> list[str]:
    """What a shell is offered for the last word."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_gardener"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_MLX_GARDENER_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("mlx-gardener", *words)),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert not done.stderr, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.usefixtures("registry")
def test_shells_offer_versions_settings_and_models() -> None:
    for words in (("activate", "small"), ("eval", "small", "--version"), ("diff", "small", "v1")):
        assert offered(*words, "v") == ["v1"], words
    assert offered("activate", "nobody", "v") == []
    assert "lora.rank=" in offered("train", "--set", "lora.r")
    models = offered("scan", "--model", "s")
    assert models == ["seedling"]
    assert "mlx-community/Qwen2.5-Coder-3B-4bit" in offered("plan", "--model", "mlx")


def test_what_is_being_trained_is_not_taken_out_of_the_queue(repository: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    entry = registry.queue.add("small", {}, budget_bytes=1)
    registry.begin_training("small", {}, queue_number=entry.number)
    done = gardener_here("queue", "remove", "small")
    assert done.returncode == 1 and "is being trained" in done.stderr and "cancel small" in done.stderr
    listed = json.loads(gardener_here("queue", "--json").stdout)
    assert [row["project"] for row in listed["queue"]] == ["small"]
    assert gardener_here("queue", "--json", "list").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "nobody", "--json"), 1),
        (("complete", "nobody", "--json"), 1),
        (("eval", "nobody", "--json", "--tasks", "-5"), 2),
        (("train", "/does/not/exist", "--json"), 1),
        (("train", ".", "--json", "--set", "lora.rnk=3"), 2),
        (("import", "small", "/does/not/exist", "--json"), 1),
        (("import", "small", "/tmp", "--repository", "/does/not/exist", "--json"), 1),
        (("registry", "gc", "--json"), 2),
    ],
)
@pytest.mark.usefixtures("registry")
def test_errors_are_json_where_json_is_asked_for(arguments: tuple[str, ...], code: int) -> None:
    done = gardener_here(*arguments)
    told = json.loads(done.stdout)
    assert done.returncode == code == told["error"]["exit_code"], done.stderr
    assert told["error"]["message"] in done.stderr and "Traceback" not in done.stderr
    assert ("event" in told) == (arguments[0] == "train")


@pytest.mark.usefixtures("registry")
def test_old_names_of_options_work_and_say_so(tmp_path: Path) -> None:
    for arguments, new in (
        (("eval", "small", "--adapter", "v1"), "--adapter is --version now"),
        (("rollback", "small", "--to", "v1"), "--to is VERSION now"),
        (("train", str(tmp_path), "--from-adapter", "v1", "--fresh"), "--from-adapter is --from-version now"),
        (
            ("train", str(tmp_path), "--hostfile", "a.json", "--resume", "--fresh"),
            "--hostfile is --hosts now",
        ),
        (("import", str(tmp_path), "--project", "small"), "--project is PROJECT, in front of PATH, now"),
    ):
        done = gardener_here(*arguments)
        assert new in done.stderr and "No such option" not in done.stderr, done.stderr
    twice = gardener_here("eval", "small", "--adapter", "v1", "--version", "v1")
    assert twice.returncode == 2 and "give one of them" in twice.stderr


@pytest.mark.usefixtures("known_home")
def test_a_log_is_for_people_and_as_json_for_machines_and_quotes_no_source(
    repository: Path, tiny_model_dir: Path
) -> None:
    done = gardener("train", str(repository), "--json", *train_flags(tiny_model_dir))
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(event["event"] == "StepCompleted" for event in told) == 3
    ended = told[-1]
    assert ended["event"] == "TrainingEnded" and ended["phase"] == "completed"
    assert quotes_source(ended["result"]["evidence"], repository), "events quote source, for the report"
    record = ProjectRegistry().latest_training(repository.name)
    assert record is not None and "self." not in (record.run_dir / "worker.log").read_text()
    shown = gardener_here("logs", repository.name, "--lines", "1000").stdout.splitlines()
    assert len(shown) > 5 and not any("{" in line for line in shown), shown
    assert max(map(len, shown)) < 300 and shown[-1].endswith("Training completed: Done (v1)"), shown
    texts = [line.partition("  ")[2] for line in shown]
    assert all(one != next_one for one, next_one in pairwise(texts)), "nothing is told twice in a row"
    assert any("Step 3 of 3" in line for line in shown)
    assert sum(line.startswith("Plan: ") for line in texts) == 1, "another one corrects it"
    assert not any("DEBUG" in line for line in shown), shown
    events = [
        json.loads(line) for line in gardener_here("logs", repository.name, "--json").stdout.splitlines()
    ]
    assert events[-1]["event"] == "TrainingEnded" and events[-1]["result"]["adapter_version"] == "v1"
    assert len(gardener_here("logs", repository.name, "--lines", "3").stdout.splitlines()) == 3
