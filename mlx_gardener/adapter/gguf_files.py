"""GGUF files for llama.cpp: an adapter, and a whole model of floats.

llama.cpp adds scale * B (A x) with ``NAME.lora_a`` (rank, inputs) and ``NAME.lora_b`` (rank's products, outputs; here
written as (outputs, rank)), and scale = alpha / rank; of stacked experts both begin with the expert. In some architectures it
turns pairs of neighbouring rows of queries and keys where Transformers turns rows half a head apart, so the rows of q, k and of
their B are put in that order. Which, and the tensors' names, says `mlx_gardener.model.gguf.architectures`. Sources: the GGUF
specification (ggml-org/ggml, docs/gguf.md), gguf 0.19, llama.cpp's ``src/llama-adapter.cpp`` and ``src/llama-graph.cpp``.
Cost: a model is copied tensor by tensor; memory is the largest tensor's, twice.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import AdapterError
from mlx_gardener.model.gguf.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_for,
    gguf_name,
    mlx_name,
    row_order,
)
from mlx_gardener.platform.untrusted import read_header, read_json

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from mlx_gardener.model import CodeTokenizer
    from mlx_gardener.model.lora import AdapterSettings

ADAPTER_NAME, MODEL_NAME = "adapter.gguf", "model.gguf"
#: In an adapter's metadata: sha256 of the GGUF file that it was trained on.
BASE_SHA256 = "mlx_gardener.base.sha256"
#: mlx-lm's types whose whole models are written; others only as their GGUF file was.
_MODELS = ("llama", "mistral", "qwen2", "qwen3")
#: What splits text before the merges, by the regular expression in tokenizer.json; llama.cpp's names for them.
_QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_QWEN: "qwen2", _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}


def _architecture(config: dict[str, Any]) -> tuple[str, Architecture]:
    found = architecture_for(config["model_type"])
    if found is None:
        raise AdapterError(
            f"Models of type {config['model_type']!r} are not written as GGUF: only {', '.join(ARCHITECTURES)} are known here.",
            next_step="Export the form peft (or fused) and convert it with llama.cpp's own scripts.",
        )
    return found


def refuse_adapter(config: dict[str, Any], settings: AdapterSettings) -> None:
    """Refuse what llama.cpp's adapters cannot hold.

    Raises:
        AdapterError: DoRA, or an architecture that is not known.
    """
    _architecture(config)
    if settings.is_dora:
        raise AdapterError(
            "llama.cpp has no DoRA adapters: their magnitudes have no place in the file.",
            next_step="Export the form fused or gguf-fused, which merge it.",
        )


def write_gguf_adapter(
    file: Path,
    weights: dict[str, mx.array],
    settings: AdapterSettings,
    config: dict[str, Any],
    *,
    name: str,
    base: str,
    base_sha256: str | None = None,
) -> None:
    """Write an adapter for llama.cpp's ``--lora``; float32.

    Args:
        weights: by mlx-lm's names.
        config: the base's config.json.
        name: what the file says it is.
        base: what the file says that it belongs to.
        base_sha256: of the GGUF file that it belongs to, where the base came from one.

    Raises:
        AdapterError: as `refuse_adapter`, or a module has no name there.
        OSError: it cannot be written.
    """
    import gguf
    import mlx.core as mx
    import numpy as np

    refuse_adapter(config, settings)
    architecture, known = _architecture(config)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    if base_sha256 is not None:
        writer.add_string(BASE_SHA256, base_sha256)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings.scale * settings.rank))
    for path, value in weights.items():
        module, _, leaf = path.rpartition(".")
        turned = np.array(value.astype(mx.float32))
        if turned.ndim == 2:  # A (rank, inputs), B (outputs, rank), as those of stacked experts are already
            turned = turned.T
        if leaf == "lora_b":
            turned = _permuted(turned, module, config)
        writer.add_tensor(f"{_gguf_name(known, module)}.weight.{leaf}", np.ascontiguousarray(turned))
    _write(writer)


def read_gguf_adapter(file: Path, config: dict[str, Any]) -> tuple[dict[str, np.ndarray], float]:
    """Weights by mlx-lm's names and orientation, and alpha, of a file that `write_gguf_adapter` wrote.

    Raises:
        AdapterError: a tensor has no module.
        OSError, ValueError: it cannot be read.
    """
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(file)
    field = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    if field is None:
        raise ValueError("it names no alpha")
    found, (_, known) = {}, _architecture(config)
    for tensor in reader.tensors:
        name, _, leaf = tensor.name.rpartition(".")
        module = mlx_name(known, name.removesuffix(".weight"))
        if module is None:
            raise AdapterError(f"The tensor {name!r} belongs to no module.")
        value = np.array(tensor.data)
        if leaf == "lora_b":
            value = _permuted(value, module, config, back=True)
        found[f"{module}.{leaf}"] = value.T if value.ndim == 2 else value
    return found, float(field.contents())


def write_gguf_model(directory: Path, file: Path, tokenizer: CodeTokenizer, *, name: str) -> None:
    """Write the model of floats in ``directory`` (as `fused` leaves it) as one GGUF file.

    Raises:
        AdapterError: its architecture, rope scaling or tokenizer was not compared with llama.cpp.
        OSError, ValueError: a file cannot be read or written.
    """
    import gguf
    import mlx.core as mx

    config = read_json(directory / "config.json")
    architecture, known = _architecture(config)
    if config["model_type"] not in _MODELS:
        raise AdapterError(
            f"Whole models of type {config['model_type']!r} are written as GGUF only where the base is a GGUF file that is "
            "still there.",
            next_step="Export the form gguf (the adapter), or fused and convert that with llama.cpp's own scripts.",
        )
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name(name)
    _add_shape(writer, config)
    _add_tokenizer(writer, directory, tokenizer, int(config["vocab_size"]))
    names = sorted(files_of(directory).items())
    for path, (_, entry) in names:
        raw, kind, width = gguf_kind(entry)
        count = math.prod(entry["shape"])
        writer.add_tensor_info(_tensor_name(known, path), entry["shape"], kind, count * width, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for path, (source, entry) in names:
        array = tensor_of(source, path)
        value = as_numpy(array, entry)
        writer.write_tensor_data(_permuted(value, path, config))
        del array, value
        mx.clear_cache()
    writer.close()


def differing_tensor(directory: Path, file: Path) -> str | None:
    """The first tensor of a GGUF model that is not the one in ``directory``, bit for bit; None where all are.

    Raises:
        OSError, ValueError: a file cannot be read.
    """
    import gguf
    import numpy as np

    config = read_json(directory / "config.json")
    _, known = _architecture(config)
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    sources = files_of(directory)
    if len(written) != len(sources):
        return "(their number)"
    for path, (source, entry) in sorted(sources.items()):
        tensor = written.get(_tensor_name(known, path))
        wanted = as_numpy(tensor_of(source, path), entry)
        if tensor is None:
            return path
        got = np.array(tensor.data).view(wanted.dtype).reshape(wanted.shape)
        if not np.array_equal(_permuted(got, path, config, back=True), wanted):
            return path
    return None


def tensor_of(file: Path, name: str) -> mx.array:
    """An array of a safetensors file; nothing else of it is read."""
    import mlx.core as mx

    found: Any = mx.load(str(file))  # lazy: only this one is read
    array: mx.array = found[name]
    return array


def files_of(directory: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A model's arrays by name: the file that each is in, and its entry there."""
    return {
        name: (file, entry)
        for file in sorted(directory.glob("model*.safetensors"))
        for name, entry in read_header(file).items()
    }


