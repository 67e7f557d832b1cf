"""Every form of an export of an adapter of the embedded model: how far it is from the source, in figures.

``python benchmarks/exports.py [REPOSITORY] [--adapter DIRECTORY]`` exports an adapter of random weights, or a trained one,
compares on text of the repository (this one by default), and where llama.cpp is installed (`llama_cpp_side`) compares llama.cpp's
logits with MLX's. About a minute on two cores.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click
from machine import bar, describe, save

import mlx_gardener  # noqa: F401  first: it opens the fast BLAS

MAIN = Path(__file__).resolve().parent.parent
TOKENS, RANK, SIZE = 128, 8, 0.02


@click.command()
@click.argument("repository", type=click.Path(exists=True, path_type=Path), default=MAIN)
@click.option(
    "--adapter", type=click.Path(exists=True, path_type=Path), help="A trained adapter, in PEFT's form."
)
@click.option("--out", default="exports", show_default=True, help="Name of the result.")
def main(repository: Path, adapter: Path | None, out: str) -> None:
    """Measure every form."""
    before = describe()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLX_GARDENER_HOME"] = str(Path(scratch) / "home")
        make_adapter(repository, adapter)
        forms = exported(Path(scratch))
        llama = llama_figures(Path(scratch), repository)
    bars = [bar("error over the adapter's effect", "the source adapter", "<= 10 %", f"{forms[form]['error_share']:.2%} ({form})",
                forms[form]["error_share"] <= 0.1) for form in ("mlx", "peft", "gguf", "fused")]  # fmt: skip
    if llama is not None:
        bars.append(bar("largest difference of logits over the largest logit", "MLX", "<= 1e-4", f"{max(llama.values()):.1e}",
                        max(llama.values()) <= 1e-4))  # fmt: skip
    print(
        save(
            out,
            {
                "machine": before,
                "forms": forms,
                "adapter": f"random, rank {RANK}, seed 4" if adapter is None else "trained",
                "llama_cpp": llama,
                "bars": bars,
            },
        )
    )


def make_adapter(repository: Path, trained: Path | None) -> None:
    """A project ``exports`` with an adapter: ``trained``, or random, seed 4, its products about as large as trained ones."""
    import mlx.core as mx

    from mlx_gardener.adapter import ManifestDetails, PeftManager
    from mlx_gardener.adapter.imports import import_adapter
    from mlx_gardener.config import LoraConfig
    from mlx_gardener.model import load_base
    from mlx_gardener.model.lora import AdapterSettings, attach_lora, detach_lora, lora_parameters

    manager, base, lora = PeftManager(), load_base("seedling"), LoraConfig(rank=RANK)
    manager.registry.register_project("exports", repository)
    if trained is not None:
        import_adapter(manager, "exports", trained, base="seedling")
        return
    targets = attach_lora(base.model, lora, seed=3)
    mx.random.seed(4)
    weights = {
        name: value + SIZE * mx.random.normal(value.shape)
        for name, value in lora_parameters(base.model).items()
    }
    mx.eval(weights)
    detach_lora(base.model)
    details = ManifestDetails({"model": ""}, {}, {}, {}, {}, {})
    manager.create_adapter(
        "exports",
        weights,
        base=base,
        settings=AdapterSettings.of(targets, lora),
        details=details,
        model_card="",
    )


def exported(scratch: Path) -> dict[str, dict[str, Any]]:
    """Figures by form; a refusal by its sentence."""
    from mlx_gardener.adapter.exports import export_adapter
    from mlx_gardener.errors import AdapterError
    from mlx_gardener.registry import ProjectRegistry

    wanted: dict[str, dict[str, Any]] = {
        "mlx": {}, "peft": {}, "gguf": {}, "fused": {}, "fused 8 bits": {"bits": 8}, "fused 4 bits": {"bits": 4},
        "gguf-base": {"dtype": "float32"}, "gguf-fused": {"dtype": "float32"}, "modelfile": {},
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for name, options in wanted.items():
        try:
            done = export_adapter(
                ProjectRegistry(),
                "exports",
                "v1",
                name.partition(" ")[0],
                scratch / name.replace(" ", "-"),
                **options,
            )
            found[name] = {} if done.agreement is None else done.agreement.to_json()
        except AdapterError as error:
            found[name] = {"refused": error.message}
        print(name, found[name])
    return found


def llama_figures(scratch: Path, repository: Path) -> dict[str, float] | None:
    """Largest difference of logits between llama.cpp and MLX by arm, over the largest logit."""
    from llama_cpp_side import has_llama_cpp, llama_logits, relative

    if not has_llama_cpp():
        return None
    import mlx.core as mx
    import numpy as np

    from mlx_gardener.adapter import PeftManager, attach_adapter
    from mlx_gardener.adapter.agreement import real_text_rows
    from mlx_gardener.model import load_base

    base = load_base("seedling")
    ids = real_text_rows(repository, base.tokenizer)[0][:TOKENS].tolist()
    plain = np.array(base.model(mx.array([ids])))[0]
    with attach_adapter(base, PeftManager().load_adapter("exports", "v1")):
        adapted = np.array(base.model(mx.array([ids])))[0]
    model, lora = scratch / "gguf-base" / "model.gguf", scratch / "gguf" / "adapter.gguf"
    found = {
        "adapter against base (MLX)": relative(plain, adapted),
        "base": relative(plain, llama_logits(model, None, ids)),
        "base with adapter": relative(adapted, llama_logits(model, lora, ids)),
        "fused": relative(adapted, llama_logits(scratch / "gguf-fused" / "model.gguf", None, ids)),
    }
    print(found)
    return {name: value for name, value in found.items() if not name.startswith("adapter")}


if __name__ == "__main__":
    main()
