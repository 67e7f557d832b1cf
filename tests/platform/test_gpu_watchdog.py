"""What macOS's GPU watchdog leaves in a process's stderr, as real Macs printed it."""

from __future__ import annotations

import pytest

from mlx_gardener.platform.gpu_watchdog import gentler_variables, says_gpu_watchdog
from mlx_gardener.platform.out_of_memory import says_out_of_memory
from mlx_gardener.platform.processes import how_it_ended
from tests.support.watchdog import ABORT, INTERACTIVITY

TIMEOUT = ABORT + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)\n"
RAISED = (
    '  File "trainer.py", line 328, in train\n'
    "RuntimeError: [METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).\n"
)
#: Of other deaths by Metal: youssofal/MTPLX (194), Blaizzy/mlx-vlm (270), ml-explore/mlx-examples (664).
MEMORY = ABORT + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)\n"
RESOURCE = ABORT + "Invalid Resource (00000009:kIOGPUCommandBufferCallbackErrorInvalidResource)\n"
INTERNAL = ABORT + "Internal Error (0000000e:Internal Error)\n"


@pytest.mark.parametrize("said", [INTERACTIVITY, TIMEOUT, RAISED])
def test_the_watchdogs_words_are_known_and_are_not_those_of_memory(said: str) -> None:
    assert says_gpu_watchdog(f"12:00 INFO a line before\n{said}") and not says_out_of_memory(said)


@pytest.mark.parametrize("said", [MEMORY, RESOURCE, INTERNAL, "", "Killed: 9"])
def test_other_deaths_are_not_taken_for_its(said: str) -> None:
    assert not says_gpu_watchdog(said) and says_out_of_memory(said) == (said == MEMORY)


def test_what_somebody_has_set_stays() -> None:
    assert set(gentler_variables({})) == {
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT",
        "MLX_MAX_OPS_PER_BUFFER",
        "MLX_MAX_MB_PER_BUFFER",
    }
    own = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "0", "MLX_MAX_OPS_PER_BUFFER": "3", "MLX_MAX_MB_PER_BUFFER": "5"}
    assert gentler_variables(own) == {}


def test_the_cause_is_said_of_an_abort_and_of_an_error() -> None:
    for code in (-6, 1):
        assert "GPU watchdog" in how_it_ended(code, gpu_watchdog=True)
    assert "gave up" in how_it_ended(-6)
