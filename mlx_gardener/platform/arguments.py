"""What Python's callers give to public functions, compared with the annotations before anything is done with it.

In: a function. Out: the same, which raises ``TypeError`` with the argument's name at once, where it would have failed somewhere
below, perhaps hours later. Cost: microseconds a call.
"""

from __future__ import annotations

import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mlx_gardener.errors import ConfigError

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def checked(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """``function``, whose arguments are looked at first; annotations have to name what its module has at run time.

    What it raises then, besides its own: ``TypeError`` for an argument of another type than annotated; `ConfigError` for a
    path that is empty or holds a NUL.
    """
    signature = inspect.signature(function)
    called = function.__qualname__.removesuffix(".__init__")
    hints: dict[str, Any] = {}

    @wraps(function)
    def checking(*args: _Given.args, **named: _Given.kwargs) -> _Result:
        for name, value in signature.bind(*args, **named).arguments.items():
            parameter = signature.parameters[name]
            if parameter.annotation is parameter.empty:  # self
                continue
            if name not in hints:
                alone = types.SimpleNamespace(__annotations__={name: parameter.annotation})
                hints[name] = typing.get_type_hints(alone, inspect.unwrap(function).__globals__)[name]
            kind = parameter.kind
            for one in (
                value
                if kind is kind.VAR_POSITIONAL
                else value.values()
                if kind is kind.VAR_KEYWORD
                else (value,)
            ):
                _check(called, name, one, hints[name], parameter.annotation)
        return function(*args, **named)

    return checking


def _check(function: str, name: str, value: object, hint: Any, shown: str) -> None:
    if not _fits(value, hint):
        raise TypeError(f"{function}(): {name} is to be {shown}, not {value!r:.100} ({type(value).__name__})")
    if Path not in (hint, *typing.get_args(hint)) or not isinstance(value, str | os.PathLike):
        return
    place = os.fspath(value)
    if not place or "\0" in place:
        what = "holds a NUL" if place else "is empty"
        raise ConfigError(
            f"{name} {what} ({place!r}).", next_step="Name a place; '.' is the current directory."
        )


def _fits(value: object, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:  # which of them is for the function to say
        return any(type(value) is type(one) for one in inner)
    if origin is Callable or hint is Callable:
        return callable(value)
    if origin is Sequence:
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str | bytes)
            and all(_fits(one, inner[0]) for one in value)
        )
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(key, inner[0]) for key in value)
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, os.PathLike if hint is Path else hint)
