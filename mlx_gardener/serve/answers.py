"""Answers' bodies, as OpenAI's clients and llama.cpp's editor plugins read them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from mlx_gardener.platform.version import __version__
from mlx_gardener.serve.access import SUFFIX_LEFT_OUT
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.generation import Ending, TokenScore
from mlx_gardener.serve.worker import Started

_REASONS = {"stop": "stop", "length": "length", "time": "length"}


def completion_choice(
    index: int, text: str, scores: Sequence[TokenScore] | None, ending: Ending | None
) -> dict[str, Any]:
    """A choice of ``/v1/completions``, whole or a piece of a stream (``ending`` None)."""
    return {
        "index": index,
        "text": text,
        "logprobs": None if scores is None else _logprobs(scores),
        "finish_reason": None if ending is None else _REASONS[ending.reason],
    }


def _logprobs(scores: Sequence[TokenScore]) -> dict[str, Any]:
    offsets, at = [], 0
    for score in scores:
        offsets.append(at)
        at += len(score.text)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [dict(score.top) for score in scores],
        "text_offset": offsets,
    }


def chat_choice(index: int, text: str, ending: Ending) -> dict[str, Any]:
    """A choice of ``/v1/chat/completions``."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": _REASONS[ending.reason],
    }


def chat_delta(index: int, delta: dict[str, str], ending: Ending | None) -> dict[str, Any]:
    """A piece of a chat's stream."""
    return {
        "index": index,
        "delta": delta,
        "logprobs": None,
        "finish_reason": None if ending is None else _REASONS[ending.reason],
    }


def usage(endings: Sequence[Ending], answers: int) -> dict[str, Any]:
    """Tokens read and written; a prompt counts once, however often it is answered."""
    read = sum(ending.prompt_tokens for ending in endings[::answers])
    written = sum(ending.written_tokens for ending in endings)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(ending.cached_tokens for ending in endings[::answers])
        },
    }


def llama(model: str, text: str, ending: Ending, fields: list[str] | None, index: int = 0) -> dict[str, Any]:
    """The answer of ``/infill`` and ``/completion``.

    Args:
        fields: what the client wants of it; ``timings/prompt_n`` names a value in an object, and is its name then.
    """
    read = ending.prompt_tokens - ending.cached_tokens
    body = {
        "index": index,
        "content": text,
        "stop": True,
        "model": model,
        "tokens_predicted": ending.written_tokens,
        "tokens_evaluated": ending.prompt_tokens,
        "tokens_cached": ending.prompt_tokens + ending.written_tokens,
        "truncated": False,
        "stop_type": "word" if ending.stopped_by else "eos" if ending.reason == "stop" else "limit",
        "stopping_word": ending.stopped_by,
        "timings": {
            "prompt_n": read,
            "prompt_ms": ending.prompt_ms,
            "prompt_per_token_ms": ending.prompt_ms / max(1, read),
            "prompt_per_second": 1000 * read / max(1e-6, ending.prompt_ms),
            "predicted_n": ending.written_tokens,
            "predicted_ms": ending.written_ms,
            "predicted_per_token_ms": ending.written_ms / max(1, ending.written_tokens),
            "predicted_per_second": 1000 * ending.written_tokens / max(1e-6, ending.written_ms),
            "draft_n": ending.drafted_tokens,
            "draft_n_accepted": ending.accepted_tokens,
        },
    }
    return body if fields is None else _chosen(body, fields)


def _chosen(body: dict[str, Any], fields: list[str]) -> dict[str, Any]:
    found = {}
    for field in fields:
        value: Any = body
        for part in field.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[field] = value
    return found


def model_entry(target: Target) -> dict[str, Any]:
    """An entry of ``/v1/models``."""
    record = target.record
    return {
        "id": target.id,
        "object": "model",
        "created": int(target.created_at),
        "owned_by": "mlx-gardener",
        "base": target.base_id,
        "adapter_version": record.version if record is not None else None,
        "active": record.active if record is not None else None,
    }


def head(target: Target, prefix: str, kind: str) -> dict[str, Any]:
    """What every document and every piece of a stream of OpenAI's begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": target.id,
        "system_fingerprint": f"mlx-gardener-{__version__}",
    }


def headers(target: Target, started: Started) -> dict[str, str]:
    """Headers that name what wrote an answer and what code was retrieved for it; what is not ASCII in a name is percent-encoded.

    And that what follows the caret was not shown, where that is so.
    """
    left_out = {"x-gardener-suffix": SUFFIX_LEFT_OUT} if started.leaves_out_suffix else {}
    return {
        **left_out,
        "x-model": quote(target.id, safe=" !#$&'()*+,/:;=?@[]~"),
        "x-adapter": started.weights_sha256 or "none",
        "x-adapter-version": started.version or "none",
        "x-gardener-retrieval": started.retrieval,
    }


def props(target: Target, context_tokens: int) -> dict[str, Any]:
    """The answer of ``/props``: what llama.cpp's clients read of it."""
    return {
        "default_generation_settings": {"n_ctx": context_tokens, "params": {"temperature": 0.0}},
        "total_slots": 1,
        "model_alias": target.id,
        "model_path": target.base_id,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"mlx-gardener {__version__}",
    }
