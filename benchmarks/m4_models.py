"""The models that `m4_throughput.py` measures: the recommended ones from the hub, or random weights of the same shapes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from mlx_gardener.errors import ModelError
from mlx_gardener.model import choose_model, resolve_model
from mlx_gardener.model.choose import SEEDLING
from mlx_gardener.model.recommended import RECOMMENDED
from mlx_gardener.report.text import gigabytes, safe_text

#: Smallest first, so that a short time measures what it can.
NAMES = tuple(one.id for one in reversed(RECOMMENDED) if "Qwen2.5-Coder" in one.id)
QUICK_SHAPE, QUICK_LAYERS = "qwen2.5-coder-0.5b", 2
_FILES = (".json", ".safetensors", ".txt", ".model")


@dataclass(frozen=True)
class MeasuredModel:
    """A model on disk; ``weights`` is "real" or "random", ``revision`` the hub's commit where it came from there."""

    name: str
    path: Path
    weights: str
    revision: str | None = None

    @property
    def size_bytes(self) -> int:
        """Of its weight files."""
        return sum(file.stat().st_size for file in self.path.glob("model*.safetensors"))


def real_models(
    names: tuple[str, ...], *, agreed: bool, say: Callable[[str], None]
) -> list[MeasuredModel] | None:
    """These models, fetched where they are not in the local cache; None where they cannot or may not be.

    Args:
        agreed: fetch without asking.

    Raises:
        ModelError: a name is no model.
    """
    missing = [name for name in names if choose_model(name).path is None]
    if missing:
        sizes = hub_sizes(missing)
        if sizes is None:
            say("The hub cannot be reached and not all models are in the local cache.")
            return None
        for name, size in sizes.items():
            say(f"To fetch: {name}, {gigabytes(size)}")
        question = f"Fetch {gigabytes(sum(sizes.values()))} in all?"
        if not agreed and not (sys.stdin.isatty() and click.confirm(question, default=True)):
            say("Not fetched; --yes agrees beforehand.")
            return None
    found = []
    for name in names:
        try:
            path = resolve_model(choose_model(name))
        except ModelError as error:
            say(str(error))
            return None
        at_hub = path.parent.name == "snapshots"
        is_directory = name != SEEDLING and Path(name).is_dir()
        found.append(
            MeasuredModel(path.name if is_directory else name, path, "real", path.name if at_hub else None)
        )
    return found


def hub_sizes(names: list[str]) -> dict[str, int] | None:
    """Bytes to fetch for each model, as the hub tells; None where it does not."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    sizes = {}
    for name in names:
        try:
            info = HfApi().model_info(name, files_metadata=True, timeout=15)
        except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError):
            return None
        files = [file for file in info.siblings or () if file.rfilename.endswith(_FILES)]
        sizes[name] = sum(file.size or 0 for file in files)
    return sizes


def shape_name(name: str) -> str:
    """The recorded shape of a recommended model: "mlx-community/Qwen2.5-Coder-3B-4bit" gives "qwen2.5-coder-3b"."""
    return name.rpartition("/")[2].lower().removesuffix("-4bit")


def random_model(shape: str, directory: Path, *, seconds: float, layers: int | None, bits: int) -> Path:
    """Write a random model of a recorded shape into ``directory`` unless it is there; in a process of its own.

    Raises:
        ModelError: it failed, or took longer than ``seconds``.
    """
    command = [sys.executable, str(Path(__file__).with_name("shapes.py")), shape, str(directory)]
    command += ["--bits", str(bits), *(["--layers", str(layers)] if layers else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"Random weights of {shape} were not written in {seconds:.0f} s.",
            next_step="Allow more --minutes.",
        ) from error
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"Random weights of {shape} could not be written: {safe_text(words)}",
            next_step="Make room for them, or name another --scratch.",
        )
    return Path(done.stdout.splitlines()[-1])
