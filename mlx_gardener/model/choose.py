"""Which base model: a name given by the user, or the best recommended one that fits and is at hand.

The embedded ``seedling`` is always there, so a choice never fails for want of a network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf import (
    gguf_facts,
    gguf_file,
    is_gguf,
    known_folder,
    not_trainable,
    read_gguf,
)
from mlx_gardener.platform.home import default_home
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_header, read_json

#: Recommended code models, best first, with the least budget in GB at which a 4-bit base trains at 1024 tokens
#: (weights, adapter, one row of activations; judgement until the planner has measured them on a Mac).
RECOMMENDED = (
    ("mlx-community/Qwen2.5-Coder-7B-4bit", 8.0),
    ("mlx-community/Qwen2.5-Coder-3B-4bit", 4.0),
    ("mlx-community/Qwen2.5-Coder-1.5B-4bit", 3.0),
    ("mlx-community/Qwen2.5-Coder-0.5B-4bit", 2.0),
)
SEEDLING = "seedling"
_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja"]
_MODEL_FILES = ["model*.safetensors", *_DESCRIPTION]
_INDEX = "model.safetensors.index.json"
_ASK_SECONDS, _PROGRESS_SECONDS = 5, 1.0
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


def choose_model(name: str, budget_bytes: int, *, may_fetch: bool = False) -> ModelChoice:
    """The model that ``name`` means.

    Args:
        name: ``auto``, ``seedling``, a local directory, a GGUF file or a directory with one, or a hub id.
        budget_bytes: what the training may take; only ``auto`` looks at it.
        may_fetch: ask the hub for the size of a model that is not here yet; without, ``auto`` chooses none of those.

    Raises:
        ModelError: the name is a directory without a model, or neither a directory nor a file nor a hub id; or the GGUF
            file cannot be trained on; or the hub was to be asked, and has it not.
    """
    if name == "auto":
        return _choose_recommended(budget_bytes, may_fetch)
    if name == SEEDLING:
        return ModelChoice(SEEDLING, seedling_path(), "the embedded model, as asked")
    if (file := gguf_file(name)) is not None:
        return _choose_gguf(name, file)
    directory = Path(name).expanduser()
    if directory.is_dir():
        _check_directory(directory)
        return ModelChoice(name, directory.resolve(), "the directory you named")
    if name.startswith((".", "/", "~")):
        raise ModelError(
            f"The model {name!r} is neither a directory nor a GGUF file nor a hub id: there is no such directory or file.",
            next_step="Name the directory; where adapters were trained on it before it moved, "
            "`mlx-gardener registry base DIRECTORY` tells them where it is now.",
        )
    if name.count("/") != 1:
        raise ModelError(
            f"The model {name!r} is neither a directory nor a GGUF file nor a hub id.",
            next_step="Name a directory, a file, an id like Qwen/Qwen2.5-Coder-0.5B, or `seedling`.",
        )
    cached = cached_model(name)
    if cached is not None:
        return ModelChoice(name, cached, "as asked, from the local cache")
    size = f"{missing_bytes(name) / 1e9:.1f} GB " if may_fetch else ""
    return ModelChoice(name, None, f"as asked; {size}to be fetched")


def _choose_gguf(name: str, file: Path) -> ModelChoice:
    known = known_folder(file, gguf_cache())
    if known is not None:
        return ModelChoice(name, known, "the GGUF file you named")
    facts = gguf_facts(file)
    if facts.why_not is not None:
        raise not_trainable(file, facts.why_not)
    reason = f"the GGUF file you named, {facts.quantisation}; {facts.bytes / 1e9:.1f} GB to be read once"
    return ModelChoice(name, None, reason)


def gguf_cache() -> Path:
    """Where the folders are that GGUF files were read into."""
    return default_home() / "cache" / "bases"


def absolute_model(name: str) -> str:
    """``name`` as `choose_model` understands it here, for other processes, which work elsewhere."""
    place = Path(name).expanduser()
    is_local = name not in ("auto", SEEDLING) and (place.is_dir() or is_gguf(place))
    return str(place.resolve()) if is_local else name


def _choose_recommended(budget_bytes: int, may_fetch: bool) -> ModelChoice:
    """The best recommended model at hand; where none is, the best that the hub has; else the embedded one."""
    fitting = [name for name, least_gb in RECOMMENDED if least_gb * _GIB <= budget_bytes]
    for name in fitting:
        path = cached_model(name)
        if path is not None:
            return ModelChoice(
                name, path, "the best recommended model in the local cache that fits the budget"
            )
    if not fitting:
        return embedded(f"no recommended model fits {budget_bytes / _GIB:.2g} GB")
    best = fitting[0]
    if not may_fetch:
        return embedded(f"{best} would fit but is not in the local cache; `train` fetches it")
    try:
        size = missing_bytes(best)
    except ModelError as error:
        return embedded(f"{best} would fit, but {error.message[0].lower()}{error.message[1:]}")
    reason = f"the best recommended model that fits the budget; {size / 1e9:.1f} GB to be fetched"
    return ModelChoice(best, None, reason)


def embedded(reason: str) -> ModelChoice:
    """The embedded model, chosen because of ``reason``."""
    return ModelChoice(SEEDLING, seedling_path(), f"the embedded model: {reason}")


def cached_model(name: str) -> Path | None:
    """Where the hub cache has a snapshot of ``name`` with all that a model needs; None where it has not. Never asks the network.

    The hub's library takes a snapshot for incomplete unless every file of the repository is there, whoever fetched it.
    """
    path = _snapshot(name)
    return path if path is not None and missing_file(path) is None else None


def _snapshot(name: str) -> Path | None:
    """Where the hub cache has any of ``name``."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def missing_file(path: Path) -> str | None:
    """The first file that a model in the directory ``path`` needs and has not; links to files that are not there do not count.

    Shards are those that the index names, unless others hold their arrays (an index that was left behind when the model
    was saved again); without an index, those that the shards' own names count (``-00001-of-00003``).
    """
    index = path / _INDEX
    if index.exists():
        try:
            shard_of = {name: str(shard) for name, shard in read_json(index)["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"readable {_INDEX}"
        shards = {shard for shard in shard_of.values() if not (path / shard).exists()}
        if shards:
            here = _arrays_in(path)
            shards = {shard for name, shard in shard_of.items() if shard in shards and name not in here}
    else:
        found = sorted(file.name for file in path.glob("model*.safetensors") if file.exists())
        shards = set(found) or {"model.safetensors"}
        for name in found:
            if match := re.fullmatch(r"(model.*-)(\d{5})-of-(\d{5})\.safetensors", name):
                counted = range(1, min(int(match[3]), 10_000) + 1)
                shards |= {f"{match[1]}{number:05d}-of-{match[3]}.safetensors" for number in counted}
    needed = (*sorted(shards), "tokenizer.json")
    return next((name for name in needed if not (path / name).exists()), None)


def _arrays_in(path: Path) -> set[str]:
    """Names of the arrays in a model's weight files; loading will say what is wrong with a file that cannot be read."""
    names: set[str] = set()
    for file in path.glob("model*.safetensors"):
        with suppress(OSError, ValueError):
            names |= read_header(file).keys()
    return names


def resolve_model(choice: ModelChoice) -> Path:
    """The directory of a chosen model, fetched from the hub or read from its GGUF file where it has to be.

    Raises:
        ModelError: as `fetch_model`.
    """
    if choice.path is not None:
        return choice.path
    cached = None if gguf_file(choice.name) else cached_model(choice.name)
    return cached or fetch_model(choice.name)


def fetch_model(name: str, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a model from the hub, or read it from its GGUF file; what is there already is not fetched again, also after an
    interruption.

    Args:
        on_progress: called every second (of a file: all the time) with the bytes fetched so far and all that were missing;
            may raise, which stops the fetching. Without it the hub's library draws its own bars.

    Raises:
        ModelError: it cannot be fetched; names the command that would, and the embedded alternative. Or it cannot be read.
    """
    if (file := gguf_file(name)) is not None:
        return read_gguf(file, gguf_cache(), on_progress or (lambda done, total: None))
    with _hub_errors(name):
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.file_download import repo_folder_name

        if on_progress is not None:
            store = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
            _fetch_in_a_process(name, store, missing_bytes(name), on_progress)
        path = Path(snapshot_download(name, allow_patterns=_MODEL_FILES))
    missing = missing_file(path)
    if missing is not None:  # without a network the library gives what there is for the whole
        raise ModelError(
            f"The model {name!r} has no {missing} in the local cache.",
            next_step=f"Where there is a network, `hf download {name}` fetches it; "
            "if the hub has none, choose another model.",
        )
    return path


def fetch_description(name: str) -> Path:
    """Fetch a model's config and tokenizer from the hub, some megabytes, and leave its weights there.

    Raises:
        ModelError: as `fetch_model`.
    """
    with _hub_errors(name):
        from huggingface_hub import snapshot_download

        with _without_bars():
            return Path(snapshot_download(name, allow_patterns=_DESCRIPTION, etag_timeout=_ASK_SECONDS))


@contextmanager
def _without_bars() -> Iterator[None]:
    """The hub's library draws nothing while this lasts."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not quiet:
            enable_progress_bars()


def _fetch_in_a_process(
    name: str, store: Path, missing: int, on_progress: Callable[[int, int], None]
) -> None:
    """Fetching that can be watched, by what is in ``store``, and stopped, which the library's threads cannot be."""
    before = _bytes_below(store)
    code = (
        "import sys, huggingface_hub as hub; hub.snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])"
    )
    process = subprocess.Popen(
        (sys.executable, "-c", code, name, *_MODEL_FILES),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            on_progress(min(missing, max(0, _bytes_below(store) - before)), missing)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PROGRESS_SECONDS)
    finally:
        process.kill()
        process.wait()


def _bytes_below(directory: Path) -> int:
    found = 0
    for file in directory.rglob("*"):
        with suppress(OSError):  # finished, and renamed, in this moment
            found += 0 if file.is_symlink() or not file.is_file() else file.stat().st_size
    return found


def missing_bytes(name: str) -> int:
    """Bytes of a model's files that the local cache lacks; asks the hub.

    Raises:
        ModelError: as `fetch_model`, or the disk has no room for them.
    """
    with _hub_errors(name):
        from huggingface_hub import constants, snapshot_download

        with _without_bars():
            files = snapshot_download(
                name, allow_patterns=_MODEL_FILES, dry_run=True, etag_timeout=_ASK_SECONDS
            )
        missing = sum(file.file_size for file in files if file.will_download)
        place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if missing > free:
        raise ModelError(
            f"The model {name!r} takes {missing / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left.",
            next_step="Make room, or set HF_HOME to a place on another disk.",
        )
    return missing


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What goes wrong between here and the hub, as one error that says what to do."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (
        HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError
    ) as error:  # fmt: skip
        snapshot = _snapshot(name)
        lacking = None if snapshot is None else missing_file(snapshot)
        what = "in the local cache" if lacking is None else f"whole in the local cache (no {lacking})"
        raise ModelError(
            f"The model {name!r} is not {what} and cannot be fetched ({_reason(error)}).",
            next_step=f"Where there is a network, run `hf download {name}`; or train the embedded model "
            "with `--model seedling`.",
        ) from error


def _reason(error: Exception) -> str:
    """Why the hub's library did not give a model, in words: its own errors are long, and name its classes."""
    from huggingface_hub import errors

    at: BaseException | None = error
    while at is not None:
        if isinstance(at, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids to ask the hub"
        if isinstance(at, errors.GatedRepoError):
            return "the hub gives it only to accounts that accepted its terms: `hf auth login`"
        if isinstance(at, errors.RepositoryNotFoundError):
            return "the hub has no such model, or none for you: `hf auth login`"
        if isinstance(at, errors.HfHubHTTPError):
            return f"the hub answers {at.response.status_code}"
        if isinstance(at, errors.HFValidationError):
            return "it is no name of a model"
        at = at.__cause__
    system = isinstance(error, OSError) and error.errno is not None
    return reason_of(error) if system else "the hub cannot be reached"


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
