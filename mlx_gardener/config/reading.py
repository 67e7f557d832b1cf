"""Settings from defaults, a TOML file, the environment and flags, in that order, as one `TrainingConfig`.

Below this room nothing reads the environment. Unknown keys are errors that name the nearest known one. Environment
variables are ``MLX_GARDENER_<FIELD>`` and ``MLX_GARDENER_<SECTION>__<FIELD>`` (``MLX_GARDENER_LORA__RANK=8``).
"""

from __future__ import annotations

import difflib
import os
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlx_gardener.config.sections import ThrottlingConfig, TrainingConfig, known_keys, unusable
from mlx_gardener.errors import ConfigError
from mlx_gardener.platform.arguments import checked
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_text

ENVIRONMENT_PREFIX = "MLX_GARDENER_"
_ENVIRONMENT = "the environment"
#: Of a settings file: a thousand times all settings there are.
_MAX_FILE_BYTES = 2**24
#: Variables with the prefix that are no training settings.
_NOT_SETTINGS = {"HOME", "BLAS", "DEBUG", "COMPLETE", "SEEDLING_WORK", "LOG", "TOKEN"}
#: Settings of earlier versions that mean nothing any more, and why: passed over with a warning.
RETIRED = {
    "evaluation.scales": "the adapter's scale is not searched any more, as that brought less than 0.5 % (docs/decisions.md)",
    **dict.fromkeys(
        (
            "optimizer.beta1",
            "optimizer.beta2",
            "optimizer.warmup_fraction",
            "optimizer.final_fraction",
            "optimizer.clip_norm",
            "data.fim_ast_share",
            "data.fim_line_share",
            "data.near_duplicate_threshold",
            "data.max_mean_line_length",
            "data.min_alphanumeric_fraction",
            "data.min_alphabetic_fraction",
            "evaluation.min_improvement",
        ),
        "fixed at the default of earlier versions, as nobody has shown a use for another value",
    ),
    "engine.attention_block": "which way attention takes is measured for every shape and kept; the planner chooses by that",
    "engine.verify_split": "how a model is cut is checked always, once for a base on a machine, which takes a few tokens",
    "engine.split": "a model is always cut into segments, and taken as one where that would not compute the same",
    "data.replay_share": "half of the bytes to learn from are in unchanged files, where a training goes on from an adapter",
    **dict.fromkeys(
        ("evaluation.forgetting_limit", "evaluation.memorisation_limit", "evaluation.parse_ok_limit"),
        "the guards have the limits that docs/evidence.md names, so that verdicts can be compared",
    ),
    **dict.fromkeys(
        ("evaluation.least_tasks", "evaluation.least_rows", "evaluation.memorisation_places"),
        "evaluation.tasks alone says how much is measured; the least of it follows from that (docs/evidence.md)",
    ),
    "evaluation.samples": "the three answers that gained most and the three that lost most are shown",
    "evaluation.context_tokens": "retrieved code takes up to 384 tokens of a prompt, in evidence and when served alike",
    "parallel.connect_seconds": "hosts have a minute to answer and ranks three to connect, also on a busy machine",
    "worker_restarts": "a worker that died is started again at most three times, and not twice without a new checkpoint in between",
    "data.max_line_length": "files with a line of more than 1,000 characters are left out, as they are data or written by programs",
    "checkpoints_kept": "the two newest checkpoints stay, the second for the case that the first is damaged",
    "data.fim_loss_on_context": "the context is learned always, which was better than the middle alone (docs/decisions.md)",
}
#: What `throttling.pause_on` has in the place of a yes or no of earlier versions.
_PAUSES = {
    "pause_on_memory_pressure": "memory-pressure",
    "pause_on_battery": "battery",
    "pause_when_hot": "heat",
    "pause_while_display_is_on": "display",
}
#: Settings by their earlier names, which are understood until 0.3 with a warning, and those of today.
RENAMED = {
    "data.row_widths": "data.sequence_lengths",
    "engine.lanes": "engine.cpu_streams",
    "engine.live_layers": "engine.kept_layers",
    "engine.rehearse": "engine.dry_run",
    "engine.tail_slice_tokens": "engine.loss_slice_tokens",
    "engine.words_on_disk": "engine.vocabulary_on_disk",
    "evaluation.next_line_tasks": "evaluation.tasks",
    "evaluation.fim_tasks": "evaluation.tasks",
    "neighbour.low_priority": "throttling.low_priority",
    "parallel.hostfile": "parallel.hosts",
    **{
        f"{section}.{key}": "throttling.pause_on"
        for section in ("neighbour", "throttling")
        for key in _PAUSES
    },
}

#: What was done before there was such a setting, where that is not its default.
_BEFORE = {"data.split": "files", "data.edit_share": 0.0}


