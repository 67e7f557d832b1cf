"""What the backend can do, measured once in about a second and kept: the planner weighs time by it.

Where others worked on the machine meanwhile it looks slow, and would for ever: it is measured anew when they have stopped, with
another chip or BLAS, and on purpose (`engine.machine`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_gardener.engine.attention import Attention
from mlx_gardener.engine.plan import AS_FORETOLD, Scales
from mlx_gardener.model.exponentials import exp
from mlx_gardener.platform import blas
from mlx_gardener.platform.device import backend as backend_kind
from mlx_gardener.platform.files import make_private, write_whole
from mlx_gardener.platform.processes import OthersWork, load_of_last_minute
from mlx_gardener.platform.untrusted import read_json

if TYPE_CHECKING:
    import mlx.core as mx

#: Read speed of a Mac mini's internal disk and of a page cache differ tenfold; this is on the slow side (judgement).
_READ_BYTES_PER_SECOND = 1.5e9


_FILE = "backend.json"
#: Counts up whenever attention, or what else is measured, is computed in another way than before.
_WAY = 3
#: Before a training was seen: one pass instead of three to four, in batches of its own (measured on SmolLM2-135M: 2.7 to 3.2).
FORWARD_SHARE = 2.5
MATRIX_SPEED = "estimated from this machine's matrix speed"
_OTHER_TRAININGS = "estimated from this machine's matrix speed and other trainings on it"
#: What was measured, or trained, is told to have been alone where others took less of the processors.
ALONE = 0.15
#: So little of the processors is always had, however much others want of them (judgement: beyond it a share says little).
_LEAST_FREE = 0.1
#: Speeds that were measured beside others are measured anew no sooner than after this time.
_AGAIN_SECONDS = 600.0
#: Speeds that are measured anew on purpose and differ by less are left as they are: what was seen of bases rests on them (judgement).
_ALIKE = 0.1
#: What is of one base or only said, and so not kept with the machine's speeds.
_OF_A_BASE = {"speed_from", "forward_share", "scales", "attention"}


@dataclass(frozen=True)
class Backend:
    """Speeds of a backend.

    Attributes:
        kind: "cpu", "metal" or "cuda".
        cores: CPU streams that can compute side by side; 1 where one command queue does everything.
        flops_per_second: of a float32 (CPU) or bfloat16 (GPU) product of matrices.
        exp_per_second: exponentials of one stream, with what else is done for each: on MLX's CPU backend they cost more than products
            of small models.
        dequantize_per_second: 4-bit weights that become floats.
        read_bytes_per_second: of weight files.
        multiplies_quantized: whether products with quantised weights are fast as they are.
        work_scale: what trainings on this machine took for their work, as a share of what the formula says.
        speed_scale: the speed that trainings on this machine had, likewise.
        speed_from: what that rests on, in words.
        forward_share: how many times as fast as training rows go forward alone.
        scales: what dry runs of the same base corrected the formulas by.
        busy: the share of the processors that others took while this was measured.
        measured_at: when it was measured last, seconds since the epoch.
        attention: what attention of the base's heads takes; None where it was not measured.
        runtime_bytes: what a process takes beside MLX's arrays; 0 where it was not measured (`engine.machine`).
        lost_rows: by how many rows a product seems longer; 0 where it was not measured.
    """

    kind: str
    cores: int
    flops_per_second: float
    exp_per_second: float
    dequantize_per_second: float
    read_bytes_per_second: float
    multiplies_quantized: bool
    work_scale: float = 1.0
    speed_scale: float = 1.0
    speed_from: str = MATRIX_SPEED
    forward_share: float = FORWARD_SHARE
    scales: Scales = AS_FORETOLD
    busy: float = 0.0
    measured_at: float = 0.0
    attention: Attention | None = None
    runtime_bytes: int = 0
    lost_rows: float = 0.0

    @property
    def knows_base(self) -> bool:
        """Whether its speed was seen in a training of the base at hand."""
        return self.speed_from not in (MATRIX_SPEED, _OTHER_TRAININGS)


#: What a plan is weighed with where nothing was measured: two CPU cores, as measured on the development machine.
TWO_CORES = Backend("cpu", 2, 200e9, 65e6, 600e6, _READ_BYTES_PER_SECOND, False)


def speed_alone(speed: float, busy: float, kind: str) -> float:
    """What ``speed`` would have been without others that took the share ``busy`` of the processors; a GPU is not theirs to take."""
    return speed if busy < ALONE or kind != "cpu" else speed / max(_LEAST_FREE, 1 - busy)


def beside_others(busy: float) -> str:
    """How what was seen is told to have been seen while others took the share ``busy`` of the processors; "" for alone."""
    return f", beside others that took {busy:.0%} of the processors" if busy >= ALONE else ""


def measured_backend(cache_dir: Path | None = None, *, anew: bool = False) -> Backend:
    """The speeds of this machine's backend.

    Measured when ``cache_dir`` holds none of this MLX on it yet, or those that it holds were measured beside others, who have
    stopped; what trainings showed of speeds that were wrong is forgotten then.

    Args:
        anew: measure in any case; what others disturb more than what is kept, or what is about the same, changes nothing.
    """
    kept = None if cache_dir is None else _kept(cache_dir)
    if kept is not None and not anew and not _is_to_be_measured_again(kept):
        return kept
    found = measure_backend()
    if kept is not None and not _is_better(found, kept, anew=anew):
        found = replace(kept, measured_at=found.measured_at)
    elif kept is not None:
        found = replace(
            found,
            work_scale=kept.work_scale,
            runtime_bytes=kept.runtime_bytes,
            lost_rows=kept.lost_rows,
        )
    if cache_dir is not None:
        _keep(cache_dir, found)
    return found


def _is_better(found: Backend, kept: Backend, *, anew: bool) -> bool:
    """Whether speeds measured now take the place of those that are kept."""
    if not anew or kept.busy >= ALONE > found.busy:
        return found.busy < kept.busy
    speeds = ("flops_per_second", "exp_per_second", "dequantize_per_second")
    pairs = [(getattr(found, name), getattr(kept, name)) for name in speeds]
    differs = any(abs(now - before) > _ALIKE * before for now, before in pairs)
    return differs and found.busy < max(ALONE, kept.busy)


def _is_to_be_measured_again(kept: Backend) -> bool:
    if kept.busy < ALONE or 0 <= time.time() - kept.measured_at < _AGAIN_SECONDS:
        return False
    return load_of_last_minute() < ALONE


def correct(cache_dir: Path, *, runtime_bytes: int, lost_rows: float) -> None:
    """Remember what was measured on purpose, in the place of what is assumed; see `Backend`."""
    kept = _kept(cache_dir)
    if kept is not None:
        _keep(cache_dir, replace(kept, runtime_bytes=runtime_bytes, lost_rows=lost_rows))


def learn(cache_dir: Path, *, work: float, speed: float, share: float = 0.5) -> None:
    """Remember what a training took, so that the next plan is nearer the truth.

    The formulas' constants were fitted on a CPU; a GPU, or another version of MLX, may take more or less. Half of the
    difference is adopted at a time, as runs differ, all of it where it was measured on purpose; within a factor of two
    of the formula of memory and of five of the formula of speed.

    Args:
        work: bytes that were seen over those of a plan made with what is remembered now: the peak of MLX's active
            memory, less what is not work.
        speed: likewise tokens per second.
        share: of the difference that is adopted.
    """
    kept = _kept(cache_dir)
    if kept is None or work <= 0 or speed <= 0:
        return
    work_scale = _between(0.5, kept.work_scale * (1 + share * (work - 1)), 2.0)
    speed_scale = _between(0.2, kept.speed_scale * (1 + share * (speed - 1)), 5.0)
    _keep(cache_dir, replace(kept, work_scale=work_scale, speed_scale=speed_scale))


def _between(least: float, value: float, most: float) -> float:
    return round(min(most, max(least, value)), 3)


def machine_key() -> str:
    """What speeds and sizes that were measured depend on: backend, chip, cores, BLAS, version of MLX, and how we compute."""
    import mlx.core as mx

    chip = mx.device_info(mx.default_device()).get("device_name")
    library = blas.state().path
    multiplies = f"BLAS {Path(library).name if library else 'of MLX'}"  # wherever an environment has it
    return f"{backend_kind()} {chip} {os.cpu_count()} {multiplies} mlx {version('mlx')} way {_WAY}"


def _kept(cache_dir: Path) -> Backend | None:
    try:
        kept = read_json(cache_dir / _FILE)
        if kept.pop("key") != machine_key():
            return None
        found = Backend(**{**kept, "busy": float(kept["busy"]), "measured_at": float(kept["measured_at"])})
        return found if found.speed_scale == 1.0 else replace(found, speed_from=_OTHER_TRAININGS)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # not there, damaged, or of another version: measured again


def _keep(cache_dir: Path, backend: Backend) -> None:
    """Keep it for the next time; where nothing can be written (a read-only home, a full disk) it is measured again then."""
    speeds = {name: value for name, value in asdict(backend).items() if name not in _OF_A_BASE}
    with suppress(OSError):
        make_private(cache_dir)  # the token cache lies below it
        told = json.dumps({"key": machine_key(), **speeds}, indent=2)
        write_whole(cache_dir / _FILE, told, lasting=False)


def measure_backend() -> Backend:
    """Measure the default device; about a second."""
    import mlx.core as mx

    kind, others = backend_kind(), OthersWork()
    dtype = mx.float32 if kind == "cpu" else mx.bfloat16
    first = mx.random.normal((1024, 1024)).astype(dtype)
    packed = mx.quantize(mx.random.normal((1024, 1024)), group_size=64, bits=4)
    mx.eval(first, packed)
    products = _per_second(lambda: mx.eval(first @ first))
    exponentials = _per_second(lambda: mx.eval(exp(first)))
    other_work = _per_second(lambda: mx.eval(mx.exp(first)))  # as much as all else took (`predict`)
    floats = _per_second(lambda: mx.eval(mx.dequantize(*packed, group_size=64, bits=4)))
    packed_products = _per_second(
        lambda: mx.eval(mx.quantized_matmul(first[:64], *packed, transpose=True, group_size=64, bits=4))
    )
    return Backend(
        kind=kind,
        cores=(os.cpu_count() or 1) if kind == "cpu" else 1,
        flops_per_second=2 * 1024**3 * products,
        exp_per_second=1024**2 * 2 / (1 / exponentials + 1 / other_work),
        dequantize_per_second=1024**2 * floats,
        read_bytes_per_second=_READ_BYTES_PER_SECOND,
        multiplies_quantized=packed_products * 64 * 8
        > products * 1024,  # at least an eighth of the dense speed
        busy=round(others.share, 3),
        measured_at=time.time(),
    )


def measure_lost_rows(rows: Sequence[int], kind: str) -> tuple[dict[int, float], float]:
    """(operations per second of a product with so many rows, by how many rows every product seems longer).

    The last of ``rows`` is taken for the full speed, the first for what few rows lose.
    """
    import mlx.core as mx

    dtype = mx.float32 if kind == "cpu" else mx.bfloat16
    second = mx.random.normal((1024, 1024)).astype(dtype)
    found = {}
    for count in rows:
        first = mx.random.normal((count, 1024)).astype(dtype)
        mx.eval(first, second)
        found[count] = 2 * count * 1024**2 * _per_second(partial(_multiply, first, second))
    few, full = found[rows[0]], max(found.values())
    return found, round(rows[0] * (full / few - 1), 1)


def _multiply(first: mx.array, second: mx.array) -> None:
    import mlx.core as mx

    mx.eval(first @ second)


def _per_second(call: Callable[[], None], *, seconds: float = 0.15) -> float:
    """Calls a second by the fastest of them, after one that warms up: others' work on the machine only slows calls."""
    call()
    began, fastest = time.perf_counter(), float("inf")
    while (started := time.perf_counter()) - began < seconds:
        call()
        fastest = min(fastest, time.perf_counter() - started)
    return 1 / fastest
