"""The 0.5B shape that comparisons train, and its tokens: equal from their seeds in any process that has mlx-lm.

Imports nothing of mlx_gardener, so that another trainer's own environment can build the same model.
"""

from __future__ import annotations

from typing import Any


def half_billion_shape(
    layers: int = 8, *, hidden: int = 896, vocab: int = 151936, library: str = "mlx_lm"
) -> Any:
    """A Qwen2.5-Coder-0.5B with fewer layers and random float32 weights, frozen.

    Args:
        hidden: its width, a multiple of 64; the MLP's and the heads' sizes keep the real model's measure.
        library: the package that has the model's classes; mlx-lm or another trainer's copy of it.
    """
    import importlib

    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_map_with_path

    qwen2 = importlib.import_module(f"{library}.models.qwen2")
    heads = hidden // 64
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=hidden * 38 // 7,  # 4,864 of 896
            num_attention_heads=heads,
            num_key_value_heads=2 if heads % 2 == 0 else 1,
            rms_norm_eps=1e-6,
            vocab_size=vocab,
            rope_theta=1e6,
            tie_word_embeddings=True,
        )
    )
    random = np.random.default_rng(
        0
    )  # MLX's own initial values take minutes on a CPU, so they are never computed

    def drawn(name: str, value: Any) -> Any:
        if "norm" in name:
            return mx.ones(value.shape)
        return mx.array(0.02 * random.standard_normal(value.shape, dtype=np.float32))

    model.update(tree_map_with_path(drawn, model.parameters()))
    mx.eval(model.parameters())
    model.freeze()
    return model


def random_tokens(rows: int, width: int, vocab: int, *, seed: int = 0) -> Any:
    """Random tokens of no special meaning: int32 (rows, width)."""
    import numpy as np

    return np.random.default_rng(seed).integers(7, vocab - 1, (rows, width)).astype(np.int32)


def set_first_adapters(model: Any, *, seed: int = 1) -> None:
    """The same A in every process, uniform within 1/sqrt(inputs), and B zero, whichever library made the LoRA layers.

    Args:
        model: with LoRA layers as mlx-lm names their weights, ``lora_a`` (inputs, rank) and ``lora_b``.
    """
    import mlx.core as mx
    import numpy as np

    random = np.random.default_rng(seed)
    for _, module in sorted(model.named_modules(), key=lambda found: found[0]):
        if "lora_a" in module:
            bound = module.lora_a.shape[0] ** -0.5
            module.lora_a = mx.array(random.uniform(-bound, bound, module.lora_a.shape).astype(np.float32))
            module.lora_b = mx.zeros(module.lora_b.shape)
    mx.eval(model.parameters())
