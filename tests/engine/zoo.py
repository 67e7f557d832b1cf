"""A tiny random model for every model type of the installed mlx-lm.

`tiny_config` fills the fields of a type's `ModelArgs` by their names from one table of small values and a
few overrides per type, so that layers of every kind the type has occur: linear and full attention, sliding
and full windows, dense and sparse feed-forward. `tiny_model` builds the class with random float32 weights.
Key sizes of linear attention and state sizes of state-space layers are 32, the least the Metal kernels take.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_gardener.config import LoraConfig
from mlx_gardener.dataset import Batch
from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.model.lora import attach_lora, lora_parameters

VOCAB = 128
LAYERS = 4
WINDOW = 8

CANNOT: dict[str, str] = {
    "bitnet": "needs Metal kernels: its BitLinear layers multiply packed ternary weights only there",
    "muse_spark": "needs Metal kernels: its norms and expert routing are written only there",
    "olmo": "needs a package that is not installed: its module ends the interpreter without ai2-olmo",
    "phi3small": "needs its real vocabulary: it writes -inf to token numbers up to 100351 unchecked",
}

_SLIDING = ["sliding_attention", "full_attention"] * 2
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_ROPE_BY_KIND = {"sliding_attention": _ROPE, "full_attention": {**_ROPE, "rope_theta": 100000.0}}
_YARN = {
    **_ROPE,
    "rope_type": "yarn",
    "type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 256,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_LLAMA4_SCALE = {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 256}
_LINEAR_ATTENTION = {"kda_layers": [1, 3], "num_heads": 2, "head_dim": 32, "short_conv_kernel_size": 4}
_MINICPM = {"original_max_position_embeddings": 512, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
_LONGCAT = {"zero_expert_num": 2, "mla_scale_q_lora": True, "mla_scale_kv_lora": True}

# What a field of this name holds in every type that has it.
_VALUES: dict[str, Any] = {
    # Sizes of the whole model.
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("hidden_size", "hidden_dim", "n_embd", "d_model", "model_dim", "block_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), LAYERS),
    "num_transformer_layers": LAYERS,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "block_size"), 512),
    **dict.fromkeys(("model_max_length", "original_max_position_embeddings"), 512),
    "tie_word_embeddings": False,
    # Attention.
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("num_attention_groups", "n_shared_head"), 2),
    **dict.fromkeys(("head_dim", "hidden_size_per_head", "kv_channels", "swa_head_dim"), 16),
    **dict.fromkeys(("v_head_dim", "swa_v_head_dim", "qk_nope_head_dim", "query_pre_attn_scalar"), 16),
    "qk_rope_head_dim": 8,
    "rotary_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "partial_rotary_factor": 0.5,
    "attention_bias": False,
    "use_qk_norm": True,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("window_size", "loop_window_size", "attention_chunk_size"), WINDOW),
    "sliding_window_pattern": 2,
    # Positions.
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "swa_rope_theta", "rotary_emb_base"), 10000.0),
    "rope_scaling": None,
    "rope_parameters": _ROPE,
    "rotary_pct": 0.5,
    # Feed-forward.
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_hidden_size", "dense_intermediate_size"), 64),
    "intermediate_size_mlp": 64,
    "hidden_act": "silu",
    **dict.fromkeys(("mlp_bias", "bias", "use_bias"), False),
    # Experts.
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "share_expert_dim"), 32),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert"), 1),
    "moe_num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("moe_layer_freq", "decoder_sparse_step"), 1),
    "mlp_only_layers": [0],
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    # State-space and linear attention layers.
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 32),
    **dict.fromkeys(("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim", "conv1d_width"), 4),
    **dict.fromkeys(("short_conv_kernel_size", "conv_L_cache"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 2),
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
    **dict.fromkeys(("mamba_proj_bias", "conv_bias"), False),
    **dict.fromkeys(("mamba_conv_bias", "use_conv_bias"), True),
    "time_step_rank": 4,
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 8),
    "time_step_limit": [0.0, 1e30],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
    "layer_group_size": 2,
    "group_norm_size": 2,
    # Scales and norms.
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), 1e-5),
    **dict.fromkeys(("layernorm_epsilon", "norm_epsilon", "post_norm_eps"), 1e-5),
    **dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier"), 0.5),
    **dict.fromkeys(("logits_scaling", "scale_emb", "scale_depth", "output_multiplier"), 1.0),
    **dict.fromkeys(("final_logit_softcapping", "logits_soft_cap"), 30.0),
    "dim_model_base": 64,
}

# The fields of a type that the table cannot know, and where it must differ from the table.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": _SLIDING},
    "apertus": {"post_norm": True, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_moe_v3": {"head_dim": 32},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"rope_scaling": _YARN, "topk_method": "greedy"},
    "deepseek_v41": {
        "head_dim": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "scoring_func": "sqrtsoftplus",
        "compress_ratios": [0, 2, 2, 2],
        "kv_source_layer_ids": [1],
        "index_source_layer_ids": [1, 2],
        "candidate_source_layer_id": 1,
        "candidate_topk_blocks": 3,
        "candidate_block_size": 2,
        "index_topk": 4,
        "hc_mult": 2,
        "rms_norm_eps": 1e-20,
    },
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": _SLIDING, "is_moe_layer": [False, True, True, True]},
    "gear": {
        "layer_types": ["conv_mixer", "sliding_attention", "full_attention", "conv_mixer"],
        "attn_logit_softcapping": 50.0,
    },
    "gemma3n": {
        "text_config": {
            "layer_types": _SLIDING,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 16,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        }
    },
    "gemma4": {
        "text_config": {
            "enable_moe_block": True,
            "top_k_experts": 2,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
        }
    },
    "gemma4_text": {
        "rope_parameters": None,
        "global_head_dim": 32,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 2.0},
    },
    "kimi_k3": {
        "text_config": {
            "hidden_act": "situ",
            "linear_attn_config": _LINEAR_ATTENTION,
            "attn_res_block_size": 2,
            "mla_use_output_gate": True,
            "routed_expert_hidden_size": 32,
            "latent_moe_use_norm": True,
        }
    },
    "kimi_linear": {"linear_attn_config": _LINEAR_ATTENTION},
    "laguna": {"layer_types": _SLIDING, "rope_parameters": _ROPE_BY_KIND},
    "lfm2": {
        "layer_types": ["conv", "full_attention"] * 2,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "use_expert_bias": True},
    "llama4": {"text_config": {"interleave_moe_layer_step": 2, "num_experts_per_tok": 1}},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": _LONGCAT | {"attention_method": "MLA", "zero_expert_type": "identity"},
    "longcat_flash_ngram": _LONGCAT
    | {"ngram_vocab_size_ratio": 2, "emb_neighbor_num": 3, "emb_split_num": 2},
    "mellum": {"layer_types": _SLIDING, "rope_parameters": _ROPE_BY_KIND},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minicpm3": {"rope_scaling": _MINICPM},
    "minimax_m3_vl": {
        "text_config": {
            "moe_layer_freq": [0, 1, 1, 1],
            "sparse_attention_freq": [0, 1, 0, 1],
            "index_block_size": 4,
            "index_topk_blocks": 2,
        }
    },
    "ministral3": {"layer_types": _SLIDING, "rope_parameters": _ROPE | _LLAMA4_SCALE},
    "mistral4": {"rope_parameters": _YARN | _LLAMA4_SCALE},
    "nanbeige": {"num_loops": 2},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"replace_with_linear": True}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}},
            {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
        ]
    },
    "nemotron_h": {"hybrid_override_pattern": "M*E-"},
    "olmo_hybrid": {"linear_allow_neg_eigval": True},
    "openelm": {
        "ffn_dim_divisor": 16,
        "num_query_heads": [4] * LAYERS,
        "num_kv_heads": [2] * LAYERS,
        "ffn_multipliers": [0.5, 1.0, 1.5, 2.0],
    },
    "prism_hadamard_qwen35": {
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {"path": path, "block": block, "embedding": False, "dtype": "float16"}
            for path, block in (("model.layers.0.mlp.gate_proj", 0), ("model.layers.1.mlp.down_proj", 512))
        ],
        "text_config": {"num_experts": 0, "hidden_size": 128, "intermediate_size": 512},
    },
    "qwen3_5": {"text_config": {"num_experts": 0}},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "rwkv7": {"head_dim": 32},
    "spark2_5": {"hidden_act": "gelu", "layer_types": _SLIDING, "rope_parameters": _ROPE_BY_KIND},
    "stablelm": {"use_qkv_bias": True},
}

# Types whose config nests the text model: the module and class that describe `text_config`.
_NESTED: dict[str, tuple[str, str]] = {
    "gemma3": ("gemma3_text", "ModelArgs"),
    "gemma3n": ("gemma3n", "TextConfig"),
    "gemma4": ("gemma4_text", "ModelArgs"),
    "kimi_k25": ("deepseek_v3", "ModelArgs"),
    "kimi_k3": ("kimi_k3", "TextArgs"),
    "kimi_vl": ("kimi_vl", "TextArgs"),
    "lfm2-vl": ("lfm2", "ModelArgs"),
    "llama4": ("llama4", "TextArgs"),
    "minimax_m3_vl": ("minimax_m3_vl", "TextArgs"),
    "mistral3": ("ministral3", "ModelArgs"),
    "pixtral": ("llama", "ModelArgs"),
    "prism_hadamard_qwen35": ("qwen3_5", "TextModelArgs"),
    "qwen2_vl": ("qwen2", "ModelArgs"),
    "qwen3_5": ("qwen3_5", "TextModelArgs"),
    "qwen3_5_moe": ("qwen3_5", "TextModelArgs"),
    "qwen3_vl": ("qwen3", "ModelArgs"),
    "qwen3_vl_moe": ("qwen3_moe", "ModelArgs"),
}


def _find_types() -> Iterator[str]:
    """The names of the modules that define or import both `Model` and `ModelArgs`, without running them."""
    spec = importlib.util.find_spec("mlx_lm")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder, "models").glob("*.py"):
            names: set[str] = set()
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    names.add(node.name)
                elif isinstance(node, ast.ImportFrom):
                    names.update(alias.asname or alias.name for alias in node.names)
            if {"Model", "ModelArgs"} <= names:
                yield path.stem


MODEL_TYPES: tuple[str, ...] = tuple(sorted(_find_types()))


def _module(model_type: str) -> ModuleType:
    return importlib.import_module(f"mlx_lm.models.{model_type}")


def _fill(args_class: type, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The table's values for the fields of a dataclass, and over them the given ones."""
    known = {field.name: _VALUES[field.name] for field in fields(args_class) if field.name in _VALUES}
    return copy.deepcopy({**known, **overrides})


