"""mlx-lm's own LoRA trainer, as `mlx_lm.lora` calls it, in this process: seconds of every step, peaks, or how it failed.

    python benchmarks/mlx_lm_side.py MODEL --documents FILE [--grad-checkpoint] [--batch 4] [--width 512]

Other benchmarks start it as a process of its own, so that its peak is its own. FILE is JSON: ``documents`` and
``longest``, lists of token ids. The model is loaded, its layers are adapted and the optimiser is made as the command does
with its defaults (rank 8, scale 20, Adam at 1e-5, batches in random order, padded to the longest row), but for all layers
(``--num-layers -1``). The step before the first pass takes ``longest``: a long run meets such a batch, so its peak is the
peak. Only tokens of documents count as loss-bearing, not the one pad token a row that mlx-lm learns too. Prints one line
of JSON; running out of memory is a result and not an error.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS, for this side as for ours

#: `mlx_lm.lora`'s defaults.
RANK, SCALE, LEARNING_RATE = 8, 20.0, 1e-5
_MEMORY_WORDS = ("memory", "allocate", "malloc", "bad_alloc")


class _Rows:
    """Documents as the datasets of `mlx_lm.lora` hold them: dictionaries, whose lengths its sort cannot see."""

    def __init__(self, documents: list[list[int]]) -> None:
        self.documents = documents

    def __getitem__(self, at: int) -> dict[str, list[int]]:
        return {"tokens": self.documents[at]}

    def __len__(self) -> int:
        return len(self.documents)

    def process(self, row: dict[str, list[int]]) -> tuple[list[int], int]:
        return row["tokens"], 0


class _EnoughError(Exception):
    """Raised by the listener: the trainer has no other way to stop before its last iteration."""


def load_for_lora(path: Path, *, float32: bool = False) -> Any:
    """The model in ``path`` with mlx-lm's adapters on all layers, these alone trainable.

    Args:
        float32: compute in float32, whatever the type of the weights; MLX's CPU backend is 50 times faster so.
    """
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(path)
    if float32:
        model.set_dtype(mx.float32)
    mx.random.seed(0)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": RANK, "dropout": 0.0, "scale": SCALE})
    return model


def train_documents(
    model: Any,
    documents: list[list[int]],
    longest: list[list[int]],
    *,
    batch: int,
    width: int,
    passes: int,
    until: float,
    grad_checkpoint: bool,
) -> dict[str, Any]:
    """Train ``passes`` over ``documents`` after one step on ``longest``, fewer where time is out.

    Args:
        batch: rows of a batch; there must be as many documents at least.
        width: tokens after which a row is cut.
        until: no step is begun that would end after this, on `time.monotonic`'s clock; one is always made.

    Returns:
        ``seconds`` and ``positions`` (padding included) of every step, ``losses`` in nats a token, ``first_steps``
        before the first pass, ``steps_per_pass``, ``positions_per_pass``, ``loss_tokens_per_pass``, ``measured_from``
        and ``measured_to`` in seconds since the epoch (from the second step on), and ``out_of_memory``, the error's
        text, where it ran out.
    """
    import mlx.optimizers as optimizers
    import numpy as np
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train

    one_pass = list(iterate_batches(CacheDataset(_Rows(documents)), batch, width))
    report: dict[str, Any] = {
        "seconds": [],
        "positions": [],
        "losses": [],
        "first_steps": 1,
        "steps_per_pass": len(one_pass),
        "positions_per_pass": sum(tokens.size for tokens, _ in one_pass),
        "loss_tokens_per_pass": sum(int((lengths[:, 1] - 1).sum().item()) for _, lengths in one_pass),
    }
    begun: list[float] = []

    def batches(dataset: Any, **settings: Any) -> Iterator[Any]:
        first = CacheDataset(_Rows(longest * batch))
        for source, loop in ((first, False), (dataset, settings.pop("loop"))):
            for tokens, lengths in iterate_batches(source, **settings, loop=loop):
                report["positions"].append(tokens.size)
                begun.append(time.time())
                yield tokens, lengths
                if source is first:
                    break

    class Listener(TrainingCallback):
        def on_train_loss_report(self, found: dict[str, Any]) -> None:
            seconds = 1 / found["iterations_per_second"]
            report["seconds"].append(seconds)
            report["losses"].append(found["train_loss"])
            report["measured_from"] = begun[min(1, len(begun) - 1)]
            report["measured_to"] = time.time()
            print(f"step {len(report['seconds'])}: {seconds:.2f} s", file=sys.stderr, flush=True)
            if time.monotonic() + seconds > until:
                raise _EnoughError

    np.random.seed(0)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        arguments = TrainingArgs(
            batch_size=batch,
            iters=1 + passes * len(one_pass),
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=width,
            adapter_file=f"{scratch}/adapters.safetensors",
            grad_checkpoint=grad_checkpoint,
        )
        try:
            train(
                model,
                optimizers.Adam(learning_rate=LEARNING_RATE),
                CacheDataset(_Rows(documents)),
                args=arguments,
                iterate_batches=batches,
                training_callback=Listener(),
            )
        except _EnoughError:
            pass
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(str(error) or "memory"):
                raise
            report["out_of_memory"] = str(error) or type(error).__name__
    report["positions"] = report["positions"][: len(report["seconds"])]
    return report


def is_memory_error(text: str) -> bool:
    """Whether an error's text speaks of memory that ran out; MLX has no type of its own for it."""
    return any(word in text.lower() for word in _MEMORY_WORDS)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--documents", "file", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--passes", default=2, show_default=True)
@click.option("--seconds", default=1e9, help="Begin no step that would end later than this.")
@click.option("--grad-checkpoint", is_flag=True)
@click.option("--float32", is_flag=True, help="Compute in float32, as is fastest on a CPU.")
def main(
    model: Path,
    file: Path,
    batch: int,
    width: int,
    passes: int,
    seconds: float,
    grad_checkpoint: bool,
    float32: bool,
) -> None:
    """Train and report."""
    started = time.monotonic()
    import mlx.core as mx

    from mlx_gardener.platform.footprint import process_peak_footprint_bytes

    rows = json.loads(file.read_text(encoding="utf-8"))
    report = train_documents(
        load_for_lora(model, float32=float32),
        rows["documents"],
        rows["longest"],
        batch=batch,
        width=width,
        passes=passes,
        until=started + seconds,
        grad_checkpoint=grad_checkpoint,
    )
    peaks = {
        "measured_peak_bytes": process_peak_footprint_bytes(),
        "peak_active_bytes": mx.get_peak_memory(),
    }
    print(json.dumps(report | peaks))


if __name__ == "__main__":
    main()
