"""Which architectures of llama.cpp's are read, and what in a GGUF file differs from the model it was made of.

In: a header. Out: config.json for mlx-lm, and for every tensor its name there, its shape, and what was done to it that has
to be undone: rows of queries and keys in the order of llama.cpp's rope, Gemma's norms with 1 added. Sources: tensor names
of the `gguf` package, llama.cpp's conversion scripts (conversion/*.py) and its src/llama-model.cpp, mlx-lm's models.

| architecture | as mlx-lm's | what is its own |
|---|---|---|
| llama (Mistral, SmolLM, Mellum-4b) | llama | rows of q and k change places; Llama 3's rope factors |
| qwen2 | qwen2 | biases of q, k and v |
| qwen3 | qwen3 | norms of q and k |
| qwen3moe | qwen3_moe | experts in stacks |
| gemma2 | gemma2 | norms with 1 added; soft caps |
| gemma3 | gemma3_text | norms with 1 added; windows on five layers of six |
| starcoder2 | starcoder2 | biases everywhere; norms with biases |
| phi3 | phi3 | q, k and v in one, gate and up in one; long and short rope factors |
| granite | granite | rows of q and k change places; four multipliers |
| smollm3 | smollm3 | rows of q and k change places; no rope on every fourth layer |

Each is checked by a model that is written as GGUF and read again: the logits are the same (tests/model/gguf).
Cost: none; nothing but the header and, of some files, one vector of rope factors is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_gardener.model.gguf import settings
from mlx_gardener.model.gguf.reader import Gguf, Tensor
from mlx_gardener.model.gguf.settings import ROPE_FACTORS, NotReadableError, count, real, sizes_of

if TYPE_CHECKING:
    import numpy as np

#: For a layer's modules: mlx-lm's name, and letters for outputs and inputs (`sizes_of`); one letter is a norm.
_ATTENTION = {
    "attn_norm": ("input_layernorm", "h"),
    "attn_q": ("self_attn.q_proj", "qh"),
    "attn_k": ("self_attn.k_proj", "kh"),
    "attn_v": ("self_attn.v_proj", "kh"),
    "attn_output": ("self_attn.o_proj", "hq"),
}
_MLP = {
    "ffn_norm": ("post_attention_layernorm", "h"),
    "ffn_gate": ("mlp.gate_proj", "fh"),
    "ffn_up": ("mlp.up_proj", "fh"),
    "ffn_down": ("mlp.down_proj", "hf"),
}
_HEAD_NORMS = {"attn_q_norm": ("self_attn.q_norm", "d"), "attn_k_norm": ("self_attn.k_norm", "d")}
_EXPERTS = {
    "ffn_norm": ("post_attention_layernorm", "h"),
    "ffn_gate_inp": ("mlp.gate", "eh"),
    "ffn_gate_exps": ("mlp.switch_mlp.gate_proj", "exh"),
    "ffn_up_exps": ("mlp.switch_mlp.up_proj", "exh"),
    "ffn_down_exps": ("mlp.switch_mlp.down_proj", "ehx"),
}
_GEMMA = {
    **_ATTENTION,
    "post_attention_norm": ("post_attention_layernorm", "h"),
    **_MLP,
    "ffn_norm": ("pre_feedforward_layernorm", "h"),
    "post_ffw_norm": ("post_feedforward_layernorm", "h"),
}
_STARCODER = {
    **_ATTENTION,
    "ffn_norm": ("post_attention_layernorm", "h"),
    "ffn_up": ("mlp.c_fc", "fh"),
    "ffn_down": ("mlp.c_proj", "hf"),
}
_PHI = {
    "attn_norm": ("input_layernorm", "h"),
    "attn_qkv": ("self_attn.qkv_proj", "ch"),
    "attn_output": ("self_attn.o_proj", "hq"),
    "ffn_norm": ("post_attention_layernorm", "h"),
    "ffn_up": ("mlp.gate_up_proj", "gh"),
    "ffn_down": ("mlp.down_proj", "hf"),
}
#: What lies outside of the layers.
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
#: Types of mlx-lm's that llama.cpp has as another's.
_SAME = {"mistral": "llama"}


@dataclass(frozen=True)
class Architecture:
    """What is known of one of llama.cpp's architectures.

    Attributes:
        model_type, model_class: for config.json.
        layer: a layer's modules.
        settings: its own part of config.json.
        permutes: whether rows of q and k are in the order of llama.cpp's rope.
        adds_one: whether the norms' weights have 1 added.
        biases: modules with a bias, of a layer or ``output_norm``.
        optional_biases: those that have one in some models.
        scalings: kinds of rope scaling that mlx-lm's model of it has.
        one_width: whether mlx-lm takes the size of a head for what the others leave of the hidden size.
    """

    model_type: str
    model_class: str
    layer: dict[str, tuple[str, str]]
    settings: Callable[[Gguf, dict[str, int]], dict[str, Any]] = lambda gguf, sizes: {}
    permutes: bool = False
    adds_one: bool = False
    biases: frozenset[str] = field(default_factory=frozenset)
    optional_biases: frozenset[str] = field(default_factory=frozenset)
    scalings: frozenset[str] = field(default_factory=frozenset)
    one_width: bool = False


@dataclass(frozen=True)
class Placed:
    """A tensor and what it is in the model: ``heads`` whose rows are to be put back (0: none), ``shift`` to be added."""

    name: str
    tensor: Tensor
    heads: int = 0
    shift: float = 0.0


def architecture_of(gguf: Gguf) -> Architecture:
    """What is known of a file's architecture.

    Raises:
        NotReadableError: nothing; names it and those that are known.
    """
    found = ARCHITECTURES.get(gguf.architecture)
    if found is None:
        raise NotReadableError(
            f"its architecture {gguf.architecture!r} is not read here (only {', '.join(ARCHITECTURES)})"
        )
    return found


def model_config(gguf: Gguf) -> dict[str, Any]:
    """config.json of the model, without its quantisation and tokens.

    Raises:
        NotReadableError: as `architecture_of`, or a size is missing or not possible, or its rope is none of mlx-lm's.
    """
    known, sizes = architecture_of(gguf), sizes_of(gguf)
    config: dict[str, Any] = {
        "model_type": known.model_type,
        "architectures": [known.model_class],
        "hidden_size": sizes["h"],
        "num_hidden_layers": sizes["layers"],
        "intermediate_size": sizes["f"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["key_heads"],
        "head_dim": sizes["d"],
        "vocab_size": sizes["v"],
        "max_position_embeddings": count(gguf, "context_length"),
        "rope_theta": real(gguf, "rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "float16",
    }
    epsilon = "attention.layer_norm_rms_epsilon"
    if "output_norm" not in known.biases:
        config["rms_norm_eps"] = real(gguf, epsilon)
    if known.one_width and sizes["d"] * sizes["heads"] != sizes["h"]:
        raise NotReadableError(f"its heads are {sizes['d']} wide, which mlx-lm's {known.model_type} has not")
    if known.model_type != "phi3":
        scaling = settings.rope_scaling(gguf, sizes["d"], config)
        if scaling is not None and scaling["rope_type"] not in known.scalings:
            raise NotReadableError(
                f"its rope is scaled as {scaling['rope_type']!r}, which mlx-lm's {known.model_type} has not"
            )
        config |= {"rope_scaling": scaling} if scaling else {}
    return config | known.settings(gguf, sizes)


def placed_tensors(gguf: Gguf) -> list[Placed]:
    """Every tensor of the model with its name there.

    Raises:
        NotReadableError: one is missing, has another shape than it must have, or is not known.
    """
    known, sizes = architecture_of(gguf), sizes_of(gguf)
    left = dict(gguf.tensors)
    for name in ROPE_FACTORS:
        left.pop(name, None)
    found: list[Placed] = []

    def take(name: str, path: str, shape: tuple[int, ...], *, heads: int = 0, shift: float = 0.0) -> None:
        tensor = left.pop(name, None)
        if tensor is None:
            raise NotReadableError(f"it has no tensor {name!r}")
        if tensor.shape != shape:
            raise NotReadableError(
                f"its tensor {name!r} is {_by(tensor.shape)}, and not {_by(shape)} as its metadata says"
            )
        found.append(Placed(path, tensor, heads, shift))

    take("token_embd.weight", "model.embed_tokens.weight", (sizes["v"], sizes["h"]))
    take("output_norm.weight", "model.norm.weight", (sizes["h"],), shift=-1.0 if known.adds_one else 0.0)
    if "output_norm" in known.biases:
        take("output_norm.bias", "model.norm.bias", (sizes["h"],))
    if "output.weight" in left:
        take("output.weight", "lm_head.weight", (sizes["v"], sizes["h"]))
    for number in range(sizes["layers"]):
        for module, (path, letters) in known.layer.items():
            shape = tuple(sizes[letter] for letter in letters)
            heads = {"attn_q": sizes["heads"], "attn_k": sizes["key_heads"]}.get(module, 0)
            heads = heads if known.permutes else 0
            shift = -1.0 if known.adds_one and len(letters) == 1 else 0.0
            name, place = f"blk.{number}.{module}", f"model.layers.{number}.{path}"
            take(f"{name}.weight", f"{place}.weight", shape, heads=heads, shift=shift)
            if module in known.biases or (
                module in known.optional_biases and f"blk.0.{module}.bias" in gguf.tensors
            ):
                take(f"{name}.bias", f"{place}.bias", shape[:1], heads=heads)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise NotReadableError(
            f"its tensor {min(left)!r}{more} has no place in a {gguf.architecture} model as mlx-lm has it"
        )
    return found


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def architecture_for(model_type: str) -> tuple[str, Architecture] | None:
    """llama.cpp's name for mlx-lm's models of a type, and what is known of them; None where they are not known here."""
    wanted = _SAME.get(model_type, model_type)
    return next(((name, known) for name, known in ARCHITECTURES.items() if known.model_type == wanted), None)


def gguf_name(known: Architecture, path: str) -> str | None:
    """llama.cpp's name for a module of mlx-lm's: ``blk.3.attn_q`` for ``model.layers.3.self_attn.q_proj``."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path)
    if match is None:
        return next((name for name, place in _OUTSIDE.items() if place == path), None)
    found = next((name for name, (place, _) in known.layer.items() if place == match[2]), None)
    return None if found is None else f"blk.{match[1]}.{found}"


