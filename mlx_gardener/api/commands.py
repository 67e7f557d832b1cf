"""What the commands `scan`, `plan`, `models`, `complete`, `eval` and `export` do, as functions with one result each.

In: paths, projects by name, settings given singly or as one `TrainingConfig`. Out: small frozen results; nothing is printed. An
argument of another type is a ``TypeError`` that names it.
Cost: as the commands; every completion loads base and adapter anew. `mlx_gardener.api` holds `train` and the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import ArmName, RetrievalWish, TrainingConfig, load_config
from mlx_gardener.errors import ConfigError, DataError
from mlx_gardener.platform.arguments import checked
from mlx_gardener.platform.encoding import whole_text
from mlx_gardener.platform.files import existing_directory
from mlx_gardener.registry import ProjectRegistry, default_home
from mlx_gardener.runs.forecast import estimate_training
from mlx_gardener.runs.parent import as_trained
from mlx_gardener.runs.ranks import check_hosts

if TYPE_CHECKING:
    from mlx_gardener.adapter.exports import Export
    from mlx_gardener.engine import Plan, PreparedModel
    from mlx_gardener.engine.bases import Base
    from mlx_gardener.evaluate.registered import Evaluation
    from mlx_gardener.retrieval import Piece
    from mlx_gardener.source import Scan


@dataclass(frozen=True)
class ScanResult:
    """What a repository would be trained on, and what that would take.

    Attributes:
        scan: what is kept, what is dropped and why, and where secrets are.
        estimate: model, tokens, tokens_per_second, epochs, minutes, peak_bytes and where they come from.
        refusal: what a training would be refused with; None where it would not be.
    """

    scan: Scan
    estimate: dict[str, Any]
    refusal: DataError | None

    def to_json(self) -> dict[str, Any]:
        """The result as JSON types, without the list of every file."""
        refusal = None if self.refusal is None else self.refusal.to_json()
        return {**self.scan.to_json(), "estimate": self.estimate, "refusal": refusal}


@checked
def scan(path: str | Path = ".", *, config: TrainingConfig | None = None, **settings: Any) -> ScanResult:
    """Read the repository at ``path`` as a training would, without training or writing anything.

    Args:
        config: all settings; or leave it and give single ones as ``settings``.

    Raises:
        ConfigError: a setting is unknown or impossible.
        DataError: the repository cannot be read.
        ModelError: the base model cannot be found or used.
        MemoryBudgetError: it does not train within the budget.
    """
    from mlx_gardener.dataset.prepare import check_enough

    wanted, model = _prepared(path, settings_of(config, settings))
    found = _scanned(path, wanted)
    try:
        check_enough(found, wanted)
        refusal = None
    except DataError as error:
        refusal = error
    return ScanResult(found, estimate_training(found, wanted, model), refusal)


@dataclass(frozen=True)
class PlanResult:
    """How a memory budget would be used for a model.

    Attributes:
        model: the base that would be trained, and ``reason`` why it was chosen.
        passed_over: others that were looked at, with what stood against them.
        plan: what the budget is used for, in bytes, and what is traded for it.
        estimate: what a training of the repository would take, as in `ScanResult`; None without one.
        longest_row_tokens: the longest row that trains within the budget, whatever ``data.sequence_lengths`` says.
    """

    model: str
    reason: str
    plan: Plan
    estimate: dict[str, Any] | None
    passed_over: tuple[str, ...] = ()
    longest_row_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """The result as JSON types."""
        chosen = {"model": self.model, "reason": self.reason, "passed_over": list(self.passed_over)}
        longest = {"longest_row_tokens": self.longest_row_tokens}
        return {**chosen, **self.plan.to_json(), **longest, "estimate": self.estimate}


@checked
def plan(
    path: str | Path | None = None, *, config: TrainingConfig | None = None, **settings: Any
) -> PlanResult:
    """How the memory budget would be used; with the repository at ``path`` also how long a training would take.

    Args:
        config: all settings; or leave it and give single ones as ``settings``.

    Raises:
        ConfigError: a setting is unknown or impossible.
        DataError: the repository cannot be read, or gives too little to train on.
        ModelError: the base model cannot be found or used.
        MemoryBudgetError: it does not train within the budget; ``least_bytes`` would do.
    """
    from mlx_gardener.dataset.prepare import check_enough

    wanted, model = _prepared(path, settings_of(config, settings))
    chosen = model.plan(wanted)
    estimate = None
    if path is not None:
        found = _scanned(path, wanted)
        check_enough(found, wanted)
        estimate = estimate_training(found, wanted, model)
    return PlanResult(
        model.choice.name,
        model.choice.reason,
        chosen,
        estimate,
        model.choice.passed_over,
        model.longest_row(wanted),
    )


@checked
def models(*places: str | Path, config: TrainingConfig | None = None, **settings: Any) -> list[Base]:
    """The base models in the stores of this machine, in ``places`` and below, and the embedded one; only headers are read.

    Args:
        places: directories and GGUF files to look at besides.
        config: all settings; or leave it and give single ones as ``settings``.

    Raises:
        ConfigError: a setting is unknown or impossible.
        DataError: one of ``places`` is not there.
    """
    from mlx_gardener.engine.bases import list_bases

    return list_bases(settings_of(config, settings), [Path(place) for place in places])


@dataclass(frozen=True)
class Completion:
    """What a model wrote: ``text``, by the ``version`` of the project's adapter, None for its base alone.

    ``retrieved`` are the pieces of the repository that stood in front of the prompt, best first; ``retrieval`` says why there
    are some, or none.
    """

    text: str
    project: str
    version: str | None
    base_model: str
    retrieved: tuple[Piece, ...] = ()
    retrieval: str = ""

    def __str__(self) -> str:
        return self.text


@checked
def complete(
    project: str,
    prefix: str,
    suffix: str | None = None,
    *,
    path: str = "",
    version: str | None = None,
    with_adapter: bool = True,
    max_tokens: int = 48,
    retrieval: RetrievalWish | None = None,
    evidence_in_use: bool | None = None,
) -> Completion:
    """What ``project``'s adapter writes between ``prefix`` and ``suffix``, greedily.

    Every call loads the base and the adapter anew; `mlx-gardener serve` keeps them for many.

    Args:
        prefix: text; halves of surrogate pairs, which no tokenizer spells, are read as U+FFFD, here and in ``suffix``.
        suffix: what follows; passed over where the base was not made for that.
        path: the file's path in the repository, shown to the model as in training.
        version: of the adapter; the active one when None.
        with_adapter: False completes with the base alone, to compare.
        max_tokens: at most so many are written, from 1 to 1024.
        retrieval: "on" puts code of the repository in front of the prompt, "off" does not, "auto" does where the version's
            evidence speaks for it; as ``serve.retrieval`` says when None. The index is made or brought up to date first.
        evidence_in_use: count later what stays of it in the file at ``path``; as ``serve.evidence_in_use`` says when None.

    Raises:
        RegistryError: there is no such project or version.
        AdapterError: the adapter's files are damaged or do not fit the base.
        ModelError: the base is not there.
        ConfigError: ``max_tokens`` or ``retrieval`` is impossible.
        DataError: there is neither text nor a path to go on from.
    """
    from mlx_gardener.adapter import PeftManager, attach_adapter
    from mlx_gardener.adapter.base import base_name, load_adapter_base
    from mlx_gardener.engine.facts import model_facts
    from mlx_gardener.evaluate import complete as complete_code
    from mlx_gardener.evaluate.complete import caret_prompt
    from mlx_gardener.evaluate.in_use import Answered, Place, keep_answer
    from mlx_gardener.evaluate.registered import choose_retrieval
    from mlx_gardener.retrieval import Retriever, code_in_front
    from mlx_gardener.retrieval.context import most_in_front
    from mlx_gardener.runs.indexed import index_as_it_is

    began = time.time()

    if not 1 <= max_tokens <= 1024:
        raise ConfigError(f"max_tokens is {max_tokens}.", next_step="Choose from 1 to 1024.")
    wishes: dict[str, Any] = {"serve.retrieval": retrieval, "serve.evidence_in_use": evidence_in_use}
    if evidence_in_use is False:
        wishes["serve.compare"] = 0.0
    serving = load_config(overrides=wishes).serve
    registry = ProjectRegistry()
    record = registry.get_adapter(project, version)
    adapter = PeftManager(registry).load_adapter(project, record.version)
    base = load_adapter_base(base_name(registry, record), adapter)
    if base.tokenizer.markers is None:
        suffix = None
    choice = choose_retrieval(record.directory, serving.retrieval, with_adapter=with_adapter)
    retriever, why = None, choice.why
    if choice.on:
        index, problem = index_as_it_is(registry, project)
        why = problem or choice.why
        if index is not None:
            retriever = Retriever(index, base.tokenizer, limit_tokens=choice.limit_tokens)
    prefix, path = whole_text(prefix), whole_text(path)
    suffix = None if suffix is None else whole_text(suffix)
    shown = caret_prompt(base.tokenizer, prefix, suffix, path)
    room = model_facts(base.path).max_tokens - max_tokens - len(base.tokenizer.encode(shown.begins))
    most = most_in_front(shown.ids, room)
    context, found = code_in_front(retriever, path, prefix, suffix, own=shown.ids, most_tokens=most)
    written = 0

    def count(_: str) -> bool:
        nonlocal written
        written += 1
        return False

    with attach_adapter(base, adapter) if with_adapter else nullcontext():
        text = complete_code(
            base, prefix, suffix, path=path, context=context, max_new_tokens=max_tokens, is_enough=count
        )
    if serving.evidence_in_use:
        arm, place = "adapter" if with_adapter else "base", Place.at(path, prefix, suffix)
        seconds = time.time() - began
        answer = Answered(
            record, arm, bool(found.pieces), False, began, 1000 * seconds, place, text, written < max_tokens
        )
        with suppress(OSError):  # the completion is there all the same
            keep_answer(registry, answer)
    version = record.version if with_adapter else None
    return Completion(text, project, version, record.base_model, found.pieces, why)


@checked
def evaluate_adapter(
    project: str,
    version: str | None = None,
    *,
    control: str | None = None,
    tasks: int | None = None,
    thorough: bool = False,
    arms: Sequence[ArmName] | None = None,
    timeout_minutes: float = 0.0,
    on_progress: Callable[[float, str], None] | None = None,
) -> Evaluation:
    """Measure an adapter on files that its training never saw, as `mlx-gardener eval` does.

    Args:
        version: of the adapter; the active one when None.
        control: the project whose adapter is the control; the newest fitting one of any other when None.
        tasks: of each kind, instead of as many as the time share allows; with a time limit at most.
        thorough: as many of each kind as tell a difference of 5 points in exact answers.
        arms: what is compared; those of the training when None.
        timeout_minutes: for all of it; what fits is measured, and the evidence's notes say what was left out. 0 for none.
        on_progress: told the share done (0 to 1) and a line for people.

    Raises:
        ConfigError: an arm is unknown, ``tasks`` or ``timeout_minutes`` is impossible, or both ``tasks`` and ``thorough`` are given.
        RegistryError: there is no such project or version.
        AdapterError: the adapter's files, the base or the control do not fit.
        DataError: the repository cannot be read, or holds no files any more that were not trained on.
        TimeLimitError: the time was over before anything was measured.
    """

    from mlx_gardener.evaluate import registered
    from mlx_gardener.evaluate.statistics import THOROUGH_TASKS

    if thorough and tasks is not None:
        raise ConfigError("thorough and tasks both say how many tasks.", next_step="Choose one of them.")
    if tasks is not None and not 0 <= tasks <= 1000:
        raise ConfigError(f"tasks is {tasks}.", next_step="Choose from 0 to 1000.")
    tell = on_progress or (lambda share, message: None)
    return registered.evaluate_adapter(
        ProjectRegistry(),
        project,
        version,
        control=control,
        tasks=THOROUGH_TASKS if thorough else tasks,
        arms=None if arms is None else tuple(arms),
        timeout_minutes=timeout_minutes,
        on_progress=tell,
    )


@checked
def export(
    project: str,
    destination: str | Path | None = None,
    form: str = "mlx",
    *,
    version: str | None = None,
    base: str | None = None,
    bits: int | None = None,
    dtype: str = "auto",
    quantise: str | None = None,
    create: str | None = None,
) -> Export:
    """Write an adapter to the new directory ``destination``, in a form that another program loads.

    Args:
        destination: left out for the form lmstudio, which then is where LM Studio finds it.
        form: mlx, peft, fused, gguf, gguf-fused, gguf-base, modelfile, ollama or lmstudio (docs/adapters.md).
        version: of the adapter; the active one when None.
        base: the base model's directory or hub id, where it is not where it was trained.
        bits: 4 or 8 quantises the form fused, if the adapter survives it.
        dtype: floats of merged models: auto, float32, bfloat16 or float16.
        quantise: q4_0, q8_0 or q4_k_m (wants llama.cpp) for merged GGUF models, if the adapter survives it.
        create: let Ollama take the form ollama or modelfile under this name.

    Raises:
        AdapterError: the form is unknown or cannot hold this adapter, what was written does not agree with it, or the
            destination exists or cannot be written.
        ModelError: the form needs the base, which is not there.
        RegistryError: there is no such project or version.
    """
    from mlx_gardener.adapter.exports import export_adapter

    place = None if destination is None else Path(destination)
    return export_adapter(
        ProjectRegistry(), project, version, form, place, base=base, bits=bits, dtype=dtype, quantise=quantise,
        create=create,
    )  # fmt: skip


def settings_of(config: TrainingConfig | None, settings: dict[str, Any]) -> TrainingConfig:
    """``config``, or defaults, environment and single ``settings``.

    Raises:
        ConfigError: a setting is unknown or impossible.
    """
    if config is not None and settings:
        raise TypeError("give either config or single settings, not both")
    return config or load_config(overrides=settings)


def _prepared(path: str | Path | None, config: TrainingConfig) -> tuple[TrainingConfig, PreparedModel]:
    """The settings as a training of ``path`` would have them, and its base."""
    from mlx_gardener.engine import prepare_model

    if path is None:
        check_hosts(config.parallel)
    else:
        config = as_trained(config, existing_directory(Path(path)))
    return config, prepare_model(config, default_home() / "cache", ahead=True)


def _scanned(path: str | Path, config: TrainingConfig) -> Scan:
    from mlx_gardener.source import scan_repository

    return scan_repository(Path(path), config.data, quality_threshold=config.training_data_quality_threshold)
