"""Real code of mixed lengths as tokens: the functions and classes of this repository's own Python files.

The chunks are those that the scanner cuts, left to right, each ended by the end-of-text token; longer ones than a row
are cut into rows. A small set with the same lengths as all of them is taken, so that a whole pass over it fits a short run.
"""

from __future__ import annotations

import random
from pathlib import Path

from mlx_gardener.model import CodeTokenizer
from mlx_gardener.source import CodePreprocessor

ROOT = Path(__file__).parents[1] / "mlx_gardener"
LEAST_TOKENS = 16


def own_documents(
    tokenizer: CodeTokenizer, width: int, count: int
) -> tuple[list[list[int]], list[list[int]]]:
    """(``count`` documents in a fixed random order, the four longest of all others), token ids of at most ``width``.

    The documents stand at equal steps of the sorted lengths, so that their lengths are spread as those of all code here.
    """
    preprocessor = CodePreprocessor()
    everything: list[list[int]] = []
    for file in sorted(ROOT.rglob("*.py")):
        name = file.relative_to(ROOT.parent).as_posix()
        chunks = preprocessor.preprocess_file(name, file.read_text(encoding="utf-8"))
        for tokens in tokenizer.encode_many([chunk.content for chunk in chunks]):
            tokens = [*tokens, tokenizer.eos_id]
            everything += [tokens[at : at + width] for at in range(0, len(tokens), width)]
    everything = sorted((tokens for tokens in everything if len(tokens) >= LEAST_TOKENS), key=len)
    everything, longest = everything[:-4], everything[-4:]
    chosen = [everything[int((number + 0.5) * len(everything) / count)] for number in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen, longest
