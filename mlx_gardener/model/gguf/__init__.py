"""GGUF files, llama.cpp's and Ollama's, as bases: looked at, and read once into an ordinary MLX model folder.

In: a ``.gguf`` file, or any shard of several. Out: `GgufFacts`, from the header alone (0.05 s); or the path of a
folder with config.json, model.safetensors and tokenizer files, which everything else then treats as any base.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf.kept import (
    SOURCE_NAME,
    folder_name,
    found_folder,
    known_folder,
    note_source,
    source_files,
    source_of,
    source_sha256,
)
from mlx_gardener.model.gguf.reader import Gguf, kind_name, read_header, shards_of
from mlx_gardener.model.gguf.settings import NotReadableError
from mlx_gardener.platform.files import expanded, make_private
from mlx_gardener.platform.locks import hold
from mlx_gardener.platform.read_folders import LOCK_NAME, STAGED, identity
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import open_regular

if TYPE_CHECKING:
    from mlx_gardener.model.gguf.write import Layout

__all__ = [
    "SOURCE_NAME",
    "GgufFacts",
    "gguf_facts",
    "gguf_file",
    "gguf_header",
    "is_gguf",
    "known_folder",
    "not_trainable",
    "read_gguf",
    "source_files",
    "source_of",
    "source_sha256",
]

_OTHER_MODEL = "Choose another file of this model, or another model; docs/gguf.md lists what is read."


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF file's header says.

    Attributes:
        name: ``general.name``; the file's own without one.
        architecture: llama.cpp's name of it (``llama``, ``qwen2``).
        parameters: values of all tensors.
        quantisation: as llama.cpp calls it (``Q4_K_M``).
        context_length: tokens that it was trained for; 0 where the file does not say.
        licence: as the file spells it; None where it does not.
        has_fim_markers: whether its vocabulary has fill-in-the-middle markers that are known here.
        bytes: of the file, or of all its shards.
        why_not: why it cannot be trained on, a sentence; None where it can.
    """

    name: str
    architecture: str
    parameters: int
    quantisation: str
    context_length: int
    licence: str | None
    has_fim_markers: bool
    bytes: int
    why_not: str | None


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does, whatever it is called (Ollama's have no suffix)."""
    try:
        with open_regular(path) as stream:
            return stream.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def gguf_file(name: str) -> Path | None:
    """The GGUF file that ``name`` means: it, or the only one in a directory that holds no model folder (the first shard of one
    in shards; projectors of pictures, ``mmproj-...``, do not count). None for everything else.

    Raises:
        ModelError: the directory holds several; names them.
    """
    place = expanded(name)
    if is_gguf(place):
        return place
    if not place.is_dir() or (place / "config.json").exists():
        return None
    found = sorted(
        file for file in place.glob("*.gguf") if not file.name.startswith("mmproj") and is_gguf(file)
    )
    first = {shards_of(file)[0] for file in found}
    if len(first) > 1:
        names = ", ".join(sorted(file.name for file in first)[:8])
        raise ModelError(
            f"The directory {place.name!r} holds several models: {names}.", next_step="Name the file of one."
        )
    return next(iter(first), None)


def gguf_facts(path: Path) -> GgufFacts:
    """Facts of a GGUF file, or of all shards of which it is one; only headers are read.

    Raises:
        ModelError: it cannot be read, is no GGUF file, or a claim in its header is not true.
    """
    return gguf_header(path)[1]


def gguf_header(path: Path) -> tuple[Gguf, GgufFacts]:
    """The header of a GGUF file, of whose vocabulary only the markers are read, with its `gguf_facts`.

    Raises:
        ModelError: as `gguf_facts`.
    """
    from mlx_gardener.model.tokens import FIM_TEXTS

    gguf = _header_of(path, FIM_TEXTS)
    return gguf, _facts(gguf)


def read_gguf(
    path: Path, cache_dir: Path, tell: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """The model in a GGUF file as an MLX folder below ``cache_dir``; written once, found again by the file's sha256.

    Args:
        path: the file, or any shard of several.
        cache_dir: where such folders are kept; made where it is missing.
        tell: called with the bytes read so far and all there are; may raise, which stops the reading.

    Returns:
        The folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json.

    Raises:
        ModelError: as `gguf_facts`; or the architecture, a tensor's type or the tokenizer is not known here (named); or the
            disk has no room.
    """
    known = known_folder(path, cache_dir)
    if known is not None:
        return known
    gguf = _header_of(path)
    try:
        layout = _readable(gguf)
    except NotReadableError as error:
        raise not_trainable(path, str(error)) from error
    try:
        make_private(cache_dir)
        with hold(cache_dir / LOCK_NAME, make=True, wait_seconds=math.inf):
            return (
                known_folder(path, cache_dir)  # another process was faster
                or found_folder(gguf, cache_dir)
                or _written(gguf, layout, cache_dir, tell)
            )
    except (OSError, ValueError) as error:
        next_step = (
            _OTHER_MODEL if isinstance(error, NotReadableError) else "Make room, or fetch the file again."
        )
        raise ModelError(
            f"The GGUF file {path.name!r} cannot be read: {reason_of(error)}.", next_step=next_step
        ) from error


def not_trainable(path: Path, why_not: str) -> ModelError:
    """The error for a file whose `GgufFacts` say ``why_not``."""
    return ModelError(f"The GGUF file {path.name!r} cannot be trained on: {why_not}.", next_step=_OTHER_MODEL)


def _readable(gguf: Gguf) -> Layout:
    """What the file is written as, all of it looked at but the numbers.

    Raises:
        NotReadableError: it cannot be a base here; says why.
    """
    from mlx_gardener.model.gguf.architectures import model_config
    from mlx_gardener.model.gguf.tokenizer import check_tokenizer
    from mlx_gardener.model.gguf.write import layout_of

    model_config(gguf)
    check_tokenizer(gguf)
    return layout_of(gguf)


def _written(gguf: Gguf, layout: Layout, cache_dir: Path, tell: Callable[[int, int], None]) -> Path:
    from mlx_gardener.model.gguf.write import write_folder

    free = shutil.disk_usage(cache_dir).free
    if layout.bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"it takes {layout.bytes / 1e9:.1f} GB as a model folder, the disk has {free / 1e9:.1f} GB",
        )
    staged, before = Path(tempfile.mkdtemp(prefix=STAGED, dir=cache_dir)), identity(gguf.files)
    try:
        digest = write_folder(gguf, layout, staged, tell)
        if identity(gguf.files) != before:
            raise ValueError("it changed while it was read")
        about = {
            "name": _name(gguf),
            "sha256": digest,
            "files": [file.name for file in gguf.files],
            "architecture": gguf.architecture,
            "quantisation": _quantisation(gguf),
            "bytes": gguf.bytes,
        }
        (staged / SOURCE_NAME).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        folder = cache_dir / folder_name(_name(gguf), digest)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    note_source(gguf.files, cache_dir, digest)
    return folder


def _name(gguf: Gguf) -> str:
    """What the model is called for people: its file's name, or what its header says where that is a blob's."""
    file = gguf.files[0]
    return file.name if file.suffix == ".gguf" else f"{gguf.metadata.get('general.name') or 'model'}.gguf"


def _header_of(path: Path, only: frozenset[str] | None = None) -> Gguf:
    try:
        return read_header(path, only)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The GGUF file {path.name!r} cannot be read: {reason_of(error)}.",
            next_step="Fetch it again, or choose another model.",
        ) from error


