"""Lines of private keys, whatever is left of them: head, body and foot, or any one of the three.

In: the lines of a whole file, as bytes. Out: first and last index of every stretch that belongs to a private key. A key
may be indented, quoted, commented out, spaced with blank lines, or have lost its first or its last lines. Certificates, public
keys and signatures are no secrets. Cost: one look at a line, in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import re2

_KEY = rb"(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?"
_HEAD = re2.compile(rb"(?i)-{4,5} ?BEGIN " + _KEY + rb" ?-{4,5}|\bPuTTY-User-Key-File-\d")
_FOOT = re2.compile(rb"(?i)-{4,5} ?END " + _KEY + rb" ?-{4,5}|\bPrivate-MAC:")
_PUBLIC_HEAD = re2.compile(
    rb"-{4,5} ?BEGIN (?:[A-Z0-9]+ )*(?:CERTIFICATE|PUBLIC KEY|SIGNATURE|MESSAGE|PARAMETERS|CRL|REQUEST)"
)
_PUBLIC_FOOT = re2.compile(rb"-{4,5} ?END ")
#: The first bytes of keys in PEM (PKCS#1, PKCS#8, SEC 1), OpenSSH's and PGP's form, and of PEM encoded once more.
_START = re2.compile(
    rb"(?:^|[^A-Za-z0-9+/])(?:MII[BCEGJ][A-Za-z0-9+/]{6}(?:IBAA|AQAB|ADAN|wggS|Ajx0|QDBQ)|MH[cQ]CAQE|M[CDIG][4ECH][A-Z]AQA|"
    rb"b3BlbnNzaC1rZXktdjE|lQ[OHPc][A-Za-z0-9+/]{30})|LS0tLS1CRUdJTi(?:BSU0EgUFJJ|BQUklWQVRF|BFQyBQUklW|BPUEVOU1NI|BFTkNSWVBU|BEU0EgUFJJ|"
    rb"BQR1AgUFJJ)"
)  # fmt: skip
_RUN = re.compile(rb"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/=]{40,}")
_SHORT_BODY = re.compile(rb"[A-Za-z0-9+/=]{1,100}")
_HEX_HEAD = re2.compile(rb"^\s*(?:privateExponent|prime[12]|exponent[12]|coefficient|priv):\s*$")
_HEX_BODY = re2.compile(rb"^\s*(?:[0-9a-f]{2}:)+(?:[0-9a-f]{2})?\s*$")
#: What indents, quotes, joins or comments out a line; the base64 signs among them make no difference at an end.
_EDGES = b" \t>|#*-;:,.\"'`()[]{}<\\+/"
#: Other lines that may stand between lines of a key, at most so many in a row.
_MOST_BETWEEN = 3
#: Lines of a key that has lost its head and its foot, at least.
_LEAST_ALONE = 3
#: A shorter line is no body, and one shorter still (``priv:``) gives no key away: a file may have a million of them.
_LEAST_BODY, _LEAST_LINE = 40, 5


def private_key_lines(lines: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """First and last index (inclusive) of every stretch of ``lines`` that belongs to a private key, in rising order."""
    bodies = [len(line) >= _LEAST_BODY and _is_body(line) for line in lines]
    public = _public_lines(lines) if any(bodies) else set()
    done = -1
    for at, line in enumerate(lines):
        if at <= done or len(line) < _LEAST_LINE:
            continue
        stretch = _stretch_at(lines, bodies, public, at, done + 1)
        if stretch is not None:
            done = stretch[1]
            yield stretch


def _stretch_at(
    lines: Sequence[bytes], bodies: Sequence[bool], public: set[int], at: int, least: int
) -> tuple[int, int] | None:
    """The stretch of a key that line ``at`` gives away; it begins at ``least`` or later."""
    line = lines[at]
    is_mark = b"---" in line or b"PuTTY" in line or b"-MAC" in line
    if is_mark and _HEAD.search(line):
        return at, _last_of(lines, bodies, at)
    if is_mark and _FOOT.search(line):
        return _first_of(lines, bodies, at, least), at
    if line.rstrip().endswith(b":") and _HEX_HEAD.search(line):
        end = at
        while end + 1 < len(lines) and (not lines[end + 1].strip() or _HEX_BODY.search(lines[end + 1])):
            end += 1
        return at, end
    if bodies[at] and at not in public:
        end, count = _run_from(lines, bodies, at)
        return (at, end) if count >= _LEAST_ALONE or _START.search(line) else None
    return (at, at) if b"LS0tLS1" in line and _START.search(line) else None


def _is_body(line: bytes) -> bool:
    """Whether a line is mostly one run of base64 with capitals, small letters and digits."""
    core = _core(line)
    if len(core) < _LEAST_BODY:
        return False
    run = _RUN.search(core)
    if run is None or len(run[0]) < 0.6 * len(core):
        return False
    text = run[0]
    return not (text.islower() or text.isupper()) and any(48 <= byte < 58 for byte in text)


def _core(line: bytes) -> bytes:
    core = line.strip(_EDGES)
    while core.endswith((b"\\n", b"\\r")):
        core = core[:-2].strip(_EDGES)
    return core


def _belongs(line: bytes) -> bool:
    """Whether a line near other lines of a key may be one: blank, or base64 however short."""
    core = _core(line)
    return not core or _SHORT_BODY.fullmatch(core) is not None


def _last_of(lines: Sequence[bytes], bodies: Sequence[bool], head: int) -> int:
    """The last line of a key whose head stands at ``head``."""
    if _FOOT.search(lines[head]):
        return head
    last, between = head, 0
    for at in range(head + 1, len(lines)):
        line = lines[at]
        if b"-" in line and _FOOT.search(line):
            return at
        if bodies[at] or _belongs(line) or (b"---" in line and _HEAD.search(line)):
            if line.strip():
                last = at
            between = 0
        else:
            between += 1
            if between > _MOST_BETWEEN:
                break
    return last


def _first_of(lines: Sequence[bytes], bodies: Sequence[bool], foot: int, least: int) -> int:
    """The first line of a key that has a foot at ``foot`` and no head."""
    first, between = foot, 0
    for at in range(foot - 1, least - 1, -1):
        line = lines[at]
        if b"-" in line and (_FOOT.search(line) or _PUBLIC_FOOT.search(line)):
            break
        if bodies[at] or (between == 0 and _belongs(line)):
            if line.strip():
                first = at
            between = 0
        else:
            between += 1
            if between > _MOST_BETWEEN:
                break
    return first


def _run_from(lines: Sequence[bytes], bodies: Sequence[bool], start: int) -> tuple[int, int]:
    """The last line of a run of base64 lines from ``start`` on, and how many they are.

    Blank lines do not end it, and a short line at its end belongs to it.
    """
    last, count = start, 1
    for at in range(start + 1, len(lines)):
        if bodies[at]:
            last, count = at, count + 1
        elif lines[at].strip():
            core = _core(lines[at])
            return (at if core and _SHORT_BODY.fullmatch(core) else last), count
    return last, count


def _public_lines(lines: Sequence[bytes]) -> set[int]:
    """Lines of certificates, public keys and signatures."""
    found: set[int] = set()
    inside = False
    for at, line in enumerate(lines):
        if b"---" in line:
            inside = _PUBLIC_HEAD.search(line) is not None or (
                inside and _PUBLIC_FOOT.search(line) is None and _HEAD.search(line) is None
            )
        if inside:
            found.add(at)
    return found
