"""Options that have another name now: the old one works for one minor version, and says so."""

from __future__ import annotations

from typing import overload

import click


@overload
def renamed(old: str, new: str, given: str, value: str | None) -> str: ...
@overload
def renamed(old: str, new: str, given: str | None, value: str | None) -> str | None: ...
def renamed(old: str, new: str, given: str | None, value: str | None) -> str | None:
    """What was meant: ``given`` under the name ``old``, or ``value`` under ``new``.

    Raises:
        click.UsageError: both were given.
    """
    if given is None:
        return value
    if value is not None:
        raise click.UsageError(f"{old} is {new} now: give one of them.")
    click.echo(f"{old} is {new} now; the old form goes with the next minor version.", err=True)
    return given