def _facts(gguf: Gguf) -> GgufFacts:
    from mlx_gardener.model.tokens import knows_fim

    tokens = gguf.metadata.get("tokenizer.ggml.tokens", [])
    licence = gguf.metadata.get("general.license")
    context = gguf.get("context_length", 0)
    return GgufFacts(
        name=str(gguf.metadata.get("general.name") or gguf.files[0].stem),
        architecture=gguf.architecture,
        parameters=sum(tensor.rows * tensor.shape[-1] for tensor in gguf.tensors.values()),
        quantisation=_quantisation(gguf),
        context_length=context if isinstance(context, int) else 0,
        licence=licence if isinstance(licence, str) else None,
        has_fim_markers=knows_fim(tokens),
        bytes=gguf.bytes,
        why_not=_why_not(gguf),
    )


def _why_not(gguf: Gguf) -> str | None:
    try:
        _readable(gguf)
    except NotReadableError as error:
        return str(error)
    finally:
        gguf.close()
    return None


def _quantisation(gguf: Gguf) -> str:
    """llama.cpp's name of the whole; where the file does not say, that of the type of most bytes."""
    from gguf.constants import LlamaFileType

    said = gguf.metadata.get("general.file_type")
    try:
        name = LlamaFileType(said if isinstance(said, int) else -1).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        by_kind: dict[int, int] = {}
        for tensor in gguf.tensors.values():
            by_kind[tensor.kind] = by_kind.get(tensor.kind, 0) + tensor.bytes
        return kind_name(max(by_kind, key=lambda kind: by_kind[kind])) if by_kind else "none"
