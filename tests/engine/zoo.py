"""A tiny random model of every architecture that the installed mlx-lm knows.

Sizes are chosen by the names of the fields of each module's ``ModelArgs``; what a name does not tell stands in
``SPECIAL``. ``python -m tests.engine.zoo`` lists which architectures come to life.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import signal
import sys
import typing
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models

VOCAB, HIDDEN, LAYERS = 128, 64, 4

#: Sizes by the field's name, whatever its default.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocabulary_size"), VOCAB),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim", "dim", "embedding_size"), HIDDEN
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "num_transformer_layers",
            "num_decoder_layers",
        ),
        LAYERS,
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_attention_groups"), 2),
    **dict.fromkeys(
        ("head_dim", "v_head_dim", "attention_head_dim", "mamba_head_dim", "mamba_d_head", "global_head_dim"),
        16,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_hidden_size",
            "expert_ffn_hidden_size",
            "ff_intermediate_size",
            "intermediate_size_mlp",
            "mlp_hidden_size",
            "shared_intermediate_size",
            "n_inner",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "moe_ffn_hidden_size",
        ),
        48,
    ),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(
        ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"), 1
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "num_expert_groups"), 1),
    **dict.fromkeys(
        ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "moe_start_layer_index"), 1
    ),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "model_max_length", "max_seq_len"), 512
    ),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 24),
    "rope_theta": 10000.0,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(("conv_kernel", "linear_conv_kernel_dim", "mamba_d_conv", "conv1d_width", "d_conv"), 4),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "d_state"), 16),
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups"), 2),
}

#: For a field without a default whose name is no size.
REST: dict[str, Any] = {
    **dict.fromkeys(
        ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "layernorm_epsilon"), 1e-5
    ),
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "mlp_only_layers": [],
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "rope_scaling": None,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "use_conv_bias": True,
    "use_bias": False,
    "time_step_rank": 4,
    "time_step_limit": (0.001, 100.0),
    "logits_scaling": 1.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "dim_model_base": 32,
    "scale_depth": 1.4,
    "scale_emb": 2.0,
}

#: What the names do not tell, by model type.
_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_TEXT = SIZES | {"rms_norm_eps": 1e-5, "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": _TYPES},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "bailing_hybrid": {"layer_group_size": 2},
    "cohere2": {"sliding_window_pattern": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": None, "topk_method": "gready"},
    "exaone4": {"sliding_window_pattern": "LG", "rope_scaling": None},
    "exaone_moe": {"layer_types": _TYPES, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 128, "ssm_multipliers": [1.0] * 5, "mlp_multipliers": [1.0, 1.0]},
    "gemma3_text": {"sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "gemma3": {"text_config": _TEXT | {"model_type": "gemma3_text", "sliding_window_pattern": 2}},
    "gemma4_text": {
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 2,
        "sliding_window_pattern": 2,
        "num_experts": None,
        "moe_intermediate_size": None,
        "top_k_experts": None,
    },
    "gpt_oss": {"layer_types": _TYPES},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "internlm3": {"head_dim": 16},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_expand": 2,
    },
    "kimi_linear": {
        "linear_attn_config": {
            "full_attn_layers": [2, 4],
            "kda_layers": [1, 3],
            "num_heads": 2,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
    },
    "lfm2": {
        "block_ff_dim": 96,
        "block_dim": HIDDEN,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1, 3],
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "lfm2_moe": {
        "full_attn_idxs": [1, 3],
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
    "mamba": {"time_step_rank": 4, "intermediate_size": 128},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "nemotron_h": {"hybrid_override_pattern": "M*-M", "num_hidden_layers": 4},
    "gptj": {"rotary_dim": 8},
    "phixtral": {"rotary_dim": 8, "num_local_experts": 4},
    "qwen": {"kv_channels": 16},
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0]},
    "ministral3": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "mistral4": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        }
    },
    "longcat_flash": {
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "zero_expert_num": 2,
        "zero_expert_type": "identity",
    },
    "longcat_flash_ngram": {
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "zero_expert_num": 2,
        "zero_expert_type": "identity",
    },
    "glm_moe_dsa": {"index_head_dim": 16, "index_n_heads": 4},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
        "add_swa_attention_sink_bias": True,
    },
    "openelm": {
        "num_query_heads": [4] * 4,
        "num_kv_heads": [2] * 4,
        "ffn_multipliers": [1.0] * 4,
        "ffn_dim_divisor": 16,
    },
    "qwen3_5": {"text_config": _TEXT | {"model_type": "qwen3_5", "full_attention_interval": 2}},
    "qwen3_5_moe": {"text_config": _TEXT | {"model_type": "qwen3_5_moe", "full_attention_interval": 2}},
    "qwen3_next": {"full_attention_interval": 2},
    "qwen2_vl": {"text_config": _TEXT | {"model_type": "qwen2"}},
    "qwen3_vl": {"text_config": _TEXT | {"model_type": "qwen3", "tie_word_embeddings": False}},
    "qwen3_vl_moe": {
        "text_config": _TEXT
        | {
            "model_type": "qwen3_moe",
            "tie_word_embeddings": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        }
    },
    "pixtral": {"text_config": _TEXT | {"model_type": "llama"}},
    "mistral3": {"text_config": _TEXT | {"model_type": "llama"}},
    "lfm2-vl": {
        "text_config": _TEXT
        | {
            "model_type": "lfm2",
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": HIDDEN,
            "block_ff_dim": 96,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "full_attn_idxs": [1, 3],
        }
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "embeddings_scale_by_sqrt_dim": True,
        "logits_soft_cap": 30.0,
    },
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
    "phi3small": {"gegelu_limit": 20.0, "dense_attention_every_n_layers": 2, "blocksparse_block_size": 8},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "minicpm3": {"rope_scaling": None},
    "plamo2": {"mamba_step": 2, "mamba_num_heads": 4},
}
for _name in (
    "llama4",
    "gemma3n",
    "gemma4",
    "kimi_k25",
    "kimi_vl",
    "kimi_k3",
    "minimax_m3_vl",
    "muse_glimmer",
    "muse_spark",
):
    SPECIAL.setdefault(_name, {"text_config": _TEXT | {"model_type": _name}})
SPECIAL["gemma4"] = {"text_config": _TEXT | SPECIAL["gemma4_text"] | {"model_type": "gemma4_text"}}

#: Architectures that do not come to life in float32 on a CPU, and why.
CANNOT: dict[str, str] = {}


def _model_types() -> tuple[str, ...]:
    found = []
    for module in pkgutil.iter_modules(mlx_lm.models.__path__):
        try:
            loaded = importlib.import_module(f"mlx_lm.models.{module.name}")
        except (ImportError, SystemExit):  # olmo ends the process when a package of its own is missing
            continue
        if hasattr(loaded, "Model") and hasattr(loaded, "ModelArgs"):
            found.append(module.name)
    return tuple(sorted(found))


MODEL_TYPES = _model_types()


def tiny_config(model_type: str) -> dict[str, Any]:
    """What a tiny model's config.json would say."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    special = SPECIAL.get(model_type, {})
    config: dict[str, Any] = {}
    for field in dataclasses.fields(module.ModelArgs):
        if not field.init:
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name in SIZES:
            config[field.name] = SIZES[field.name]
        elif required:
            config[field.name] = REST.get(field.name, _by_type(field, module))
    config["model_type"] = model_type
    return config | special


