"""The hub: what its cache on this machine has, and fetching what it has not.

In: a model's id. Out: the directory of its snapshot. Whatever goes wrong between here and the hub is one `ModelError` that says
what to do. Cost: a look into the cache is milliseconds; asking for sizes a request or two; fetching what the model takes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_gardener.errors import ModelError
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_header, read_json

_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja"]
_MODEL_FILES = ["model*.safetensors", *_DESCRIPTION]
_INDEX = "model.safetensors.index.json"
_ASK_SECONDS, _PROGRESS_SECONDS = 5, 1.0


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


def fetch_model(name: str, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a model from the hub; what is there already is not fetched again, also after an interruption.

    Args:
        on_progress: called every second with the bytes fetched so far and all that were missing; may raise, which
            stops the fetching. Without it the hub's library draws its own bars.

    Raises:
        ModelError: it cannot be fetched; names the command that would, and the embedded alternative.
    """
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
