"""--json: every command that says something takes it, and then says nothing else on stdout, errors neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from mlx_gardener.cli import STREAMS, cli
from mlx_gardener.registry import ProjectRegistry
from tests.registry.worlds import install_adapter
from tests.support.commands import gardener, gardener_here
from tests.support.trainings import tiny_settings

#: Commands whose output is for one other program and is in its language.
WITHOUT_JSON = {"completion", "lsp", "mcp"}


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield (*path, name), command


ALL = {" ".join(words): command for words, command in commands(cli)}


def test_the_walk_finds_commands_and_subcommands() -> None:
    assert {"train", "queue", "queue run", "registry backup", "completion"} < set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_command_takes_json(name: str) -> None:
    options = {option for param in ALL[name].params for option in (*param.opts, *param.secondary_opts)}
    assert ("--json" in options) != (name in WITHOUT_JSON)


@pytest.mark.parametrize("name", sorted(set(ALL) - WITHOUT_JSON))
def test_an_error_is_json_on_stdout_for_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [*name.split(" "), "--json", "--no-such-option"]
    with pytest.raises(SystemExit) as ended:
        cli.main(wrong, prog_name="mlx-gardener")
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert ended.value.code == 2 == told["error"]["exit_code"]
    assert told["error"]["message"] and told["error"]["message"] in shown.err
    assert told["error"]["next_step"] == f"Try `mlx-gardener {name} --help`."
    assert (told.get("event") == "Error") == (name in STREAMS)


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    """A registry with the project ``small`` and three versions that cannot be loaded."""
    made = ProjectRegistry()
    made.register_project("small", repository)
    for version in ("v1", "v2", "v3"):
        install_adapter(made, "small", version)
    return made


def told(*arguments: str, code: int = 0, **environment: str) -> Any:
    """What a command says as JSON, and that it says nothing beside it."""
    done = gardener_here(*arguments, "--json", **environment)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    assert code or not done.stderr, done.stderr
    return json.loads(done.stdout)


def test_versions_are_activated_gone_back_to_and_removed_as_json(registry: ProjectRegistry) -> None:
    assert told("activate", "small") == {"project": "small", "active_adapter": "v3"}
    assert told("activate", "small", "v1")["active_adapter"] == "v1"
    assert told("rollback", "small", "v2")["is"]["version"] == "v2"
    asked = told("remove", "small", "v3", code=2)
    assert "--yes" in asked["error"]["message"] and len(registry.list_adapters("small")) == 3
    gone = {"project": "small", "version": "v3", "removed": True}
    assert told("remove", "small", "v3", "--yes") == gone
    assert told("remove", "small", "--yes") == {**gone, "version": None}
    assert told("activate", "small", code=1)["error"]["exit_code"] == 1


def test_the_queue_is_changed_as_json(
    registry: ProjectRegistry, tmp_path: Path, tiny_model_dir: Path
) -> None:
    settings = tiny_settings(tiny_model_dir).model_dump(mode="json")
    for name in ("one", "two", "gone"):
        (tmp_path / name).mkdir()
        registry.register_project(name, tmp_path / name)
        registry.queue.add(name, settings, budget_bytes=1)
    assert told("queue", "priority", "one", "-5") == {"project": "one", "priority": -5}
    assert told("queue", "first", "two") == {"project": "two", "priority": 1}
    assert told("queue", "remove", "one") == {"project": "one", "removed": True}
    assert told("queue", "remove", "one", code=1)["error"]["next_step"]
    out = told("cancel", "two")
    assert out["status"] == "cancelled" and "waited in the queue" in out["message"]
    assert [row["project"] for row in told("queue")["queue"]] == ["gone"]
    (tmp_path / "gone").rmdir()
    worked = gardener("queue", "run", "--json")
    lines = [json.loads(line) for line in worked.stdout.splitlines()]
    assert "gone cannot be trained" in lines[0]["message"] and lines[0]["event"] == "Log"
    assert lines[-1] == {"event": "Empty"}


def test_a_registry_is_backed_up_and_restored_as_json(registry: ProjectRegistry, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    assert told("registry", "backup", str(file)) == {"file": str(file), "size_bytes": file.stat().st_size}
    elsewhere = tmp_path / "elsewhere"
    restored = told("registry", "restore", str(file), MLX_GARDENER_HOME=str(elsewhere))
    assert restored == {"home": str(elsewhere), "before": None}
    again = told("registry", "restore", str(file), "--replace", MLX_GARDENER_HOME=str(elsewhere))
    assert Path(again["before"]).is_dir()


def test_forgetting_is_undone_as_json_and_asks_nobody(registry: ProjectRegistry, repository: Path) -> None:
    assert "--yes" in told("forget", "small", "core", code=2)["error"]["message"]
    registry.forget_path("small", "core")
    assert told("forget", "small", "core", "--undo") == {
        "project": "small",
        "path": "core",
        "forgotten": False,
    }