def _by_type(field: dataclasses.Field[Any], module: Any) -> Any:
    try:
        kind = typing.get_type_hints(module.ModelArgs)[field.name]
    except (NameError, TypeError):
        kind = str(field.type)
    return {bool: False, int: 4, float: 1.0, str: "", dict: {}, list: []}.get(kind)


def tiny_model(model_type: str, *, seed: int = 0) -> nn.Module:
    """A random model, in float32, ready for inference."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    mx.random.seed(seed)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(tiny_config(model_type)))
    model.update(_randomized(model))
    model.eval()
    mx.eval(model.parameters())
    return model


def _randomized(model: nn.Module) -> Any:
    """Weights that are neither zero nor one, so that none can be left out unseen."""
    from mlx.utils import tree_map

    def moved(value: mx.array) -> mx.array:
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        return value.astype(mx.float32) + 0.05 * mx.random.normal(value.shape)

    return tree_map(moved, model.parameters())


def main() -> None:
    """List the architectures that work, and what is wrong with the others."""
    works = 0

    def too_slow(*_: object) -> None:
        raise TimeoutError("it takes more than 8 seconds: are its sizes tiny?")

    signal.signal(signal.SIGALRM, too_slow)
    for model_type in sys.argv[1:] or MODEL_TYPES:
        signal.alarm(8)
        try:
            logits = tiny_model(model_type)(mx.arange(48).reshape(2, 24) % VOCAB)
            good = logits.shape == (2, 24, VOCAB) and bool(mx.isfinite(logits).all().item())
            works += good
            if not good:
                print(f"{model_type}: {logits.shape}, not finite or of another shape")
        except Exception as error:
            print(f"{model_type}: {type(error).__name__}: {str(error)[:160]}")
    print(f"{works} of {len(MODEL_TYPES)} work")


if __name__ == "__main__":
    main()
