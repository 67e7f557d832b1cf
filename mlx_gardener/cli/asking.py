"""Asking before something is deleted or written: one way for all commands, with and without a terminal."""

from __future__ import annotations

import click


def agreed(question: str) -> bool:
    """Whether somebody said yes; an answer may also come through a pipe.

    Raises:
        click.UsageError: nobody is there to answer.
        click.Abort: the question was interrupted.
    """
    try:
        return click.confirm(question, err=True)
    except click.Abort as error:
        if isinstance(error.__context__, EOFError):
            raise click.UsageError(f"{question} Nobody is there to answer: say --yes.") from None
        raise


def ask(question: str) -> None:
    """Go on only where somebody said yes.

    Raises:
        click.exceptions.Exit: somebody said no; exit code 1, as nothing was done.
        click.UsageError, click.Abort: as `agreed`.
    """
    if not agreed(question):
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(1)
