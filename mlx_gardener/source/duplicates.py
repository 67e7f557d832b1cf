"""Which files say the same: exactly, after white space is evened out, or nearly, by MinHash.

Near duplicates are files whose sets of five-word shingles have a Jaccard similarity of at least the threshold
(Broder 1997; 128 permutations estimate it to about 0.04). They are kept, but as one cluster, so that a split can
keep them on one side. Cost: about 0.5 KB a file.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rensa import RMinHash

PERMUTATIONS = 128
_BANDS = 32
#: Jaccard similarity from which files stay on one side of the split (judgement).
LEAST_SIMILARITY = 0.8
_WORD = re.compile(r"\w+")
#: Shorter files are compared exactly only: a few shingles say nothing about similarity.
_MIN_SHINGLES = 8


def content_key(text: str) -> bytes:
    """The same for texts that differ in white space only."""
    return hashlib.blake2b(" ".join(text.split()).encode(errors="replace"), digest_size=16).digest()


def shingles_of(text: str) -> list[str]:
    """The five-word shingles of a text, each once; a long text's are thinned to about 4,000."""
    words = _WORD.findall(text)
    found = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
    if len(found) > 4000:
        keep = 2**32 * 4000 // len(found)
        found = {
            item
            for item in found
            if int.from_bytes(hashlib.blake2b(item.encode(), digest_size=4).digest()) < keep
        }
    return sorted(found)


def signature_of(text: str) -> RMinHash | None:
    """The MinHash of a text's shingles; None where there are too few to say anything."""
    from rensa import RMinHash

    shingles = shingles_of(text)
    if len(shingles) < _MIN_SHINGLES:
        return None
    signature = RMinHash(num_perm=PERMUTATIONS, seed=1)
    signature.update(shingles)
    return signature


class NearDuplicates:
    """Files added one by one; says which earlier ones each is nearly the same as, by `LEAST_SIMILARITY`."""

    def __init__(self) -> None:
        from rensa import RMinHashLSH

        # Banding finds candidates at lower similarity; each is then compared by its whole signature.
        self._index = RMinHashLSH(threshold=LEAST_SIMILARITY, num_perm=PERMUTATIONS, num_bands=_BANDS)
        self._signatures: dict[int, RMinHash] = {}
        self._parent: list[int] = []

    def add(self, signature: RMinHash | None) -> int:
        """Add a file by its `signature_of`; returns its number, counted from 0."""
        number = len(self._parent)
        self._parent.append(number)
        if signature is None:
            return number
        for other in self._index.query(signature):
            if signature.jaccard(self._signatures[other]) >= LEAST_SIMILARITY:
                self._join(number, other)
        self._index.insert(number, signature)
        self._signatures[number] = signature
        return number

    def cluster_of(self, number: int) -> int:
        """The cluster of a file: the lowest number in it."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _join(self, first: int, second: int) -> None:
        low, high = sorted((self.cluster_of(first), self.cluster_of(second)))
        self._parent[high] = low
