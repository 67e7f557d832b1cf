"""GGUF files, llama.cpp's and Ollama's, as bases: looked at, and read once into an ordinary MLX model folder.

In: a ``.gguf`` file, or any shard of several. Out: `GgufFacts`, from the header alone (half a second); or the path of a
folder with config.json, model.safetensors and tokenizer files, which everything else then treats as any base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf.reader import Gguf, kind_name, read_header
from mlx_gardener.platform.reasons import reason_of

__all__ = ["GgufFacts", "gguf_facts", "is_gguf", "read_gguf"]


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
        with path.open("rb") as stream:
            return path.is_file() and stream.read(4) == b"GGUF"
    except OSError:
        return False


def gguf_facts(path: Path) -> GgufFacts:
    """Facts of a GGUF file, or of all shards of which it is one; only headers are read.

    Raises:
        ModelError: it cannot be read, is no GGUF file, or a claim in its header is not true.
    """
    return _facts(_header_of(path))


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
    raise ModelError(f"The file {path.name!r} cannot be read yet.")


def _header_of(path: Path) -> Gguf:
    try:
        return read_header(path)
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
        why_not=None,
    )


def _quantisation(gguf: Gguf) -> str:
    """llama.cpp's name of the whole; where the file does not say, that of the type of most bytes."""
    from gguf.constants import LlamaFileType

    try:
        return (
            LlamaFileType(gguf.metadata.get("general.file_type"))
            .name.removeprefix("MOSTLY_")
            .removeprefix("ALL_")
        )
    except ValueError:
        by_kind: dict[int, int] = {}
        for tensor in gguf.tensors.values():
            by_kind[tensor.kind] = by_kind.get(tensor.kind, 0) + tensor.bytes
        return kind_name(max(by_kind, key=lambda kind: by_kind[kind])) if by_kind else "none"