def tiny_config(model_type: str) -> dict[str, Any]:
    """What a small `config.json` of this model type holds."""
    overrides = {"model_type": model_type, **_OVERRIDES.get(model_type, {})}
    if model_type in _NESTED:
        inner, class_name = _NESTED[model_type]
        known = _OVERRIDES.get(inner, {}) if class_name == "ModelArgs" else {}
        text = {"model_type": inner, **known, **overrides.get("text_config", {})}
        overrides["text_config"] = _fill(getattr(_module(inner), class_name), text)
    return _fill(_module(model_type).ModelArgs, overrides)


def tiny_model(model_type: str, *, seed: int = 0) -> nn.Module:
    """A small model of this type with random float32 weights, ready for inference."""
    module = _module(model_type)
    mx.random.seed(seed)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(tiny_config(model_type)))
    weights = [(name, _random(value)) for name, value in tree_flatten(model.parameters())]
    model.update(tree_unflatten(weights))
    mx.eval(model.parameters())
    model.eval()
    return model


def _random(value: mx.array) -> mx.array:
    """The class's own random values; a constant of the class (a norm, a bias) with noise around it."""
    if value.dtype == mx.uint32:
        return mx.random.randint(0, 2**31 - 1, value.shape).astype(mx.uint32)
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    value = value.astype(mx.float32)
    constant = mx.all(value == value.reshape(-1)[0]).item()
    return value + 0.05 * mx.random.normal(value.shape) if constant else value


