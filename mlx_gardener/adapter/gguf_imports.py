"""Adapters in llama.cpp's form taken into the registry: a GGUF file, whose header is not trusted.

In: the file, and the base that it belongs to. Out: a version as of a PEFT adapter. Names become mlx-lm's, and rows of q and k are
put back where the base's architecture is one of those that llama.cpp has in its own order. Cost: the base is read once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.gguf_files import BASE_SHA256
from mlx_gardener.adapter.imports import register_imported
from mlx_gardener.adapter.peft_files import PeftAdapter
from mlx_gardener.errors import AdapterError
from mlx_gardener.model.gguf import source_sha256
from mlx_gardener.model.gguf.architectures import architecture_for, mlx_name, row_order
from mlx_gardener.platform.reasons import reason_of

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_gardener.adapter.manager import PeftManager
    from mlx_gardener.model.gguf.reader import Gguf, Tensor
    from mlx_gardener.registry import AdapterRecord

_ALPHA, _KIND, _TYPE = "adapter.lora.alpha", "adapter.type", "general.type"
_LEAVES = (".weight.lora_a", ".weight.lora_b")


def gguf_adapter(file: Path) -> Gguf:
    """The header of a file that is a LoRA adapter.

    Raises:
        AdapterError: it cannot be read, or is something else.
    """
    from mlx_gardener.model.gguf.reader import read_header

    try:
        found = read_header(file)
        if found.metadata.get(_TYPE) != "adapter" or found.metadata.get(_KIND) != "lora":
            raise ValueError("it is a model, or another kind of adapter")
        return found
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{file.name!r} cannot be imported as a LoRA adapter of llama.cpp's: {reason_of(error)}.",
            next_step="Name a file that llama.cpp takes with `--lora`, or the directory of a PEFT adapter.",
        ) from error


def import_gguf_adapter(
    manager: PeftManager, project: str, file: Path, *, base: str | None = None, activate: bool = False
) -> AdapterRecord:
    """Register a LoRA adapter of llama.cpp's as a new version of ``project``, without evidence.

    Args:
        base: the model it was trained on, as GGUF or MLX; when None the file that it says by its sha256, where that was read here.

    Raises:
        AdapterError: it cannot be read, held, or does not fit the base, or says that it is of another file.
        ModelError: the base cannot be found.
        RegistryError: there is no such project.
    """
    from mlx_gardener.model import load_base
    from mlx_gardener.model.choose import gguf_cache

    manager.registry.get_project(project)
    packed = gguf_adapter(file)
    try:
        said = packed.metadata.get(BASE_SHA256)
        known = next(
            (folder for folder in gguf_cache().glob("*") if said and source_sha256(folder) == said), None
        )
        if base is None and known is None:
            raise AdapterError(
                f"{file.name!r} names no base that was read here.", next_step="Name the base with --base."
            )
        model = load_base(base or str(known))
        source = source_sha256(model.path)
        if said and source and said != source:
            raise AdapterError(
                f"{file.name!r} says that it was trained on another file than {model.id} (sha256 {str(said)[:12]}...).",
                next_step="Name that file with --base; `export --base` then moves it to another form of it.",
            )
        weights, ranks, alpha = _weights(packed, model.config)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{file.name!r} cannot be imported: {reason_of(error)}.",
            next_step="Name the model it was trained on with --base, or make the adapter's file again.",
        ) from error
    finally:
        packed.close()
    alphas = {module: alpha or rank for module, rank in ranks.items()}  # an alpha of 0 is a scale of 1
    config = {"r": max(ranks.values(), default=0.0), "lora_alpha": alpha}
    adapter = PeftAdapter(weights, config, ranks, alphas, file)
    return register_imported(manager, project, adapter, model, form="llama.cpp's form", activate=activate)


def _weights(adapter: Gguf, config: dict[str, Any]) -> tuple[dict[str, mx.array], dict[str, float], float]:
    """Weights by mlx-lm's names, ranks by module, and alpha.

    Args:
        config: the base's config.json.

    Raises:
        ValueError: it is of another architecture than the base, or has something that cannot be held; says what.
    """
    import mlx.core as mx
    import numpy as np

    found = architecture_for(str(config.get("model_type")))
    if found is None or found[0] != adapter.architecture:
        raise ValueError(
            f"it is for models of the architecture {adapter.architecture!r}, which the base is not"
        )
    _, known = found
    heads = int(config["num_attention_heads"])
    of_rows = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    alpha = adapter.metadata.get(_ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1e6:
        raise ValueError(f"its {_ALPHA} is no number")
    weights: dict[str, mx.array] = {}
    ranks: dict[str, float] = {}
    for name, tensor in adapter.tensors.items():
        ending = next((leaf for leaf in _LEAVES if name.endswith(leaf)), "")
        module = mlx_name(known, name.removesuffix(ending)) if ending else None
        if module is None or len(tensor.shape) != 2:
            raise ValueError(f"its tensor {name!r} has no place in the base's layers")
        value = _floats(adapter, tensor)
        last = module.rpartition(".")[2]
        if ending.endswith("lora_b"):
            if known.permutes and last in of_rows:
                if value.shape[0] % (2 * of_rows[last]):
                    raise ValueError(
                        f"its tensor {name!r} has {value.shape[0]} rows for {of_rows[last]} heads"
                    )
                value = value[row_order(value.shape[0], of_rows[last])]
        else:
            ranks[module] = float(value.shape[0])
        if not np.isfinite(value).all():
            raise ValueError(f"the tensor {name!r} holds NaN or infinity")
        weights[f"{module}.{ending.rpartition('.')[2]}"] = mx.array(np.ascontiguousarray(value.T))
    return weights, {name.rpartition(".")[0]: 0.0 for name in weights} | ranks, float(alpha)


def _floats(adapter: Gguf, tensor: Tensor) -> Any:
    """A tensor as float32 (rows, columns)."""
    import numpy as np

    stored = adapter.read(tensor, 0, tensor.rows)
    read: dict[int, Callable[[Any], Any]] = {
        0: lambda raw: raw.view("<f4"),
        1: lambda raw: raw.view("<f2").astype(np.float32),
        30: lambda raw: (raw.view("<u2").astype(np.uint32) << 16).view(np.float32),
    }
    if tensor.kind not in read:
        raise ValueError(f"its tensor {tensor.name!r} is not of floats")
    return read[tensor.kind](stored).reshape(tensor.shape)