@checked
def load_config(
    file: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> TrainingConfig:
    """Settings from defaults, then ``file`` (TOML), then the environment, then ``overrides`` (flags).

    Args:
        file: a TOML file; its tables are the sections (``[lora]``).
        overrides: nested or dotted keys (``{"lora.rank": 8}``); None values are left out.
        environment: variables to read instead of the process's own.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is impossible; says where it came from.
        TypeError: an argument is of another type.
    """
    values, origins = dict[str, Any](), dict[str, str]()
    for origin, layer in _layers(file, overrides or {}, os.environ if environment is None else environment):
        for text in _earlier(layer, origin):
            warnings.warn(text, FutureWarning, stacklevel=3)
        layer = as_of_today(layer, values)
        _reject_unknown(layer, origin)
        _merge(values, layer)
        is_environment = origin == _ENVIRONMENT
        origins |= {key: _variable(key) if is_environment else origin for key in _flatten(layer)}
    try:
        return validate_config(values)
    except ConfigError as error:
        if isinstance(error.__cause__, ValidationError):
            raise unusable(error.__cause__, origins) from error.__cause__
        raise


def _variable(key: str) -> str:
    """The environment variable of a setting: MLX_GARDENER_LORA__RANK of lora.rank."""
    return ENVIRONMENT_PREFIX + key.upper().replace(".", "__")


def validate_config(values: Mapping[str, Any]) -> TrainingConfig:
    """`TrainingConfig` from nested values, also such as an earlier version wrote, with one readable error for all that is wrong.

    Raises:
        ConfigError: a key is unknown or a value is impossible.
    """
    values = as_of_today(values)
    _reject_unknown(values, "the settings")
    return TrainingConfig.model_validate(values)


def _earlier(layer: Mapping[str, Any], origin: str) -> Iterator[str]:
    """What is said of settings of earlier versions, in their order; those that are passed over for one reason together."""
    retired: dict[str, list[str]] = {}
    for key in _flatten(layer):
        if key in RETIRED:
            retired.setdefault(RETIRED[key], []).append(key)
        elif key in RENAMED:
            item = _PAUSES.get(key.rpartition(".")[2])
            now = f"called {RENAMED[key]}" if item is None else f'"{item}" in the list {RENAMED[key]}'
            over = ", but passed over where that is set too, as here"
            is_over = _is_said(layer, *RENAMED[key].split("."))
            yield f"{key} in {origin} is {now} now; the earlier name is understood until 0.3{over if is_over else ''}."
    for why, some in retired.items():
        have, them = ("has", "it") if len(some) == 1 else ("have", "them")
        yield f"{', '.join(some)} in {origin} {have} no effect: {why}. Take {them} out."


def as_of_today(
    values: Mapping[str, Any], before: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Nested settings without those that are `RETIRED`, and with the names of today of those that are `RENAMED`.

    What is there by both names keeps the new one's value, unless that is an empty list. Of several earlier names of one number
    the larger counts; a yes or no that is in a list now adds to it or takes away, beginning with the list of ``before``, else
    with the default.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for old, new in RENAMED.items():
        (old_section, old_key), (section, key) = old.split("."), new.split(".")
        if not _names(found, old_section, old_key):
            continue
        value = found[old_section].pop(old_key)
        into = found.setdefault(section, {})
        if isinstance(into, dict) and not _is_said(values, section, key) and value is not None:
            so_far = into.get(key)
            if old_key in _PAUSES:
                if so_far is None:
                    so_far = (
                        before[section][key] if _names(before, section, key) else ThrottlingConfig().pause_on
                    )
                into[key] = _with_or_without(so_far, _PAUSES[old_key], value)
            else:
                into[key] = value if so_far in (None, [], ()) else _larger(so_far, value)
        if not found[old_section]:
            del found[old_section]
    return _without_retired(found)


def _names(values: Mapping[str, Any], section: str, key: str) -> bool:
    return isinstance(values.get(section), Mapping) and key in values[section]


def _is_said(values: Mapping[str, Any], section: str, key: str) -> bool:
    return _names(values, section, key) and values[section][key] not in ([], ())


def _with_or_without(items: Any, item: str, is_wanted: Any) -> Any:
    """A list with ``item`` or without it; what is no yes or no is left to validation, as what is no list."""
    try:
        others = [other for other in items if other != item]
        return [*others, item] if TypeAdapter(bool).validate_python(is_wanted) else others
    except (TypeError, ValidationError):
        return is_wanted


def _larger(first: Any, second: Any) -> Any:
    """The larger of two numbers; what is none is left to validation."""
    if not isinstance(first, int | float):
        return first
    return max(first, second) if isinstance(second, int | float) else second


def as_recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """`as_of_today` of settings that a training recorded; what a section does not name is as it was before that was a setting."""
    found = as_of_today(values)
    for section, known in TrainingConfig().model_dump(mode="json").items():
        if isinstance(known, dict) and isinstance(found.get(section), dict):
            before = {key: _BEFORE.get(f"{section}.{key}", value) for key, value in known.items()}
            found[section] = before | found[section]
    return found


def _layers(
    file: str | Path | None, overrides: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if file is not None:
        yield f"the file {Path(file).name}", _nested(_read_toml(Path(file)))
    yield _ENVIRONMENT, _from_environment(environment)
    yield "the flags", _nested({key: value for key, value in overrides.items() if value is not None})


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """With a dictionary for each section, also where a key has the section's name in it: ``"lora.rank" = 8``."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        _merge(nested, _nest(key.split("."), value))
    return nested


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, max_bytes=_MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The settings file {path} cannot be read ({reason_of(error)}).",
            next_step="Name a readable TOML file with --config.",
        ) from error
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # also where a number has thousands of digits
        raise ConfigError(
            f"The settings file {path} is not valid TOML: {error}.",
            next_step="Correct it there; docs/settings.md lists the settings.",
        ) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name.removeprefix(ENVIRONMENT_PREFIX) not in _NOT_SETTINGS:
            keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _merge(values, _nest(keys, parse_value(text)))
    return values


def parse_value(text: str) -> Any:
    """A value as TOML would read it; anything TOML cannot read is plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _reject_unknown(values: Mapping[str, Any], origin: str) -> None:
    known = known_keys()
    for key in _flatten(values):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else "See `mlx-gardener train --help` and docs/settings.md."
            )
            raise ConfigError(f"Unknown setting {key!r} in {origin}.", next_step=hint)


def _without_retired(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without_retired(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in RETIRED
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
