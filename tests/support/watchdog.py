"""What macOS's GPU watchdog leaves in a process's stderr, as real Macs printed it."""

from __future__ import annotations

ABORT = "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command buffer execution failed: "
#: From the trackers of ml-explore/mlx (3267), lyogavin/airllm (367) and, as an error of Python, a trainer's log.
INTERACTIVITY = (
    ABORT + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)\n"
)
