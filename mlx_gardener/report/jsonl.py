"""Events as JSON lines: one object a line, flushed at once."""

from __future__ import annotations

import json
from typing import TextIO

from mlx_gardener.events import Event


class JsonLines:
    """An event subscriber that writes to ``stream``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        self._stream.write(json.dumps(event.to_json(), ensure_ascii=True) + "\n")
        self._stream.flush()
