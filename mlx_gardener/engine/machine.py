"""What forecasts rest on, measured on purpose: the machine's speeds, products by their rows, what a process takes, a real step
against its forecast.

In: the cache of a home. Out: `MachineMeasured`, and corrections in the store that trainings teach too (`engine.speed`), by which the
planner goes from then on. A process of its own loads the embedded model as a training does and takes steps with it, so that
what is measured is all of its memory. Cost: under half a minute on an idle machine, a gigabyte of memory meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine.facts import model_facts
from mlx_gardener.engine.planner import make_plan
from mlx_gardener.engine.seen import known_backend, with_attention
from mlx_gardener.engine.speed import correct, learn, measure_lost_rows, measured_backend, speed_alone
from mlx_gardener.errors import TrainingError
from mlx_gardener.platform.processes import OthersWork, module_command

#: Rows of products that are timed; the last is taken for the full speed.
ROWS = (16, 64, 256, 1024)
#: No step is begun after so long; one is always taken after the first.
_STEP_SECONDS, _MOST_STEPS = 10.0, 6
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class MachineMeasured:
    """What was measured, beside what was foretold; bytes, and positions of a training step per second.

    Attributes:
        flops_by_rows: of a product with so many rows.
        lost_rows: by how many rows every product seems longer.
        runtime_bytes: of a process beside MLX's arrays: Python, libraries, buffers of BLAS, tokenizer.
        foretold_runtime_bytes: the same as it was assumed.
        peak_bytes: of the embedded model's steps.
        foretold_peak_bytes: the same as planned.
        tokens_per_second: without others that took ``busy`` of the processors.
        foretold_tokens_per_second: the same as planned.
        busy: the share of the processors that others took.
    """

    flops_by_rows: dict[int, float]
    lost_rows: float
    runtime_bytes: int
    foretold_runtime_bytes: int
    peak_bytes: int
    foretold_peak_bytes: int
    tokens_per_second: float
    foretold_tokens_per_second: float
    busy: float

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def measure_machine(cache_dir: Path) -> MachineMeasured:
    """Measure, and correct forecasts from now on.

    Raises:
        TrainingError: the steps could not be taken; says what their process said.
    """
    backend = measured_backend(cache_dir, anew=True)
    flops, lost_rows = measure_lost_rows(ROWS, backend.kind)
    others = OthersWork()
    command = module_command("mlx_gardener.engine.machine", str(cache_dir))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        told = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, IndexError, ValueError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        raise TrainingError(
            f"The step that is measured could not be taken: {said[-1] if said else type(error).__name__}.",
            next_step="See whether `mlx-gardener train --model seedling .` works, and report what it says.",
        ) from error
    busy = round(others.share, 3)
    speed = speed_alone(told["tokens_per_second"], busy, backend.kind)
    correct(cache_dir, runtime_bytes=told["runtime_bytes"], lost_rows=lost_rows)
    learn(
        cache_dir,
        work=told["work_bytes"] / max(1, told["foretold_work_bytes"]),
        speed=speed / told["foretold_tokens_per_second"],
        share=1.0,
    )
    return MachineMeasured(
        flops_by_rows=flops,
        lost_rows=lost_rows,
        runtime_bytes=told["runtime_bytes"],
        foretold_runtime_bytes=told["foretold_runtime_bytes"],
        peak_bytes=told["peak_bytes"],
        foretold_peak_bytes=told["foretold_peak_bytes"],
        tokens_per_second=round(speed, 2),
        foretold_tokens_per_second=told["foretold_tokens_per_second"],
        busy=busy,
    )


def measured_config() -> TrainingConfig:
    """Settings of the steps that are measured: the embedded model, two rows of 512 tokens, half of its layers recomputed."""
    pins = {"micro_batch_rows": 2, "kept_layers": 3, "dry_run": False}
    overrides = {f"engine.{name}": value for name, value in pins.items()}
    return load_config(
        environment={}, overrides={"model": "seedling", "data.sequence_lengths": [512], **overrides}
    )


def _take_steps(cache_dir: Path) -> dict[str, Any]:
    """Steps of the embedded model in this process, which has done nothing else."""
    import mlx.core as mx
    from mlx.optimizers import AdamW

    from mlx_gardener.engine.dry_run import random_rows
    from mlx_gardener.engine.load import load_engine
    from mlx_gardener.model import load_tokenizer, seedling_path
    from mlx_gardener.model.lora import attach_lora, lora_parameters
    from mlx_gardener.platform.footprint import process_footprint_bytes, process_peak_footprint_bytes

    config, path = measured_config(), seedling_path()
    facts = model_facts(path)
    # Without what dry runs and trainings showed of this base alone: what is measured is to hold for all.
    backend = replace(measured_backend(cache_dir), attention=known_backend(cache_dir, facts).attention)
    backend = with_attention(backend, cache_dir, facts)
    tokenizer = load_tokenizer(path)
    plan = make_plan(facts, config, config.memory_limit_bytes, backend)
    base, engine = load_engine(
        "seedling", plan, config, facts=facts, backend=backend, warn=lambda message: None, dry_run=False
    )
    attach_lora(base.model, config.lora, seed=0)
    weights, optimizer = lora_parameters(base.model), AdamW(learning_rate=1e-4)
    optimizer.init(weights)
    best = dict(weights)
    mx.eval(weights, optimizer.state)
    plan.set_limits()
    mx.reset_peak_memory()
    batch = random_rows(2, 512, min(facts.vocab, tokenizer.vocab_size))
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < _STEP_SECONDS and len(seconds) < _MOST_STEPS):
        began = time.perf_counter()
        result = engine.loss_and_gradients(weights, batch, seed=len(seconds))
        weights = optimizer.apply_gradients(
            {name: value / result.tokens for name, value in result.gradients.items()}, weights
        )
        mx.eval(weights, optimizer.state)
        seconds.append(time.perf_counter() - began)
    assert best.keys() == weights.keys()
    parts, work_bytes = plan.predicted_parts, mx.get_peak_memory()
    del result
    mx.clear_cache()
    return {
        "runtime_bytes": process_footprint_bytes() - mx.get_active_memory(),
        "foretold_runtime_bytes": parts.runtime,
        "peak_bytes": process_peak_footprint_bytes(),
        "foretold_peak_bytes": plan.predicted_peak_bytes,
        "work_bytes": work_bytes - parts.weights - parts.adapter - parts.saved,
        "foretold_work_bytes": parts.live + parts.work,
        "tokens_per_second": batch.tokens.size / min(seconds[1:]),
        "foretold_tokens_per_second": plan.predicted_tokens_per_second,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_take_steps(Path(sys.argv[1]))) + "\n")
