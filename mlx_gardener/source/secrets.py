"""Places where a text seems to hold a secret. The chunk around one is dropped whole: a placeholder would be learned.

The patterns are detect-secrets' own (run in this process, its verification over the network off), plus private keys,
URLs with passwords, and assignments of random-looking text to names like ``api_key``. Found values are never kept.
Cost: one regular expression over the text; only lines it finds suspicious are looked at closely.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache
from typing import Any

#: A line worth a close look: a long unbroken run with a digit in it, a key's head, or a URL with a password.
_SUSPICIOUS = re.compile(
    r"(?=[A-Za-z_+/=.-]{0,200}\d)[A-Za-z0-9_+/=.-]{16,}|-----BEGIN|://[^\s/@:'\"]{1,100}:[^\s/@'\"]{3,}@|passw",
    re.I,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/@:'\"]{1,100}:([^\s/@'\"]{3,100})@", re.I)
_ASSIGNED = re.compile(
    r"(?:api[_-]?key|secret|token|passw(?:or)?d|passphrase|private[_-]?key|credential|access[_-]?key)\w{0,20}['\"]?\s*"
    r"(?:[:=]|=>|:=)\s*['\"]([^'\"\s]{12,200})['\"]",
    re.I,
)
_PLACEHOLDER = re.compile(
    r"example|placeholder|change.?me|your|dummy|x{4,}|\*{3,}|<.*>|\$\{|\{\{|%\(|secret|password", re.I
)
#: Below this many bits per character a text reads like words, above like a key (judgement, on real repositories).
_KEY_ENTROPY_BITS = 3.5


def find_secrets(text: str) -> list[tuple[int, str]]:
    """(line, kind) of every suspected secret, lines counted from 1, at most one a line."""
    found: list[tuple[int, str]] = []
    seen = -1
    for match in _SUSPICIOUS.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        if start == seen:
            continue
        seen = start
        end = text.find("\n", match.end())
        line = text[start : len(text) if end < 0 else end]
        kind = _kind_of(line)
        if kind is not None:
            found.append((text.count("\n", 0, start) + 1, kind))
    return found


def _kind_of(line: str) -> str | None:
    if _PRIVATE_KEY.search(line):
        return "private key"
    url = _URL_PASSWORD.search(line)
    if url and not _PLACEHOLDER.search(url[1]) and not url[1].startswith(("$", "{", "<", "%")):
        return "password in a URL"
    assigned = _ASSIGNED.search(line)
    if assigned and not _PLACEHOLDER.search(assigned[1]) and _looks_random(assigned[1]):
        return "assigned secret"
    for plugin in _plugins():
        for value in plugin.analyze_string(line):
            if not _PLACEHOLDER.search(value):
                return str(plugin.secret_type)
    return None


def _looks_random(value: str) -> bool:
    has_both = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    return has_both and entropy >= _KEY_ENTROPY_BITS


@cache
def _plugins() -> tuple[Any, ...]:
    """detect-secrets' detectors of definite formats; the entropy and keyword ones fire on ordinary code."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    left_out = {"PrivateKeyDetector", "BasicAuthDetector", "IPPublicDetector", "KeywordDetector"}
    classes = get_mapping_from_secret_type_to_class().values()
    return tuple(
        made() for made in classes if issubclass(made, RegexBasedDetector) and made.__name__ not in left_out
    )
