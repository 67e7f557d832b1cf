"""Requests' bodies, checked: every field is known, and one that could not be kept is refused instead of ignored.

Shapes: OpenAI's completions and chat completions; llama.cpp's ``/infill`` (github.com/ggml-org/llama.cpp, tools/server).
Fields that only describe the caller (``user``, ``metadata``) or a cache (``cache_prompt``) change no answer and are let
pass; those that would change it and are not supported are accepted with their neutral value alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mlx_gardener.serve.generation import Limits, Sampling
from mlx_gardener.serve.worker import BadRequestError

_MOST_STOPS = 32
_DEFAULT_TOKENS = 128
_MOST_INFILL_TOKENS = 512


def _neutral(*allowed: object) -> AfterValidator:
    """Refuse every value but these: the field is not supported."""

    def check(value: object) -> object:
        if value is not None and value not in allowed:
            shown = " or ".join(repr(item) for item in allowed) or "leaving it out"
            raise ValueError(f"is not supported; only {shown} is possible")
        return value

    return AfterValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Sampled(_Body):
    model: str | None = None
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-1, lt=2**63)
    stop: str | list[str] | None = None
    presence_penalty: Annotated[float | None, _neutral(0.0)] = None
    frequency_penalty: Annotated[float | None, _neutral(0.0)] = None
    repetition_penalty: Annotated[float | None, _neutral(0.0, 1.0)] = None
    repeat_penalty: Annotated[float | None, _neutral(0.0, 1.0)] = None
    logit_bias: Annotated[dict[str, float] | list[Any] | None, _neutral({}, [])] = None
    lora: Annotated[list[Any] | None, _neutral([])] = None
    cache_prompt: bool | None = None

    def sampling(self) -> Sampling:
        """How tokens are chosen; the likeliest where no temperature is given, as in `mlx-gardener complete`."""
        return Sampling(
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None or self.seed < 0 else self.seed,
        )

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS or any(not stop or len(stop) > 256 for stop in stops):
            raise BadRequestError(f"stop: at most {_MOST_STOPS} texts of 1 to 256 characters are possible.")
        return tuple(stops)


class StreamOptions(_Body):
    """What a stream ends with."""

    include_usage: bool | None = False
    include_obfuscation: Annotated[bool | None, _neutral(False)] = None


class _OpenAi(_Sampled):
    n: int = Field(1, ge=1, le=8)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    environment: str | None = None  # Zed says which of its builds asks

    @property
    def tokens(self) -> int:
        """The longest answer."""
        return _DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def limits(self, most: int) -> Limits:
        """Where the answer ends.

        Raises:
            BadRequestError: it is to be longer than ``most`` tokens.
        """
        if self.tokens > most:
            raise BadRequestError(f"max_tokens: at most {most} are possible (got {self.tokens}).")
        return Limits(self.tokens, self.stops())


class CompletionBody(_OpenAi):
    """``/v1/completions``; ``path`` (or ``filename``) is ours: the file, shown to the model as in training."""

    prompt: str | list[int] | list[str] | list[list[int]]
    suffix: str | None = None
    path: str | None = Field(None, max_length=4096)
    filename: str | None = Field(None, max_length=4096)
    echo: bool | None = False
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not supported; leave it out, or give it the value of n")
        if self.echo and (self.logprobs is not None or self.suffix is not None):
            raise ValueError("echo with logprobs or suffix is not supported")
        if self.suffix is not None and not isinstance(self.prompt, str):
            raise ValueError("suffix needs a prompt that is one text")
        if self.file and not isinstance(self.prompt, str):
            raise ValueError("path needs a prompt that is one text")
        return self

    @property
    def file(self) -> str:
        """The file's path, "" where none was given."""
        return self.path or self.filename or ""

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one.

        Raises:
            BadRequestError: there are none, or too many.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]  # type: ignore[arg-type]
        if not 1 <= len(self.prompt) <= 8:
            raise BadRequestError("prompt: 1 to 8 prompts are possible in one request.")
        return list(self.prompt)  # type: ignore[arg-type]


class TextPart(_Body):
    """A part of a message; text is all there can be."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """What chat templates take."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ResponseFormat(_Body):
    """Free text is all there can be."""

    type: Literal["text"]


class ChatBody(_OpenAi):
    """``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any] | None, _neutral([])] = None
    tool_choice: Annotated[str | None, _neutral("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    logprobs: Annotated[bool | None, _neutral(False)] = None
    top_logprobs: Annotated[int | None, _neutral(0)] = None

    @property
    def tokens(self) -> int:
        """The longest answer."""
        wanted = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return _DEFAULT_TOKENS if wanted is None else wanted


class ExtraFile(_Body):
    """A piece of another file."""

    text: str
    filename: str = ""
    time: Any = None


class InfillBody(_Sampled):
    """``/infill`` as llama.cpp's server takes it; ``path`` is ours, as in `CompletionBody`."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[ExtraFile] = Field(default_factory=list, max_length=256)
    prompt: str = ""
    path: str | None = Field(None, max_length=4096)
    filename: str | None = Field(None, max_length=4096)
    n_predict: int = Field(_DEFAULT_TOKENS, ge=-1)
    n_indent: int = Field(0, ge=0)
    samplers: list[str] | None = None
    t_max_prompt_ms: float | None = None  # as in llama.cpp, no limit on reading
    t_max_predict_ms: float | None = None
    response_fields: list[str] | None = None
    id_slot: int | None = None
    timings_per_token: Annotated[bool | None, _neutral(False)] = None
    return_tokens: Annotated[bool | None, _neutral(False)] = None
    n_probs: Annotated[int | None, _neutral(0)] = None
    n_keep: int | None = None
    grammar: Annotated[str | None, _neutral("")] = None
    json_schema: Annotated[dict[str, Any] | None, _neutral({})] = None
    ignore_eos: Annotated[bool | None, _neutral(False)] = None

    def sampling(self) -> Sampling:
        """The likeliest token, unless a temperature is given and no list of samplers leaves it out."""
        found = super().sampling()
        if self.samplers is None or "temperature" in self.samplers:
            return found
        return Sampling(seed=found.seed)

    def limits(self, most: int) -> Limits:
        """Where the answer ends; -1, which sets no bound in llama.cpp, means 512 tokens."""
        seconds = self.t_max_predict_ms
        return Limits(
            min(_MOST_INFILL_TOKENS if self.n_predict < 0 else self.n_predict, most),
            self.stops(),
            seconds / 1000 if seconds is not None and seconds > 0 else None,
            self.n_indent,
        )


_Kind = TypeVar("_Kind", bound=_Body)


def parse(kind: type[_Kind], data: object) -> _Kind:
    """A body as ``kind``.

    Raises:
        BadRequestError: a field is missing, unknown, of the wrong type or not supported; says which.
    """
    if not isinstance(data, dict):
        raise BadRequestError("The request is no JSON object.")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems: dict[str, None] = {}  # in order, each once
        for item in error.errors(include_url=False):
            place = ".".join(str(part) for part in item["loc"]) or "request"
            unknown = item["type"] == "extra_forbidden"
            message = "is unknown here" if unknown else item["msg"].removeprefix("Value error, ")
            problems[f"{place}: {message}"] = None
        raise BadRequestError("; ".join(list(problems)[:5]) + ".") from error
