"""Arrays in one file that says whether it is whole: safetensors, with a sha256 over everything in its metadata.

In: arrays and a few words about them. Out: the same, the arrays mapped from the file and read as they are looked at. Cost: writing
or reading every byte once; memory holds what was looked at, and the system may take it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.platform.files import fsync_path, private
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import open_regular, parse_json, read_header

if TYPE_CHECKING:
    import numpy as np

_TYPES = {
    "U8": "uint8",
    "U16": "uint16",
    "U64": "uint64",
    "I32": "int32",
    "I64": "int64",
    "F32": "float32",
}


def write_sealed(place: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write arrays beside their place and rename them there, 0600.

    Writers that are killed leave ``.NAME.PID.new`` (`registry.remnants`).

    Args:
        about: whatever JSON can say.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    words = json.dumps(about, sort_keys=True)
    staged = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        with open(staged, "wb", opener=private):
            pass  # the library makes files as the umask says, and keeps the rights of one that is there
        staged.chmod(0o600)
        metadata = {"about": words, "sha256": _seal(arrays, words)}
        save_file(dict(arrays), staged, metadata=metadata)
        fsync_path(staged)
        staged.replace(place)
        fsync_path(place.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise
        raise OSError(f"safetensors: {reason_of(error)}") from error


def read_sealed(place: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `write_sealed`, read-only and mapped, and what is said about them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not the one that was written.
    """
    import numpy as np
    from safetensors import safe_open

    header = read_header(place, follow_links=False)
    with safe_open(place, framework="numpy") as stream:
        metadata = stream.metadata() or {}
    with open_regular(place, follow_links=False) as stream:
        begin = 8 + int(struct.unpack("<Q", stream.read(8))[0])
        whole = np.memmap(stream, dtype=np.uint8, mode="r")
    arrays = {}
    for name, entry in header.items():
        kind = _TYPES.get(entry["dtype"])
        if kind is None:
            raise ValueError(f"{name} is of the type {entry['dtype']}")
        first, end = entry["data_offsets"]
        arrays[name] = whole[begin + first : begin + end].view(kind).reshape(entry["shape"])
    words = metadata.get("about", "")
    if metadata.get("sha256") != _seal(arrays, words):
        raise ValueError("it is not the one that was written")
    about = parse_json(words)
    if not isinstance(about, dict):
        raise ValueError("it does not say what it is about")
    return arrays, about


def _seal(arrays: Mapping[str, np.ndarray], words: str) -> str:
    digest = hashlib.sha256(words.encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"\0{name} {value.dtype.str} {value.shape}\0".encode())
        digest.update(value.reshape(-1).view("uint8").data)
    return digest.hexdigest()