def gguf_kind(entry: dict[str, Any]) -> tuple[Any, Any, int]:
    """GGUF's type, numpy's, and bytes a value. Vectors are float32, which llama.cpp wants of norms and biases."""
    import gguf
    import numpy as np

    if len(entry["shape"]) == 1 or entry["dtype"] == "F32":
        return gguf.GGMLQuantizationType.F32, np.dtype(np.float32), 4
    if entry["dtype"] == "F16":
        return gguf.GGMLQuantizationType.F16, np.dtype(np.float16), 2
    return gguf.GGMLQuantizationType.BF16, np.dtype(np.uint16), 2


def as_numpy(array: mx.array, entry: dict[str, Any]) -> np.ndarray:
    """A tensor in the type it is written in; bfloat16 as the uint16 of the same bits."""
    import mlx.core as mx
    import numpy as np

    if gguf_kind(entry)[2] == 4:
        return np.array(array.astype(mx.float32))
    return np.array(array if entry["dtype"] == "F16" else array.view(mx.uint16))


def _gguf_name(known: Architecture, module: str) -> str:
    found = gguf_name(known, module)
    if found is None:
        raise AdapterError(
            f"llama.cpp has no name for {module!r}.",
            next_step="Export the form fused, or train on other modules.",
        )
    return found


