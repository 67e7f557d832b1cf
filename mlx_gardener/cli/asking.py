"""Asking before something is deleted or written: one way for all commands, with and without a terminal."""

from __future__ import annotations

import click


class NobodyAnswersError(click.ClickException):
    """A question came to the end of its input. The command was typed rightly, so its usage is not shown."""

    exit_code = 2


def ask(question: str, *, as_json: bool = False) -> None:
    """Go on only where somebody said yes; an answer may also come through a pipe.

    Args:
        as_json: machines read what is said, and nobody is asked.

    Raises:
        click.exceptions.Exit: somebody said no; exit code 1, as nothing was done.
        NobodyAnswersError, click.UsageError: nobody is there to answer; nobody is asked.
        click.Abort: the question was interrupted.
    """
    if as_json:
        raise click.UsageError(f"{question} With --json nobody is asked: say --yes.")
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as error:
        if isinstance(error.__context__, EOFError):
            click.echo(err=True)  # the question's line is not ended by an answer
            raise NobodyAnswersError(f"{question} Nobody is there to answer: say --yes.") from None
        raise
    if not agreed:
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(1)
