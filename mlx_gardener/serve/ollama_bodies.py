"""Requests' bodies as Ollama's clients send them (github.com/ollama/ollama, api/types.go), in the words of the other dialects.

Ollama's ``options`` are llama.cpp's samplers; those that are not known here (``num_ctx``, ``num_gpu``, ``repeat_penalty``, ...) are
named in the log and change nothing. What would make the answer another thing (images, tools, a format) is refused by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field, StrictStr, field_validator, model_validator

from mlx_gardener.serve.bodies import Body, CompletionBody, InfillBody, LlamaCompletionBody, Message, parse

#: Options that decide an answer, by llama.cpp's names.
_OPTIONS = {
    "num_predict": "n_predict",
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")},
}
#: What is refused where it says anything, and why.
_REFUSED = {
    "images": "this model does not support images",
    "tools": "this model does not support tools",
    "think": "this model does not support thinking",
    "format": "answers cannot be held to a format",
    "context": "no conversation is kept; /api/chat takes its messages",
    "template": "prompts have the form that the adapter was trained on; with raw they have yours",
    "logprobs": "log-probabilities are told by /v1/completions",
}
#: Go durations of nothing: 0, "0", "0s", "0h0m".
_NOTHING = re.compile(r"[+-]?(0+(\.0*)?(ns|us|µs|μs|ms|s|m|h)?)+")
#: What Continue puts between other files and the file (continuedev/continue, core/autocomplete/templating/AutocompleteTemplate.ts)
#: where a model is called a Qwen coder: its own prompts have it replaced, what it sends with a suffix has not.
_CONTINUES_MARK = "<|system_separator_istruction_repository_level|>"
_FILE_MARK = "<|file_sep|>"
_MOST_FILES = 256


class _Asked(Body):
    model: str | None = Field(None, max_length=4096)
    stream: bool = True
    options: dict[str, Any] = Field(default_factory=dict)
    keep_alive: float | str | None = None
    images: Any = None
    tools: Any = None
    think: Any = None
    format: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    truncate: bool | None = None  # of a chat that is too long; here it is refused
    shift: bool | None = None

    @model_validator(mode="after")
    def _possible(self) -> _Asked:
        for name, why in _REFUSED.items():
            if getattr(self, name, None):
                raise ValueError(f"{name} is not supported: {why}")
        return self

    @property
    def unloads(self) -> bool:
        """Whether the model is to be let go of."""
        wish = self.keep_alive
        return _NOTHING.fullmatch(wish) is not None if isinstance(wish, str) else wish == 0

    def ignored(self) -> list[str]:
        """Options that change nothing."""
        return [f"options.{name}" for name in self.options if name not in _OPTIONS]

    def sampled(self) -> LlamaCompletionBody:
        """How the answer is written.

        Raises:
            BadRequestError: an option is of the wrong type or out of range.
        """
        return parse(LlamaCompletionBody, {**self._sampling(), "prompt": ""})[0]

    def _sampling(self) -> dict[str, Any]:
        found = {
            own: self.options[name] for name, own in _OPTIONS.items() if self.options.get(name) is not None
        }
        return {"n_predict": -1, **found}


class GenerateBody(_Asked):
    """``/api/generate``; ``path`` is ours, as in `CompletionBody`."""

    prompt: StrictStr = ""
    suffix: str = ""
    raw: bool = False
    system: str = ""
    template: str = ""
    context: Any = None
    path: str | None = Field(None, max_length=4096)

    @model_validator(mode="after")
    def _plain(self) -> GenerateBody:
        if self.raw and self.system:
            raise ValueError("raw mode does not support system")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be written, only loaded."""
        return not self.prompt and not self.suffix

    def ignored(self) -> list[str]:
        """What changes nothing: options, ``system`` (a prompt is continued, not answered), the path of one that is read as it is."""
        unused = {"system": self.system, "path": self.path if self.raw or not self.suffix else None}
        return [*super().ignored(), *(name for name, value in unused.items() if value)]

    def infill(self) -> InfillBody:
        """The same as ``/infill`` takes it; Continue's other files become its pieces. Raises as `sampled`."""
        path, extra, prefix = _continues_files(self.prompt)
        sides = {"input_prefix": prefix, "input_suffix": self.suffix, "input_extra": extra}
        return parse(InfillBody, {**self._sampling(), **sides, "path": self.path or path[:4096]})[0]

    def completion(self) -> CompletionBody:
        """The same as ``/v1/completions`` takes it: the prompt as it was written."""
        return parse(CompletionBody, {"prompt": self.prompt})[0]


class OllamaMessage(Message):
    """A message of a chat."""

    content: StrictStr = ""
    images: Any = None
    tool_calls: Any = None

    @field_validator("role", mode="before")
    @classmethod
    def _lower(cls, role: Any) -> Any:
        return role.lower() if isinstance(role, str) else role

    @model_validator(mode="after")
    def _text(self) -> OllamaMessage:
        for name in ("images", "tool_calls"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported: {_REFUSED[name.replace('tool_calls', 'tools')]}")
        return self


class OllamaChatBody(_Asked):
    """``/api/chat``; without messages the model is only loaded."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True)] = Field(default_factory=list)


class ShowBody(Body):
    """``/api/show``."""

    other_names: ClassVar[dict[str, str]] = {"name": "model"}

    model: str | None = Field(None, max_length=4096)
    verbose: bool | None = None


def _continues_files(prompt: str) -> tuple[str, list[dict[str, str]], str]:
    """The file's path, pieces of others, and the file up to the caret; a prompt without Continue's mark is that last alone."""
    front, mark, prefix = prompt.partition(_CONTINUES_MARK)
    if not mark:
        return "", [], prompt
    *others, path = front.rsplit(_FILE_MARK, _MOST_FILES)
    pieces = (piece.partition("\n") for piece in others[1:])
    return path.strip(), [{"filename": name, "text": text} for name, _, text in pieces], prefix
