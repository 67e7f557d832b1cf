"""How a memory budget is used: rows per micro-batch for each row width, and what the peak will be.

In: facts of the model (from its files, without loading it), the settings, the budget. Out: a `Plan`. The prediction
adds up parts that people understand; its constants were fitted to measured peaks (``benchmarks/memory_plan.py``).
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.errors import MemoryBudgetError, ModelError
from mlx_gardener.model.choose import read_model_config

GIB = 1024**3
#: Python, MLX, tokenizer, dataset and BLAS buffers: measured 0.30 to 0.36 GB at the first update on Linux.
RUNTIME_BYTES = int(0.36 * GIB)
#: Floats kept per token and layer in a whole-graph step, in units of the hidden and the intermediate width.
HIDDEN_FLOATS, INTERMEDIATE_FLOATS, SCORE_FLOATS = 12.0, 4.0, 1.0
#: Floats per token of logits and their gradient, in units of the vocabulary.
TAIL_FLOATS = 4.0
#: More tokens than this at once bring no speed on a CPU or a GPU of a Mac mini (judgement).
MAX_MICRO_BATCH_TOKENS = 4096
#: What is left of the budget for what the formula does not know.
HEADROOM = 0.9


@dataclass(frozen=True)
class ModelFacts:
    """What decides memory: sizes from config.json, parameters from the headers of the weight files."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocab: int
    parameters: int
    stored_bytes: int
    quantized_bits: int | None
    max_tokens: int


@dataclass(frozen=True)
class Plan:
    """What the budget is used for; all figures of memory in bytes.

    Attributes:
        rows_of_width: rows per micro-batch for every row width in tokens.
        predicted_parts: weights, adapter (with gradients and optimiser), activations, tail, runtime.
        notes: what was traded for the budget, a sentence each.
    """

    rows_of_width: dict[int, int]
    budget_bytes: int
    predicted_peak_bytes: int
    predicted_parts: dict[str, int]
    notes: tuple[str, ...]

    def rows_for(self, width: int) -> int:
        """Rows at once of any width: as planned, or as many tokens as the narrowest planned width that is wider."""
        wider = [planned for planned in self.rows_of_width if planned >= width]
        if not wider:
            return 1
        nearest = min(wider)
        return self.rows_of_width[nearest] * nearest // width

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        values = asdict(self)
        values["rows_of_width"] = {str(width): rows for width, rows in self.rows_of_width.items()}
        return values


def model_facts(path: Path) -> ModelFacts:
    """Facts of the model in the directory ``path``, read from its config and headers; a few milliseconds.

    Raises:
        ModelError: they cannot be read.
    """
    config = read_model_config(path)
    text = config.get("text_config")
    sizes: dict[str, Any] = {**config, **text} if isinstance(text, dict) else dict(config)
    quantization = sizes.get("quantization") or config.get("quantization")
    bits = int(quantization["bits"]) if isinstance(quantization, dict) else None
    parameters, stored = _count_parameters(path, bits)
    try:
        hidden = int(sizes.get("hidden_size") or sizes["n_embd"])
        return ModelFacts(
            name=path.name,
            layers=int(sizes.get("num_hidden_layers") or sizes["n_layer"]),
            hidden=hidden,
            intermediate=int(sizes.get("intermediate_size") or 4 * hidden),
            heads=int(sizes.get("num_attention_heads") or sizes.get("n_head") or 1),
            vocab=int(sizes["vocab_size"]),
            parameters=parameters,
            stored_bytes=stored,
            quantized_bits=bits,
            max_tokens=int(sizes.get("max_position_embeddings") or 2**20),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The config.json of {path.name!r} lacks a size ({error}).",
            next_step="Choose a model that mlx-lm supports.",
        ) from error


