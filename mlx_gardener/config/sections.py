"""All settings of a training, in sections: frozen objects whose impossible values are one readable `ConfigError`.

What each means is in docs/settings.md. Cost: importing pydantic, a tenth of a second.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlx_gardener.errors import ConfigError
from mlx_gardener.platform.sizes import GIB

#: Of the time limit, where it is short: what all phases but training may take, and of the training what validations take.
OTHER_SHARE, VALIDATION_SHARE = 0.25, 0.1
RetrievalWish = Literal["auto", "on", "off"]
PauseReason = Literal["memory-pressure", "battery", "heat", "display"]
ArmName = Literal["base", "base_bm25", "adapter", "adapter_bm25", "control"]


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _SectionType(ModelMetaclass):
    """Makes sections: impossible values are a `ConfigError`, as everywhere here.

    Pydantic makes sections within sections without calling it, so that one error tells all that is wrong.
    """

    if not TYPE_CHECKING:  # the sections keep their own signatures

        def __call__(cls, /, *unnamed: Any, **values: Any) -> Any:
            if unnamed:
                raise ConfigError(
                    f"{cls.__name__} takes its settings by name, not {unnamed[0]!r:.100} alone.",
                    next_step=f"Write {cls.__name__}({next(iter(cls.model_fields))}=...).",
                )
            try:
                return super().__call__(**values)
            except ValidationError as error:
                raise unusable(error) from error


class _Section(BaseModel, metaclass=_SectionType):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        """Pydantic's, but that it raises `ConfigError`."""
        try:
            return super().model_validate(obj, **how)
        except ValidationError as error:
            raise unusable(error) from error


