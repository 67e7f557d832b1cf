"""Greedy answers to many prompts at once, by mlx-lm's batched generation, and a memory of the base's.

The base's answers depend on its weights and the prompts alone, so they are kept on disk per base and list of prompts (whole
lists: within another batch a sum may be rounded otherwise). Cost: about a third of one prompt after another on two
cores; keys and values of a batch take at most `_CACHE_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.errors import ModelError
from mlx_gardener.platform.files import make_private, write_private
from mlx_gardener.platform.untrusted import read_json

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

_CACHE_BYTES = 256 * 2**20
_MOST_AT_ONCE = 16


@dataclass(frozen=True)
class Answer:
    """What a model wrote; ``stopped`` when it ended by itself, with an end-of-text or another marker."""

    text: str
    stopped: bool
    ids: tuple[int, ...]


@dataclass(frozen=True)
class AnswerStore:
    """The base's answers on disk, 0600: one file per base and list of prompts."""

    directory: Path

    def get(self, key: str) -> list[Answer] | None:
        """What was kept for ``key``; None where nothing readable was."""
        try:
            kept = read_json(self.directory / f"{key}.json", follow_links=False)
            return [Answer(str(text), bool(stopped), tuple(ids)) for text, stopped, ids in kept]
        except (OSError, ValueError, TypeError):
            return None  # only a cache: it is made again

    def put(self, key: str, answers: Sequence[Answer]) -> None:
        """Keep ``answers``, whole or not at all."""
        make_private(self.directory)
        staged = self.directory / f".{key}.new"
        write_private(staged, json.dumps([[item.text, item.stopped, list(item.ids)] for item in answers]))
        staged.replace(self.directory / f"{key}.json")


def stop_ids(base: BaseModel) -> set[int]:
    """Token ids that end an answer: end of text and every other marker."""
    tokenizer = base.tokenizer
    stops = {tokenizer.eos_id, tokenizer.pad_id, tokenizer.file_id, tokenizer.repo_id}
    if (marks := tokenizer.markers) is not None:
        stops |= {marks.prefix, marks.suffix, marks.middle, marks.end}
    return {index for index in stops if index is not None}


def generate_many(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    is_enough: Callable[[str], bool] | None = None,
    tell: Callable[[float], None] = lambda share: None,
    interrupt: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """The greedy answer to each prompt, in their order; the same for the same list of prompts.

    Args:
        base: with or without an adapter attached.
        prompts: token ids, none of them empty.
        max_new_tokens: at most this many a prompt.
        is_enough: asked with an answer's text so far; ends that answer early.
        tell: told the share of answers done, 0 to 1.
        interrupt: asked after every token; may raise.

    Raises:
        ModelError: a prompt is empty.
    """
    if not all(prompts):
        raise ModelError("There is nothing to complete from.", next_step="Give some code before the place.")
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.models.cache import make_prompt_cache

    if not all(hasattr(cache, "merge") for cache in make_prompt_cache(base.model)):
        return _one_by_one(base, prompts, max_new_tokens, is_enough, tell, interrupt)
    stops = stop_ids(base)
    # Longest first: what meets in a batch is of about the same length, and little is padded.
    order = sorted(range(len(prompts)), key=lambda at: (-len(prompts[at]), at))
    answers: dict[int, Answer] = {}
    rows = _rows_at_once(base, max((len(prompt) for prompt in prompts), default=1) + max_new_tokens)
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        generator = BatchGenerator(
            base.model, max_tokens=max_new_tokens, completion_batch_size=rows, prefill_batch_size=rows
        )
        try:
            uids = generator.insert([list(prompts[at]) for at in batch])
            place = dict(zip(uids, batch, strict=True))
            written: dict[int, list[int]] = {uid: [] for uid in uids}
            while responses := generator.next_generated():
                interrupt()
                for response in responses:
                    uid, token = response.uid, int(response.token)
                    if uid not in place:
                        continue
                    text = None
                    if token not in stops:
                        written[uid].append(token)
                        text = base.tokenizer.decode(written[uid])
                    enough = text is not None and is_enough is not None and is_enough(text)
                    if text is None or enough or response.finish_reason is not None:
                        said = base.tokenizer.decode(written[uid])
                        answers[place.pop(uid)] = Answer(said, text is None, tuple(written[uid]))
                        if response.finish_reason is None:
                            generator.remove([uid])
        finally:
            generator.close()
        tell(len(answers) / len(prompts))
    return [answers[at] for at in range(len(prompts))]


def _one_by_one(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    is_enough: Callable[[str], bool] | None,
    tell: Callable[[float], None],
    interrupt: Callable[[], None],
) -> list[Answer]:
    """For models whose caches cannot be joined."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    stops = stop_ids(base)
    answers = []
    for prompt in prompts:
        ids: list[int] = []
        stopped = False
        for token, _ in generate_step(mx.array(list(prompt)), base.model, max_tokens=max_new_tokens):
            interrupt()
            stopped = int(token) in stops
            if stopped:
                break
            ids.append(int(token))
            if is_enough is not None and is_enough(base.tokenizer.decode(ids)):
                break
        answers.append(Answer(base.tokenizer.decode(ids), stopped, tuple(ids)))
        tell(len(answers) / len(prompts))
    return answers


def _rows_at_once(base: BaseModel, length: int) -> int:
    """Prompts whose keys and values take at most `_CACHE_BYTES` together, by the sizes in the model's config."""
    config = base.config.get("text_config", base.config)
    heads = int(config.get("num_attention_heads") or 1)
    kept = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or 1) // heads)
    layers = int(config.get("num_hidden_layers") or len(base.model.layers))
    token_bytes = 2 * layers * kept * max(1, width) * base.dtype.size
    return max(1, min(_MOST_AT_ONCE, _CACHE_BYTES // max(1, token_bytes * length)))


def answers_key(base: BaseModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, kind: str) -> str:
    """The name of the base's answers: sha256 over its weights, type, the prompts and what ends an answer."""
    digest = hashlib.sha256(f"{base.weights_sha256}\0{base.dtype}\0{base.quantized}\0{kind}".encode())
    digest.update(json.dumps([max_new_tokens, [list(prompt) for prompt in prompts]]).encode())
    return digest.hexdigest()[:32]
