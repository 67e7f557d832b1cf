"""Where other programs keep their models on macOS and Linux.

Ollama: envconfig/config.go. LM Studio: its pointer file and ``downloadsFolder`` of its settings. llama.cpp before March 2026:
common/common.cpp, fs_get_cache_directory. Jan: jan.ai/docs/data-folder. oMLX: ``model.model_dirs`` of its settings. The hub's
cache is where the hub's library says. Nothing is looked for beyond these directories; what is not there is left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.platform.home import default_home
from mlx_gardener.platform.untrusted import read_bytes, read_json

#: Settings of other programs are some kilobytes.
_SETTINGS_BYTES = 2**20
#: Where Ollama keeps models when it runs as a service of its own user.
_OLLAMA_SERVICES = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/models", "/var/lib/ollama")


@dataclass(frozen=True)
class StorePlace:
    """A directory in which a program keeps models: ``store`` is hf, index, ollama, lmstudio, llamacpp, jan or omlx."""

    store: str
    root: Path


def store_places() -> list[StorePlace]:
    """The stores that are on this machine, in the order in which they are told."""
    from huggingface_hub import constants

    found = [StorePlace("hf", Path(constants.HF_HUB_CACHE)), StorePlace("index", packages_cache())]
    for store, roots in (
        ("ollama", _ollama()),
        ("lmstudio", _lm_studio()),
        ("llamacpp", _llama_cpp()),
        ("jan", _jan()),
        ("omlx", _omlx()),
    ):
        found += [StorePlace(store, root) for root in dict.fromkeys(roots)]
    return [place for place in found if _is_directory(place.root)]


def lm_studio_models() -> Path | None:
    """Where LM Studio looks for models, also before it has any; None where it was never on this machine."""
    place = next(iter(_lm_studio()))
    return place if _is_directory(place) or _is_directory(place.parent) else None


def packages_cache() -> Path:
    """Where models lie that came in wheels from the package index."""
    return default_home() / "cache" / "packages"


def _ollama() -> Iterator[Path]:
    named = os.environ.get("OLLAMA_MODELS")
    if named:
        yield _at(named)
        return
    yield Path.home() / ".ollama" / "models"
    yield from (Path(place) for place in _OLLAMA_SERVICES if _is_directory(Path(place) / "manifests"))


def _lm_studio() -> Iterator[Path]:
    """LM Studio's home is where its pointer file says, which also the older ones have; its settings may move the models."""
    user = Path.home()
    homes = [user / ".lmstudio", user / ".cache" / "lm-studio"]
    try:
        pointer = user / ".lmstudio-home-pointer"
        homes.insert(0, _at(read_bytes(pointer, max_bytes=4096).decode().strip()))
    except (OSError, ValueError):
        pass  # there is none, as before its first start
    home = next((home for home in homes if _is_directory(home)), homes[-1])
    moved = _setting(home / "settings.json", "downloadsFolder")
    yield _at(moved) if isinstance(moved, str) and moved else home / "models"


def _llama_cpp() -> Iterator[Path]:
    named = os.environ.get("LLAMA_CACHE")
    if named:
        yield _at(named)
    elif sys.platform == "darwin":
        yield Path.home() / "Library" / "Caches" / "llama.cpp"
    else:
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama.cpp"


def _jan() -> Iterator[Path]:
    if sys.platform == "darwin":
        data = [Path.home() / "Library" / "Application Support" / "Jan" / "data"]
    else:
        data = [
            Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "Jan" / "data",
            Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "Jan" / "data",
        ]
    for place in (*data, Path.home() / "jan"):
        yield from (place / "llamacpp" / "models", place / "mlx" / "models", place / "models")


def _omlx() -> Iterator[Path]:
    base = _at(os.environ.get("OMLX_BASE_PATH") or "~/.omlx")
    named = os.environ.get("OMLX_MODEL_DIR")
    if named:
        yield from (_at(part.strip()) for part in named.split(",") if part.strip())
        return
    settings = _setting(base / "settings.json", "model")
    moved = settings.get("model_dirs") if isinstance(settings, dict) else None
    if isinstance(moved, list) and moved:
        yield from (_at(part) for part in moved if isinstance(part, str) and part)
    else:
        yield base / "models"


def _setting(file: Path, key: str) -> Any:
    """A value of another program's settings; None where they are not there, or are not what they were."""
    try:
        settings = read_json(file, max_bytes=_SETTINGS_BYTES)
    except (OSError, ValueError):
        return None
    return settings.get(key) if isinstance(settings, dict) else None


def _at(text: str) -> Path:
    """A directory as settings and variables spell it; ``~`` of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path's own raises for such a user


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is no name, a place that may not be looked into
        return False
