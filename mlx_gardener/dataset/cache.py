"""Token ids on disk, by tokenizer and content: an unchanged text is never tokenised twice.

One SQLite file; the key is blake2b over the tokenizer's fingerprint and the text, the value the ids as int32. A
damaged cache is made anew. Cost: about 4 bytes a token on disk.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.platform.files import make_private

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.model import CodeTokenizer


class TokenCache:
    """A tokenizer that remembers.

    Args:
        directory: where the cache lies; made (0700) when missing.
    """

    def __init__(self, directory: Path, tokenizer: CodeTokenizer) -> None:
        self.tokenizer = tokenizer
        self.hits = self.misses = 0
        make_private(directory)
        self._path = directory / "tokens.sqlite3"
        try:
            self._database = self._open()
        except sqlite3.DatabaseError:
            self._path.unlink()  # only a cache: what it held can be made again
            self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)  # SQLite gives its log the rights of the file
        self._path.chmod(0o600)
        database = sqlite3.connect(self._path, isolation_level=None, timeout=30)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            "CREATE TABLE IF NOT EXISTS tokens (key BLOB PRIMARY KEY, ids BLOB NOT NULL) WITHOUT ROWID"
        )
        return database

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of every text, int32, from the cache where they are known."""
        import numpy as np

        keys = [self._key(text) for text in texts]
        known: dict[bytes, bytes] = {}
        for at in range(0, len(keys), 500):
            some = keys[at : at + 500]
            query = f"SELECT key, ids FROM tokens WHERE key IN ({','.join('?' * len(some))})"
            known.update(self._database.execute(query, some))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            encoded = self.tokenizer.encode_many(list(missing.values()))
            fresh = {
                key: np.array(ids, dtype=np.int32).tobytes()
                for key, ids in zip(missing, encoded, strict=True)
            }
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?)", fresh.items())
            self._database.execute("COMMIT")
            known.update(fresh)
        self.misses += len(missing)
        self.hits += len(texts) - len(missing)
        return [np.frombuffer(known[key], dtype=np.int32) for key in keys]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, text: str) -> bytes:
        digest = hashlib.blake2b(self.tokenizer.fingerprint.encode(), digest_size=20)
        digest.update(text.encode(errors="surrogatepass"))
        return digest.digest()
