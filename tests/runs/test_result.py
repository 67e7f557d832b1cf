"""A run's result goes to disk, registry and journal and comes back as it was."""

from __future__ import annotations

import json

import pytest

from mlx_gardener.errors import RegistryError
from mlx_gardener.runs.result import RunResult

WHOLE = RunResult("v3", {"adapter_bits_per_byte": 1.5}, {"verdict": "promote"}, {"steps": 4})


@pytest.mark.parametrize(
    "result",
    [
        WHOLE,
        RunResult("v1", {}, {}, {}, unchanged_since="v1"),
        RunResult("v2", {}, {}, {}, cancelled_late=True),
    ],
)
def test_a_result_is_read_back_as_it_was_written(result: RunResult) -> None:
    assert RunResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_what_other_versions_added_is_passed_over_and_what_they_left_out_is_as_usual() -> None:
    told = {**WHOLE.to_json(), "added_later": 1}
    del told["cancelled_late"]
    assert RunResult.from_json(told) == WHOLE


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {},
        {"error": "x"},
        {**WHOLE.to_json(), "adapter_version": "../v1"},
        {"adapter_version": "v1"},
    ],
)
def test_what_is_no_result_is_an_error(damaged: object) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        RunResult.from_json(damaged)
