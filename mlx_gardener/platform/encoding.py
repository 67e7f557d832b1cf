"""Output in whatever encoding the terminal, pipe or log has: what it cannot hold is replaced, and nothing fails over it. And
text that has halves of surrogate pairs in it, which no encoding holds.

Blocks and marks of the views become ASCII characters of about the same look, all else a question mark. Cost: nothing where
everything can be written.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import TextIO

_HANDLER = "mlx_gardener.plain"
_PLAIN = str.maketrans("▁▂▃▄▅▆▇█░━╸╺✓✗…", "_.-:=+*#.---+x~")


_HALF = re.compile("[\ud800-\udfff]")


def replace_what_cannot_be_written(*streams: TextIO) -> None:
    """Let text streams replace what their encoding lacks instead of raising ``UnicodeEncodeError``."""
    codecs.register_error(_HANDLER, _plain)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # others, as of tests and notebooks, hold any text
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(character if character.isascii() else "?" for character in lacking), error.end


def whole_text(text: str) -> str:
    """``text`` with U+FFFD for halves of surrogate pairs."""
    return _HALF.sub("\ufffd", text) if _HALF.search(text) else text
