"""What code defines, and how a definition is told in a line: rules about text, the same for all languages.

In: a piece of code. Out: names, signatures, and the words by which an index knows who defines a name. Where a grammar knows more
names (`ChunkRecord.defined_names`) an index gets both. Cost: a tenth of a second for a MB.
"""

from __future__ import annotations

import re

_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:\([^)\n]*\))?|unsafe|override|open"
    r"|suspend|const|extern|inline|data|sealed|case|declare|virtual|partial)[ \t]+)*"
)
_DEFINES = re.compile(
    rf"^[ \t]*{_MODIFIERS}(?:def|class|func|fn|fun|function\*?|interface|trait|struct|enum|type|module|object|protocol|record|union"
    r"|macro_rules!)[ \t]+(?:\([^)\n]*\)[ \t]*)?([^\W\d]\w*)",
    re.M,
)
_ASSIGNS = re.compile(
    r"^(?:export[ \t]+)?(?:(?:const|let|var|static|val|final)[ \t]+)?([^\W\d]\w*)[ \t]*(?::[^=\n]{1,200})?=(?!=)",
    re.M,
)
#: A line that is neither blank nor a comment nor a decorator.
_CODE = re.compile(r"^[ \t]*(?![@#*\s]|//|/\*).+", re.M)
#: Characters of a signature, at most.
_SIGNATURE = 300


def defining_word(name: str) -> str:
    """The word by which an index knows the chunks that define a name; no text holds it."""
    return f"\0defines {name}"


def names_defined_in(text: str) -> list[str]:
    """The names that code defines, each once: functions, classes, types, and what is assigned without indentation."""
    found = [match[1] for pattern in (_DEFINES, _ASSIGNS) for match in pattern.finditer(text)]
    return [name for name in dict.fromkeys(found) if len(name) > 2]


def signatures_of(text: str) -> list[str]:
    """The signatures in a piece of code, each in one line with its indentation; its first line where none has a word for it."""
    found = [_signature(text, match.start()) for match in _DEFINES.finditer(text)]
    if not found:
        found = [_signature(text, match.start()) for match in _ASSIGNS.finditer(text)]
    if not found and (first := _CODE.search(text)) is not None:  # a method in C's manner
        found = [_signature(text, first.start())]
    return found


def _signature(text: str, start: int) -> str:
    """From the line at ``start`` to what ends its head: a brace, a line's end, or a colon before one, outside of brackets."""
    depth, end = 0, min(len(text), start + _SIGNATURE)
    for at in range(start, end):
        letter = text[at]
        depth += (letter in "([") - (letter in ")]")
        if depth <= 0 and (letter in "{\n" or text[at : at + 2] == ":\n"):
            end = at
            break
    head = text[start:end]
    return head[: len(head) - len(head.lstrip())] + " ".join(head.split())
