"""The ``mlx-gardener`` command: one small file per command, loaded only when it is called.

``--help`` lists the commands from the table below without importing any of them, so it answers in well under 0.2 s.
Errors are shown here and nowhere else: `GardenerError` as a sentence and its next step on stderr, with ``--json`` also as
JSON on stdout, exit code 2 for usage and 1 for failure, a traceback only with ``--debug``. docs/cli.md has the rules.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any, TextIO

import click

from mlx_gardener.errors import GardenerError
from mlx_gardener.platform.encoding import replace_what_cannot_be_written
from mlx_gardener.platform.ending import end_process
from mlx_gardener.platform.lean_imports import import_lean
from mlx_gardener.platform.version import __version__

#: command -> (module and function, one line of help); the order is the order of ``--help``.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("mlx_gardener.cli.train:train", "Train an adapter on a repository."),
    "scan": ("mlx_gardener.cli.scan:scan", "Show what a repository would be trained on."),
    "plan": ("mlx_gardener.cli.plan:plan", "Show how a memory budget would be used."),
    "models": ("mlx_gardener.cli.models:models", "List the base models on this machine."),
    "status": ("mlx_gardener.cli.status:status", "Show running and past trainings."),
    "attach": ("mlx_gardener.cli.watch:attach", "Watch a training that runs in the background."),
    "logs": ("mlx_gardener.cli.watch:logs", "Print what a training's worker logged."),
    "cancel": ("mlx_gardener.cli.status:cancel", "Stop a training, keeping a checkpoint."),
    "queue": ("mlx_gardener.cli.queue:queue", "Let projects wait for their training, in order."),
    "report": ("mlx_gardener.cli.report:report", "Show what an adapter's evidence says."),
    "complete": ("mlx_gardener.cli.complete:complete", "Complete code with a project's adapter."),
    "eval": ("mlx_gardener.cli.evaluation:evaluate", "Measure an adapter on code it never saw."),
    "serve": ("mlx_gardener.cli.serve:serve", "Answer editors with the projects' adapters."),
    "lsp": ("mlx_gardener.cli.lsp:lsp", "Complete code in editors, by LSP."),
    "ui": ("mlx_gardener.cli.ui:ui", "Show a web page of projects, trainings and verdicts."),
    "mcp": ("mlx_gardener.cli.mcp:mcp", "Give agents tools over projects, by MCP."),
    "connect": ("mlx_gardener.cli.connect:connect", "Make an editor use a project's adapter."),
    "projects": ("mlx_gardener.cli.projects:projects", "List the projects in the registry."),
    "show": ("mlx_gardener.cli.projects:show", "Show a project and its adapters."),
    "activate": ("mlx_gardener.cli.projects:activate", "Choose the adapter version others pick up."),
    "rollback": ("mlx_gardener.cli.lifecycle:rollback", "Go back to the adapter version before."),
    "diff": ("mlx_gardener.cli.lifecycle:diff", "Compare two versions of an adapter."),
    "forget": ("mlx_gardener.cli.lifecycle:forget", "Train again without a path, and show that it is gone."),
    "remove": ("mlx_gardener.cli.projects:remove", "Remove a project or one adapter version."),
    "export": ("mlx_gardener.cli.exchange:export", "Write an adapter for mlx-lm, PEFT, llama.cpp or Ollama."),
    "import": ("mlx_gardener.cli.exchange:import_", "Take a PEFT adapter into the registry."),
    "registry": (
        "mlx_gardener.cli.registry:registry",
        "Check, repair, tidy, back up and restore the registry.",
    ),
    "doctor": ("mlx_gardener.cli.doctor:doctor", "Check this machine and say what to mend."),
    "completion": ("mlx_gardener.cli.completion:completion", "Print shell completion code."),
}

#: What other programs call it.
_MEANT = {
    "list": ["projects", "models"],
    "ls": ["projects", "models"],
    "info": ["show", "doctor"],
    "rm": ["remove"],
    "delete": ["remove"],
    "log": ["logs"],
    "stop": ["cancel"],
    "watch": ["attach"],
    "start": ["train"],
    "run": ["train"],
    "init": ["train"],
    "tune": ["train"],
    "finetune": ["train"],
    "test": ["eval"],
    "evaluate": ["eval"],
    "use": ["activate"],
    "infill": ["complete"],
    "setup": ["connect"],
}

#: Commands whose --json is a line for each event; the others print one document.
STREAMS = ("train", "attach", "logs", "serve", "ui", "queue run")


class CommandTable(click.Group):
    """A click group whose commands are imported on use, and the one place where errors are shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = _MEANT.get(name.lower()) or difflib.get_close_matches(name, COMMANDS, cutoff=0.6)
            hint = f"Did you mean {' or '.join(near)}?" if near else "`mlx-gardener --help` lists all."
            ctx.fail(f"There is no command {name!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Any = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        """Run a command; turns every error into a message and an exit code (unless ``standalone_mode`` is off)."""
        arguments = list(sys.argv[1:] if args is None else args)
        end = arguments.index("--") if "--" in arguments else len(arguments)
        debug = "--debug" in arguments[:end] or bool(os.environ.get("MLX_GARDENER_DEBUG"))
        arguments = [text for at, text in enumerate(arguments) if at >= end or text != "--debug"]
        replace_what_cannot_be_written(sys.stdout, sys.stderr)
        if not standalone_mode:
            return super().main(arguments, standalone_mode=False, **extra)
        wanted = " ".join(arguments[:2]) if "--json" in arguments[:end] else None
        try:
            code = super().main(arguments, standalone_mode=False, **extra)
        except Exception as error:
            if debug:
                raise
            code = show_error(error, wanted)
        except KeyboardInterrupt:
            code = show_error(click.Abort(), wanted)
        sys.exit(code if isinstance(code, int) else 0)


def show_error(error: Exception, json_of: str | None) -> int:
    """Print ``error`` for people on stderr, for machines on stdout where they asked for JSON; its exit code.

    Args:
        json_of: the first two words, command and perhaps subcommand, where it was called with ``--json``.
    """
    if isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError):
        _give_up(sys.stdout)  # the reader went away (`| head`)
    if isinstance(error, BrokenPipeError):
        return 1
    message, next_step, code = _told(error)
    try:
        if isinstance(error, click.ClickException):
            error.show()  # with its usage
        else:
            from mlx_gardener.report.text import safe_text

            click.echo(("" if code == 130 else "Error: ") + safe_text(message), err=True)
            if next_step:
                click.echo(f"  {safe_text(next_step)}", err=True)
    except OSError:
        _give_up(sys.stderr)  # there is nobody to tell
    try:
        if json_of is not None:
            import json

            event = {"event": "Error"} if json_of in STREAMS or json_of.split(" ")[0] in STREAMS else {}
            told = {"message": message, "next_step": next_step, "exit_code": code}
            click.echo(json.dumps({**event, "error": told}))
        else:
            sys.stdout.flush()  # what is left of an answer that could not be written
    except OSError:
        _give_up(sys.stdout)
    return code


def _give_up(stream: TextIO) -> None:
    """Point a stream that cannot be written at nothing, so that the flush at exit stays quiet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _told(error: Exception) -> tuple[str, str, int]:
    """Message, next step and exit code of an error."""
    if isinstance(error, click.Abort):
        return "Interrupted.", "", 130
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = "" if context is None else f"Try `{context.command_path} --help`."
        return error.format_message(), hint, error.exit_code
    if isinstance(error, GardenerError):
        return error.message, error.next_step, error.exit_code
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f" ({os.fsdecode(error.filename)})"
        return (
            f"The system refused: {error.strerror}{where}.",
            "Run again with --debug to see at what.",
            1,
        )
    return (
        f"{type(error).__name__}: {error}",
        "This is a defect of mlx-gardener. Run again with --debug to see where.",
        1,
    )


@click.group(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlx-gardener")
def cli() -> None:
    """A repository goes in; a LoRA adapter that knows that repository comes out.

    Start with `mlx-gardener train` in a repository. Every command takes --help; --debug shows tracebacks.
    """


def warning_text(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning to whoever typed a command: of settings by earlier names without the line of our code that read them.

    Others, which are for developers, stay as Python has them. The arguments are those of `warnings.formatwarning`.
    """
    if category is not FutureWarning:
        return _PYTHONS_TEXT(message, category, filename, lineno, line)
    from mlx_gardener.report.text import safe_text

    return f"Warning: {safe_text(str(message))}\n"


_PYTHONS_TEXT = warnings.formatwarning


def main() -> None:
    """Entry point of the ``mlx-gardener`` script."""
    warnings.formatwarning = warning_text
    import_lean()
    try:
        cli(prog_name="mlx-gardener")
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise  # with a message, which Python prints
        end_process(ended.code)