def _check(model_type: str) -> str:
    """ "ok", or what went wrong with the forward pass of the tiny model."""
    try:
        model = tiny_model(model_type)
        tokens = mx.random.randint(0, VOCAB, (2, 24)).astype(mx.int32)
        logits = model(tokens)
        if logits.shape != (2, 24, VOCAB):
            return f"error: logits of shape {logits.shape}"
        if not mx.all(mx.isfinite(logits)).item():
            return "error: logits that are not finite"
        if mx.all(mx.std(logits, axis=1) < 1e-3).item():
            return "error: logits that do not vary"
        return "ok"
    except (Exception, SystemExit) as error:
        return f"error: {type(error).__name__}: {error}"


def main() -> None:
    working = 0
    for model_type in MODEL_TYPES:
        result = f"cannot: {CANNOT[model_type]}" if model_type in CANNOT else _check(model_type)
        working += result == "ok"
        print(f"{model_type:24} {result}", flush=True)
    print(f"{working} of {len(MODEL_TYPES)} model types work")


if __name__ == "__main__":
    main()


#: Of every kind: plain, tied head, soft-capped, sliding window, experts, state space, hybrid, latent attention.
SOME = (
    "llama",
    "qwen2",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "mamba2",
    "jamba",
    "qwen3_next",
    "gpt_oss",
    "starcoder2",
)

