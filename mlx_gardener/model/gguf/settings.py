"""Sizes, rope and an architecture's own settings in config.json, from a GGUF file's metadata.

In: a header, whose every number is checked before it is used. Out: parts of config.json. Cost: none; of some files one
vector of rope factors is read.
"""

from __future__ import annotations

import math
import re
from typing import Any

from mlx_gardener.model.gguf.reader import Gguf

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
#: Llama 3's factor of rope: (factor of the low frequencies, of the high ones, tokens it was first trained for).
_LLAMA3 = (1.0, 4.0, 8192)
_MOST = 2**24


class NotReadableError(ValueError):
    """A sound file that cannot be a base here: says why."""


def sizes_of(gguf: Gguf) -> dict[str, int]:
    """Sizes by the letters of `architectures`' tables, checked against the tensors as far as they decide how many there are."""
    hidden, heads = count(gguf, "embedding_length"), count(gguf, "attention.head_count")
    key_heads = count(gguf, "attention.head_count_kv", heads)
    if heads % key_heads:
        raise NotReadableError(f"it has {heads} heads for {key_heads} of keys")
    head = count(gguf, "attention.key_length", hidden // heads)
    if head % 2 or count(gguf, "attention.value_length", head) != head:
        raise NotReadableError("its heads have values of another size than their keys")
    layers = count(gguf, "block_count")
    numbers = {int(match[1]) for name in gguf.tensors if (match := re.match(r"blk\.(\d{1,6})\.", name))}
    if len(numbers) != layers or max(numbers) != layers - 1:
        raise NotReadableError(f"it says that it has {layers} layers, and has tensors of {len(numbers)}")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise NotReadableError("it has no table of tokens (token_embd.weight)")
    inner = count(gguf, "feed_forward_length")
    return {
        "layers": layers,
        "heads": heads,
        "key_heads": key_heads,
        "v": embedding.shape[0],
        "h": hidden,
        "d": head,
        "q": heads * head,
        "k": key_heads * head,
        "c": (heads + 2 * key_heads) * head,
        "f": inner,
        "g": 2 * inner,
        "e": count(gguf, "expert_count", 1),
        "x": count(gguf, "expert_feed_forward_length", inner),
    }


def count(gguf: Gguf, key: str, otherwise: int | None = None) -> int:
    """A size of the metadata.

    Raises:
        NotReadableError: it is missing and must not, or is none.
    """
    value = gguf.get(key, otherwise)
    if value is None:
        raise NotReadableError(f"it has no {gguf.architecture}.{key}")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        shown = "not one number" if not isinstance(value, int | float) else value
        raise NotReadableError(f"its {gguf.architecture}.{key} is {shown}")
    return value


def real(gguf: Gguf, key: str, otherwise: float | None = None) -> float:
    """A number of the metadata.

    Raises:
        NotReadableError: it is missing and must not, or is none.
    """
    value = gguf.get(key, otherwise)
    found = as_written(value)
    if found is None:
        raise NotReadableError(f"it has no usable {gguf.architecture}.{key}")
    return found


def as_written(value: object) -> float | None:
    """The number that a float32 was written for: 1e-06, not 9.999999974752427e-07; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")


def _vector(gguf: Gguf, name: str, length: int) -> list[float] | None:
    """A float32 vector; None where there is none.

    Raises:
        NotReadableError: it is of another length or type, or not finite.
    """
    import numpy as np

    tensor = gguf.tensors.get(name)
    if tensor is None:
        return None
    if tensor.kind != 0 or tensor.shape != (length,):
        raise NotReadableError(f"its tensor {name!r} is not {length} values of float32")
    values = gguf.read(tensor, 0, 1).view("<f4")[0]
    if not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise NotReadableError(f"its tensor {name!r} has values that are no factors")
    return [float(value) for value in values]


def rope_scaling(gguf: Gguf, head: int, config: dict[str, Any]) -> dict[str, Any] | None:
    """config.json's rope_scaling; of all architectures but phi3.

    Args:
        head: size of a head.
        config: has rope_theta and max_position_embeddings.

    Raises:
        NotReadableError: it is of no kind that mlx-lm has.
    """
    rotated = count(gguf, "rope.dimension_count", head)
    if rotated != head:
        raise NotReadableError(f"its rope turns {rotated} of the {head} values of a head")
    kind = gguf.get("rope.scaling.type", "none")
    factor = gguf.get("rope.scaling.factor", gguf.get("rope.scale_linear", 1.0))
    factors = _vector(gguf, "rope_freqs.weight", head // 2)
    if factors is not None and any(value != 1 for value in factors):
        # longrope is mlx-lm's kind that takes any factors; nothing is scaled up to the context that it is given.
        return _llama3(factors, head, config["rope_theta"]) or {
            "rope_type": "longrope",
            "long_factor": factors,
            "short_factor": factors,
            "original_max_position_embeddings": config["max_position_embeddings"],
        }
    if kind in ("linear", "none"):
        if factor in (0, 1):
            return None
        factor = as_written(factor)
        if factor is None or factor <= 0:
            raise NotReadableError("its rope is scaled by what is no factor")
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": real(gguf, "rope.scaling.factor"),
            "original_max_position_embeddings": count(gguf, "rope.scaling.original_context_length"),
        }
    raise NotReadableError(f"its rope is scaled as {kind!r}")


def _llama3(factors: list[float], head: int, theta: float) -> dict[str, Any] | None:
    """The settings that Llama 3's factors were made of; None for others."""
    low, high, first = _LLAMA3
    factor = round(max(factors), 4)
    for value, place in zip(factors, range(0, head, 2), strict=True):
        length = 2 * math.pi * theta ** (place / head)
        smooth = min(1.0, max(0.0, (first / length - low) / (high - low)))
        if not math.isclose(value, 1 / ((1 - smooth) / factor + smooth), rel_tol=1e-3):
            return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": first,
    }


