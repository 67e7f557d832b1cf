"""Errors as they cross processes, and in Python's words."""

from __future__ import annotations

import ast
import json
import pickle
import re
from pathlib import Path

import pytest

import mlx_gardener
from mlx_gardener.errors import (
    GardenerError,
    MemoryBudgetError,
    ModelError,
    TrainingError,
    error_from_json,
    in_python,
)

#: Rooms whose flags are of commands that have no like in Python.
COMMANDS_ONLY = {"cli", "serve", "editors", "restore.py", "archive.py", "queue.py"}


def test_an_error_crosses_as_json_with_its_class_and_fields() -> None:
    error = MemoryBudgetError("It is too large.", next_step="Allow more.", least_bytes=12.5)
    again = error_from_json(json.loads(json.dumps(error.to_json())), otherwise="")
    assert type(again) is MemoryBudgetError and isinstance(again, MemoryBudgetError)
    assert (again.message, again.next_step, again.least_bytes) == ("It is too large.", "Allow more.", 13)
    assert isinstance(error.least_bytes, int), "whole bytes, rounded up"
    unknown = json.dumps(MemoryBudgetError("It is too large.").to_json(), allow_nan=False)
    assert error_from_json(json.loads(unknown), otherwise="").to_json() == json.loads(unknown)
    assert pickle.loads(pickle.dumps(error)).to_json() == error.to_json()


def test_a_private_class_crosses_as_the_public_one_it_is_of() -> None:
    class SecretError(ModelError):
        pass

    assert type(error_from_json(SecretError("No.").to_json(), otherwise="")) is ModelError


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"class": "Any", "message": "", "next_step": ""},
        {"class": "error_from_json", "message": "", "next_step": ""},
        {"class": "DataError", "message": 1, "next_step": ""},
        {"class": "DataError", "message": "No."},
    ],
)
def test_what_no_worker_wrote_is_a_training_error_with_the_recorded_message(values: object) -> None:
    error = error_from_json(values, otherwise="It failed.")
    assert type(error) is TrainingError and error.message == "It failed."


def test_a_field_of_another_type_is_left_out() -> None:
    values = {"class": "MemoryBudgetError", "message": "No.", "next_step": "", "least_bytes": "much"}
    error = error_from_json(values, otherwise="")
    assert isinstance(error, MemoryBudgetError) and error.least_bytes == float("inf")


def test_python_is_told_settings_and_the_command_line_flags() -> None:
    error = TrainingError("No.", next_step="Allow --budget 0.55 or use a smaller --model.")
    assert str(error) == "No. Allow memory_limit_gb=0.55 or use a smaller model."
    assert error.in_terminal == "No. Allow --budget 0.55 or use a smaller --model."
    assert in_python("Train with --fresh.") == "Train with fresh=True."
    assert "`mlx-gardener cancel x --all`" in in_python("Say `mlx-gardener cancel x --all`.")
    assert in_python("Go on with `mlx-gardener train --resume`.") == "Go on with `mlx_gardener.train(...)`."
    assert in_python("`mlx-gardener train --resume --project a.b-c`") == "`mlx_gardener.train(...)`"


def test_no_error_shows_a_flag_in_python() -> None:
    """Every text of every call with a ``next_step`` in rooms that Python's functions reach."""
    seen = 0
    package = Path(mlx_gardener.__file__).parent
    for file in package.rglob("*.py"):
        if COMMANDS_ONLY & set(file.relative_to(package).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and any(word.arg == "next_step" for word in node.keywords)):
                continue
            texts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            text = "".join(part.value for part in texts if isinstance(part.value, str))
            shown = re.sub(r"`[^`]*`", "", in_python(text))
            assert not re.search(r"(?<!\w)--[a-z]", shown), f"{file.name}: {shown}"
            seen += "--" in text
    assert seen > 10
    assert issubclass(mlx_gardener.ConfigError, GardenerError)


def test_no_message_shows_the_number_of_an_error_of_the_systems() -> None:
    """``[Errno 2]`` and Python's quotes: whatever tells of an ``OSError`` says `reason_of` it, or its ``strerror``."""
    seen = 0
    package = Path(mlx_gardener.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.ExceptHandler) and node.name and node.type is not None):
                continue
            kinds = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
            if not kinds & {"OSError", "FileNotFoundError", "PermissionError"}:
                continue
            seen += 1
            shown = [
                part.value if isinstance(part, ast.FormattedValue) else part.args[0]
                for part in ast.walk(node)
                if isinstance(part, ast.FormattedValue)
                or (isinstance(part, ast.Call) and ast.unparse(part.func) == "str" and part.args)
            ]
            raw = [part for part in shown if isinstance(part, ast.Name) and part.id == node.name]
            assert not raw or file.name == "blas.py", (
                f"{file.name}, line {raw[0].lineno}"
            )  # dlopen's has none
    assert seen > 50
