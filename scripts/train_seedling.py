#!/usr/bin/env python3
"""Grow the seedling, the small code model that ships with mlx_gardener.

    scripts/train_seedling.py fetch       download the packages of seedling_corpus.toml and read their sources
    scripts/train_seedling.py tokenizer   learn the tokenizer, write the token stream
    scripts/train_seedling.py train       train for some minutes; run it again to go on
    scripts/train_seedling.py export      write the model directory into the package
    scripts/train_seedling.py score       bits per byte on the held-out packages; writes the model card

Everything it makes on the way lies in one working directory outside the repository (``--work``, or the environment
variable MLX_GARDENER_SEEDLING_WORK). Each step can be run again; a finished one is not repeated.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))
MANIFEST = HERE / "seedling_corpus.toml"
TARGET = HERE.parent / "mlx_gardener" / "model" / "seedling"


def default_work() -> Path:
    """The working directory: from the environment, else in the user's cache."""
    named = os.environ.get("MLX_GARDENER_SEEDLING_WORK")
    return Path(named) if named else Path.home() / ".cache" / "mlx-gardener-seedling"


@click.group(help=__doc__.split("\n")[0] if __doc__ else None)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_work,
    help="Working directory.",
)
@click.pass_context
def main(context: click.Context, work: Path) -> None:
    """Grow the seedling."""
    work.mkdir(parents=True, exist_ok=True)
    context.obj = work


@main.command()
@click.option(
    "--manifest", type=click.Path(path_type=Path, exists=True), default=MANIFEST, help="The package list."
)
@click.pass_obj
def fetch(work: Path, manifest: Path) -> None:
    """Download the listed packages and write the corpus (about 0.7 GB, a few minutes)."""
    from seedling_corpus import build

    build(manifest, work, click.echo)


@main.command()
@click.option("--tokens", type=int, default=40_000_000, show_default=True, help="Length of the token stream.")
@click.option("--vocabulary", type=int, default=8192, show_default=True)
@click.option("--seed", type=int, default=7, show_default=True)
@click.pass_obj
def tokenizer(work: Path, tokens: int, vocabulary: int, seed: int) -> None:
    """Learn the tokenizer (kept when it is there) and write the token stream."""
    from seedling_corpus import read_documents
    from seedling_tokens import sample_for_tokenizer, train_tokenizer, write_stream

    corpus = work / "corpus" / "train.jsonl"
    if not corpus.exists():
        raise click.ClickException(f"{corpus} is missing: run the fetch step first.")
    if not (work / "tokenizer.json").exists():
        train_tokenizer(sample_for_tokenizer(read_documents(corpus), seed), vocabulary).save(
            str(work / "tokenizer.json"), pretty=False
        )
    written = write_stream(
        read_documents(corpus), work / "tokenizer.json", work / "stream.bin", tokens, seed, click.echo
    )
    click.echo(f"{written:,} tokens in {work / 'stream.bin'}")


@main.command()
@click.option("--minutes", type=float, default=60.0, show_default=True, help="Length of this stretch.")
@click.option(
    "--total-tokens", type=int, default=20_000_000, show_default=True, help="Tokens of the whole plan."
)
@click.option("--batch-tokens", type=int, default=4096, show_default=True, help="Tokens per update.")
@click.option("--backend", type=click.Choice(["auto", "torch", "mlx"]), default="auto", show_default=True)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True),
    help="Another model shape (JSON).",
)
@click.option("--seed", type=int, default=7, show_default=True)
@click.pass_obj
def train(
    work: Path,
    minutes: float,
    total_tokens: int,
    batch_tokens: int,
    backend: str,
    config_file: Path | None,
    seed: int,
) -> None:
    """Train for a stretch; goes on from the last saved state."""
    from seedling_model import CONFIG
    from seedling_training import Plan
    from seedling_training import train as run

    if not (work / "stream.bin").exists():
        raise click.ClickException(f"{work / 'stream.bin'} is missing: run the tokenizer step first.")
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file else CONFIG
    for name in (signal.SIGTERM, signal.SIGINT):  # a polite kill saves; also where the shell ignores Ctrl-C
        signal.signal(name, signal.default_int_handler)
    trainer = make_trainer(backend, config, seed)
    plan = Plan(total_tokens=total_tokens, batch_tokens=batch_tokens)
    position = run(trainer, plan, work, minutes, lambda line: print(line, flush=True))
    minutes_done = position.seconds / 60
    click.echo(
        f"stopped at step {position.step}, {position.used_tokens:,} tokens, {minutes_done:.1f} minutes of work"
    )


def make_trainer(backend: str, config: dict[str, Any], seed: int) -> Any:
    """The PyTorch step where PyTorch is installed (it is faster on CPUs with bf16 units), else the MLX one."""
    if backend != "mlx":
        try:
            from seedling_torch import TorchTrainer

            return TorchTrainer(config, seed)
        except ModuleNotFoundError as missing:
            if backend == "torch":
                raise click.ClickException(
                    f"PyTorch is not installed ({missing}): pip install torch"
                ) from missing
    from seedling_mlx import MlxTrainer

    return MlxTrainer(config, seed)


@main.command()
@click.option(
    "--target", type=click.Path(path_type=Path, file_okay=False), default=TARGET, help="Model directory."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True),
    help="Another model shape (JSON).",
)
@click.pass_obj
def export(work: Path, target: Path, config_file: Path | None) -> None:
    """Write the model directory from the last saved state."""
    from seedling_model import CONFIG
    from seedling_model import export as write

    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file else CONFIG
    click.echo(f"{target}: {write(work, target, config) / 1e6:.2f} MB")


@main.command()
@click.option("--target", type=click.Path(path_type=Path, exists=True, file_okay=False), default=TARGET)
@click.option("--bytes-per-language", type=int, default=200_000, show_default=True)
@click.option(
    "--result",
    type=click.Path(path_type=Path),
    default=HERE.parent / "benchmarks" / "results" / "seedling.json",
)
@click.pass_obj
def score(work: Path, target: Path, bytes_per_language: int, result: Path) -> None:
    """Measure bits per byte on the held-out packages; write the result file and the model card."""
    from seedling_card import write_card
    from seedling_corpus import read_documents
    from seedling_model import score as measure

    import mlx_gardener  # noqa: F401  (opens the fast BLAS before mlx)

    table = measure(target, read_documents(work / "corpus" / "heldout.jsonl"), bytes_per_language)
    write_card(work, target, table, MANIFEST, result)
    click.echo(json.dumps(table["all"]))


if __name__ == "__main__":
    main()
