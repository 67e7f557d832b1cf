"""The base models on this machine: what they are, whether they can be trained on, fit the budget, and how long an update takes.

In: settings, and perhaps directories besides the stores of other programs. Out: one `Base` each. Only headers, configs and
the first lines of tokenizers are read. Cost: some 30 ms a model, 0.1 s for a GGUF file that is seen for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.engine.facts import ModelFacts, gguf_model_facts, model_facts
from mlx_gardener.engine.planner import make_plan
from mlx_gardener.engine.seen import known_backend
from mlx_gardener.errors import DataError, GardenerError, MemoryBudgetError, ModelError
from mlx_gardener.model.choose import SEEDLING, seedling_path
from mlx_gardener.model.stores import STORES, StoredBase, bases_at, find_bases, place_of
from mlx_gardener.platform.files import expanded, make_private, write_whole
from mlx_gardener.platform.home import default_home
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_json
from mlx_gardener.platform.version import __version__

if TYPE_CHECKING:
    from mlx_gardener.engine.speed import Backend

#: Tokens of the update whose time is told.
UPDATE_TOKENS = 1024
#: Files whose facts are remembered; the oldest are forgotten.
_MOST_KEPT = 500
_FILE = "gguf_facts.json"


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        name: what ``--model`` takes, and its owner calls it (``ollama:qwen2.5-coder:1.5b``, ``hf:org/name``).
        store: where it lies, in words.
        path: its folder, or its GGUF file (the first of several shards).
        size_bytes: of its weights as they are stored; None where that cannot be seen.
        parameters: number of weights; None where that cannot be seen.
        quantisation: ``Q4_K_M``, ``4 bit``, ``bfloat16``; None where that cannot be seen.
        licence: as the files or their publisher say; None where they do not.
        has_fim: whether it knows markers to fill in the middle; None where that cannot be seen.
        why_not: why it cannot be trained on, a sentence; None where it can.
        fits: whether it trains within the budget; None for one that cannot be trained on.
        least_budget_bytes: the least that it trains in, where that is more than the budget.
        peak_bytes: the memory that its training is predicted to take, where it fits.
        update_seconds: what an update of 1,024 tokens is predicted to take, where it fits.
        speed_from: what that prediction rests on, in words.
        title: what a GGUF file calls its model; None for others.
    """

    name: str
    store: str
    path: Path
    size_bytes: int | None = None
    parameters: int | None = None
    quantisation: str | None = None
    licence: str | None = None
    has_fim: bool | None = None
    why_not: str | None = None
    fits: bool | None = None
    least_budget_bytes: int | None = None
    peak_bytes: int | None = None
    update_seconds: float | None = None
    speed_from: str = ""
    title: str | None = None

    @property
    def called(self) -> str:
        """All that it is called, to know it by."""
        return f"{self.name} {self.title or ''}".removeprefix("hf:").strip()

    def to_json(self) -> dict[str, Any]:
        """The base as JSON types."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class Known:
    """A base with what the planner needs; ``facts`` is None where it cannot be trained on."""

    base: Base
    facts: ModelFacts | None = None


def list_bases(
    config: TrainingConfig, places: Sequence[Path] = (), tell: Callable[[int, int], None] | None = None
) -> list[Base]:
    """The bases in all stores and in ``places``, and last the embedded one, with what a training with ``config`` would take.

    Args:
        tell: called after each with how many were looked at, and how many there are.

    Raises:
        DataError: one of ``places`` is not there, or neither a directory nor a file.
    """
    found = find_bases()
    for place in places:
        found += bases_at(place_of(_place(place)))
    found.append(StoredBase(SEEDLING, "embedded", seedling_path(), is_gguf=False, licence="apache-2.0"))
    told = []
    for known in look_at(found):
        told.append(_planned(known, config))
        if tell is not None:
            tell(len(told), len(found))
    return told


def _place(named: Path) -> Path:
    place = expanded(named)
    if not place.exists():
        raise DataError(f"There is no {str(named)!r}.", next_step="Name a directory or a GGUF file.")
    if not (place.is_dir() or place.is_file()):
        raise DataError(f"{str(named)!r} is no directory.", next_step="Name one, or a GGUF file.")
    return place


def look_at(found: Iterable[StoredBase]) -> Iterator[Known]:
    """What the models of stores are, one after the other; none of them is loaded."""
    from mlx_gardener.model.recommended import RECOMMENDED, rank_of

    kept = _Kept(default_home() / "cache" / _FILE)
    try:
        for stored in found:
            try:
                known = _look(stored, kept)
            except GardenerError as error:
                known = Known(_base(stored, why_not=_sentence(error.message)))
            except OSError as error:  # gone since the stores were listed, or another user's
                known = Known(_base(stored, why_not=f"it cannot be read ({reason_of(error)})"))
            if known.base.licence is None:
                rank = rank_of(known.base.called, known.base.parameters)
                licence = None if rank is None else RECOMMENDED[rank].licence
                known = Known(replace(known.base, licence=licence), known.facts)
            yield known
    finally:
        kept.write()  # also where somebody stopped waiting for the rest


def _planned(known: Known, config: TrainingConfig) -> Base:
    """The base with memory and time; the backend is measured, once in about a second, where there is a base to plan for."""
    if known.facts is None:
        return known.base
    backend = known_backend(default_home() / "cache", known.facts)
    return plan_base(known, config, backend)


def plan_base(known: Known, config: TrainingConfig, backend: Backend) -> Base:
    """The base of ``known`` with what a training of it on ``backend`` would take."""
    base = known.base
    if known.facts is None:
        return base
    try:
        plan = make_plan(known.facts, config, config.memory_limit_bytes, backend)
    except MemoryBudgetError as error:
        return replace(base, fits=False, least_budget_bytes=int(error.least_bytes))
    except ModelError as error:
        return replace(base, why_not=_sentence(error.message))
    speed = plan.predicted_tokens_per_second
    return replace(
        base,
        fits=True,
        peak_bytes=plan.predicted_peak_bytes,
        update_seconds=round(UPDATE_TOKENS / speed, 3),
        speed_from=plan.speed_from,
    )


def _base(stored: StoredBase, **values: Any) -> Base:
    told = {"licence": stored.licence, "why_not": stored.why_not, **values}
    return Base(stored.name, STORES[stored.store], stored.path, **told)


def _sentence(message: str) -> str:
    """An error's message as a reason: without a capital and a full stop."""
    return message[:1].lower() + message[1:].rstrip(".")


