"""A chat as text: the model's own template, read from its directory and rendered within bounds of time and memory.

In: messages and a model's directory. Out: the text that the model continues. Cost: a process of about a tenth of a
second, beside the computing thread and not in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from mlx_gardener.evaluate.complete import CHARACTERS_PER_TOKEN
from mlx_gardener.platform.encoding import whole_text
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_bytes, read_json
from mlx_gardener.serve import chat_template
from mlx_gardener.serve.worker import BadRequestError

_MAX_TEMPLATE_BYTES = 2**20
_MAX_SECONDS = 10.0
_MAX_BYTES = 512 * 2**20
_LOOK_SECONDS = 0.01


def check_length(characters: int, context_tokens: int) -> None:
    """Refuse messages that no model could read whole: written out, they take some ten times their size.

    Raises:
        BadRequestError: they are longer.
    """
    most = CHARACTERS_PER_TOKEN * context_tokens
    if characters > most:
        raise BadRequestError(
            f"messages: {characters} characters; at most {most} are possible.", next_step="Send less."
        )


def chat_text(path: Path, name: str, messages: list[dict[str, str]]) -> str:
    """What the template of the model in the directory ``path`` makes of messages.

    Args:
        name: how the model is called, for errors.

    Raises:
        BadRequestError: there is no template, it refuses these messages, or it takes too long or too much.
    """
    template, names = _template(path, name)
    values: dict[str, Any] = {**names, "messages": messages, "add_generation_prompt": True, "tools": None}
    answer = _rendered({"template": template, "values": values}, name)
    if "error" in answer:
        raise BadRequestError(f"The chat template of {name} refuses these messages ({answer['error']}).")
    return whole_text(str(answer["text"]))


def _rendered(given: dict[str, Any], name: str) -> dict[str, Any]:
    command = [sys.executable, "-I", chat_template.__file__]
    # Files, not pipes: nothing has to be read or written while the process is watched.
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as result:
        source.write(json.dumps(given).encode())
        source.seek(0)
        with subprocess.Popen(command, stdin=source, stdout=result, stderr=subprocess.DEVNULL) as process:
            problem = _watched(process)
        result.seek(0)
        output = result.read(8 * chat_template.MOST_CHARACTERS)
    if problem is None and process.returncode != 0:
        problem = f"its process ended with {process.returncode}"
    if problem is not None:
        raise BadRequestError(
            f"The chat template of {name} could not be rendered: {problem}.",
            next_step="Send shorter messages, or use /v1/completions or /infill.",
        )
    return dict(json.loads(output))


def _watched(process: subprocess.Popen[bytes]) -> str | None:
    """Wait for a process; why it was ended, if it had to be."""
    watched, until = psutil.Process(process.pid), time.monotonic() + _MAX_SECONDS
    while True:
        try:
            process.wait(_LOOK_SECONDS)
            return None
        except subprocess.TimeoutExpired:
            pass
        try:
            size = watched.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended just now
        if size > _MAX_BYTES or time.monotonic() > until:
            process.kill()
            process.wait()
            return (
                f"it took more than {_MAX_BYTES >> 20} MB"
                if size > _MAX_BYTES
                else f"it took more than {_MAX_SECONDS:.0f} s"
            )


def _template(path: Path, name: str) -> tuple[str, dict[str, str]]:
    """The template, and the control tokens it may name."""
    try:
        file = path / "chat_template.jinja"
        settings: Any = {}
        if (path / "tokenizer_config.json").is_file():
            found = read_json(path / "tokenizer_config.json")
            settings = found if isinstance(found, dict) else {}
        template = settings.get("chat_template")
        if file.is_file():
            template = read_bytes(file, max_bytes=_MAX_TEMPLATE_BYTES).decode()
    except (OSError, ValueError) as error:
        raise BadRequestError(f"The chat template of {name} cannot be read ({reason_of(error)}).") from error
    if isinstance(template, list):  # several named ones
        named = [item for item in template if isinstance(item, dict) and item.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str) or not template:
        raise BadRequestError(
            f"The model {name} has no chat template: it completes code and does not chat.",
            next_step="Use /v1/completions or /infill, and set the editor's address for chats "
            "(llama.vim's endpoint_inst, llama-vscode's endpoint_chat) to a server with a chat model.",
        )
    names = {}
    for token in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(token)
        value = value.get("content") if isinstance(value, dict) else value
        names[token] = value if isinstance(value, str) else ""
    return template, names