TOLERANCE = 1e-5
#: The norm of the difference as a share of the gradients' norm. Sums of float32 are in another order, and MKL takes other kernels for
#: other numbers of rows: 3e-7 for llama, qwen2 and starcoder2; Gemma's scaled states make 8e-6 of it at most, and 2e-6 of attention
#: in blocks alone.
EQUAL = 1e-5


def batch() -> Batch:
    """Two rows of 23 random tokens, most of them targets."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 23)).astype(np.int32)
    mask = np.ones(tokens.shape, dtype=bool)
    mask[:, 0] = mask[1, 15:] = False
    ones = np.ones(tokens.shape, dtype=np.int32)
    return Batch(tokens, mask, ones, int(mask.sum()), 0, mask.sum(axis=1), ("", ""))


def with_adapters(model: nn.Module) -> dict[str, mx.array]:
    """Random adapters in all layers; their weights."""
    attach_lora(model, LoraConfig(rank=2), seed=1)
    mx.random.seed(2)
    found = {
        name: value + 0.05 * mx.random.normal(value.shape) for name, value in lora_parameters(model).items()
    }
    mx.eval(found)
    return found


def engine(model: nn.Module, **settings: Any) -> Engine:
    plan = Plan(
        {23: settings.pop("rows", 2)}, 2**32, 0, PredictedParts(), (), loss_slice_tokens=16, **settings
    )
    return Engine(model, plan, dtype=mx.float32)


def relative(found: dict[str, mx.array], expected: dict[str, mx.array]) -> float:
    """The norm of the difference of two sets of gradients, as a share of the second one's norm."""
    off = mx.stack([mx.square(found[name] - value).sum() for name, value in expected.items()]).sum()
    whole = mx.stack([mx.square(value).sum() for value in expected.values()]).sum()
    return float(mx.sqrt(off / whole).item())
