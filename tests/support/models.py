"""Tiny tokenizers and base models, real and random; and a machine on which no others are found."""

from __future__ import annotations

import json
import os
from pathlib import Path

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


def write_tiny_tokenizer(directory: Path, source: Path) -> Path:
    """A byte-level BPE of about 600 tokens with Qwen2.5-Coder's markers, trained on the Python files of ``source``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((path.read_text() for path in sorted(source.rglob("*.py"))), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|fim_pad|>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write_tiny_model(directory: Path, tokenizer_dir: Path, **overrides: object) -> Path:
    """A random model of mlx-lm's zoo with real files, as a hub download would leave it; about 0.2 MB."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    config: dict[str, object] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 640,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": 0,
        "bos_token_id": 0,
        "torch_dtype": "float32",
    } | overrides
    model_class, arguments_class = _get_classes(config)
    mx.random.seed(7)
    model = model_class(arguments_class.from_dict(config))
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: mx.random.normal(value.shape) * 0.06 if value.ndim > 1 else value
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tokenizer_dir / name).read_bytes())
    return directory


def write_chat_model(directory: Path, tokenizer_dir: Path) -> Path:
    """A tiny random model with a chat template."""
    write_tiny_model(directory, tokenizer_dir)
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.role not in ('system', 'user', 'assistant') %}"
        "{{ raise_exception('unknown role') }}{% endif %}<|file_sep|>{{ message.role }}\n{{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|file_sep|>assistant\n{% endif %}"
    )
    return directory


#: What moves stores of models, beside those of `without_stores`.
STORE_VARIABLES = (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "OMLX_BASE_PATH", "OMLX_MODEL_DIR",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL",
)  # fmt: skip


def without_stores(user: Path) -> dict[str, str]:
    """Variables by which a process finds no models but those below ``user``, a home of its own."""
    return {
        "HOME": str(user),
        "HF_HOME": str(user / ".cache" / "huggingface"),
        "OLLAMA_MODELS": str(user / ".ollama" / "models"),  # Ollama's service has a place outside of homes
        "PIP_CONFIG_FILE": os.devnull,  # no directory of wheels either; HF_HUB_OFFLINE keeps pip off the network
    }
