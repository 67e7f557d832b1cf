"""Models of real shapes with random weights, written to disk as mlx-lm would load them; no hub is needed.

    python benchmarks/shapes.py qwen2.5-coder-7b DIRECTORY [--bits 4] [--layers N]

Shapes are those of ``tests/engine/model_configs``. The tokenizer is the embedded model's.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

CONFIGS = Path(__file__).parents[1] / "tests" / "engine" / "model_configs"
SHARD_BYTES = 1024**3


def recorded_configs() -> dict[str, dict[str, Any]]:
    """Recorded config.json facts by the model's name."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["config"] for file in CONFIGS.glob("*.json")
    }


def lazy_model(config: dict[str, Any], bits: int | None) -> Any:
    """mlx-lm's module for a config, its weights not made yet; quantised in groups of 64 when ``bits`` is given."""
    import mlx.nn as nn

    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    if bits:
        nn.quantize(model, group_size=64, bits=bits)
    return model


def write_shape(name: str, directory: Path, *, bits: int | None = 4, layers: int | None = None) -> Path:
    """Write the random model ``name`` unless it is there already; returns its directory.

    Args:
        bits: of each weight; None writes bfloat16.
        layers: fewer than the real model has.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    config = dict(recorded_configs()[name])
    if layers:
        config["num_hidden_layers"] = layers
    if bits:
        config["quantization"] = {"group_size": 64, "bits": bits}
    path = directory / f"{name}-{bits or 16}bit-{config['num_hidden_layers']}layers"
    if (path / "config.json").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    from mlx_gardener.model.choose import seedling_path

    for file in seedling_path().glob("*token*"):
        shutil.copy(file, path)
    mx.random.seed(0)
    shard: dict[str, mx.array] = {}
    size = number = 0

    def flush() -> None:
        nonlocal shard, size, number
        number += 1
        mx.save_safetensors(str(path / f"model-{number:05}.safetensors"), shard, metadata={"format": "mlx"})
        shard, size = {}, 0

    for weight, value in tree_flatten(lazy_model(config, bits).parameters()):
        made = _random(weight, value.shape, value.dtype)
        mx.eval(made)
        shard[weight], size = made, size + made.nbytes
        if size >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    (path / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def _random(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Weights with a deviation of about 0.02, norms at one."""
    import mlx.core as mx

    step = 0.02 / 4.6  # 16 levels of uniform 4-bit weights deviate by 4.6 levels
    if dtype == mx.uint32:
        return mx.random.randint(0, 2**31 - 1, shape).astype(mx.uint32) * 2
    if name.endswith("scales"):
        return mx.full(shape, step).astype(mx.bfloat16)
    if name.endswith("biases"):
        return mx.full(shape, -7.5 * step).astype(mx.bfloat16)
    if "norm" in name and name.endswith("weight"):
        return mx.ones(shape).astype(mx.bfloat16)
    return (0.02 * mx.random.normal(shape)).astype(mx.bfloat16)


@click.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--bits", type=int, default=4, show_default=True, help="0 for bfloat16.")
@click.option("--layers", type=int)
def main(name: str, directory: Path, bits: int, layers: int | None) -> None:
    """Write one random model."""
    print(write_shape(name, directory, bits=bits or None, layers=layers))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
