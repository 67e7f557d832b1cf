"""Code that is searched, and whether two indexes of it are the same."""

from __future__ import annotations

import numpy as np

from mlx_gardener.retrieval import Index

CHUNKS = [
    ("src/parser.py", "def parse_arguments(argv):\n    return splitWords(argv)\n"),
    ("src/tides.py", "class TideTable:\n    def height_at(self, hour):\n        return self.heights[hour]\n"),
    ("src/mail.py", "def send_mail(recipient, body):\n    connection.deliver(recipient, body)\n"),
]


def equal(first: Index, second: Index) -> bool:
    return all(
        np.array_equal(value, getattr(second, name)) if isinstance(value, np.ndarray) else value == getattr(second, name)
        for name, value in vars(first).items()
    )  # fmt: skip