class LoraConfig(_Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685).

    ``scale`` is alpha / rank, as in mlx-lm; with ``use_rslora`` the effective scale is ``scale * sqrt(rank)``
    (alpha / sqrt(rank), Kalajdzievski 2023, arXiv:2312.03732). ``use_dora`` is Liu et al. 2024, arXiv:2402.09353.
    ``target_modules`` is "all-linear" or a list of module name endings (``["q_proj", "v_proj"]``).
    ``num_layers`` trains only the last N layers; None trains all.
    """

    rank: int = Field(16, ge=1, le=512)
    scale: float = Field(2.0, gt=0, le=1000)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    num_layers: int | None = Field(None, ge=1)
    use_rslora: bool = False
    use_dora: bool = False

    @field_validator("target_modules")
    @classmethod
    def _some(cls, modules: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not modules:
            raise ValueError('must name a module; "all-linear" takes all')
        return modules


class OptimizerConfig(_Section):
    """How weights move. ``learning_rate`` None means: recommended for the base's width (`training.optimizer` says how).

    ``tokens_per_update`` fixes the positions of one optimiser update; the planner only splits them, so the memory
    budget changes the speed and never the result. Many small updates taught more than few large ones with as many tokens
    (`benchmarks/update_size.py`), and LoRA bears large batches badly (Schulman et al. 2025, "LoRA Without Regret"); 2048 still
    fills a GPU (judgement). ``max_steps`` counts optimiser updates; None means all epochs.
    """

    name: Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"] = "adamw"
    learning_rate: float | None = Field(None, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    epochs: float = Field(3.0, gt=0, le=100)
    max_steps: int | None = Field(None, ge=1)
    tokens_per_update: int = Field(2048, ge=64)


class DataConfig(_Section):
    """What becomes a training example (docs/data.md; judgements are settings).

    Fractions are of examples; ``sequence_lengths`` are tokens per row. ``split`` "time" holds out what the latest commits added,
    "files" draws, "auto" goes by time where the history is enough. ``edit_share`` is of the training tokens, at most so many come
    from past commits as next edits; 0 reads no history for them.
    """

    sequence_lengths: tuple[int, ...] = (512, 1024)
    fim_rate: float = Field(0.7, ge=0, le=1)
    repository_row_share: float = Field(0.2, ge=0, le=1)
    retrieval_share: float = Field(0.0, ge=0, le=1)
    general_share: float = Field(0.0, ge=0, le=0.5)
    edit_share: float = Field(0.1, ge=0, le=0.5)
    validation_fraction: float = Field(0.1, gt=0, lt=0.5)
    test_fraction: float = Field(0.1, gt=0, lt=0.5)
    split: Literal["auto", "time", "files"] = "auto"
    attend_across_documents: bool = True
    max_file_bytes: int = Field(1_000_000, ge=1)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @field_validator("sequence_lengths")
    @classmethod
    def _some_and_rising(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if not lengths:
            raise ValueError("must name a length; 512 tokens, say")
        if list(lengths) != sorted(set(lengths)):
            raise ValueError("must be a rising list without repeats")
        if lengths[0] < 32 or lengths[-1] > 32768:
            raise ValueError("must lie between 32 and 32768 tokens")
        return lengths

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 0.6:
            raise ValueError("validation_fraction and test_fraction leave too little to train on")
        return self


class EvaluationConfig(_Section):
    """Early stopping and the test after training (docs/evidence.md).

    Validation runs ``per_epoch`` times an epoch over the whole fixed validation set; training stops after
    ``patience`` evaluations without an improvement.

    The test has ``arms``, or is left to ``mlx-gardener eval`` where there are none, and takes about ``time_share`` of what the
    training took, counted in tokens: at most ``tasks`` tasks of each kind, and never so few that they tell nothing, unless the
    time limit leaves less (`evaluate.work` says how few). A small ``tasks`` alone keeps all of the test small.
    """

    per_epoch: int = Field(4, ge=1, le=100)
    patience: int = Field(3, ge=1)
    arms: tuple[ArmName, ...] = ("base", "base_bm25", "adapter", "adapter_bm25", "control")
    time_share: float = Field(0.2, ge=0, le=10)
    tasks: int = Field(155, ge=0)
    max_new_tokens: int = Field(48, ge=1, le=1024)

    @field_validator("arms")
    @classmethod
    def _with_both(cls, arms: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
        if arms and not {"base", "adapter"} <= set(arms):
            raise ValueError("must contain base and adapter, or nothing for no test")
        return arms


class EngineConfig(_Section):
    """How a step is computed: ``compute_dtype``.

    All else are pins (docs/settings.md). ``dry_run`` lets a dry run correct the plan beforehand. By the others benchmarks and
    tests hold the planner to a choice; None and "auto" leave it to the planner. ``kept_layers`` of at least the model's layers
    makes a step one graph. ``streamed_layers`` are read from disk in every pass, with ``vocabulary_on_disk`` embedding and head
    too. ``base_weights`` "dense" holds a quantised base as floats, "stored" as it is.
    """

    micro_batch_rows: int | None = Field(None, ge=1)
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    base_weights: Literal["auto", "dense", "stored"] = "auto"
    streamed_layers: int | None = Field(None, ge=0)
    vocabulary_on_disk: bool | None = None
    kept_layers: int | None = Field(None, ge=0)
    loss_slice_tokens: int | None = Field(None, ge=1)
    cpu_streams: int | None = Field(None, ge=1, le=64)
    dry_run: bool = True


class ThrottlingConfig(_Section):
    """How a training treats whoever works on the machine.

    ``low_priority`` lowers the worker's priority. ``pause_on`` is what makes it wait, with a checkpoint written: "memory-pressure"
    (the machine is critically short of memory), "battery", "heat" (it is throttled), "display" (one is on).
    """

    low_priority: bool = True
    pause_on: tuple[PauseReason, ...] = ("memory-pressure",)

    @field_validator("pause_on")
    @classmethod
    def _once_and_in_order(cls, reasons: tuple[PauseReason, ...]) -> tuple[PauseReason, ...]:
        """As what they are a set of, so that the same reasons are the same setting."""
        return tuple(reason for reason in get_args(PauseReason) if reason in reasons)


class ParallelConfig(_Section):
    """Which machines train together (docs/parallel.md). Without hosts one process trains alone.

    ``hosts`` are this machine first, then where the other ranks run; "127.0.0.1" is a process of this machine, all
    else is reached by ssh. Names with commas between them are a list too; one text without is the path of a host file of
    mlx.launch's. ``starting_port`` is rank 0's, the others count up from it, for firewalls that let only some through; None
    takes free ones on one machine, and 32323 on several. ``python`` None means: where it is here.
    """

    hosts: tuple[str, ...] | str = ()
    backend: Literal["ring", "mpi", "nccl", "jaccl", "jaccl-ring"] = "ring"
    starting_port: int | None = Field(None, ge=1024, le=65000)
    python: str | None = None

    @field_validator("hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if hosts == "":
            raise ValueError("is empty; leave it out to train on this machine alone")
        if isinstance(hosts, str) and "," in hosts:
            hosts = tuple(name.strip() for name in hosts.split(","))
        for host in () if isinstance(hosts, str) else hosts:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]*", host):
                raise ValueError(f"{host!r} is no name or address of a machine")
        return hosts

    @property
    def is_wanted(self) -> bool:
        """Whether several ranks are to be started."""
        return bool(self.hosts)


class ServingConfig(_Section):
    """How `serve`, `complete` and `mlx_gardener.complete` answer; nothing that a training depends on.

    ``retrieval`` puts code of the repository in front of prompts; "auto" does where the version's evidence speaks for it.
    ``evidence_in_use`` counts what stays of answers in their files, ``compare`` is the share of them that the base alone writes
    (docs/evidence.md).
    """

    retrieval: RetrievalWish = "auto"
    evidence_in_use: bool = False
    compare: float = Field(0.0, ge=0, le=0.9)

    @model_validator(mode="after")
    def _consistent(self) -> ServingConfig:
        if self.compare and not self.evidence_in_use:
            raise ValueError("compare needs evidence_in_use, which counts what stays of either's answers")
        return self


class TrainingConfig(_Section):
    """Everything a training can be told; validated once (`ConfigError` says all that is wrong), then never changed.

    ``continue_from`` is the adapter version that a training begins with, and goes on from with what changed since:
    "auto" (the active one, where that makes sense), "active", a version, or "never". A training that has begun
    records "auto:VERSION" for what "auto" was.
    """

    model: str = Field("auto", min_length=1)
    min_training_chunks: int = Field(50, ge=1)
    max_training_chunks: int = Field(5000, ge=1)
    training_data_quality_threshold: float = Field(0.5, ge=0, le=1)
    memory_limit_gb: float = Field(4.0, gt=0, le=1024)
    training_timeout_minutes: float = Field(30.0, ge=0)
    progress_update_interval: float = Field(5.0, gt=0, le=3600)
    checkpoint_interval_seconds: float = Field(60.0, gt=0)
    seed: int = Field(0, ge=0, lt=2**32)
    continue_from: str = Field("auto", pattern=r"^(auto|never|active|v[0-9]{1,9}|auto:v[0-9]{1,9})$")
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    throttling: ThrottlingConfig = ThrottlingConfig()
    parallel: ParallelConfig = ParallelConfig()
    serve: ServingConfig = ServingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.min_training_chunks > self.max_training_chunks:
            raise ValueError("min_training_chunks must not exceed max_training_chunks")
        return self

    @property
    def memory_limit_bytes(self) -> int:
        """The budget in bytes (1 GB is 2**30 bytes, as memory is sold)."""
        return int(self.memory_limit_gb * GIB)

    @property
    def learning_seconds(self) -> float:
        """What the time limit leaves for updates, in seconds; ``math.inf`` without a limit."""
        limit = self.training_timeout_minutes * 60 or math.inf
        return (1 - OTHER_SHARE) * (1 - VALIDATION_SHARE) * limit


def unusable(error: ValidationError, origins: Mapping[str, str] = MappingProxyType({})) -> ConfigError:
    """All that pydantic found wrong, as one error in this package's words.

    Args:
        origins: where settings came from, by their dotted names: ``the file my.toml``.
    """
    problems, is_known = [], True
    for item in error.errors():
        kinds = ("literal", "tuple", "str")  # of a setting that may be of several
        parts = [str(part) for part in item["loc"] if str(part).partition("[")[0] not in kinds]
        place = ".".join(parts)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "tuple_type":
            some = [item["input"]] if isinstance(item["input"], str | int | float) else ["a", "b"]
            message = f"should be a list, like {json.dumps(some)}"
        if item["type"] == "extra_forbidden":
            known = [name for key in known_keys() for name in (key, key.rpartition(".")[2])]
            near = difflib.get_close_matches(place, known, n=1, cutoff=0.5)
            message = "there is no such setting" + (f", did you mean {near[0]!r}?" if near else "")
        origin = next((origins[key] for key in (place, ".".join(parts[:2])) if key in origins), None)
        is_known = is_known and origin is not None
        where = f"{place}, in {origin}" if origin else place
        problems.append(f"{where}: {message} (got {item['input']!r})" if place else message)
    correct = "there" if is_known else "where they came from: the call, a file, the environment or a flag"
    return ConfigError(
        "These settings are not usable: " + "; ".join(dict.fromkeys(problems)) + ".",
        next_step=f"Correct them {correct}.",
    )


def known_keys() -> dict[str, type[BaseModel]]:
    """Every setting's dotted name, with the section it belongs to."""
    keys: dict[str, type[BaseModel]] = {}
    for name, info in TrainingConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for inner in info.annotation.model_fields:
                keys[f"{name}.{inner}"] = info.annotation
        else:
            keys[name] = TrainingConfig
    return keys
