"""A merged model as one GGUF file: with the settings of the GGUF file that its base came from, and quantised if asked for.

`write_merged` is the way in. Where the base was read from a GGUF file, `write_like` takes settings and tokenizer from that, so that
every architecture that can be read can be written, and undoes what reading changed: the order of q's and k's rows, the 1 in Gemma's
norms. Otherwise `gguf_files.write_gguf_model` writes it. `quantise_gguf` makes a smaller file of one of floats: Q4_0 and Q8_0 by the
`gguf` package, some rows at a time; Q4_K_M by llama.cpp's own quantiser, where that is on this machine.
In: a directory that `fused` wrote. Out: a GGUF file. Cost: the model is written once, or twice to quantise it; memory is the largest
tensor's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.gguf_files import (
    as_numpy,
    differing_tensor,
    files_of,
    gguf_kind,
    tensor_of,
    write_gguf_model,
)
from mlx_gardener.errors import AdapterError
from mlx_gardener.model.gguf import source_files

if TYPE_CHECKING:
    import numpy as np

    from mlx_gardener.model import CodeTokenizer

#: What `quantise_gguf` makes; q4_k_m only where llama.cpp is.
QUANTISATIONS = ("q4_0", "q8_0", "q4_k_m")
#: Settings of a file that say how its own tensors are stored, and so are not taken over; by how their keys begin.
_OF_ITS_TENSORS = ("general.file_type", "general.quantization_version", "quantize.", "split.")
#: Tensors that are never quantised, as in llama.cpp: the router of a layer of experts is small, and decides much. By their names' end.
_KEPT = ("ffn_gate_inp.weight",)
#: The head, and the embedding where it is the head too: quantised to 8 bits, as they decide every token.
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
#: Weights that are quantised at once.
_PART = 2**22
#: llama.cpp's LLAMA_FTYPE_MOSTLY_Q4_K_M.
_Q4_K_M = 15
#: Packages that bring llama.cpp's library, and how it is asked there: built on this machine first, then built elsewhere.
_BY_PACKAGE = {
    "llama_cpp": (
        "import ctypes, sys, llama_cpp as llama\n"
        "settings = llama.llama_model_quantize_default_params()\n"
        f"settings.ftype = {_Q4_K_M}\n"
        "sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))\n"
    ),
    "llama_cpp_py_sync": (
        "import sys\n"
        "from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib\n"
        "settings = get_ffi().new('llama_model_quantize_params *', get_lib().llama_model_quantize_default_params())\n"
        f"settings.ftype = {_Q4_K_M}\n"
        "sys.exit(get_lib().llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))\n"
    ),
}


def check_quantisation(kind: str) -> None:
    """Refuse what cannot be made here, before anything is merged.

    Raises:
        AdapterError: there is no such quantisation, or llama.cpp is not on this machine, which makes it.
    """
    if kind not in QUANTISATIONS:
        raise AdapterError(
            f"There is no quantisation {kind!r} of GGUF files here.",
            next_step=f"Quantisations are: {', '.join(QUANTISATIONS)}.",
        )
    if kind == "q4_k_m" and _quantiser() is None:
        raise AdapterError(
            "q4_k_m is made by llama.cpp's own quantiser, which is not on this machine.",
            next_step="Install llama.cpp (llama-quantize on the PATH), or the package llama-cpp-py-sync, which brings it "
            "(llama-cpp-python builds it); q8_0 and q4_0 need none.",
        )


def write_merged(
    merged: Path, base: Path, tokenizer: CodeTokenizer, file: Path, *, name: str, quantise: str | None
) -> None:
    """Write a model of floats as GGUF; its directory is gone afterwards.

    Args:
        merged: its directory, as `fused` leaves it.
        base: the folder of the base that it was made from.
        quantise: one of `QUANTISATIONS`.

    Raises:
        AdapterError: as `write_like`, `write_gguf_model` and `quantise_gguf`.
        OSError, ValueError: a file cannot be read or written.
    """
    written = file.with_name("floats.gguf") if quantise else file
    files = source_files(base)
    if files is not None:
        write_like(files, merged, written, name=name)
    else:
        write_gguf_model(merged, written, tokenizer, name=name)
        different = differing_tensor(merged, written)
        if different is not None:
            raise AdapterError(f"The tensor {different!r} of the GGUF file is not the one that was merged.")
    shutil.rmtree(merged)
    if quantise:
        quantise_gguf(written, file, quantise)
        written.unlink()


def write_like(files: tuple[Path, ...], directory: Path, file: Path, *, name: str) -> None:
    """Write the model of floats in ``directory`` (as `fused` leaves it) with settings and tokenizer of a GGUF file.

    Args:
        files: the file that its base was read from, or its shards.

    Raises:
        AdapterError: a tensor is missing in the directory.
        OSError, ValueError: a file cannot be read or written.
    """
    import gguf
    import mlx.core as mx
    import numpy as np

    from mlx_gardener.model.gguf.architectures import placed_tensors, row_order
    from mlx_gardener.model.gguf.reader import read_header

    source = read_header(files[0])
    try:
        placed = placed_tensors(source)
    finally:
        source.close()
    found = files_of(directory)
    missing = next((item.name for item in placed if item.name not in found), None)
    if missing is not None:
        raise AdapterError(f"The merged model has no tensor {missing!r}.")
    readers = [gguf.GGUFReader(path) for path in files]
    taken = {item.tensor.name for item in placed}
    others = [tensor for reader in readers for tensor in reader.tensors if tensor.name not in taken]
    kind = _matrix_type({entry["dtype"] for _, entry in found.values()})
    writer = _writer_like(readers[0], file, {"general.name": name}, file_type=_FLOAT_TYPES[kind])
    for item in placed:
        raw, dtype, width = gguf_kind(found[item.name][1])
        shape = found[item.name][1]["shape"]
        writer.add_tensor_info(item.tensor.name, shape, dtype, int(np.prod(shape)) * width, raw)
    for tensor in others:  # rope's factors
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.n_bytes, tensor.tensor_type
        )
    _begin(writer)
    for item in placed:
        path, entry = found[item.name]
        array = tensor_of(path, item.name)
        value = as_numpy(array, entry)
        if item.heads:
            value = value[np.argsort(row_order(value.shape[0], item.heads))]
        if item.shift:
            value = value - np.float32(item.shift)
        writer.write_tensor_data(np.ascontiguousarray(value))
        del array, value
        mx.clear_cache()
    for tensor in others:
        writer.write_tensor_data(np.array(tensor.data))
    writer.close()


def quantise_gguf(source: Path, file: Path, kind: str) -> None:
    """Write a GGUF file of floats again, its matrices as one of `QUANTISATIONS`.

    Rows whose length is no multiple of 32 stay floats, and so do routers; the head is in 8 bits also in q4_0.

    Raises:
        AdapterError: llama.cpp's quantiser did not make it; says what it said.
        OSError, ValueError: a file cannot be read or written.
    """
    if kind == "q4_k_m":
        _by_llama_cpp(source, file)
        return
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    head = _HEAD if any(tensor.name == _HEAD for tensor in reader.tensors) else _EMBEDDING
    kinds: list[Any] = []
    writer = _writer_like(
        reader, file, {}, file_type=gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"], quantised=True
    )
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        as_it_is = len(shape) < 2 or shape[-1] % 32 or tensor.name.endswith(_KEPT)
        own = gguf.GGMLQuantizationType.Q8_0 if tensor.name == head else wanted
        kinds.append(None if as_it_is else own)
        if as_it_is:
            writer.add_tensor_info(
                tensor.name, tensor.data.shape, tensor.data.dtype, tensor.n_bytes, tensor.tensor_type
            )
        else:
            size, width = gguf.GGML_QUANT_SIZES[own]
            stored = (*shape[:-1], shape[-1] // size * width)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), int(np.prod(stored)), own)
    _begin(writer)
    for tensor, own in zip(reader.tensors, kinds, strict=True):
        writer.write_tensor_data(np.array(tensor.data) if own is None else _quantised(tensor, own))
    writer.close()


def _quantised(tensor: Any, kind: Any) -> np.ndarray:
    """A tensor's values in another type, some rows at a time; uint8 (..., bytes a row)."""
    import gguf
    import numpy as np

    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = max(1, _PART // int(tensor.shape[0]))
    parts = [
        gguf.quants.quantize(
            gguf.quants.dequantize(rows[at : at + step], tensor.tensor_type).astype(np.float32), kind
        )
        for at in range(0, len(rows), step)
    ]
    found: np.ndarray = np.concatenate(parts)
    return found.reshape(*tensor.data.shape[:-1], -1)


def _matrix_type(types: Iterable[str]) -> str:
    """The type of a model's matrices, of the types of all its tensors: vectors are float32 also where matrices are shorter."""
    return next((kind for kind in ("BF16", "F16") if kind in set(types)), "F32")


#: llama.cpp's file types of floats.
_FLOAT_TYPES = {"F32": 0, "F16": 1, "BF16": 32}


def _writer_like(
    reader: Any, file: Path, instead: dict[str, str], *, file_type: int, quantised: bool = False
) -> Any:
    """A writer that has the settings of a file, but those of its tensors, and ``instead`` of some others."""
    import gguf

    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "general.architecture", *_OF_ITS_TENSORS)) or key in instead:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for key, value in instead.items():
        writer.add_string(key, value)
    writer.add_file_type(int(file_type))
    if quantised:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def _begin(writer: Any) -> None:
    """Write all that comes before the tensors' data, which is added after this."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _quantiser() -> Callable[[Path, Path], list[str]] | None:
    """The command that makes Q4_K_M of a file; None where llama.cpp is not here."""
    program = shutil.which("llama-quantize")
    if program is not None:
        return lambda source, file: [program, str(source), str(file), "Q4_K_M"]
    told = next((told for package, told in _BY_PACKAGE.items() if find_spec(package) is not None), None)
    if told is None:
        return None
    return lambda source, file: [sys.executable, "-P", "-c", told, str(source), str(file)]


def _by_llama_cpp(source: Path, file: Path) -> None:
    command = _quantiser()
    if command is None:
        check_quantisation("q4_k_m")
        return
    done = subprocess.run(
        command(source, file), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode or not file.exists():
        told = next(
            (line for line in reversed((done.stderr or done.stdout).splitlines()) if line.strip()), "nothing"
        )
        raise AdapterError(
            f"llama.cpp's quantiser did not make the file (exit code {done.returncode}). It said: {told.strip()[:300]}",
            next_step="Take --quantise q8_0 or q4_0, which need no llama.cpp, or mend its installation.",
        )
