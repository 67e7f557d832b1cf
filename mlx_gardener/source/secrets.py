"""Lines that seem to hold a secret, found in a whole file before it is cut. Found values are never kept.

In: a file's text and its path. Out: first line, last line and kind of every suspected secret; every chunk that such a line touches is
dropped (a placeholder would be learned). Three searchers: betterleaks' rules for the formats of hundreds of services, in this process
and without the network; private keys, whole or in part; values assigned to names that speak of secrets. All take time linear
in the text, which they get in lines of bounded length, and see at most twice (`_WINDOW_BYTES`). Cost: about 0.2 s for a MB, and
ten times that for one made to take long, most of which are the scanner's 230 rules, where all of their words stand everywhere.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_gardener.source.credentials import TooManySecretsError as TooManySecretsError
from mlx_gardener.source.credentials import credential_lines
from mlx_gardener.source.languages import GRAMMARS, language_of
from mlx_gardener.source.private_keys import private_key_lines
from mlx_gardener.source.secret_words import may_be_secret

#: A file with more findings is a store of secrets: it is dropped whole, which also bounds the time that findings take.
MOST_SECRETS = 300
#: Longer lines are looked at in pieces that overlap; rules are linear in a file but not in one line with many findings.
_PIECE_CHARACTERS, _OVERLAP_CHARACTERS = 1200, 300
#: The scanner gets a file in windows, which overlap by some lines for rules that need two secrets near each other: by a
#: quarter at most, as else wide lines are looked at ten times.
_WINDOW_BYTES, _OVERLAP_LINES, _OVERLAP_BYTES = 32_768, 12, 8_192
#: Paths are read as lines of a text of this name.
_PATH_OF_PATHS, _PATHS_AT_ONCE = "paths.txt", 1000
_RULES = Path(__file__).with_name("betterleaks.toml")
#: A mark of other programs for findings that are known; known or not, a secret is not to be learned.
_ALLOWED = re.compile(rb"(?i)(leaks):(allow)")


def find_secrets(text: str, path: str = "") -> list[tuple[int, int, str]]:
    """(first line, last line, kind) of every suspected secret, lines counted from 1 by ``\\n``, in rising order.

    Args:
        path: tells whether the text is code, where unquoted words are no values.

    Raises:
        TooManySecretsError: there are more than `MOST_SECRETS`, or more names of some than are looked at.
    """
    numbers, lines = _bounded_lines(text)
    found: dict[tuple[int, int], str] = {}
    for count, (first, last, kind) in enumerate(
        _found_in(lines, is_code=language_of(path) in GRAMMARS and language_of(path) != "bash")
    ):
        found.setdefault((numbers[first], numbers[last]), kind)
        if count >= MOST_SECRETS:
            raise TooManySecretsError(f"more than {MOST_SECRETS} secrets")
    return [(first, last, kind) for (first, last), kind in sorted(found.items())]


def names_with_secrets(paths: Sequence[str]) -> set[str]:
    """Those of ``paths`` that hold a secret themselves."""
    found: set[str] = set()
    for at in range(0, len(paths), _PATHS_AT_ONCE):
        some = paths[at : at + _PATHS_AT_ONCE]
        try:
            places = find_secrets("\n".join(" ".join(path.splitlines()) for path in some), _PATH_OF_PATHS)
            suspects = {number - 1 for first, last, _ in places for number in range(first, last + 1)}
        except TooManySecretsError:
            suspects = set(range(len(some)))
        found.update(some[index] for index in suspects if without_secrets(some[index]) != some[index])
    return found


def without_secrets(path: str) -> str:
    """A path with ``(secret)`` for every part of it that holds one."""
    parts = path.split("/")
    return "/".join("(secret)" if find_secrets(part, _PATH_OF_PATHS) else part for part in parts)


def _bounded_lines(text: str) -> tuple[Sequence[int], list[bytes]]:
    """Lines of at most `_PIECE_CHARACTERS`, and the number of each; a NUL, which would end a C string, becomes a space."""
    lines = text.replace("\0", " ").replace("\r\n", "\n").split("\n")
    if len(text.splitlines()) <= len(lines) and max(map(len, lines)) <= _PIECE_CHARACTERS:
        return range(1, len(lines) + 1), [line.encode(errors="replace") for line in lines]
    numbers, pieces = [], []
    for number, line in enumerate(lines, start=1):
        for part in [part for part in line.splitlines() if part.strip()] or [""]:
            for at in range(
                0, max(1, len(part) - _OVERLAP_CHARACTERS), _PIECE_CHARACTERS - _OVERLAP_CHARACTERS
            ):
                numbers.append(number)
                pieces.append(part[at : at + _PIECE_CHARACTERS].encode(errors="replace"))
    return numbers, pieces


def _found_in(lines: list[bytes], *, is_code: bool) -> Iterator[tuple[int, int, str]]:
    """(first, last, kind) by index of the line."""
    for first, last in private_key_lines(lines):
        yield first, last, "private key"
    data = b"\n".join(lines)
    starts = [0]
    for line in lines[:-1]:
        starts.append(starts[-1] + len(line) + 1)
    first = 0
    while True:
        last = max(first + 1, bisect.bisect_right(starts, starts[first] + _WINDOW_BYTES) - 1)
        for start, end, kind in _scanned(
            b"\n".join(lines[first:last] if last < len(lines) - 1 else lines[first:])
        ):
            yield min(first + start, len(lines) - 1), min(first + end, len(lines) - 1), kind
        if last >= len(lines) - 1:
            break
        overlap = bisect.bisect_left(starts, starts[last] - _OVERLAP_BYTES)
        first = max(first + 1, last - _OVERLAP_LINES, overlap)
    for offset, kind in credential_lines(data, is_code=is_code):
        at = bisect.bisect_right(starts, offset) - 1
        yield at, at, kind


def _scanned(window: bytes) -> Iterator[tuple[int, int, str]]:
    """What betterleaks finds: (first, last, kind), lines counted from 0."""
    from betterleaks import scan_string

    for finding in scan_string(_ALLOWED.sub(rb"\1 \2", window).decode(errors="replace"), str(_RULES)):
        if finding.confidence == "low" and not may_be_secret(finding.match.value):
            continue
        yield (
            finding.location.start_line - 1,
            max(finding.location.start_line, finding.location.end_line) - 1,
            finding.rule_id.replace("-", " "),
        )
