"""macOS's watchdog over GPU work: how it is known that it ended a process, and what makes the next one gentler.

While a display is on, macOS ends Metal work that holds it up, and MLX's process with it, by SIGABRT from a thread that no
Python can catch, or by a ``RuntimeError`` (ml-explore/mlx, issues 3267 and 3390; "Caused GPU Timeout Error" as in
lyogavin/airllm, issue 367). ``AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1``, an undocumented variable of Apple's driver that a maintainer
of MLX names in issue 3267, makes it more patient for one process, whose reporter says that it ended there; the screen may be less
smooth meanwhile. How long one of MLX's command buffers becomes is bounded by the two variables that MLX documents
(docs/src/usage/environment_variables.rst). They are read when a process begins to use Metal. Cost: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What ends a process, as Metal names it and as MLX says it.
_WORDS = (
    "kIOGPUCommandBufferCallbackErrorImpactingInteractivity",
    "kIOGPUCommandBufferCallbackErrorTimeout",
    "Command buffer execution failed: Impacting Interactivity",
    "Command buffer execution failed: Caused GPU Timeout Error",
)
#: A quarter of what MLX puts into a buffer by itself on a Mac mini: 40 operations, 40 MB (judgement).
_GENTLER = {
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
    "MLX_MAX_OPS_PER_BUFFER": "10",
    "MLX_MAX_MB_PER_BUFFER": "10",
}


def says_gpu_watchdog(text: str) -> bool:
    """Whether a message, or the end of a log, tells that the watchdog ended the process's work."""
    return any(words in text for words in _WORDS)


def gentler_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process's environment is to have beside ``environment``, so that it lives on; what is set there stays."""
    return {name: value for name, value in _GENTLER.items() if name not in environment}
