"""Files that others wrote, read as JSON or as safetensors and as nothing else.

Whatever the bytes are, the answer is a value, an ``OSError`` or a ``ValueError``: no pipe is waited for, no more is read
than a file of its kind can sensibly hold, and a header's claims are compared with the file's size before any array is
made of them. Cost: a header's parse, milliseconds however large the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

#: Far above any config, manifest or tokenizer (the largest known tokenizer.json has 35 MB).
MAX_JSON_BYTES = 128 * 2**20
#: Far above any source or settings file that a person wrote.
MAX_TEXT_BYTES = 64 * 2**20
#: safetensors' own limit.
MAX_HEADER_BYTES = 100_000_000
#: What Git leaves in a file's place where Git LFS did not fetch it (https://git-lfs.com, "spec/v1").
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def open_regular(file: Path, *, follow_links: bool = True) -> io.BufferedReader:
    """Open a plain file to read it; a pipe or device is refused instead of waited for.

    Args:
        follow_links: whether the file itself may be a symbolic link (the hub's cache is made of them).

    Raises:
        OSError: it cannot be opened, or is a link and may not be one.
        ValueError: it is a directory, or no plain file either.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(file, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ValueError(f"{file.name or file} is {'a directory' if stat.S_ISDIR(mode) else 'no plain file'}")
    return os.fdopen(descriptor, "rb")


def sha256_of(file: Path, *, follow_links: bool = False) -> str:
    """sha256 of a plain file's content, in hexadecimal.

    Raises:
        OSError, ValueError: as `open_regular`.
    """
    with open_regular(file, follow_links=follow_links) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_file(file: Path) -> Path:
    """``file``, or what it is a link to where it lies in a snapshot of the hub's cache, whose files are links to blobs.

    Raises:
        OSError: it cannot be found.
        ValueError: it is a link that leaves its repository's part of the cache, or is not in the cache.
    """
    if not file.is_symlink():
        return file
    above = Path(os.path.realpath(file.parent))
    snapshots = next((place for place in (above, *above.parents) if place.parent.name == "snapshots"), None)
    repository = None if snapshots is None else snapshots.parent.parent
    target = Path(os.path.realpath(file, strict=True))  # Path's own says RuntimeError of a loop
    if repository is None or not repository.name.startswith("models--"):
        raise ValueError(f"{file.name} is a symbolic link, which is followed in the hub's cache only")
    if not target.is_relative_to(repository):
        raise ValueError(f"{file.name} is a symbolic link that leads out of the hub's cache")
    return target


def refuse_pointer(name: str, start: bytes) -> None:
    """Raises ValueError where a file begins as what Git LFS leaves in its place."""
    if start.startswith(_LFS_POINTER):
        raise ValueError(f"{name} is a Git LFS pointer, not the file itself: `git lfs pull` fetches that")


def read_bytes(file: Path, *, max_bytes: int, follow_links: bool = True) -> bytes:
    """The content of a plain file of at most ``max_bytes``.

    Raises:
        OSError, ValueError: as `open_regular`, or it is longer.
    """
    with open_regular(file, follow_links=follow_links) as stream:
        size = min(os.fstat(stream.fileno()).st_size, max_bytes)
        data = stream.read(size + 1)  # the buffer is made before anything is read
        if len(data) > size:  # it grew, or is longer than allowed
            data += stream.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise ValueError(f"{file.name} is longer than {max_bytes} bytes")
    return data


def read_text(file: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a plain file in UTF-8, with every line end as ``\\n``.

    Raises:
        OSError, ValueError: as `read_bytes`, or it is no UTF-8 (`UnicodeDecodeError`).
    """
    return read_bytes(file, max_bytes=max_bytes).decode().replace("\r\n", "\n").replace("\r", "\n")


def read_head(file: Path, count: int) -> bytes:
    """The first ``count`` bytes of a plain file, or all where there are fewer.

    Raises:
        OSError, ValueError: as `open_regular`.
    """
    with open_regular(file) as stream:
        return stream.read(min(count, os.fstat(stream.fileno()).st_size))


def parse_json(data: bytes | str) -> Any:
    """JSON in UTF-8.

    Raises:
        ValueError: it is none, or nested deeper than can be read.
    """
    try:
        return json.loads(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: Path, *, max_bytes: int = MAX_JSON_BYTES, follow_links: bool = True) -> Any:
    """The value in a JSON file.

    Raises:
        OSError, ValueError: as `read_bytes` and `parse_json`.
    """
    data = read_bytes(file, max_bytes=max_bytes, follow_links=follow_links)
    refuse_pointer(file.name, data)
    return parse_json(data)


def read_header(file: Path, *, follow_links: bool = True) -> dict[str, Any]:
    """What a safetensors file says of each of its arrays: dtype, shape, data_offsets (bytes after the header).

    The header has been checked: types and shapes agree with the offsets, and these with the size of the file.

    Raises:
        OSError, ValueError: it cannot be read, or a claim is not true.
    """
    from safetensors import SafetensorError, safe_open

    with open_regular(file, follow_links=follow_links) as stream:
        start = stream.read(len(_LFS_POINTER))
        refuse_pointer(file.name, start)
        if len(start) < 8:
            raise ValueError("it is too short to be a safetensors file")
        (length,) = struct.unpack("<Q", start[:8])
        if length > MAX_HEADER_BYTES:
            raise ValueError("its header is longer than 100 MB")
        stream.seek(8)
        data = stream.read(length)
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    header = parse_json(data)
    header.pop("__metadata__", None)
    return dict(header)
