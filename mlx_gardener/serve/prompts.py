"""Requests as token ids: raw text, the trained form with a file's path and a hole, and chats by the model's template.

A raw prompt is read as the client wrote it, markers as markers, like every server does: editors such as Zed spell the
hole out in the prompt. Everywhere else text is text, whatever it spells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_gardener.dataset.examples import header_text
from mlx_gardener.errors import GardenerError
from mlx_gardener.evaluate.complete import build_prompt
from mlx_gardener.platform.untrusted import read_bytes, read_json
from mlx_gardener.serve.bodies import ChatBody, CompletionBody, InfillBody
from mlx_gardener.serve.worker import BadRequestError

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel, CodeTokenizer

#: Tokens of other files that are shown before the one that is written; the last ones are kept.
_EXTRA_TOKENS = 768
_MAX_TEMPLATE_BYTES = 2**20


def completion_prompts(
    body: CompletionBody, base: BaseModel, room: int, answer_tokens: int
) -> list[list[int]]:
    """Token ids of each prompt.

    Args:
        room: tokens that prompt and answer may have together.

    Raises:
        BadRequestError: one is empty or too long, or the model cannot fill holes.
    """
    tokenizer = base.tokenizer
    if body.suffix is not None or body.file:
        assert isinstance(body.prompt, str)
        return [_fitting(_trained(tokenizer, body.prompt, body.suffix, body.file), room, answer_tokens)]
    found = []
    for prompt in body.prompts():
        if isinstance(prompt, str):
            ids = tokenizer.encode_with_markers(prompt)
            bos = tokenizer.bos_id
            ids = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
        else:
            ids = list(prompt)
            if not all(0 <= token < tokenizer.vocab_size for token in ids):
                raise BadRequestError(f"prompt: token ids are from 0 to {tokenizer.vocab_size - 1}.")
        found.append(_fitting(ids, room, answer_tokens))
    return found


def infill_prompt(body: InfillBody, base: BaseModel, room: int, answer_tokens: int) -> list[list[int]]:
    """Token ids of the trained form, with pieces of other files in front as in the repository's rows.

    Raises:
        BadRequestError: the model cannot fill holes, or there is no room.
    """
    tokenizer = base.tokenizer
    own = _trained(
        tokenizer, body.input_prefix + body.prompt, body.input_suffix, body.path or body.filename or ""
    )
    extra: list[int] = []
    for piece in body.input_extra:
        marker = [] if tokenizer.file_id is None else [tokenizer.file_id]
        header = tokenizer.encode(header_text(tokenizer, piece.filename)) if piece.filename else []
        extra += [*marker, *header, *tokenizer.encode(piece.text)]
    most = min(_EXTRA_TOKENS, room - answer_tokens - len(own))
    extra = extra[-most:] if most > 0 else []
    bos = [] if tokenizer.bos_id is None or not extra else [tokenizer.bos_id]
    return [_fitting([*bos, *extra, *own[len(bos) :]], room, answer_tokens)]


def chat_prompt(body: ChatBody, base: BaseModel, room: int, answer_tokens: int) -> list[list[int]]:
    """Token ids of a chat, by the template of the model.

    Raises:
        BadRequestError: the model has no template, or it refuses these messages.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template, names = _chat_template(base)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    messages = [message.plain() for message in body.messages]
    try:
        text = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, tools=None, **names
        )
    except (TemplateError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise BadRequestError(f"The model's chat template refuses these messages ({error}).") from error
    return [_fitting(base.tokenizer.encode_with_markers(text), room, answer_tokens)]


def _chat_template(base: BaseModel) -> tuple[str, dict[str, str]]:
    """The template, and the control tokens it may name."""
    try:
        file = base.path / "chat_template.jinja"
        settings = {}
        if (base.path / "tokenizer_config.json").is_file():
            settings = read_json(base.path / "tokenizer_config.json")
        template = settings.get("chat_template")
        if file.is_file():
            template = read_bytes(file, max_bytes=_MAX_TEMPLATE_BYTES).decode()
    except (OSError, ValueError) as error:
        raise BadRequestError(f"The chat template of {base.id} cannot be read ({error}).") from error
    if isinstance(template, list):  # several named ones
        template = next(
            (
                item.get("template")
                for item in template
                if isinstance(item, dict) and item.get("name") == "default"
            ),
            None,
        )
    if not isinstance(template, str) or not template:
        raise BadRequestError(
            f"The model {base.id} has no chat template: it completes code and does not chat.",
            next_step="Use /v1/completions or /infill.",
        )
    names = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        names[name] = value if isinstance(value, str) else ""
    return template, names


def _trained(tokenizer: CodeTokenizer, prefix: str, suffix: str | None, path: str) -> list[int]:
    try:
        return build_prompt(tokenizer, prefix, suffix, path)
    except GardenerError as error:
        raise BadRequestError(error.message, next_step="Leave out what follows.") from error


def _fitting(ids: list[int], room: int, answer_tokens: int) -> list[int]:
    if not ids:
        raise BadRequestError("The prompt is empty.")
    if len(ids) + answer_tokens > room:
        raise BadRequestError(
            f"The prompt has {len(ids)} tokens and {answer_tokens} are to be written; {room} are possible together.",
            next_step="Send less, or ask for fewer tokens.",
        )
    return ids