def _look(stored: StoredBase, kept: _Kept) -> Known:
    if stored.why_not is not None:
        return Known(_base(stored))
    return _look_at_gguf(stored, kept) if stored.is_gguf else _look_at_folder(stored)


def _look_at_folder(stored: StoredBase) -> Known:
    from mlx_gardener.model.choose import read_model_config
    from mlx_gardener.model.hub import missing_file
    from mlx_gardener.model.stores.folders import why_no_base
    from mlx_gardener.model.tokens import folder_knows_fim

    config = read_model_config(stored.path)
    why_not = why_no_base(stored.path, config)
    if why_not is None and (missing := missing_file(stored.path)) is not None:
        why_not = f"it has no {missing}"
    if why_not is not None:
        return Known(_base(stored, why_not=why_not))
    facts = model_facts(stored.path)
    return Known(
        _base(
            stored,
            size_bytes=facts.stored_bytes,
            parameters=facts.parameters,
            quantisation=_folder_quantisation(config),
            has_fim=folder_knows_fim(stored.path),
        ),
        facts,
    )


def _folder_quantisation(config: dict[str, Any]) -> str | None:
    text = config.get("text_config")
    sizes = {**config, **text} if isinstance(text, dict) else config
    quantization = sizes.get("quantization")
    if isinstance(quantization, dict):
        mode = quantization.get("mode", "affine")
        return f"{quantization.get('bits')} bit" + ("" if mode == "affine" else f" {mode}")
    kind = sizes.get("torch_dtype") or sizes.get("dtype")
    return kind if isinstance(kind, str) else None


def _look_at_gguf(stored: StoredBase, kept: _Kept) -> Known:
    from mlx_gardener.model.stores.folders import EMBEDS, is_called_embedding

    if is_called_embedding(stored.name.rpartition("/")[2]):
        return Known(_base(stored, why_not=EMBEDS))
    told = kept.get(stored.files)
    if told is not None:
        with suppress(TypeError, KeyError, ValueError):  # of another version, or damaged: seen again
            return _known(stored, told)
    told = _gguf_told(stored.path)
    kept.put(stored.files, told)
    return _known(stored, told)


def _known(stored: StoredBase, told: dict[str, Any]) -> Known:
    base = _base(stored, **{**told["base"], "licence": stored.licence or told["base"]["licence"]})
    return Known(base, None if told["facts"] is None else ModelFacts(**told["facts"]))


def _gguf_told(path: Path) -> dict[str, Any]:
    """What is kept of a GGUF file: the fields of `Base` that its header gives, and the planner's facts."""
    from mlx_gardener.model.gguf import gguf_header

    header, found = gguf_header(path)
    base = {
        "size_bytes": found.bytes,
        "parameters": found.parameters,
        "quantisation": found.quantisation,
        "licence": found.licence,
        "has_fim": found.has_fim_markers,
        "title": found.name,
        "why_not": None if found.why_not is None else _sentence(found.why_not),
    }
    facts = None if found.why_not is not None else asdict(gguf_model_facts(header))
    return {"base": base, "facts": facts}


class _Kept:
    """What was seen of GGUF files, by place, size and time: a header of 150,000 tokens takes some 0.1 s."""

    def __init__(self, file: Path) -> None:
        self._file, self._is_new = file, False
        try:
            kept = read_json(file)
            self._told = dict(kept["files"]) if kept["version"] == __version__ else {}
        except (OSError, ValueError, KeyError, TypeError):
            self._told = {}  # not there, or of another version: seen again

    def get(self, files: Sequence[Path]) -> dict[str, Any] | None:
        told = self._told.get(self._key(files))
        return told if isinstance(told, dict) else None

    def put(self, files: Sequence[Path], told: dict[str, Any]) -> None:
        self._told[self._key(files)] = told
        self._is_new = True

    @staticmethod
    def _key(files: Sequence[Path]) -> str:
        states = [(str(file), file.stat()) for file in files]
        return json.dumps([(name, state.st_size, state.st_mtime_ns) for name, state in states])

    def write(self) -> None:
        """Keep what is new; where nothing can be written it is seen again."""
        if not self._is_new:
            return
        told = {"version": __version__, "files": dict(list(self._told.items())[-_MOST_KEPT:])}
        with suppress(OSError):
            make_private(self._file.parent)
            write_whole(self._file, json.dumps(told), lasting=False)
