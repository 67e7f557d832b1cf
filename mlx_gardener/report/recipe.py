"""How a run is made again, or gone on with: the settings that are not the defaults, and the commands that say them.

On a page, a model that was a directory of this machine is shown by its name only.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gardener.registry import AdapterRecord, ProjectRegistry

#: Settings that the command says with a flag of their own, or that change nothing about what comes out.
_OWN_FLAG = {"model": "--model", "memory_limit_gb": "--budget", "seed": "--seed"}
#: Settings that a flag of another training takes the place of.
_REPLACED = {
    "--model": ("model",),
    "--budget": ("memory_limit_gb",),
    "--epochs": ("optimizer.epochs", "optimizer.max_steps"),
    "--learning-rate": ("optimizer.learning_rate",),
}
#: What is decided anew for every training: its time, and what it goes on from.
_OF_ONE_RUN = ("training_timeout_minutes", "continue_from", "parallel.")


@dataclass(frozen=True)
class About:
    """What of a run the commands that follow it need; what is not known is None or empty.

    Attributes:
        project: its name in the registry.
        model: its base, as ``--model`` takes it.
        config: its settings.
        has_fim: whether its base knows markers to fill in the middle, as editors need.
        files: the repository's files that it knows, by path: hash, and part of the split.
    """

    project: str = "PROJECT"
    model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    has_fim: bool | None = None
    files: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any], project: str, model: str | None = None) -> About:
        """What a manifest, or the facts of a page, say.

        Args:
            model: the base's place on this machine, where that is to be told.
        """
        base = facts.get("base") or {}
        files = (facts.get("data") or {}).get("files")
        return cls(
            project,
            model or base.get("id") or facts.get("base_model"),
            facts.get("config") or {},
            base.get("has_fim"),
            files if isinstance(files, Mapping) else {},
        )


def about_version(registry: ProjectRegistry, record: AdapterRecord) -> About:
    """What is known of a version here: its manifest, and where its base is on this machine."""
    from mlx_gardener.adapter.base import base_name
    from mlx_gardener.adapter.manifest import read_manifest
    from mlx_gardener.errors import AdapterError
    from mlx_gardener.model.gguf import source_files
    from mlx_gardener.model.stores import is_store_name
    from mlx_gardener.model.tokens import folder_knows_fim

    try:
        manifest = read_manifest(record.directory)
    except AdapterError:
        manifest = {}  # what needs its files says so; advice does without
    place = base_name(registry, record)
    is_a_name = "/" in record.base_model or is_store_name(record.base_model)
    read_from = source_files(
        Path(place)
    )  # a person knows the GGUF file, and not the folder that was made of it
    named = record.base_model if is_a_name else str(read_from[0]) if read_from else place
    about = About.of(manifest, record.project, named)
    if about.has_fim is None and Path(place).is_dir():  # of an earlier version
        about = replace(about, has_fim=folder_knows_fim(Path(place)))
    return about


def flat_settings(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """``{"lora": {"rank": 8}}`` as ``{"lora.rank": 8}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat


def all_settings(config: Mapping[str, Any], base_model: str) -> list[tuple[str, str, bool]]:
    """Name, value as JSON, and whether it is another than the default, of every setting."""
    from mlx_gardener.config import TrainingConfig, as_recorded

    defaults = flat_settings(TrainingConfig().model_dump(mode="json"))
    flat = {**flat_settings(as_recorded(config)), "model": base_model}
    return [
        (name, json.dumps(value, ensure_ascii=False), name not in defaults or defaults[name] != value)
        for name, value in flat.items()
    ]


def train_command(config: Mapping[str, Any], base_model: str, project: str) -> str:
    """The ``mlx-gardener train`` that trains the same again, run in the repository at the same commit."""
    words = ["mlx-gardener", "train", ".", "--project", project, "--model", base_model]
    return shlex.join([*words, *_said(config, base_model)])


def train_again(about: About, *flags: str) -> str:
    """Another training of a project, from wherever one stands: with its settings, but for what ``flags`` say."""
    replaced = tuple(name for flag in flags for name in _REPLACED.get(flag, ()))
    words = ["mlx-gardener", "train", "--project", about.project]
    if about.model is not None and "model" not in replaced:
        words += ["--model", about.model]
    return shlex.join(
        [*words, *_said(about.config, about.model or "auto", (*_OF_ONE_RUN, *replaced)), *flags]
    )


def _said(config: Mapping[str, Any], base_model: str, without: tuple[str, ...] = ()) -> list[str]:
    """The flags of the settings but the base that are not the defaults, and whose names do not begin with ``without``."""
    words: list[str] = []
    for name, value, is_other in all_settings(config, base_model):
        if name == "model" or not is_other or value == "null" or name.startswith(without):
            continue
        plain = value[1:-1] if value.startswith('"') else value
        if name in _OWN_FLAG:
            words += [_OWN_FLAG[name], plain]
        else:
            words += ["--set", f"{name}={value}"]
    return words
