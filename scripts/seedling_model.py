"""The seedling as files: its configuration, its export, and its score on packages it never saw.

In: ``state/weights.npz`` and ``tokenizer.json``. Out: a model directory in the standard Llama layout (fp16 safetensors),
and bits per byte beside gzip and xz on the same files. Cost: the score takes about a minute per megabyte on two cores.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from seedling_corpus import Document
from seedling_tokens import MARKERS, VOCABULARY, text_encoder

#: The Llama of the seedling: 7.6 million parameters, 15.2 MB in fp16.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "use_cache": True,
    "torch_dtype": "float16",
}
MAX_BYTES = 16_000_000

#: Tokens of context the score is measured with.
WINDOW = 1024

#: A small text that is part of the repository: its score is recorded, so that a test can measure it again.
PROBE = Path(__file__).with_name("seedling_probe.txt")


def export(work: Path, target: Path, config: dict[str, Any] = CONFIG) -> int:
    """Write the model directory (written beside, then renamed file by file); returns its size in bytes.

    Raises:
        ValueError: the directory would be larger than what the package may carry.
    """
    from safetensors.numpy import save_file

    fresh = target.with_name(target.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with np.load(work / "state" / "weights.npz") as saved:
        weights = {name: np.ascontiguousarray(saved[name].astype(np.float16)) for name in saved.files}
    save_file(weights, str(fresh / "model.safetensors"), metadata={"format": "pt"})
    shutil.copyfile(work / "tokenizer.json", fresh / "tokenizer.json")
    shutil.copyfile(work / "state" / "position.json", fresh / "training.json")
    write_json(fresh / "config.json", config)
    write_json(fresh / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
    write_json(fresh / "tokenizer_config.json", tokenizer_config(config["max_position_embeddings"]))
    write_json(fresh / "special_tokens_map.json", {"eos_token": MARKERS[0], "pad_token": MARKERS[0]})
    for path in fresh.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in fresh.iterdir())
    if size > MAX_BYTES:
        raise ValueError(
            f"the model directory has {size} bytes, more than {MAX_BYTES}: make the model smaller"
        )
    target.mkdir(parents=True, exist_ok=True)
    for path in fresh.iterdir():
        path.replace(target / path.name)
    fresh.rmdir()
    return size


def tokenizer_config(context: int) -> dict[str, Any]:
    """What transformers needs beside ``tokenizer.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": None,
        "eos_token": MARKERS[0],
        "pad_token": MARKERS[0],
        "unk_token": None,
        "additional_special_tokens": list(MARKERS[1:]),
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def loss_function(model: Any) -> Callable[[list[int]], Any]:
    """Nats per token of one window of up to `WINDOW` tokens; padded to one shape, so that it is compiled once."""
    import mlx.core as mx
    import mlx.nn as nn

    @mx.compile
    def losses(row: Any) -> Any:  # (1, WINDOW + 1) -> (WINDOW,)
        logits = model(row[:, :-1]).astype(mx.float32)[0]  # (WINDOW, vocabulary)
        return nn.losses.cross_entropy(logits, row[0, 1:])

    def of_window(window: list[int]) -> Any:
        padded = mx.array(window + [0] * (WINDOW + 1 - len(window)))[None]
        return losses(padded)[: len(window) - 1]

    return of_window


def bits_of_text(losses: Callable[[list[int]], Any], ids: list[int]) -> float:
    """Bits the model needs for all of `ids` after an end-of-text token; windows overlap by a quarter."""
    row = [0, *ids]
    nats, scored, start = 0.0, 0, 0
    while scored < len(ids):
        window = row[start : start + WINDOW + 1]
        nats += losses(window)[scored - start :].sum().item()
        scored = start + len(window) - 1
        start = scored - WINDOW // 4
    return nats / math.log(2)


def open_model(model_dir: Path) -> tuple[Any, Any]:
    """The exported model in fp32, and its tokenizer for plain text."""
    import mlx.core as mx
    from mlx_lm import load

    model, _ = load(str(model_dir))
    model.set_dtype(mx.float32)
    return model, text_encoder(model_dir / "tokenizer.json")


def bits_per_byte(model: Any, encoder: Any, text: str) -> float:
    """Bits per UTF-8 byte of one text."""
    return bits_of_text(loss_function(model), encoder.encode(text, add_special_tokens=False).ids) / len(
        text.encode()
    )


def score(
    model_dir: Path, documents: Iterable[Document], bytes_per_language: int, max_file_bytes: int = 24_000
) -> dict[str, Any]:
    """Bits per byte per language, beside gzip -9 and xz -9e of each file on its own.

    The same files each time: those of at most `max_file_bytes`, in the corpus' order, until `bytes_per_language` is
    reached. Weights are computed in
    fp32 from the exported fp16 file, so the figure is that of the file people load.
    """
    model, encoder = open_model(model_dir)
    losses = loss_function(model)
    sums: dict[str, dict[str, float]] = defaultdict(
        lambda: dict.fromkeys(("files", "bytes", "tokens", "bits", "gzip", "xz"), 0)
    )
    for document in documents:
        line = sums[document.language]
        raw = document.text.encode()
        if line["bytes"] >= bytes_per_language or len(raw) > max_file_bytes:
            continue
        ids = encoder.encode(document.text, add_special_tokens=False).ids
        line["files"] += 1
        line["bytes"] += len(raw)
        line["tokens"] += len(ids)
        line["bits"] += bits_of_text(losses, ids)
        line["gzip"] += 8 * len(gzip.compress(raw, 9, mtime=0))
        line["xz"] += 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    table = {
        language: {
            "files": int(line["files"]),
            "bytes": int(line["bytes"]),
            "bits_per_byte": round(line["bits"] / line["bytes"], 4),
            "gzip_bits_per_byte": round(line["gzip"] / line["bytes"], 4),
            "xz_bits_per_byte": round(line["xz"] / line["bytes"], 4),
            "bytes_per_token": round(line["bytes"] / line["tokens"], 3),
        }
        for language, line in sorted(sums.items())
        if line["files"]
    }
    probe = PROBE.read_text(encoding="utf-8")
    everything = {
        key: sum(line[key] for line in sums.values()) for key in ("files", "bytes", "bits", "gzip", "xz")
    }
    return {
        "languages": table,
        "probe_bits_per_byte": round(bits_per_byte(model, encoder, probe), 4),
        "all": {
            "files": int(everything["files"]),
            "bytes": int(everything["bytes"]),
            **{
                name: round(everything[key] / everything["bytes"], 4)
                for name, key in (
                    ("bits_per_byte", "bits"),
                    ("gzip_bits_per_byte", "gzip"),
                    ("xz_bits_per_byte", "xz"),
                )
            },
        },
    }
