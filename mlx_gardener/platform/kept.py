"""Values that are kept between runs, by topic and key: one private JSON file a topic.

What is kept can be made again, so a damaged file is an empty one, and of two processes that add at once one may lose what
it added. Cost: a file is read and written whole: some megabytes with `MOST` answers, 90 with as many rows'
likeliest tokens (5 kB each).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.platform.files import make_private, write_whole
from mlx_gardener.platform.untrusted import read_json

#: Values of a topic; the oldest go first.
MOST = 20_000


@dataclass(frozen=True)
class KeptValues:
    """Values in files of 0600 below ``directory``, which is made when something is kept."""

    directory: Path

    def read(self, topic: str) -> dict[str, Any]:
        """Everything that was kept of ``topic``, by key; empty where nothing readable was."""
        try:
            kept = read_json(self.directory / f"{topic}.json", follow_links=False)
        except (OSError, ValueError):
            return {}  # only a cache: it is made again
        return kept if isinstance(kept, dict) else {}

    def add(self, topic: str, found: Mapping[str, Any]) -> None:
        """Keep ``found`` (JSON types) beside what there is, whole or not at all; a full disk keeps nothing."""
        kept = self.read(topic) | dict(found)
        with suppress(OSError):
            make_private(self.directory)
            newest = dict(list(kept.items())[-MOST:])
            write_whole(self.directory / f"{topic}.json", json.dumps(newest), lasting=False)
