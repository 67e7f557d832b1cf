"""A base model's weights in memory, ready for LoRA layers.

On the CPU everything is computed in float32: MLX multiplies bfloat16 and float16 there without a BLAS, some 50
times slower, and 4-bit weights at 2 GFLOP/s, so quantised bases become floats there, at once or block by block as
the engine computes. On Metal and CUDA the base keeps its own type.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import LoraConfig
from mlx_gardener.errors import ModelError
from mlx_gardener.model.choose import (
    ModelChoice,
    choose_model,
    read_model_config,
    resolve_model,
)
from mlx_gardener.model.exponentials import use_in_models
from mlx_gardener.model.gguf import source_of
from mlx_gardener.model.lora import check_targets
from mlx_gardener.model.stores import is_store_name
from mlx_gardener.model.tokens import CodeTokenizer, load_tokenizer
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_header, sha256_of

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory.

    Attributes:
        id: hub id, ``seedling``, or a local directory's name; never a path.
        path: its directory on this machine.
        revision: the hub's commit, where it came from the hub.
        weights_sha256: over the names and contents of its weight files.
        config: its config.json.
        model: mlx-lm's module, frozen.
        quantized: whether its weights are still quantised in memory.
        source: the GGUF file that it was read from.
    """

    id: str
    path: Path
    revision: str | None
    weights_sha256: str
    config: dict[str, Any]
    model: nn.Module
    tokenizer: CodeTokenizer
    dtype: mx.Dtype
    quantized: bool
    source: Path | None = None


def load_base(
    name: str,
    *,
    compute_dtype: str = "auto",
    base_weights: str = "auto",
    unread_layers: int = 0,
    unread_vocabulary: bool = False,
) -> BaseModel:
    """Load the base model ``name``, as `choose_model` takes it.

    Args:
        compute_dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        base_weights: ``dense`` turns quantised weights into floats, ``stored`` leaves them as they are; ``auto`` is
            dense on the CPU, where MLX multiplies quantised weights slowly.
        unread_layers: first layers whose weights are left on disk, for an engine that reads them as needed.
        unread_vocabulary: leave all that is outside of layers and of more than one dimension on disk too: embedding, head.

    Raises:
        ModelError: it cannot be found, fetched or read, wants its own code to be run, or mlx-lm does not know it.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    choice = choose_model(name)
    path = resolve_model(choice)
    model, config, tokenizer = _open_model(choice.name, path)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    own = mx.float32 if on_cpu else _floating_type(model)
    dtype = own if compute_dtype == "auto" else getattr(mx, compute_dtype)
    model.update(
        tree_map(
            lambda value: value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value,
            model.parameters(),
        )
    )
    quantized = "quantization" in config
    if quantized and (base_weights == "dense" or (base_weights == "auto" and on_cpu)):
        from mlx_lm.utils import dequantize_model

        model = dequantize_model(model)
        quantized = False
    model.freeze()
    model.eval()
    unread = {
        id(value) for layer in model.layers[:unread_layers] for _, value in tree_flatten(layer.parameters())
    }
    if unread_vocabulary:
        in_layers = {id(value) for layer in model.layers for _, value in tree_flatten(layer.parameters())}
        rest = [value for _, value in tree_flatten(model.parameters()) if id(value) not in in_layers]
        unread |= {id(value) for value in rest if value.ndim > 1}
    wanted = [value for _, value in tree_flatten(model.parameters()) if id(value) not in unread]
    # One by one, the largest first: what is read to make it is then not on top of all others.
    for value in sorted(wanted, key=lambda value: -value.nbytes):
        mx.eval(value)
        mx.clear_cache()
    return BaseModel(
        id=choice.name if is_store_name(choice.name) else source_of(path) or choice.id,
        path=path,
        revision=path.name if path.parent.name == "snapshots" else None,
        weights_sha256=weights_sha256(path),
        config=config,
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        quantized=quantized,
        source=choice.gguf,
    )


def load_lazy_base(name: str) -> BaseModel:
    """The base model ``name`` with every matrix on disk until it is used, computing in float32; for one pass, layer by layer.

    Raises:
        ModelError: as `load_base`.
    """
    return load_base(
        name, compute_dtype="float32", base_weights="dense", unread_layers=10**6, unread_vocabulary=True
    )


def check_model(choice: ModelChoice, lora: LoraConfig) -> Path:
    """All that can be seen of a model without its numbers: config, tokenizer, architecture, every array's name and shape.

    Whatever of this `load_base` and a training would refuse is refused here, in about a second.

    Returns:
        Its directory.

    Raises:
        ModelError: as `load_base`, or the adapters that ``lora`` asks for have no place in it.
    """
    path = resolve_model(choice)
    model, _, _ = _open_model(choice.name, path)
    check_targets(model, lora)
    return path


def _open_model(name: str, path: Path) -> tuple[nn.Module, dict[str, Any], CodeTokenizer]:
    """Model, config and tokenizer, with all weights still on disk.

    Raises:
        ModelError: as `load_base`.
    """
    with warnings.catch_warnings():  # in a notebook, of progress bars that are not shown
        warnings.filterwarnings("ignore", message="IProgress not found")
        from mlx_lm.utils import load_model

    read_model_config(path)
    tokenizer = load_tokenizer(path)
    try:
        for file in path.glob("model*.safetensors"):
            read_header(file)  # MLX believes what a header claims
        model, config = load_model(path, lazy=True, trust_remote_code=False)
    except Exception as error:  # mlx-lm, mlx and safetensors raise many kinds for a damaged or unknown model
        raise ModelError(
            f"The model {name!r} cannot be loaded ({reason_of(error)}).",
            next_step="Fetch it again, or choose one that mlx-lm supports.",
        ) from error
    use_in_models()
    return model, config, tokenizer


def _floating_type(model: nn.Module) -> mx.Dtype:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    kinds = [
        value.dtype
        for _, value in tree_flatten(model.parameters())
        if mx.issubdtype(value.dtype, mx.floating)
    ]
    return max(set(kinds), key=kinds.count)


def weights_sha256(path: Path) -> str:
    """sha256 over the names and contents of a model's weight files, in order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("model*.safetensors")):
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256_of(file, follow_links=True)))  # the hub's cache is made of links
    return digest.hexdigest()
