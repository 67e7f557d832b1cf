"""llama.cpp's side of a comparison, by the C interface of llama-cpp-python, which brings and builds it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Decode = Callable[[list[int], int], np.ndarray]


@contextmanager
def llama_session(
    llama_cpp: Any, model: Path, adapter: Path | None, *, most_tokens: int = 256, threads: int = 1
) -> Iterator[Decode]:
    """A model of llama.cpp's, as a function of tokens and how many came before, which gives logits (tokens, vocabulary).

    Args:
        adapter: put on it as ``--lora`` does.
        most_tokens: of a text.
    """
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
    assert loaded, "llama.cpp loads the model"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = most_tokens
    settings.n_threads = settings.n_threads_batch = threads
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(loaded, settings)
    if adapter is not None:
        lora = llama_cpp.llama_adapter_lora_init(loaded, str(adapter).encode())
        assert lora, "llama.cpp loads the adapter"
        one, scale = (type(lora) * 1)(lora), (ctypes.c_float * 1)(1.0)
        set_adapters = llama_cpp.llama_set_adapters_lora
        assert set_adapters(context, ctypes.cast(one, set_adapters.argtypes[1]), 1, scale) == 0
    batch = llama_cpp.llama_batch_init(most_tokens, 0, 1)
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))

    def decode(ids: list[int], before: int = 0) -> np.ndarray:
        if not before:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, before + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, place), (words,)).copy()
            for place in range(len(ids))
        ]
        return np.stack(rows)

    try:
        yield decode
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(loaded)


def llama_logits(llama_cpp: Any, model: Path, adapter: Path | None, ids: list[int]) -> np.ndarray:
    """Logits of every position, (tokens, vocabulary)."""
    with llama_session(llama_cpp, model, adapter) as decode:
        return decode(ids, 0)


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())
