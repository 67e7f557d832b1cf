"""The numbers promised for everything that is not training.

    python benchmarks/promises.py [--rounds 5]

Start of a background training until its worker reports, progress updates with registry write and a callback,
``--help``, and memory and CPU of the process that only watches. Bars: 2 s, 10 ms (aim p99 under 1 ms), 0.2 s, 100 MB
and 5 %.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import psutil
from machine import describe, save, spread

CODE = "def measure_{n}(width, height):\n    if width > {n}:\n        return height * {n}\n    return width + {n}\n\n\n"


def help_seconds() -> float:
    """One ``mlx-gardener --help``, as a process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mlx_gardener", "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


def update_latencies(count: int) -> list[float]:
    """Seconds of ``count`` progress updates, each with its registry write, and a callback that is called for all."""
    from mlx_gardener.events import TrainingPhase
    from mlx_gardener.registry import ProjectRegistry, TrainingStatus
    from mlx_gardener.runs.progress import TrainingProgressTracker

    registry = ProjectRegistry()
    registry.register_project("latency", Path.cwd())
    record = registry.begin_training("latency", {})
    tracker = TrainingProgressTracker(registry, record.id)
    seen: list[float] = []
    tracker.add_progress_callback(lambda progress: seen.append(progress.progress_percent))
    latencies = []
    for number in range(count):
        details = {
            "step": number,
            "loss": 1.0,
            "tokens_per_second": 100.0,
            "memory_bytes": 1,
            "peak_bytes": 2,
        }
        started = time.perf_counter()
        tracker.update_progress(TrainingPhase.TRAINING, 40 + 50 * number / count, f"Step {number}", details)
        latencies.append(time.perf_counter() - started)
        time.sleep(0.001)
    tracker.bus.close()
    registry.finish_training(record.id, TrainingStatus.FAILED, "measured", {})
    assert len(seen) == count
    return latencies


def watch_a_training(root: Path) -> dict[str, float]:
    """Start a training as a fresh program would; then memory and CPU of that program while its worker trains."""
    code = (
        "import sys, time\nfrom pathlib import Path\nstarted = time.perf_counter()\n"
        "from mlx_gardener import TrainingPipeline, load_config\n"
        "settings = {'model': 'seedling', 'min_training_chunks': 5, 'data.sequence_lengths': [128],\n"
        "            'optimizer.tokens_per_update': 1024, 'optimizer.epochs': 100, 'evaluation.patience': 1000}\n"
        "pipeline = TrainingPipeline(load_config(overrides=settings))\n"
        "pipeline.registry.register_project('watched', Path(sys.argv[1]))\n"
        "seen = []\npipeline.start_training('watched', seen.append)\nreturned = time.perf_counter() - started\n"
        "while not seen:\n    time.sleep(0.005)\nrunning = time.perf_counter() - started\n"
        "while not any('step' in progress.details for progress in seen):\n    time.sleep(0.05)\n"
        "import psutil\nprocess = psutil.Process()\nbefore, at = process.cpu_times(), time.perf_counter()\ntime.sleep(5)\n"
        "after = process.cpu_times()\n"
        "used = after.user + after.system - before.user - before.system\n"
        "cpu = 100 * used / (time.perf_counter() - at)\nmemory = process.memory_info().rss / 1e6\n"
        "pipeline.cancel_training('watched')\npipeline.wait_for_training_completion('watched', timeout=120)\n"
        "print(returned, running, memory, cpu)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], check=True, capture_output=True, text=True)
    returned, running, memory, cpu = map(float, done.stdout.split())
    return {"returned": returned, "running": running, "memory_mb": memory, "cpu_percent": cpu}


@click.command()
@click.option("--rounds", default=5, show_default=True)
def main(rounds: int) -> None:
    """Measure all promises and write the result."""
    machine = describe()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLX_GARDENER_HOME"] = str(Path(scratch) / "home")
        root = Path(scratch) / "repository"
        root.mkdir()
        for part in range(8):
            text = "".join(CODE.format(n=part * 20 + n) for n in range(20))
            (root / f"part_{part}.py").write_text(text)
        psutil.cpu_percent()
        helps = [help_seconds() for _ in range(rounds)]
        latencies = [update_latencies(2000) for _ in range(rounds)]
        watched = [watch_a_training(root) for _ in range(rounds)]
    result = {
        "machine": machine,
        "help_seconds": {"bar": 0.2, **spread(helps)},
        "update_p50_ms": spread([1e3 * statistics.median(one) for one in latencies]),
        "update_p99_ms": {
            "bar": 10,
            "aim": 1,
            **spread([1e3 * statistics.quantiles(one, n=100)[98] for one in latencies]),
        },
        "update_max_ms": spread([1e3 * max(one) for one in latencies]),
        "start_call_seconds": {"bar": 2, **spread([one["returned"] for one in watched])},
        "start_to_running_seconds": {"bar": 2, **spread([one["running"] for one in watched])},
        "watcher_memory_mb": {"bar": 100, **spread([one["memory_mb"] for one in watched])},
        "watcher_cpu_percent": {"bar": 5, **spread([one["cpu_percent"] for one in watched])},
    }
    for name, value in result.items():
        if name != "machine":
            print(f"{name:26} {value}")
    print("wrote", save("promises", result))


if __name__ == "__main__":
    main()
