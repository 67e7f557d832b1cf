# ruff: noqa: RUF001  (texts in many scripts)
"""Tiny GGUF files for the tests: models of mlx-lm's zoo written as llama.cpp's converters write them, and headers byte by byte.

What the reader has to undo is done here in another way: names come from the gguf package's own map, rows of queries and
keys change places by the formula of llama.cpp's converter (conversion/llama.py, LlamaModel.permute), Gemma's norms get
their 1.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType as Kind
from mlx.utils import tree_flatten

from mlx_gardener.model import load_tokenizer
from mlx_gardener.model.gguf.reader import read_header
from mlx_gardener.model.gguf.tokenizer import read_tokenizer
from mlx_gardener.model.tokens import CodeTokenizer

#: llama.cpp's name, and a config that mlx-lm's model is made of; all with two heads of keys for four, and odd settings.
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": 320,
    "rope_theta": 50000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3moe": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 15.0,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "starcoder2": {"model_type": "starcoder2", "norm_epsilon": 1e-5},
    "phi3": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1.0, 1.5, 2.5, 4.0],
            "short_factor": [1.0, 1.0, 1.25, 1.5],
        },
    },
    "granite": {
        "model_type": "granite",
        "logits_scaling": 8.0,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4},
}
_PERMUTED = ("llama", "granite", "smollm3")


def tiny_model(architecture: str, **overrides: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of mlx-lm's, norms and biases random too, and its config."""
    from mlx_lm.utils import _get_classes

    config = _SHAPE | CONFIGS[architecture] | overrides
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if architecture == "gemma3":
        model.sanitize({})  # takes its head away, as for every published model
    keys = iter(mx.random.split(mx.random.key(3), 1000))
    weights = [
        (
            name,
            mx.random.normal(value.shape, key=next(keys)) * (0.3 if value.ndim == 1 else 0.1)
            + (value.ndim == 1),
        )
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(weights)
    model.eval()
    return model, config


def forward_permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter puts them."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(
    file: Path,
    architecture: str,
    model: nn.Module,
    config: dict[str, Any],
    *,
    kind: Kind = Kind.F32,
    kinds: dict[str, Kind] | None = None,
    tokenizer: bool = True,
    rope_freqs: np.ndarray | None = None,
    **keys: Any,
) -> Path:
    """Write ``model`` as a converter would; matrices quantised as ``kind``.

    Args:
        kinds: other kinds for tensors whose names hold a word.
        keys: other pairs of the metadata; ``__`` for a dot, without the architecture's name.
    """
    writer = gguf.GGUFWriter(file, architecture)
    _add_settings(writer, architecture, config)
    for key, value in keys.items():
        name = f"{architecture}.{key.replace('__', '.')}"
        writer.kv_data[0].pop(name, None)
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(name, value)
    if tokenizer:
        add_byte_tokenizer(writer, config["vocab_size"])
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    if architecture == "phi3":
        for length in ("long", "short"):
            factors = np.array(config["rope_scaling"][f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    for name, value in as_llama_cpp(architecture, model, config):
        own = next((own for word, own in (kinds or {}).items() if word in name), kind)
        if value.ndim == 1 or own == Kind.F32:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def as_llama_cpp(architecture: str, model: nn.Module, config: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Names and values of llama.cpp's for all weights."""
    number = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config["num_hidden_layers"])
    found = []
    for path, weight in tree_flatten(model.parameters()):
        value = np.array(weight.astype(mx.float32))
        if architecture in _PERMUTED and ".q_proj." in path:
            value = forward_permuted(value, config["num_attention_heads"])
        if architecture in _PERMUTED and ".k_proj." in path:
            value = forward_permuted(value, config["num_key_value_heads"])
        if architecture.startswith("gemma") and path.endswith("norm.weight"):
            value = value + np.float32(1)
        known = path.replace("mlp.switch_mlp.", "mlp.experts.")
        name = names.get_name(known, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"the gguf package has no name for {path}"
        found.append((name, np.ascontiguousarray(value)))
    return found


def _add_settings(writer: Any, architecture: str, config: dict[str, Any]) -> None:
    # llama.cpp takes the vocabulary of what is called phi3 for the one that was published.
    writer.add_name(f"Tiny {architecture}".replace("phi3", "Phi"))
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config.get("partial_rotary_factor", 1)))
    if architecture == "starcoder2":
        writer.add_layer_norm_eps(config["norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if architecture == "qwen3moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    if architecture == "granite":
        writer.add_logit_scale(config["logits_scaling"])
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])


def add_byte_tokenizer(writer: Any, size: int, *, split: str = "qwen2") -> None:
    """A byte-level vocabulary: 256 bytes, a few merges, Qwen's markers, and padding up to ``size``."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["i n", "Ġ t", "r e", "1 2", "Ċ Ċ"]
    markers = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), *markers]
    kinds = [1] * (len(tokens) - len(markers)) + [3] * len(markers) + [5] * (size - len(tokens))
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)


def logits(model: nn.Module, ids: list[int]) -> np.ndarray:
    """(tokens, vocabulary), float32."""
    return np.array(model(mx.array([ids])).astype(mx.float32))[0]


def text(value: str | bytes) -> bytes:
    """A string as GGUF has it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key and its value."""
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """A tensor's entry; ``shape`` as ggml has it, the inputs first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(pairs: list[bytes], tensors: list[bytes], /, *, version: int = 3, **counts: int) -> bytes:
    """A file's header, with other counts where they are given."""
    count = (counts.get("tensors", len(tensors)), counts.get("pairs", len(pairs)))
    return b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(pairs) + b"".join(tensors)


def settings_of(folder: Path) -> dict[str, Any]:
    """config.json of a folder."""
    return dict(json.loads((folder / "config.json").read_text()))


def smallest_file(kind: Kind = Kind.Q4_0, *, byte_level: bool = False) -> bytes:
    """A whole llama of one layer and eight tokens, in 5,000 bytes where blocks are of 32 values, and in 30,000 where of 256.

    Args:
        kind: of the matrices whose rows are whole blocks.
        byte_level: the tokenizer, with merges, instead of SentencePiece.
    """
    uint32, float32, string, listed, int32 = 4, 6, 8, 9, 5
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    width = max(32, block)
    numbers = {"context_length": 64, "embedding_length": width, "block_count": 1, "feed_forward_length": 32}
    numbers |= {"attention.head_count": 1, "attention.key_length": 2, "attention.value_length": 2}
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab"]

    def a_list(kind: int, values: list[bytes]) -> bytes:
        return struct.pack("<IQ", kind, len(values)) + b"".join(values)

    pairs = [pair("general.architecture", string, text("llama"))]
    pairs += [pair(f"llama.{key}", uint32, struct.pack("<I", value)) for key, value in numbers.items()]
    pairs += [
        pair("llama.attention.layer_norm_rms_epsilon", float32, struct.pack("<f", 1e-5)),
        pair("tokenizer.ggml.model", string, text("gpt2" if byte_level else "llama")),
        pair("tokenizer.ggml.tokens", listed, a_list(string, [text(token) for token in tokens])),
        pair("tokenizer.ggml.scores", listed, a_list(float32, [struct.pack("<f", -at) for at in range(8)])),
        pair("tokenizer.ggml.token_type", listed, a_list(int32, [struct.pack("<i", k) for k in (2, 3, 3, *[1] * 5)])),
        pair("tokenizer.ggml.eos_token_id", uint32, struct.pack("<I", 2)),
    ]  # fmt: skip
    if byte_level:
        pairs += [
            pair("tokenizer.ggml.pre", string, text("qwen2")),
            pair("tokenizer.ggml.merges", listed, a_list(string, [text("a b")])),
        ]
    layer = {"attn_q": (width, 2), "attn_k": (width, 2), "attn_v": (width, 2), "attn_output": (2, width)}
    layer |= {"ffn_gate": (width, 32), "ffn_up": (width, 32), "ffn_down": (32, width)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (width, 8), "output_norm": (width,)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    entries, offset = [], 0
    for name, shape in shapes.items():
        is_float = len(shape) == 1 or shape[0] % block != 0
        own = Kind.F32 if is_float else kind
        entries.append(entry(f"{name}.weight", shape, own, offset))
        size = int(np.prod(shape)) * 4 if is_float else int(np.prod(shape)) // block * block_bytes
        offset += -(-size // 32) * 32
    start = header(pairs, entries)
    return start + b"\0" * (-len(start) % 32) + b"\x11" * offset


_PIECES = (
    "def f(x1, y22, z333):\n    return 1234567 + 3.14159 - 0xDEADBEEF\n",
    "if (a == 10) {\r\n\tb += 1;\r\n}\r\n\r\n",
    "naïve café — “quoted” … 100 %",
    "日本語のコメント、数字１２３と漢字。한국어 주석 中文注释",
    "🚀🙂👩‍👩‍👧‍👦 emoji and \u200b zero width",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>c<|endoftext|>",
    "<|im_start|>user\nhello<|im_end|> </s> <s> <unk> [INST]",
    "   leading and trailing   \n\n\n\n",
    "\t\ttabs\tand  spaces \n \n  \n",
    "I'll we're they'd it's DON'T can't O'Neill's",
    "snake_case camelCase HTTPServer __init__ x.y.z::w->v a||b&&!c",
    "// TODO(2024-11-28): fix №42 in v1.2.3-rc.4, 50€ or $1,000,000.00",
    "Ünïcödé ａｂｃ ½ ² ³ Ⅷ ٣٤٥ ६७८",
    "e\u0301 and \u00e9, A\u030a and \u00c5",
    "\x00\x01\x7f\x80 control",
    "SELECT * FROM t WHERE id IN (1,22,333,4444,55555,666666);\n",
    '#include <stdio.h>\nint main(void){printf("%d\\n", 42);}\n',
    "мама мыла раму 1941–1945; Ελληνικά; עברית; العربية",
    "                                                        deep",
    "",
)


#: Every piece alone, and every piece after every third one.
TEXTS = [*_PIECES, *(first + second for first in _PIECES[::2] for second in _PIECES)]


def write_vocabulary(file: Path, folder: Path, split: str, *, marker_kind: int | None = None) -> Path:
    """The tokenizer.json in ``folder`` as a converter would write it; control tokens as ``marker_kind`` where given."""
    parsed = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(parsed["model"]["vocab"])
    added = {token["id"]: token for token in parsed["added_tokens"]}
    ids |= {token["content"]: number for number, token in added.items()}
    by_id = {number: token for token, number in ids.items()}
    size = max(by_id) + 1
    kinds = [5 if number not in by_id else 1 for number in range(size)]
    for number, token in added.items():
        kinds[number] = marker_kind or (3 if token["special"] else 4)
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(512)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in parsed["model"]["merges"]]
    )
    writer.add_eos_token_id(ids["<|endoftext|>"])
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return file


def read(file: Path, folder: Path, rows: int = 2**20) -> CodeTokenizer:
    folder.mkdir(exist_ok=True)
    tokenizer, settings, _ = read_tokenizer(read_header(file), rows)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


#: Largest difference over largest logit, where it is more than that of sums in another order: ggml looks GELU up in a table of
#: float16. With such a table in mlx-lm's place gemma2 and starcoder2 agree to 6e-5, and gemma3 does at its first tokens.
TOLERANCE = {"starcoder2": 3e-3, "gemma2": 1e-3, "gemma3": 5e-3}
#: Settings under which mlx-lm computes what llama.cpp does: see docs/gguf.md, the table's last column.
SAME = {"phi3": {"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
                 "original_max_position_embeddings": 512}}  # fmt: skip
