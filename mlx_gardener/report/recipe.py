"""How a run is made again: the settings that are not the defaults, and the command that says them.

A model that was a directory of this machine is shown by its name only.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

#: Settings that the command says with a flag of their own, or that change nothing about what comes out.
_OWN_FLAG = {"model": "--model", "memory_limit_gb": "--budget", "seed": "--seed"}


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
    from mlx_gardener.config import TrainingConfig, as_of_today

    defaults = flat_settings(TrainingConfig().model_dump(mode="json"))
    flat = {**flat_settings(as_of_today(config)), "model": base_model}
    return [
        (name, json.dumps(value, ensure_ascii=False), name not in defaults or defaults[name] != value)
        for name, value in flat.items()
    ]


def train_command(config: Mapping[str, Any], base_model: str, project: str) -> str:
    """The ``mlx-gardener train`` that trains the same again, run in the repository at the same commit."""
    words = ["mlx-gardener", "train", ".", "--project", project, "--model", base_model]
    for name, value, is_other in all_settings(config, base_model):
        if name == "model" or not is_other or value == "null":
            continue
        plain = value[1:-1] if value.startswith('"') else value
        if name in _OWN_FLAG:
            words += [_OWN_FLAG[name], plain]
        else:
            words += ["--set", f"{name}={value}"]
    return " ".join(shlex.quote(word) for word in words)
