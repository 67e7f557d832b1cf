"""Requests' bodies, checked: what is known is kept or refused by name, what is unknown is ignored, null is absent.

Shapes: OpenAI's completions and chat completions; llama.cpp's ``/infill`` and ``/completion`` (github.com/ggml-org/llama.cpp,
tools/server). An editor that sends one more setting than we know still gets its completion. Settings that are known and
would change the answer's form or its words are accepted with their neutral value alone. Lists stop at their first error.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from mlx_gardener.serve.generation import Limits, Sampling
from mlx_gardener.serve.worker import BadRequestError

_MOST_STOPS, _MOST_ANSWERS, _DEFAULT_TOKENS = 32, 8, 128
#: What "as many as you like" means.
_UNBOUNDED_TOKENS = 512
#: Below this the likeliest token is taken: one divided by it leaves what floats can hold.
_LEAST_TEMPERATURE = 1e-3
#: Below this, too: its probability alone is as much. What is 0 in float32 would leave no token at all to mlx-lm.
_LEAST_TOP_P = 1e-6
#: Settings of Ollama's ``options`` that are also fields here; twinny sends them to /v1/completions.
_OPTIONS = ("num_predict", "temperature", "top_k", "top_p", "min_p", "seed", "stop")


def _neutral(*allowed: object) -> AfterValidator:
    """Refuse every value but these: the field is not supported."""

    def check(value: object) -> object:
        if value not in allowed:
            shown = " or ".join(repr(item) for item in allowed) or "leaving it out"
            raise ValueError(f"is not supported; only {shown} is possible")
        return value

    return AfterValidator(check)


#: Names are repeated in errors and answers: what is longer than any path is none.
_Name = Annotated[str, Field(max_length=4096)]
_Texts = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64, fail_fast=True)]


class Body(BaseModel):
    """What all bodies have in common: null is absent, what is unknown is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    #: Other names of fields, for those who send them.
    other_names: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _present(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        present = {name: value for name, value in data.items() if value is not None}
        for other, name in cls.other_names.items():
            if other in present:
                present.setdefault(name, present[other])
        return present


class LoraScale(Body):
    """How strong an adapter is to be; a project has one, of id 0."""

    id: Literal[0]
    scale: float = Field(ge=0, le=10)


class _Sampled(Body):
    model: _Name | None = None
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-1, lt=2**63)
    samplers: _Texts | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n_predict: int | None = Field(None, ge=-2)
    presence_penalty: Annotated[float | None, _neutral(0.0)] = None
    frequency_penalty: Annotated[float | None, _neutral(0.0)] = None
    repetition_penalty: Annotated[float | None, _neutral(0.0, 1.0)] = None
    repeat_penalty: Annotated[float | None, _neutral(0.0, 1.0)] = None
    logit_bias: Annotated[Any, _neutral({}, [])] = None
    lora: Annotated[list[LoraScale], Field(max_length=8, fail_fast=True)] | None = None
    # These describe the caller or a cache, and change no answer.
    cache_prompt: bool | None = None
    id_slot: int | None = None
    keep_alive: Any = None

    def sampling(self) -> Sampling:
        """How tokens are chosen; the likeliest where no temperature is given, as in `mlx-gardener complete`.

        A list of samplers that leaves the temperature out leaves it at nothing too: editors' plugins send one.
        """
        temperature, top_p = self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p
        left_out = self.samplers is not None and "temperature" not in self.samplers
        if temperature < _LEAST_TEMPERATURE or top_p < _LEAST_TOP_P or left_out:
            return Sampling()
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None or self.seed < 0 else self.seed,
        )

    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer.

        Raises:
            BadRequestError: there are too many, or one is empty or too long.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS or any(not stop or len(stop) > 256 for stop in stops):
            raise BadRequestError(f"stop: at most {_MOST_STOPS} texts of 1 to 256 characters are possible.")
        return tuple(stops)

    def strength(self) -> float:
        """What the adapter's scale is multiplied by: llama.cpp's ``lora`` of id 0, else 1."""
        return self.lora[-1].scale if self.lora else 1.0

    def _predicted(self, wanted: int, most: int) -> int:
        """llama.cpp's number of tokens: a negative one sets no bound, one too large is as large as possible."""
        return min(_UNBOUNDED_TOKENS if wanted < 0 else wanted, most)


