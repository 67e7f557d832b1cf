"""Where does what is typed of the caret's line stand best in a fill-in-the-middle prompt: before the suffix, or behind the middle?

    python benchmarks/caret_line.py BASE SOURCES... [--lines 40] [--before 112] [--after 40]

Behind the marker of the middle a key would change the prompt's last tokens alone, and the code behind the caret would be read once for
a line (`keystrokes.py` counts what that saves). Here it is asked whether a base's answers are as right then. Lines are drawn from
the packages below SOURCES, half with the caret within a word, half elsewhere; what has to be written is the rest of the line. Forms:

- before: path, prefix with what is typed of the line, suffix, middle.
- before_healed: without the last word typed, which the first tokens written have to begin with.
- behind_healed: the same, and what is typed of the line follows the marker of the middle: as served, trained and measured.

Counted are lines of which greedy writing gives the whole rest, and bits per character of the rest in the tokenizer's own tokens (where
healed, given what is typed). What the forms have in common is read once. Cost: on two cores a second of processor time for each 16
tokens of a 1.5B base in 4 bits; 40 lines are ten minutes. Adds to ``results/caret_line.json``, base by base.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import RESULTS, describe, save

from mlx_gardener.evaluate.complete import Beginning, build_prompt
from mlx_gardener.model import BaseModel, load_base

FORMS = ("before", "before_healed", "behind_healed")
#: Longest rest of a line that is asked for, characters, and most tokens that are written of it.
LONGEST, TOKENS = 60, 20
_WORD = re.compile(r"\w\w")


@dataclass(frozen=True)
class Line:
    """A caret: lines above it, what is typed of its line, the rest of that, and the lines below."""

    path: str
    above: str
    typed: str
    rest: str
    below: str
    in_word: bool


def drawn(sources: tuple[Path, ...], count: int, seed: int) -> list[Line]:
    """Carets in Python files, as many within a word as not; from one file at most one of each."""
    choose = random.Random(seed)
    files = sorted(
        file
        for root in sources
        for file in root.rglob("*.py")
        if not {"tests", "test", "docs"} & set(file.parts) and file.stat().st_size > 2000
    )
    choose.shuffle(files)
    found: dict[bool, list[Line]] = {True: [], False: []}
    for file in files:
        lines = file.read_text(encoding="utf-8").split("\n")
        wanted = len(found[True]) > len(found[False])  # within a word, or not
        for _ in range(50):
            at = choose.randrange(8, max(9, len(lines) - 4))
            line = lines[at] if at < len(lines) else ""
            own = line.strip()
            if len(own) < 8 or own.startswith(("#", "import ", "from ", '"""')):
                continue
            caret = choose.randrange(len(line) - len(own) + 1, len(line) - 2)
            in_word = bool(_WORD.match(line[caret - 1 : caret + 1]))
            if in_word == wanted or len(line) - caret > LONGEST:
                continue
            above, below = "".join(f"{text}\n" for text in lines[:at]), "\n" + "\n".join(lines[at + 1 :])
            name = next(file.relative_to(root) for root in sources if file.is_relative_to(root)).as_posix()
            found[in_word].append(Line(name, above, line[:caret], line[caret:], below, in_word))
            break
        if len(found[True]) + len(found[False]) == count:
            break
    return [line for pair in zip(found[True], found[False], strict=False) for line in pair]


class Reader:
    """A base that has read some tokens; goes back to what two prompts begin with alike."""

    def __init__(self, base: BaseModel) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self._base, self._ids = base, list[int]()
        self._cache = make_prompt_cache(base.model)
        self.read = 0

    def scores(self, ids: list[int], last: int) -> Any:
        """Log-probabilities after each of the last tokens of ``ids``, (last, vocab)."""
        import mlx.core as mx
        from mlx_lm.models.cache import trim_prompt_cache

        same = next((at for at, pair in enumerate(zip(self._ids, ids, strict=False)) if pair[0] != pair[1]),
                    min(len(self._ids), len(ids)))  # fmt: skip
        same = min(same, len(ids) - last)
        trim_prompt_cache(self._cache, len(self._ids) - same)
        found = self._base.model(mx.array([ids[same:]]), cache=self._cache)[0, -last:].astype(mx.float32)
        found = found - mx.logsumexp(found, axis=-1, keepdims=True)
        mx.eval(found, [one.state for one in self._cache])
        self.read += len(ids) - same
        self._ids = list(ids)
        return found


