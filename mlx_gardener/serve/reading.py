"""A request's bytes as JSON, with its shape bounded before anything is made of it.

Every object, array and string costs some 60 bytes or more in memory, whatever its two or three bytes on the wire, and every
element of a list is checked; so their number and depth are counted in the bytes first. The bytes are read as they are: as a
text, a body with one emoji takes four times its size before anything is made of it, and each piece of it again. Cost:
below 50 ms and seven times its size for a body of 4 MiB.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

from mlx_gardener.serve.worker import BadRequestError

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
#: One escape; its group is half a surrogate pair. Escape by escape, and not one possessive group over the whole body, which
#: Python 3.11 before 3.11.5 matches wrongly (python/cpython#106052).
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|[\s\S])"
)
#: Strings, and objects and arrays, that a request may have; long chats and lists of tools have some hundreds. And halves
#: of surrogate pairs, of which a string has one at each end.
_MOST_STRINGS = _MOST_CONTAINERS = _MOST_HALVES = 2**14
#: Bytes outside of strings: eight prompts of as many token ids as most models read fit.
_MOST_OTHER_BYTES = 2**19
_MOST_DEPTH = 32


def read_json(data: bytes | bytearray) -> Any:
    """The value in a request's body; half surrogate pairs, which no tokenizer spells, become U+FFFD.

    Editors cut text in the middle of a pair where they count UTF-16 units.

    Raises:
        BadRequestError: it is no JSON, or has too many parts, or is nested too deeply.
    """
    _check_shape(data)
    # Only an escape can spell half a pair: UTF-8 has no bytes for it.
    if b"\\ud" in data or b"\\uD" in data:
        data = _without_halves(bytearray(data) if isinstance(data, bytes) else data)
    try:
        return from_json(data, cache_strings="none")
    except ValueError as error:
        raise BadRequestError(f"The request is not JSON ({error}).") from error


def _check_shape(data: bytes | bytearray) -> None:
    view = memoryview(data)
    depth = containers = strings = other = at = 0
    for found in _STRING.finditer(data):
        strings += 1
        other += found.start() - at
        if strings > _MOST_STRINGS or other > _MOST_OTHER_BYTES:
            break
        depth, opened = _nesting(view[at : found.start()], depth)
        containers += opened
        at = found.end()
    other += len(data) - at
    if strings <= _MOST_STRINGS and other <= _MOST_OTHER_BYTES:
        containers += _nesting(view[at:], depth)[1]
    if strings > _MOST_STRINGS or containers > _MOST_CONTAINERS or other > _MOST_OTHER_BYTES:
        raise BadRequestError(
            "The request has too many parts.",
            next_step=f"At most {_MOST_STRINGS} texts and {_MOST_OTHER_BYTES} bytes beside them are possible.",
        )


def _nesting(part: memoryview, depth: int) -> tuple[int, int]:
    """The depth after a part without strings, and how many objects and arrays it opens."""
    opened = 0
    for byte in bytes(part):
        if byte in b"[{":
            depth, opened = depth + 1, opened + 1
            if depth > _MOST_DEPTH:
                raise BadRequestError(f"The request is nested deeper than {_MOST_DEPTH} levels.")
        elif byte in b"]}":
            depth -= 1
    return depth, opened


def _without_halves(data: bytearray) -> bytearray:
    """``data`` itself, with the escape of U+FFFD, which is as long, for each half of a surrogate pair."""
    found = (escape.span(1) for escape in _ESCAPE.finditer(bytes(data)))
    halves = [start for start, end in found if end > 0]
    if len(halves) > _MOST_HALVES:
        raise BadRequestError(
            "The request has too many halves of surrogate pairs.", next_step="Send whole characters."
        )
    for start in halves:
        data[start : start + 5] = b"ufffd"
    return data
