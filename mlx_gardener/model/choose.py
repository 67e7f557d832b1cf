"""Which base model: a name given by the user, or the best recommended one that fits and is at hand.

The embedded ``seedling`` is always there, so a choice never fails for want of a network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.errors import ModelError
from mlx_gardener.platform.untrusted import read_json

#: Recommended code models, best first, with the least budget in GB at which a 4-bit base trains at 1024 tokens
#: (weights, adapter, one row of activations; judgement until the planner has measured them on a Mac).
RECOMMENDED = (
    ("mlx-community/Qwen2.5-Coder-7B-4bit", 8.0),
    ("mlx-community/Qwen2.5-Coder-3B-4bit", 4.0),
    ("mlx-community/Qwen2.5-Coder-1.5B-4bit", 3.0),
    ("mlx-community/Qwen2.5-Coder-0.5B-4bit", 2.0),
)
SEEDLING = "seedling"
_GIB = 1024**3


@dataclass(frozen=True)
class ModelChoice:
    """A model, where its files are (None: still to be fetched), and why it was chosen."""

    name: str
    path: Path | None
    reason: str


def seedling_path() -> Path:
    """The directory of the embedded model."""
    return Path(__file__).parent / "seedling"


def choose_model(name: str, budget_bytes: int) -> ModelChoice:
    """The model that ``name`` means.

    Args:
        name: ``auto``, ``seedling``, a local directory, or a hub id.
        budget_bytes: what the training may take; only ``auto`` looks at it.

    Raises:
        ModelError: the name is a directory without a model, or neither a directory nor a hub id.
    """
    if name == "auto":
        return _choose_recommended(budget_bytes)
    if name == SEEDLING:
        return ModelChoice(SEEDLING, seedling_path(), "the embedded model, as asked")
    directory = Path(name).expanduser()
    if directory.is_dir():
        _check_directory(directory)
        return ModelChoice(name, directory.resolve(), "the directory you named")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"The model {name!r} is neither a directory nor a hub id.",
            next_step="Name a directory, an id like Qwen/Qwen2.5-Coder-0.5B, or `seedling`.",
        )
    cached = cached_model(name)
    return ModelChoice(
        name, cached, "as asked, from the local cache" if cached else "as asked, to be fetched"
    )


def _choose_recommended(budget_bytes: int) -> ModelChoice:
    fitting = [name for name, least_gb in RECOMMENDED if least_gb * _GIB <= budget_bytes]
    for name in fitting:
        path = cached_model(name)
        if path is not None:
            return ModelChoice(
                name, path, "the best recommended model in the local cache that fits the budget"
            )
    if not fitting:
        reason = f"no recommended model fits {budget_bytes / _GIB:.2g} GB"
    else:
        reason = (
            f"{fitting[0]} would fit but is not in the local cache; fetch it with `hf download {fitting[0]}`"
        )
    return ModelChoice(SEEDLING, seedling_path(), f"the embedded model: {reason}")


def cached_model(name: str) -> Path | None:
    """Where the hub cache has a complete snapshot of ``name``; None where it has not. Never asks the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
        return None
    complete = (path / "config.json").exists() and any(path.glob("model*.safetensors"))
    return path if complete else None


def resolve_model(choice: ModelChoice) -> Path:
    """The directory of a chosen model, fetched from the hub where it has to be.

    Raises:
        ModelError: it cannot be fetched; names the command that would, and the embedded alternative.
    """
    if choice.path is not None:
        return choice.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        patterns = ["*.json", "model*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(choice.name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"The model {choice.name!r} is not in the local cache and cannot be fetched ({type(error).__name__}).",
            next_step=f"Where there is a network, run `hf download {choice.name}`; or train the embedded model "
            "with `--model seedling`.",
        ) from error


def read_model_config(path: Path) -> dict[str, object]:
    """The ``config.json`` of a model directory.

    Raises:
        ModelError: it is missing, unreadable or not a JSON object, or the model wants code of its own to be run.
    """
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model {path.name!r} has no usable config.json ({error}).",
            next_step="Fetch the model again, or choose another.",
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"The config.json of {path.name!r} names no model_type.",
            next_step="Choose a model that mlx-lm knows.",
        )
    if config.get("model_file") is not None:
        raise ModelError(
            f"The model {path.name!r} brings its own code (model_file in its config.json), which is never run.",
            next_step="No setting allows it: choose a model whose architecture is part of mlx-lm.",
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", config["model_type"]):
        raise ModelError(
            f"The config.json of {path.name!r} has a model_type that names no architecture.",
            next_step="Choose a model that mlx-lm knows.",
        )
    return config


def _check_directory(path: Path) -> None:
    read_model_config(path)
    if not any(path.glob("model*.safetensors")):
        raise ModelError(
            f"The directory {path.name!r} has no model*.safetensors.",
            next_step="Name a directory with a model that mlx-lm can load.",
        )
    if not os.access(path / "tokenizer.json", os.R_OK):
        raise ModelError(
            f"The directory {path.name!r} has no readable tokenizer.json.",
            next_step="Save the model with its fast tokenizer.",
        )
