"""A model directory with the adapter merged into its weights: W + scale * (A B)^T, dense or quantised anew.

In: a base loaded lazily (`load_lazy_base`), so that its weights are still on disk, and an adapter. Out: ``config.json``, tokenizer
and ``model*.safetensors``. MLX computes a merged tensor only when it is asked for, so they are computed and written file by file, and
memory is about twice a file's 500 MB (or the largest tensor's) whatever the model's size. DoRA and stacked experts merge too
(mlx-lm's own ``fuse``).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.agreement import give_up
from mlx_gardener.platform.untrusted import read_header, read_json

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.model import BaseModel

#: Weights go to another file when one would be larger than this, unless it is a single tensor.
FILE_BYTES = 500_000_000
#: Weights that share one scale where the copy is quantised.
GROUP_SIZE = 64
#: safetensors' names of floating-point types, and MLX's.
_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
#: Files that are copied from the base as they are.
_BESIDE = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json",
    "chat_template.*", "LICENSE*",
)  # fmt: skip


def stored_type(path: Path) -> str:
    """The floating-point type most weights of the model in ``path`` are stored in: float16, bfloat16 or float32.

    Raises:
        OSError, ValueError: a file cannot be read.
    """
    counts: Counter[str] = Counter()
    for file in path.glob("model*.safetensors"):
        for entry in read_header(file).values():
            if entry["dtype"] in _TYPES:
                counts[_TYPES[entry["dtype"]]] += entry["data_offsets"][1] - entry["data_offsets"][0]
    return counts.most_common(1)[0][0] if counts else "float32"


def write_fused(base: BaseModel, directory: Path, *, dtype: str, bits: int | None = None) -> None:
    """Write ``base`` with the adapter that is attached to it (or none); the base's weights are gone afterwards.

    Args:
        base: loaded with float32 as its compute type and its weights unread.
        directory: an empty directory.
        dtype: floating-point type of what is written.
        bits: 4 or 8 quantises linear layers and embeddings (affine, groups of 64); None writes floats.

    Raises:
        OSError, RuntimeError, ValueError: it cannot be written or merged.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten, tree_map, tree_unflatten
    from mlx_lm.utils import dequantize_model

    model = base.model
    merged = [
        (name, module.fuse(dequantize=True))
        for name, module in model.named_modules()
        if hasattr(module, "lora_a")
    ]
    if merged:
        model.update_modules(tree_unflatten(merged))
    del merged
    model = dequantize_model(model)
    kind: mx.Dtype = getattr(mx, dtype)
    model.update(
        tree_map(
            lambda value: value.astype(kind) if mx.issubdtype(value.dtype, mx.floating) else value,
            model.parameters(),
        )
    )
    config = read_json(base.path / "config.json")
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    config["torch_dtype"] = dtype
    config.pop("dtype", None)
    if bits is not None:
        nn.quantize(model, group_size=GROUP_SIZE, bits=bits, class_predicate=_can_be_quantised)
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
        config["quantization_config"] = config["quantization"]
    weights = dict(tree_flatten(model.parameters()))
    give_up(model)
    _write_files(weights, directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for pattern in _BESIDE:
        for file in base.path.glob(pattern):
            shutil.copyfile(file, directory / file.name)


def has_usual_names(path: Path, fused: Path) -> bool:
    """Whether Transformers can load a fused model: every tensor that was written has a name that the base's files have, too.

    mlx-lm renames tensors of some architectures as it loads them, and a fused model is written by mlx-lm's names.
    """
    old, new = _tensor_names(path), _tensor_names(fused)
    return new <= old


def _tensor_names(path: Path) -> set[str]:
    return {name for file in path.glob("model*.safetensors") for name in read_header(file)}


def _can_be_quantised(name: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP_SIZE == 0


def _write_files(weights: dict[str, mx.array], directory: Path) -> None:
    import mlx.core as mx

    parts: list[list[str]] = [[]]
    size = 0
    for name, value in weights.items():
        if size and size + value.nbytes > FILE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += value.nbytes
    total = sum(value.nbytes for value in weights.values())
    places: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        file = (
            "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        )
        part = {}
        for name in names:
            part[name] = weights.pop(name)
            mx.eval(part[name])  # one by one: what is read to make it goes at once
            mx.clear_cache()
        mx.save_safetensors(str(directory / file), part, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
