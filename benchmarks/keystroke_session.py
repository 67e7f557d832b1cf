"""An editing session as data: two versions of a package as somebody's keystrokes from one to the other.

    python benchmarks/keystroke_session.py OLD NEW benchmarks/sessions/NAME.json

In: two unpacked source distributions of a permissively licensed package. Out: the files as they were, and keys: where the caret stood,
how many characters were taken away, what was typed, and whether the editor asked for a completion then. Lines that are much alike are
changed where they differ, others are taken out and written anew, a character at a time, some wrong and taken back; of two pauses
between characters one is long enough for a request about every third time, and always after a line's end. Changes of more than
some lines are left out, and who edits goes from file to file and comes back. Seeds make it the same again.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

#: How often a pause is long enough, how often a character is a wrong one, and how alike lines are that are changed in place.
ASKED, WRONG, ALIKE = 0.3, 0.02, 0.5
#: Longest change, characters.
MOST_TYPED = 240
#: Changes at a place before somebody goes to another file.
TURN = 2


@dataclass(frozen=True)
class Key:
    """One key: in ``file``, ``taken`` characters before ``at`` are taken away, then ``typed`` is put there."""

    file: str
    at: int
    taken: int
    typed: str
    asks: bool


def replayed(session: dict[str, Any]) -> Iterator[tuple[Key, str, int]]:
    """Every key with its file's text after it, and where the caret stands."""
    texts = dict(session["files"])
    for file, at, taken, typed, asks in session["keys"]:
        text = texts[file]
        texts[file] = text[: at - taken] + typed + text[at:]
        yield Key(file, at, taken, typed, bool(asks)), texts[file], at - taken + len(typed)


def changes(old: str, new: str) -> list[tuple[int, int, str]]:
    """What turns ``old`` into ``new``: (start, end, text) in ``old``, in order; characters."""
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    starts = [0]
    for line in before:
        starts.append(starts[-1] + len(line))
    found: list[tuple[int, int, str]] = []
    for kind, first, last, start, end in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        text = "".join(after[start:end])
        if kind == "equal" or len(text) > MOST_TYPED:
            continue
        inside = difflib.SequenceMatcher(None, "".join(before[first:last]), text, False)
        if kind == "replace" and last - first == end - start and inside.ratio() > ALIKE:
            found += [
                (starts[first] + a, starts[first] + b, text[c:d])
                for what, a, b, c, d in inside.get_opcodes()
                if what != "equal"
            ]
        else:
            found.append((starts[first], starts[last], text))
    return found


def keys_of(file: str, old: str, new: str, draw: random.Random) -> list[list[Key]]:
    """The keys of each change of a file, from its top to its end."""
    found, moved = [], 0
    for start, end, text in changes(old, new):
        at, keys = start + moved, []
        if end > start:
            keys.append(Key(file, end + moved, end - start, "", False))
        for character in text:
            if character.isalpha() and draw.random() < WRONG:
                keys.append(Key(file, at, 0, draw.choice("etaoin"), draw.random() < ASKED))
                keys.append(Key(file, at + 1, 1, "", draw.random() < ASKED))
            keys.append(Key(file, at, 0, character, character == "\n" or draw.random() < ASKED))
            at += 1
        moved += len(text) - (end - start)
        found.append(keys)
    return found


@click.command()
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--file", "files", multiple=True, required=True, help="A file of both, by its path in them.")
@click.option("--requests", default=200, show_default=True, help="The session ends after about so many.")
@click.option("--licence", default="LICENSE.txt", show_default=True)
def main(old: Path, new: Path, out: Path, files: tuple[str, ...], requests: int, licence: str) -> None:
    draw = random.Random(7)
    texts = {file: (old / file).read_text(encoding="utf-8") for file in files}
    waiting = [
        keys_of(file, text, (new / file).read_text(encoding="utf-8"), draw) for file, text in texts.items()
    ]
    keys: list[Key] = []
    while any(waiting) and sum(key.asks for key in keys) < requests:
        for own in waiting:
            for change in own[:TURN]:
                keys += change
            del own[:TURN]
    touched = {key.file for key in keys}
    session = {
        "source": f"{old.name} to {new.name}, source distributions on PyPI",
        "licence": (old / licence).read_text(encoding="utf-8"),
        "files": {file: text for file, text in texts.items() if file in touched},
        "keys": [[key.file, key.at, key.taken, key.typed, int(key.asks)] for key in keys],
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(session, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(keys)} keys, {sum(key.asks for key in keys)} requests")


if __name__ == "__main__":
    main()
