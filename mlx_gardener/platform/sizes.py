"""Units of memory in bytes, by which budgets are told; apart from all else, as commands that load nothing show sizes too."""

from __future__ import annotations

GIB = 1024**3
