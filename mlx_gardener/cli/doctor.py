"""``mlx-gardener doctor``: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from mlx_gardener.cli.options import as_json_option
from mlx_gardener.platform.sizes import GIB

if TYPE_CHECKING:
    from mlx_gardener.engine.machine import MachineMeasured


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is well, what was seen, and what to do when it is not."""

    name: str
    ok: bool
    seen: str
    advice: str = ""


#: Below this a CPU multiplies with a reference BLAS: it reaches 5, a fast one over 100 on two cores.
_SLOW_GFLOPS = 30.0


@click.command()
@click.option(
    "--measure",
    "is_measured",
    is_flag=True,
    help="Measure what forecasts of memory and speed rest on, in under a minute, and correct them from now on.",
)
@as_json_option
def doctor(is_measured: bool, as_json: bool) -> None:
    """Check speed, memory, backend, models and registry, and say what to do about what is wrong."""
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.report.waiting import said_if_slow

    findings = examine()
    measured = None
    if is_measured:
        from mlx_gardener.engine.machine import measure_machine
        from mlx_gardener.registry import default_home

        with said_if_slow("Measuring the machine", silent=as_json):
            measured = measure_machine(default_home() / "cache")
    if as_json:
        told = {"findings": [asdict(item) for item in findings]}
        click.echo(json.dumps(told | ({"measured": measured.to_json()} if measured else {}), indent=2))
    else:
        for item in findings:
            click.echo(f"{'ok  ' if item.ok else 'FIX '} {item.name}: {safe_text(item.seen)}")
            if not item.ok:
                click.echo(f"     {item.advice}")
        for line in _told(measured) if measured else ():
            click.echo(f"     {line}")
    if not all(item.ok for item in findings):
        raise SystemExit(1)


def _told(measured: MachineMeasured) -> list[str]:
    """What was measured beside what was foretold."""
    speeds = ", ".join(f"{speed / 1e9:.0f} with {rows:,}" for rows, speed in measured.flops_by_rows.items())
    mib = 2**20
    return [
        f"products: GFLOP/s {speeds} rows",
        f"a process beside its arrays: {measured.runtime_bytes / mib:.0f} MiB, "
        f"foretold {measured.foretold_runtime_bytes / mib:.0f}",
        f"steps of the embedded model: at most {measured.peak_bytes / mib:.0f} MiB, "
        f"foretold {measured.foretold_peak_bytes / mib:.0f}",
        f"speed of these: {measured.tokens_per_second:,.0f} tokens/s, foretold {measured.foretold_tokens_per_second:,.0f}"
        + (f" (others took {measured.busy:.0%} of the processors)" if measured.busy >= 0.15 else ""),
        "Forecasts of memory and speed go by this from now on.",
    ]


def examine() -> list[Finding]:
    """Everything looked at, in order; takes about two seconds."""
    return [_machine(), _speed(), _compiler(), _memory(), _power(), _models(), _registry()]


def _machine() -> Finding:
    from importlib.metadata import version

    from mlx_gardener.platform.device import device_facts

    facts = device_facts()
    return Finding(
        "machine",
        True,
        f"{facts.chip}, {facts.cores} cores, {facts.system}, mlx {version('mlx')} on {facts.backend}",
    )


def _speed() -> Finding:
    from mlx_gardener.engine.speed import measure_backend
    from mlx_gardener.platform import blas
    from mlx_gardener.platform.device import backend

    speed = measure_backend().flops_per_second / 1e9
    found = blas.state()
    slow = backend() == "cpu" and speed < _SLOW_GFLOPS
    # With a fast BLAS opened, others keep the cores busy: nothing to install mends that.
    busy = "; the machine is busy" if slow and found.path is not None else ""
    return Finding(
        "matrix speed",
        not slow or bool(busy),
        f"{speed:.0f} GFLOP/s in float32 ({found.reason}{busy})",
        "Install a fast BLAS: `pip install mkl` on x86-64, or libopenblas0-pthread; import mlx_gardener before mlx.",
    )


def _compiler() -> Finding:
    import shutil

    from mlx_gardener.platform.device import backend

    if backend() != "cpu":
        return Finding("compiler", True, "not needed on this backend")
    found = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    return Finding(
        "compiler", True, "found" if found else "none: works without, fused operations are not compiled"
    )


def _memory() -> Finding:
    from mlx_gardener.platform.pressure import memory_pressure

    memory = memory_pressure()
    enough = memory.available_bytes >= 2 * GIB
    return Finding(
        "memory",
        enough,
        f"{memory.available_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GB available, "
        f"pressure {memory.level}",
        "Close programs, or train with a smaller --budget.",
    )


def _power() -> Finding:
    from mlx_gardener.platform.power import power_state

    on_battery = power_state().on_battery
    return Finding("power", True, {True: "on battery", False: "plugged in", None: "no battery"}[on_battery])


def _models() -> Finding:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import choose_base
    from mlx_gardener.errors import GardenerError
    from mlx_gardener.model import load_tokenizer, seedling_path

    try:
        load_tokenizer(seedling_path())
        choice = choose_base(TrainingConfig())
    except GardenerError as error:
        return Finding("models", False, error.in_terminal, "Install mlx-gardener again.")
    return Finding("models", True, f"--model auto without fetching: {choice.name} ({choice.reason})")


def _registry() -> Finding:
    from mlx_gardener.errors import GardenerError
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import counted

    registry = ProjectRegistry()
    try:
        problems = registry.check(hashes=False)
        count = len(registry.list_projects())
    except GardenerError as error:
        return Finding("registry", False, error.message, error.next_step)
    seen = f"{counted(count, 'project')} in {registry.home}"
    if problems:
        advice = (
            "; ".join(problem.message for problem in problems) + " `mlx-gardener registry repair` mends it."
        )
        return Finding("registry", False, f"{seen}, {counted(len(problems), 'problem')}", advice)
    return Finding("registry", True, seen)