def _count_parameters(path: Path, bits: int | None) -> tuple[int, int]:
    """(parameters, bytes) of the weight files, from their headers alone."""
    count = stored = 0
    for file in sorted(path.glob("model*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > 100_000_000:
                    raise ValueError("its header is longer than 100 MB")
                header = json.loads(stream.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                size = 1
                for dimension in entry["shape"]:
                    size *= int(dimension)
                stored += entry["data_offsets"][1] - entry["data_offsets"][0]
                if bits and entry["dtype"] == "U32":
                    size = size * 32 // bits
                elif bits and name.endswith((".scales", ".biases")):
                    size = 0
                count += size
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(
                f"The weight file {file.name} of {path.name!r} is damaged ({error}).",
                next_step="Fetch it again.",
            ) from error
    return count, stored


def make_plan(facts: ModelFacts, config: TrainingConfig, budget_bytes: int) -> Plan:
    """The plan for training ``facts`` within ``budget_bytes``.

    Raises:
        MemoryBudgetError: one row of the widest width does not fit; names the least budget that does.
        ModelError: a row width is longer than the model can read.
    """
    too_wide = [width for width in config.data.row_widths if width > facts.max_tokens]
    if too_wide:
        raise ModelError(
            f"The model reads at most {facts.max_tokens} tokens, but data.row_widths has {too_wide[0]}.",
            next_step="Choose smaller row_widths.",
        )
    fixed = _fixed_parts(facts, config)
    usable = budget_bytes * HEADROOM - sum(fixed.values())
    rows_of_width, notes = {}, []
    for width in config.data.row_widths:
        row_bytes = sum(_row_parts(facts, width).values())
        most = max(1, min(config.optimizer.tokens_per_update, MAX_MICRO_BATCH_TOKENS) // width)
        rows = min(most, int(usable // row_bytes))
        if config.engine.micro_batch_rows is not None:
            rows = config.engine.micro_batch_rows
            notes.append(f"{rows} rows of {width} tokens at a time, pinned by engine.micro_batch_rows")
        elif rows < most:
            notes.append(
                f"{max(rows, 1)} instead of {most} rows of {width} tokens at a time, to keep the budget"
            )
        rows_of_width[width] = rows
    parts = fixed | _largest(facts, {width: max(1, rows) for width, rows in rows_of_width.items()})
    peak = sum(parts.values())
    if min(rows_of_width.values()) < 1 or peak > budget_bytes:
        widest = max(config.data.row_widths)
        least = (sum(fixed.values()) + sum(_row_parts(facts, widest).values())) / HEADROOM
        raise MemoryBudgetError(
            f"{facts.name} does not train within {budget_bytes / GIB:.2f} GB: one row of {widest} tokens needs "
            f"{least / GIB:.2f} GB.",
            next_step=f"Allow --budget {least / GIB + 0.005:.2f}, narrow data.row_widths, or use a smaller --model.",
        )
    return Plan(rows_of_width, budget_bytes, peak, parts, tuple(notes))


def _fixed_parts(facts: ModelFacts, config: TrainingConfig) -> dict[str, int]:
    # Weights, gradients (summed and fresh), two moments, the best copy: about seven float32 adapters.
    rank = config.lora.rank
    per_layer = rank * (4 * 2 * facts.hidden + 3 * (facts.hidden + facts.intermediate))
    layers = min(config.lora.num_layers or facts.layers, facts.layers)
    return {
        "weights": int(facts.parameters * _bytes_per_weight(facts, config)),
        "adapter": 7 * 4 * per_layer * layers,
        "runtime": RUNTIME_BYTES,
    }


def _bytes_per_weight(facts: ModelFacts, config: TrainingConfig) -> float:
    """Bytes a weight takes in memory: float32 on the CPU, as stored elsewhere unless another type is asked for."""
    import mlx.core as mx

    if config.engine.compute_dtype == "float32" or (
        config.engine.compute_dtype == "auto" and mx.default_device().type == mx.DeviceType.cpu
    ):
        return 4.0
    if facts.quantized_bits is None and config.engine.compute_dtype in ("bfloat16", "float16"):
        return 2.0
    return facts.stored_bytes / max(1, facts.parameters)


def _row_parts(facts: ModelFacts, width: int) -> dict[str, int]:
    """Bytes that one more row of ``width`` tokens takes at the height of a whole-graph step."""
    per_token = (
        HIDDEN_FLOATS * facts.hidden
        + INTERMEDIATE_FLOATS * facts.intermediate
        + SCORE_FLOATS * facts.heads * width
    )
    return {
        "activations": int(4 * width * facts.layers * per_token),
        "tail": int(4 * width * TAIL_FLOATS * facts.vocab),
    }


def _largest(facts: ModelFacts, rows_of_width: dict[int, int]) -> dict[str, int]:
    """The parts of the micro-batch that takes most."""
    candidates = [
        {part: size * rows for part, size in _row_parts(facts, width).items()}
        for width, rows in rows_of_width.items()
    ]
    return max(candidates, key=lambda parts: sum(parts.values()))