def biased(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    """Of llama and granite, whose q, k, v and o have biases together or not at all."""
    for modules in (("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")):
        if len({f"blk.0.{module}.bias" in gguf.tensors for module in modules}) > 1:
            raise NotReadableError(f"only some of {', '.join(modules)} have biases")
    return {
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.tensors,
    }


def qwen3moe(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "num_experts": sizes["e"],
        "num_experts_per_tok": count(gguf, "expert_used_count"),
        "moe_intermediate_size": sizes["x"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _gemma_scalar(gguf: Gguf, sizes: dict[str, int], largest: int) -> float:
    """Attention's scale to the power of -2: not in the file, and of the largest model of a family another one."""
    return sizes["h"] / sizes["heads"] if sizes["layers"] == largest else float(sizes["d"])


def gemma2(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _gemma_scalar(gguf, sizes, 46),
        "attn_logit_softcapping": real(gguf, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": real(gguf, "final_logit_softcapping", 30.0),
    }


def gemma3(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _gemma_scalar(gguf, sizes, 62),
        "rope_theta": real(gguf, "rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": real(gguf, "rope.freq_base_swa", 10000.0),
        "sliding_window": count(gguf, "attention.sliding_window"),
        "sliding_window_pattern": 6,
    }


def starcoder2(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    return {"norm_epsilon": real(gguf, "attention.layer_norm_epsilon"), "use_bias": True}


def phi3(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    rotated = count(gguf, "rope.dimension_count", sizes["d"])
    original = count(gguf, "rope.scaling.original_context_length", count(gguf, "context_length"))
    found: dict[str, Any] = {
        "partial_rotary_factor": rotated / sizes["d"],
        "original_max_position_embeddings": original,
    }
    long, short = (_vector(gguf, name, rotated // 2) for name in ROPE_FACTORS[1:])
    if long is not None and short is not None:
        found["rope_scaling"] = {"type": "longrope", "long_factor": long, "short_factor": short}
    elif gguf.get("rope.scaling.type", "none") not in ("none", "longrope"):
        raise NotReadableError(f"its rope is scaled as {gguf.get('rope.scaling.type')!r}")
    return found


def granite(gguf: Gguf, sizes: dict[str, int]) -> dict[str, Any]:
    return biased(gguf, sizes) | {
        "logits_scaling": real(gguf, "logit_scale"),
        "attention_multiplier": real(gguf, "attention.scale"),
        "embedding_multiplier": real(gguf, "embedding_scale"),
        "residual_multiplier": real(gguf, "residual_scale"),
    }
