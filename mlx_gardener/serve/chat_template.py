"""A chat template, rendered in a process of its own: it comes with a model and may loop for ever or fill the memory.

Run as a file, so that nothing but Jinja is imported. In, on standard input: JSON with ``template`` and ``values``. Out:
JSON with ``text``, or with ``error``. Whoever starts it watches its time and memory (`serve.chats`).
"""

from __future__ import annotations

import json
import sys
from typing import NoReturn

#: Longest text that a template may write, characters.
MOST_CHARACTERS = 4 * 2**20


def render(template: str, values: dict[str, object]) -> str:
    """What a template makes of ``values``.

    Raises:
        Exception: of any kind; templates are programs.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    parts: list[str] = []
    length = 0
    for part in environment.from_string(template).generate(**values):
        length += len(part)
        if length > MOST_CHARACTERS:
            raise ValueError(f"it writes more than {MOST_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def main() -> None:
    """Render what standard input has, and say what came of it."""
    given = json.load(sys.stdin)
    try:
        answer = {"text": render(given["template"], given["values"])}
    except Exception as error:  # a template's, of whatever kind: it is the answer
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