class StreamOptions(Body):
    """What a stream ends with."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool | None, _neutral(False)] = None


class _OpenAi(_Sampled):
    n: int = Field(1, ge=1, le=_MOST_ANSWERS)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=-1)
    user: str | None = None
    metadata: Any = None
    store: bool | None = None
    environment: str | None = None  # Zed says which of its builds asks
    options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_options(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(options := data.get("options"), dict):
            names = {name: "n_predict" if name == "num_predict" else name for name in _OPTIONS}
            return {**{names[name]: options[name] for name in _OPTIONS if name in options}, **data}
        return data

    @property
    def tokens(self) -> int | None:
        """The longest answer in OpenAI's words, None where they say nothing."""
        return self.max_tokens

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def limits(self, most: int) -> Limits:
        """Where the answer ends. ``max_tokens`` must fit; ``n_predict``, llama.cpp's, is as many as fit.

        Raises:
            BadRequestError: ``max_tokens`` is more than ``most``.
        """
        if self.tokens is not None and self.tokens >= 0:
            if self.tokens > most:
                raise BadRequestError(f"max_tokens: at most {most} are possible (got {self.tokens}).")
            return Limits(self.tokens, self.stops())
        wanted = self.n_predict if self.n_predict is not None else self.tokens
        if wanted is None:
            return Limits(min(_DEFAULT_TOKENS, most), self.stops())
        return Limits(self._predicted(wanted, most), self.stops(), as_fits=True)


_Prompt = (
    StrictStr
    | Annotated[list[StrictInt], Field(fail_fast=True)]
    | Annotated[list[StrictStr], Field(fail_fast=True)]
    | Annotated[list[Annotated[list[StrictInt], Field(fail_fast=True)]], Field(fail_fast=True)]
)


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> list[str | list[int]]:
    """The prompts one by one.

    Raises:
        BadRequestError: there are none, or too many.
    """
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]  # type: ignore[list-item]
    if not 1 <= len(prompt) <= _MOST_ANSWERS:
        raise BadRequestError(f"prompt: 1 to {_MOST_ANSWERS} prompts are possible in one request.")
    return list(prompt)  # type: ignore[arg-type]