def _tensor_name(known: Architecture, path: str) -> str:
    module, _, leaf = path.rpartition(".")
    return f"{_gguf_name(known, module)}.{leaf}"


def _permuted(value: np.ndarray, path: str, config: dict[str, Any], *, back: bool = False) -> np.ndarray:
    """Rows (outputs first) in the order of llama.cpp's rope, or ``back`` in that of Transformers."""
    import numpy as np

    heads = int(config["num_attention_heads"])
    if not _architecture(config)[1].permutes:
        return value
    if ".k_proj" in path:
        heads = int(config.get("num_key_value_heads") or heads)
    elif ".q_proj" not in path:
        return value
    order = row_order(value.shape[0], heads)
    return np.ascontiguousarray(value[order if back else np.argsort(order)])


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    """What llama.cpp needs to lay the model out."""
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise AdapterError(
            f"Rope scaling {scaling.get('rope_type', scaling.get('type'))!r} is not written as GGUF.",
            next_step="Export the form fused and convert it with llama.cpp's own script.",
        )
    parameters = config.get("rope_parameters") or {}
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0))
    writer.add_vocab_size(int(config["vocab_size"]))


def _add_tokenizer(writer: Any, directory: Path, tokenizer: CodeTokenizer, vocab_size: int) -> None:
    """The byte-level BPE of tokenizer.json, with the markers that `CodeTokenizer` found."""
    import gguf

    parsed = read_json(directory / "tokenizer.json")
    model, added = parsed["model"], {item["id"]: item for item in parsed.get("added_tokens", [])}
    split = _split_name(parsed.get("pre_tokenizer"))
    if model.get("type") != "BPE" or split is None:
        raise AdapterError(
            "The tokenizer of this model is none whose way to split text llama.cpp was told here.",
            next_step="Export the form gguf (an adapter needs no tokenizer), or convert the form fused with llama.cpp's script.",
        )
    by_id = {index: piece for piece, index in model["vocab"].items()}
    by_id |= {index: item["content"] for index, item in added.items()}
    kinds = []
    for index in range(vocab_size):
        if index in added:
            kinds.append(gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_bos_token_id(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    if tokenizer.markers is not None:
        writer.add_uint32(gguf.Keys.Tokenizer.FIM_PRE_ID, tokenizer.markers.prefix)
        writer.add_uint32(gguf.Keys.Tokenizer.FIM_SUF_ID, tokenizer.markers.suffix)
        if tokenizer.markers.middle is not None:
            writer.add_uint32(gguf.Keys.Tokenizer.FIM_MID_ID, tokenizer.markers.middle)
    for key, marker in (
        (gguf.Keys.Tokenizer.FIM_REP_ID, tokenizer.repo_id),
        (gguf.Keys.Tokenizer.FIM_SEP_ID, tokenizer.file_id),
    ):
        if marker is not None:
            writer.add_uint32(key, marker)


def _split_name(pre_tokenizer: Any) -> str | None:
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    patterns = [part["pattern"].get("Regex") for part in parts if part and part.get("type") == "Split"]
    is_byte_level = any(part and part.get("type") == "ByteLevel" for part in parts)
    if not is_byte_level or len(patterns) > 1:
        return None
    return _SPLITS.get(patterns[0]) if patterns else "gpt-2"


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
