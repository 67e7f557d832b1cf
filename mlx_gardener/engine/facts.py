"""Facts of a model that decide memory and speed, from its config and the headers of its weight files.

Nothing is loaded: a header is some kilobytes, so this takes milliseconds however large the model is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_gardener.errors import ModelError
from mlx_gardener.model.choose import read_model_config
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_header

if TYPE_CHECKING:
    from mlx_gardener.model.gguf.reader import Gguf

_LAYER_NAME = re.compile(r"\.(?:layers|h|blocks)\.(\d{1,6})\.")
#: A norm of what the MLP gives, whose gradient reads that.
_NORM_AFTER_MLP = re.compile(r"\.post_(?:feedforward|mlp|ffn)_(?:layer)?norm\.")


@dataclass(frozen=True)
class ModelFacts:
    """What decides memory and speed.

    ``parameters`` and ``stored_bytes`` are of the whole model, ``layer_...`` of its largest layer, ``outside_...`` of what is in
    none. ``..._loaded_bytes`` are the stored ones with 16-bit floats, scales of quantised weights too, as float32.
    ``active_parameters`` are those of a layer that one token passes (fewer than all with experts). ``is_plain`` says that layers
    hold matrices and vectors alone, no experts and no convolutions, which recurrent layers have. ``product_outputs`` are the
    outputs of a layer's matrices for one token, but the last one's where that is only added to the hidden state. It and ``head_dim``
    are 0 where they were not kept.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_width: int
    vocab: int
    parameters: int
    stored_bytes: int
    layer_parameters: int
    layer_stored_bytes: int
    layer_loaded_bytes: int
    outside_parameters: int
    outside_stored_bytes: int
    outside_loaded_bytes: int
    active_parameters: int
    quantized_bits: int | None
    max_tokens: int
    is_plain: bool = True
    head_dim: int = 0
    product_outputs: int = 0

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return max(1, self.key_value_width // self.features)

    @property
    def features(self) -> int:
        """Features of a head."""
        return self.head_dim or max(1, self.hidden // self.heads)


def model_facts(path: Path) -> ModelFacts:
    """Facts of the model in the directory ``path``.

    Raises:
        ModelError: its config or a header cannot be read.
    """
    config = read_model_config(path)
    return facts_of(path.name, config, _entries(path, config))


class Stored(NamedTuple):
    """An array of a model's files: its name, parameters, bytes, of these the bytes of 16-bit floats, and its shape as stored."""

    name: str
    parameters: int
    bytes: int
    half_bytes: int
    shape: Sequence[int]

    @property
    def outputs(self) -> int:
        """Of a matrix that is multiplied with; packed codes have as many rows."""
        return self.shape[0] if len(self.shape) == 2 and self.name.endswith(".weight") else 0


def facts_of(name: str, config: Mapping[str, Any], weights: Iterator[Stored]) -> ModelFacts:
    """Facts from a config and all arrays of a model.

    Raises:
        ModelError: the config lacks a size.
    """
    text = config.get("text_config")
    sizes: dict[str, Any] = {**config, **text} if isinstance(text, dict) else dict(config)
    outside = [0, 0, 0]  # parameters, stored bytes, loaded bytes
    by_layer: dict[int, list[int]] = {}
    outputs: dict[int, int] = {}
    has_matrices_alone, has_norm_after = True, False
    for weight in weights:
        found = _LAYER_NAME.search(f".{weight.name}")
        sums = outside
        if found is not None:
            layer = int(found[1])
            sums = by_layer.setdefault(layer, [0, 0, 0])
            outputs[layer] = outputs.get(layer, 0) + weight.outputs
            has_matrices_alone &= len(weight.shape) <= 2
            has_norm_after |= _NORM_AFTER_MLP.search(weight.name) is not None
        for place, count in enumerate((weight.parameters, weight.bytes, weight.bytes + weight.half_bytes)):
            sums[place] += count
    parameters, stored, loaded = (
        sum(sums[place] for sums in (outside, *by_layer.values())) for place in range(3)
    )
    try:
        hidden = _size(sizes.get("hidden_size") or sizes["n_embd"])
        heads = _size(sizes.get("num_attention_heads") or sizes.get("n_head") or 1)
        head_dim = _size(sizes.get("head_dim") or hidden // heads)
        layers = _size(sizes.get("num_hidden_layers") or sizes.get("n_layer") or len(by_layer))
        experts = sizes.get("num_experts") or sizes.get("n_routed_experts") or sizes.get("num_local_experts")
        experts = _size(experts) if experts else 0
        used = _size(sizes.get("num_experts_per_tok") or 1)
        largest, largest_stored, largest_loaded = (
            max((sums[place] for sums in by_layer.values()), default=whole // max(1, layers))
            for place, whole in enumerate((parameters, stored, loaded))
        )
        if not by_layer:  # its layers have names that are not known here
            outside = [0, 0, 0]
        expert_width = _size(
            sizes.get("moe_intermediate_size") or sizes.get("intermediate_size") or 4 * hidden
        )
        in_experts = 3 * hidden * expert_width * experts
        return ModelFacts(
            name=name,
            layers=layers,
            hidden=hidden,
            intermediate=expert_width * used
            if experts
            else _size(sizes.get("intermediate_size") or 4 * hidden),
            heads=heads,
            key_value_width=head_dim * _size(sizes.get("num_key_value_heads") or heads),
            vocab=_size(sizes["vocab_size"]),
            parameters=parameters,
            stored_bytes=stored,
            layer_parameters=largest,
            layer_stored_bytes=largest_stored,
            layer_loaded_bytes=largest_loaded,
            outside_parameters=outside[0],
            outside_stored_bytes=outside[1],
            outside_loaded_bytes=outside[2],
            active_parameters=largest - in_experts + (in_experts * used // experts if experts else 0),
            quantized_bits=_quantized_bits(config),
            max_tokens=_size(sizes.get("max_position_embeddings") or 2**20),
            is_plain=has_matrices_alone and not experts,
            head_dim=head_dim,
            product_outputs=max(0, max(outputs.values(), default=0) - (0 if has_norm_after else hidden)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"The config.json of {name!r} lacks a size ({reason_of(error)}).",
            next_step="Choose a model that mlx-lm supports.",
        ) from error


def _size(value: Any) -> int:
    """A size from a config, which nobody has checked: a number from 1 to 2**40."""
    size = int(value)
    if not 1 <= size <= 2**40:
        raise ValueError(f"{size} is no size")
    return size


def _quantized_bits(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    nested = text.get("quantization") if isinstance(text, dict) else None
    quantization = config.get("quantization") or nested
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    if bits is not None and (not isinstance(bits, int) or not 1 <= bits <= 32):
        raise ModelError(
            f"The config.json says that weights have {bits!r} bits.", next_step="Fetch the model again."
        )
    return bits


def bits_of(config: Mapping[str, Any], name: str) -> int | None:
    """Bits of the codes in the array ``name``: those of its module where config.json gives it its own, else the usual ones.

    Raises:
        ModelError: as `_quantized_bits`.
    """
    text = config.get("text_config")
    nested = text.get("quantization") if isinstance(text, dict) else None
    quantization = config.get("quantization") or nested
    module = quantization.get(name.rpartition(".")[0]) if isinstance(quantization, dict) else None
    return _quantized_bits({"quantization": module} if isinstance(module, dict) else config)


def _entries(path: Path, config: Mapping[str, Any]) -> Iterator[Stored]:
    """Every array of the weight files."""
    for file in sorted(path.glob("model*.safetensors")):
        try:
            for name, entry in read_header(file).items():
                stored = entry["data_offsets"][1] - entry["data_offsets"][0]
                yield _stored(config, name, entry["dtype"], entry["shape"], stored)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"The weight file {file.name} of {path.name!r} is damaged ({reason_of(error)}).",
                next_step="Fetch it again.",
            ) from error


def _stored(config: Mapping[str, Any], name: str, kind: str, shape: Sequence[Any], size: int) -> Stored:
    """An array of ``size`` bytes and safetensors' type ``kind``; scales and biases of quantised weights are no parameters."""
    count, bits = math.prod(int(dimension) for dimension in shape), bits_of(config, name)
    if bits and kind == "U32":
        count = count * 32 // bits
    elif bits and name.endswith((".scales", ".biases")):
        count = 0
    return Stored(name, count, size, size if kind in ("F16", "BF16") else 0, shape)


def gguf_model_facts(gguf: Gguf) -> ModelFacts:
    """`model_facts` of the folder that a GGUF file is read into, before it is read; from its header alone.

    Raises:
        ModelError: it cannot be a base.
    """
    from mlx_gardener.model.gguf.architectures import model_config
    from mlx_gardener.model.gguf.write import layout_of

    name = gguf.files[0].name
    try:
        layout = layout_of(gguf)
        config = {**model_config(gguf), "quantization": layout.quantization}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The GGUF file {name!r} cannot be used ({reason_of(error)}).", next_step="Choose another one."
        ) from error
    arrays = (
        _stored(config, name, array.kind, array.shape, array.bytes) for name, array in layout.arrays.items()
    )
    return facts_of(name, config, arrays)