class CompletionBody(_OpenAi):
    """``/v1/completions``; ``path`` (or ``filename``) is ours: the file, shown to the model as in training."""

    prompt: _Prompt
    segments: dict[str, Any] | None = None  # Tabby's, in the place of prompt, suffix and path
    language: str | None = None  # Tabby says it; the path's ending does, too
    suffix: str | None = None
    path: str | None = Field(None, max_length=4096)
    filename: str | None = Field(None, max_length=4096)
    echo: bool = False
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _of_segments(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(found := data.get("segments"), dict):
            own = {"prompt": "prefix", "suffix": "suffix", "path": "filepath"}
            present = {name: value for name, value in data.items() if value is not None}
            return {name: found.get(other) for name, other in own.items()} | present
        return data

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
        """The prompts one by one; raises as `_prompts`."""
        return _prompts(self.prompt)


class TextPart(Body):
    """A part of a message; text is all there can be."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    def texts(self) -> list[str]:
        """Its parts."""
        return [self.content] if isinstance(self.content, str) else [part.text for part in self.content]

    def plain(self) -> dict[str, str]:
        """What chat templates take."""
        return {"role": self.role, "content": "".join(self.texts())}


class ResponseFormat(Body):
    """Free text is all there can be."""

    type: Literal["text"]


class ChatBody(_OpenAi):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None
    response_fields: _Texts | None = None  # llama.vim's warm-up; such an answer is not read
    tools: Annotated[Any, _neutral([])] = None
    tool_choice: Annotated[Any, _neutral("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    logprobs: Annotated[Any, _neutral(False)] = None
    top_logprobs: Annotated[Any, _neutral(0)] = None

    @property
    def tokens(self) -> int | None:
        """The longest answer in OpenAI's words."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class ExtraFile(Body):
    """A piece of another file."""

    text: str
    filename: str = ""
    time: Any = None


class _Llama(_Sampled):
    """What llama.cpp's endpoints have in common."""

    other_names: ClassVar[dict[str, str]] = {"max_tokens": "n_predict", "n": "n_cmpl"}

    n_cmpl: int = Field(1, ge=1, le=_MOST_ANSWERS)
    n_indent: int = Field(0, ge=0)
    t_max_prompt_ms: float | None = None  # as in llama.cpp, no limit on reading
    t_max_predict_ms: float | None = None
    response_fields: _Texts | None = None
    timings_per_token: Annotated[Any, _neutral(False)] = None
    return_tokens: Annotated[Any, _neutral(False)] = None
    n_probs: Annotated[Any, _neutral(0)] = None
    n_keep: int | None = None
    grammar: Annotated[Any, _neutral("")] = None
    json_schema: Annotated[Any, _neutral({})] = None
    ignore_eos: Annotated[Any, _neutral(False)] = None

    @model_validator(mode="after")
    def _one_stream(self) -> _Llama:
        if self.stream and self.n_cmpl > 1:
            raise ValueError("n_cmpl above 1 is not possible in a stream")
        return self

    def limits(self, most: int) -> Limits:
        """Where the answer ends; -1, which sets no bound in llama.cpp, means 512 tokens."""
        seconds = self.t_max_predict_ms
        return Limits(
            self._predicted(_DEFAULT_TOKENS if self.n_predict is None else self.n_predict, most),
            self.stops(),
            seconds / 1000 if seconds is not None and seconds > 0 else None,
            self.n_indent,
            as_fits=True,
        )


class InfillBody(_Llama):
    """``/infill`` as llama.cpp's server takes it; ``path`` is ours, as in `CompletionBody`."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[ExtraFile], Field(max_length=256, fail_fast=True)] = Field(
        default_factory=list
    )
    prompt: str = ""
    path: str | None = Field(None, max_length=4096)
    filename: str | None = Field(None, max_length=4096)


class LlamaCompletionBody(_Llama):
    """``/completion`` as llama.cpp's server takes it."""

    prompt: _Prompt

    @model_validator(mode="after")
    def _one_prompt(self) -> LlamaCompletionBody:
        if len(_prompts(self.prompt)) > 1:
            raise ValueError("prompt: one is possible in one request here; /v1/completions takes several")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompt."""
        return _prompts(self.prompt)


_Kind = TypeVar("_Kind", bound=Body)


def parse(kind: type[_Kind], data: object) -> tuple[_Kind, list[str]]:
    """A body as ``kind``, and the names in it that are unknown and were ignored.

    Raises:
        BadRequestError: a field is missing, of the wrong type or not supported; says which.
    """
    if not isinstance(data, dict):
        raise BadRequestError("The request is no JSON object.")
    try:
        body = kind.model_validate(data)
    except ValidationError as error:
        problems: dict[str, None] = {}  # in order, each once
        sent = {name: other for other, name in kind.other_names.items() if other in data and name not in data}
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            place = ".".join(sent.get(str(part), str(part)) for part in item["loc"][:4]) or "request"
            said = "The number is too large" if item["type"] == "int_parsing_size" else item["msg"]
            problems[f"{place}: {said.removeprefix('Value error, ')}"] = None
        raise BadRequestError("; ".join(list(problems)[:5]) + ".") from error
    known = {*kind.model_fields, *kind.other_names}
    return body, [name for name, value in data.items() if name not in known and value is not None]