def asked(base: BaseModel, line: Line, before: int, after: int) -> dict[str, tuple[list[int], str]]:
    """Of every form the prompt, and the text that what is written has to begin with."""
    tokenizer = base.tokenizer
    sizes = {"prefix_tokens": before, "suffix_tokens": after}
    above = build_prompt(tokenizer, line.above, line.below, line.path, **sizes)
    # What is shown of the lines above is the same in every form.
    marks = tokenizer.markers
    assert marks is not None and marks.order == "PSM" and marks.middle is not None
    end = above.index(marks.suffix)
    shown = tokenizer.decode(above[above.index(marks.prefix) + 1 : end])
    opening, behind = above[: above.index(marks.prefix) + 1], above[end:]
    begun = tokenizer.last_word(line.typed)
    left = line.typed[: len(line.typed) - len(begun)]
    return {
        "before": ([*opening, *tokenizer.encode(shown + line.typed), *behind], ""),
        "before_healed": ([*opening, *tokenizer.encode(shown + left), *behind], begun),
        "behind_healed": ([*above, *tokenizer.encode(left)], begun),
    }


def judged(reader: Reader, base: BaseModel, prompt: list[int], begun: str, rest: str) -> tuple[bool, float]:
    """Whether greedy writing gives ``begun`` and then ``rest``, and the bits of ``rest`` given ``begun``."""
    import mlx.core as mx
    import numpy as np

    target = begun + rest
    ids = base.tokenizer.encode(target)
    scores = np.array(reader.scores([*prompt, *ids[:-1]], len(ids)))
    bits = -sum(float(scores[at, token]) for at, token in enumerate(ids)) / math.log(2)

    beginning = Beginning(base.tokenizer, begun)
    if beginning.ids:
        bits += float(np.logaddexp.reduce(scores[0][beginning.ids])) / math.log(2)
    written: list[int] = []
    for _ in range(TOKENS):
        known = written == ids[: len(written)] and len(written) < len(ids)
        row = scores[len(written)] if known else np.array(reader.scores([*prompt, *written], 1))[0]
        if beginning.ids:
            row = np.where(np.isin(np.arange(len(row)), beginning.ids), row, -np.inf)
        written.append(int(row.argmax()))
        beginning.take(written[-1])
        text = base.tokenizer.decode(written)
        if text.startswith(target):
            return text[len(target) :].strip(" ")[:1] in ("", "\n"), bits
        if not target.startswith(text.rstrip("\ufffd")):
            return False, bits
    mx.clear_cache()
    return False, bits


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines that are right, and bits per character, of each form; and lines that only one of two forms has right."""
    characters = sum(row["characters"] for row in rows)
    found: dict[str, Any] = {"lines": len(rows), "characters": characters}
    for form in FORMS:
        found[form] = {
            "right": sum(row[form]["right"] for row in rows),
            "bits_per_character": round(sum(row[form]["bits"] for row in rows) / max(1, characters), 3),
            "only_this_right": sum(row[form]["right"] and not row["before"]["right"] for row in rows),
            "only_before_right": sum(row["before"]["right"] and not row[form]["right"] for row in rows),
        }
    return found


def measure(
    model: str, lines: list[Line], sizes: tuple[int, int], tell: Callable[[dict[str, Any]], None]
) -> None:
    """All lines in turn; what is known so far is told after each."""
    base = load_base(model)
    rows: list[dict[str, Any]] = []
    before = describe()
    start = time.process_time()
    reader = Reader(base)
    for line in lines:
        row: dict[str, Any] = {"characters": len(line.rest), "in_word": line.in_word}
        for form, (prompt, begun) in asked(base, line, *sizes).items():
            right, bits = judged(reader, base, prompt, begun, line.rest)
            row[form] = {"right": right, "bits": bits}
        rows.append(row)
        told = {**asdict(line), "above": line.above[-60:], "below": line.below[:60], **row}
        print(json.dumps(told), file=sys.stderr, flush=True)
        tell(
            {
                "machine": before,
                "shown_tokens": list(sizes),
                "tokens_read": reader.read,
                "cpu_seconds": round(time.process_time() - start),
                "all": summary(rows),
                "within_a_word": summary([one for one in rows if one["in_word"]]),
                "elsewhere": summary([one for one in rows if not one["in_word"]]),
            }
        )


@click.command()
@click.argument("model")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--lines", default=40, show_default=True)
@click.option("--before", default=112, show_default=True, help="Tokens before the caret that are shown.")
@click.option("--after", default=40, show_default=True, help="Tokens after it.")
@click.option("--seed", default=11, show_default=True)
def main(model: str, sources: tuple[Path, ...], lines: int, before: int, after: int, seed: int) -> None:
    known = RESULTS / "caret_line.json"

    def tell(found: dict[str, Any]) -> None:
        bases = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        found = {**found, "packages": sorted(source.name for source in sources)}
        save("caret_line", {**bases, Path(model).name: found})

    measure(model, drawn(sources, lines, seed), (before, after), tell)
    print(known.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
