"""Keys and values of recent prompts, so that what two prompts begin with alike is read once.

In: a prompt's token ids. Out: a `Reading`, a model's cache that has read a beginning of them. Two beginnings count. Up to ``exact``
tokens were read in the blocks of offline (`evaluate.complete.PREFILL_TOKENS`), and what is computed after them is offline's sum, bit
for bit; after that come tokens as they were typed, in pieces of any length, whose sums may differ in their last bits (`serve.drafts`
says what that takes). A prompt that goes on where a kept one stood takes its cache over; one that only begins alike (another
place in the file, the same code in front) gets a cache of its own that shares arrays until one of them is written to.
Cost: at most `_KEPT_BYTES` and `_KEPT_PROMPTS`, over all projects; a comparison of token ids with each kept prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_gardener.evaluate.complete import PREFILL_TOKENS

_KEPT_PROMPTS = 8
_KEPT_BYTES = 512 * 2**20
#: A beginning shorter than this is not worth a cache.
_LEAST_COMMON = 16

#: Whose keys and values these are: a base's identity and an adapter's.
Key = tuple[str, str]


@dataclass
class Reading:
    """A model's cache and what it has read.

    Attributes:
        cache: mlx-lm's, one a layer.
        ids: the tokens in it.
        exact: so many of them were read as offline reads them; whole blocks.
        written: the last answer at this place, behind the tokens before it: a good guess at the next one.
    """

    cache: list[Any]
    ids: list[int] = field(default_factory=list)
    exact: int = 0
    written: list[int] = field(default_factory=list)

    def cut(self, tokens: int) -> None:
        """Forget all but the first ``tokens``."""
        for layer in self.cache:
            layer.trim(layer.offset - tokens)
        del self.ids[tokens:]
        self.exact = min(self.exact, tokens) // PREFILL_TOKENS * PREFILL_TOKENS

    def settle(self, prompt: list[int]) -> None:
        """Note what mlx-lm's generation from `exact` on has left of ``prompt`` in the cache, whole or interrupted."""
        if not self.can_be_cut:
            return
        read = min(self.cache[0].offset, len(prompt)) if self.cache else 0
        self.ids = prompt[:read]
        # The last token of a prompt is read alone.
        self.exact = min(read, len(prompt) - 1) // PREFILL_TOKENS * PREFILL_TOKENS
        self.cut(read)

    @property
    def can_be_cut(self) -> bool:
        """Whether the cache is of keys and values alone, position by position."""
        from mlx_lm.models.cache import KVCache

        return all(type(layer) is KVCache for layer in self.cache)

    @property
    def size_bytes(self) -> int:
        """What it takes."""
        return sum(layer.nbytes for layer in self.cache)


class PromptCaches:
    """The readings that are kept."""

    def __init__(self, kept: int = _KEPT_PROMPTS, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept, self._kept_bytes = kept, kept_bytes
        self._readings: list[tuple[Key, Reading]] = []  # the one used longest ago first

    def take(self, key: Key, prompt: list[int], model: Any, *, exactly: bool) -> Reading:
        """A reading of a beginning of ``prompt``, at least its last token short; it is the caller's now.

        Args:
            exactly: of what was read as offline reads it, alone.
        """
        from mlx_lm.models.cache import make_prompt_cache

        common, at = 0, -1
        for place, (whose, reading) in enumerate(self._readings):
            if whose == key:
                alike = min(_alike(reading.ids, prompt), len(prompt) - 1)
                if exactly:
                    alike = min(alike, reading.exact) // PREFILL_TOKENS * PREFILL_TOKENS
                if alike > common:
                    common, at = alike, place
        if common < _LEAST_COMMON:
            return Reading(make_prompt_cache(model))
        found = self._readings[at][1]
        if 2 * common >= len(found.ids):
            del self._readings[at]
        else:
            found = _shared(found)
        found.cut(common)
        return found

    def keep(self, key: Key, reading: Reading) -> None:
        """Keep a reading, where it can be cut back to what the next prompt has in common with it."""
        if len(reading.ids) < _LEAST_COMMON or not reading.can_be_cut:
            return
        self._readings.append((key, reading))
        while len(self._readings) > self._kept or (
            len(self._readings) > 1 and self.size_bytes > self._kept_bytes
        ):
            del self._readings[0]

    def clear(self) -> None:
        """Forget all of them."""
        self._readings.clear()

    @property
    def size_bytes(self) -> int:
        """What they take."""
        return sum(reading.size_bytes for _, reading in self._readings)


def _alike(first: list[int], second: list[int]) -> int:
    """How many tokens two lists begin with alike."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))


def _shared(reading: Reading) -> Reading:
    """Another reading over the same arrays; whichever is written to first gets arrays of its own."""
    from mlx_lm.models.cache import KVCache

    cache = []
    for layer in reading.cache:
        other = KVCache()
        # Arrays of their own to Python: what is written to a place of one is written to all that it is called by.
        other.keys, other.values = layer.keys[..., : layer.offset, :], layer.values[..., : layer.offset, :]
        other.offset = layer.offset
        cache.append(other)
    return Reading(cache, list(reading.ids), reading.exact, list(reading.written))