def mlx_name(known: Architecture, name: str) -> str | None:
    """The other way round."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match is None:
        return _OUTSIDE.get(name)
    place, _ = known.layer.get(match[2], (None, ""))
    return None if place is None else f"model.layers.{match[1]}.{place}"


def row_order(rows: int, heads: int) -> np.ndarray:
    """Where the rows of a Transformers model are in a file whose rows of ``heads`` heads llama.cpp's rope turns in pairs."""
    import numpy as np

    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _names(*modules: str) -> frozenset[str]:
    return frozenset(modules)


_SCALED = _names("linear", "yarn", "longrope", "llama3")
_ALL_BIASES = _names("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_LLAMA_LAYER = {**_ATTENTION, **_MLP}

#: By llama.cpp's name.
ARCHITECTURES = {
    "llama": Architecture(
        "llama", "LlamaForCausalLM", _LLAMA_LAYER, settings.biased,
        permutes=True, optional_biases=_ALL_BIASES, scalings=_SCALED,
    ),
    "qwen2": Architecture(
        "qwen2", "Qwen2ForCausalLM", _LLAMA_LAYER,
        one_width=True, biases=_names("attn_q", "attn_k", "attn_v"), scalings=_SCALED,
    ),
    "qwen3": Architecture(
        "qwen3", "Qwen3ForCausalLM", {**_LLAMA_LAYER, **_HEAD_NORMS}, scalings=_SCALED
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", {**_ATTENTION, **_HEAD_NORMS, **_EXPERTS}, settings.qwen3moe
    ),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _GEMMA, settings.gemma2, adds_one=True),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", {**_GEMMA, **_HEAD_NORMS}, settings.gemma3,
        adds_one=True, scalings=_names("linear"),
    ),
    "starcoder2": Architecture(
        "starcoder2", "Starcoder2ForCausalLM", _STARCODER, settings.starcoder2,
        one_width=True, biases=frozenset({*_STARCODER, "output_norm"}),
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _PHI, settings.phi3, one_width=True),
    "granite": Architecture(
        "granite", "GraniteForCausalLM", _LLAMA_LAYER, settings.granite,
        permutes=True, one_width=True, optional_biases=_ALL_BIASES, scalings=_SCALED,
    ),
    "smollm3": Architecture(
        "smollm3", "SmolLM3ForCausalLM", _LLAMA_LAYER, permutes=True, scalings=_SCALED,
    ),
}  # fmt: skip
