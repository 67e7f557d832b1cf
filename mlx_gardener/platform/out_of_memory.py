"""How it is known that memory ran out: by an error, by the end of a log, or by what the kernel has killed. Cost: nothing."""

from __future__ import annotations

from pathlib import Path


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of an allocation that failed; MLX raises ``RuntimeError`` for one."""
    return isinstance(error, MemoryError) or "alloc" in str(error).lower() or says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether a message, or the end of a log, tells of an allocation that failed (C++, MLX, Metal, CUDA, Python)."""
    text = text.lower()
    return any(
        words in text
        for words in (
            "memoryerror",
            "bad_alloc",
            "unable to allocate",
            "cannot allocate memory",
            "out of memory",
            "outofmemory",
            "insufficient memory",
            "can't start new thread",
            "resource temporarily unavailable",
            "failed to map segment from shared object",  # a library that is loaded late
        )
    )


def out_of_memory_kills() -> int:
    """How many processes Linux has killed for memory so far; always 0 elsewhere."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
