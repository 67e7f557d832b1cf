"""What a memory budget is used for: the plan that a step follows, and the next smaller one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine.facts import ModelFacts

MIB = 1024**2
#: Positions of a tile where memory ran short.
SMALL_TILE = 256
#: How the note begins of a model that is not cut, and the one of a plan that was made smaller.
ONE_SEGMENT = "the model is one segment"
SMALLER = "a smaller plan than the first one, as memory ran short"
#: Settings that pin a field of another name.
_PINS = {"rows_of_width": "micro_batch_rows"}


@dataclass(frozen=True)
class Scales:
    """What was seen, as a share of what the formulas say.

    Attributes:
        layer: what the backward pass of a layer that is computed again takes.
        tail: what head and loss, or the topmost layer's backward pass, take beside kept activations.
        live: what layers keep whose activations are kept.
        speed: tokens per second.
    """

    layer: float = 1.0
    tail: float = 1.0
    live: float = 1.0
    speed: float = 1.0


#: Where nothing was seen.
AS_FORETOLD = Scales()


@dataclass(frozen=True)
class PredictedParts:
    """What the peak is made of, bytes.

    Attributes:
        weights: of the base, as far as they stay in memory.
        adapter: the adapter's copies: weights, best, gradients, moments.
        saved: hidden states at the borders of layers that are recomputed.
        live: activations kept of the other layers, where they are there at the peak, and outputs of products of some of these.
        work: one layer's backward pass, or head and loss, whichever is more; and weights that are read for a moment.
        cache: freed buffers kept for reuse.
        runtime: Python, MLX, tokenizer and data.
        check: what the check of the cut takes more than all that.
    """

    weights: int = 0
    adapter: int = 0
    saved: int = 0
    live: int = 0
    work: int = 0
    cache: int = 0
    runtime: int = 0
    check: int = 0

    @property
    def peak_bytes(self) -> int:
        """All of them."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Plan:
    """What the budget is used for; all figures of memory in bytes.

    Attributes:
        rows_of_width: rows per micro-batch for every sequence length in tokens.
        predicted_parts: what the peak is made of.
        notes: what was traded for the budget, a sentence each.
        kept_layers: last layers whose activations are kept; the others are recomputed.
        kept_products: layers before these that keep the outputs of their products and recompute only what is cheap.
        loss_slice_tokens: positions whose logits are in memory at once (on each CPU stream).
        cpu_streams: of MLX that the rows are shared among.
        attention_block, attention_least: queries at a time, for rows of at least so many tokens; 0 for MLX's own.
        forward_least: likewise where nothing is differentiated; two blocks where None.
        tile_tokens: positions of all rows that projections and MLP of a recomputed layer take at a time; 0 for all at once.
        base_weights: "dense" (in the type that is computed in), or "stored" (as quantised, or as on disk).
        dequantize: whether quantised weights become floats, block by block, before they multiply.
        streamed_layers: first layers whose weights are read from disk whenever they are needed.
        vocabulary_on_disk: whether embedding and head are read from disk too, the head in slices of the vocabulary.
        states_on_disk: whether the inputs of recomputed layers wait in a file for the backward pass.
        keeps_buffers: whether a step keeps freed buffers for reuse, instead of giving them back to the system.
        cache_bytes: what freed buffers may take beyond the peak without them.
        scales: what a memory dry run corrected the formulas by.
        predicted_tokens_per_second: positions of a training step per second.
        predicted_forward_tokens_per_second: the same for rows that only go forward.
        speed_from: what these rest on, in words.
        layers: of the model.
    """

    rows_of_width: dict[int, int]
    budget_bytes: int
    predicted_peak_bytes: int
    predicted_parts: PredictedParts
    notes: tuple[str, ...]
    kept_layers: int = 0
    kept_products: int = 0
    loss_slice_tokens: int = 128
    cpu_streams: int = 1
    attention_block: int = 0
    attention_least: int = 0
    forward_least: int | None = None
    tile_tokens: int = 0
    base_weights: str = "dense"
    dequantize: bool = False
    streamed_layers: int = 0
    vocabulary_on_disk: bool = False
    states_on_disk: bool = False
    keeps_buffers: bool = False
    cache_bytes: int = 256 * MIB
    scales: Scales = AS_FORETOLD
    predicted_tokens_per_second: float = 0.0
    predicted_forward_tokens_per_second: float = 0.0
    speed_from: str = ""
    layers: int = 0

    @property
    def by_shards(self) -> bool:
        """Whether the head is taken in slices of the vocabulary: when it is on disk, or must become floats."""
        return self.vocabulary_on_disk or self.dequantize

    @property
    def active_limit_bytes(self) -> int:
        """From which MLX shall wait for what it began before it allocates more: the budget, less runtime and cache.

        MLX allocates some dozens of operations ahead of those that compute, which depends on how busy the machine is.
        """
        other = self.predicted_parts.runtime + self.cache_bytes
        return max(self.budget_bytes // 2, int(0.95 * self.budget_bytes) - other)

    @property
    def step_bytes(self) -> int:
        """What arrays and freed buffers may take together in a step: the peak that is foretold, but for what is not MLX's."""
        return self.predicted_peak_bytes - self.predicted_parts.runtime - self.predicted_parts.check

    def bound_cache(self) -> None:
        """Let freed buffers wait for the next array of their size, as many as stay below `step_bytes` with what is in use.

        Asked between the segments of a step: MLX bounds freed buffers by themselves, and on a CPU not together with what is in use.
        What is too much goes back to the system at once. `set_limits` ends it.
        """
        import mlx.core as mx

        if self.keeps_buffers:
            mx.set_cache_limit(max(0, self.step_bytes - mx.get_active_memory()))

    def drop_buffers(self) -> None:
        """Give freed buffers of layers back before the head, and its own after it: neither has use for the other's.

        They are bounded between segments only. Qwen2.5-Coder-1.5B took 0.4 GB more in its head than was foretold, and 0.2 to 0.3 GB
        more in all layers after it.
        """
        import mlx.core as mx

        if self.keeps_buffers:
            mx.clear_cache()

    def set_limits(self) -> None:
        """Tell MLX how much it may keep for reuse, and from where on to allocate no further ahead."""
        import mlx.core as mx

        mx.set_cache_limit(self.cache_bytes)
        mx.set_memory_limit(self.active_limit_bytes)

    def in_blocks(self, width: int) -> bool:
        """Whether attention of rows of this width is computed in blocks."""
        return bool(self.attention_block) and width >= max(self.attention_least, self.attention_block + 1)

    def rows_for(self, width: int) -> int:
        """Rows at once of any width: as planned, or as many tokens as the narrowest planned width that is wider."""
        wider = [planned for planned in self.rows_of_width if planned >= width]
        if not wider:
            return 1
        nearest = min(wider)
        return self.rows_of_width[nearest] * nearest // width

    def smaller(self, *, free_bytes: int | None = None) -> Plan | None:
        """The next smaller plan, for when memory runs short after all; None when nothing is left to give.

        Keeps no freed buffers first, then recomputes more, then takes fewer rows at once, then tiles of them, then smaller slices of
        logits on one CPU stream; the last is to write hidden states to disk. The base stays where it is.

        Args:
            free_bytes: on the disk where hidden states would be written; they stay in memory where that is too little. None
                does not ask.
        """
        if self.keeps_buffers:
            return self._less(keeps_buffers=False, cache_bytes=0)
        if self.kept_layers or self.kept_products:
            kept, products = self.kept_layers // 2, self.kept_products // 2
            return self._less(kept_layers=kept, kept_products=products, cache_bytes=self.cache_bytes // 2)
        rows = {width: max(1, rows // 2) for width, rows in self.rows_of_width.items()}
        if rows != self.rows_of_width:
            return self._less(rows_of_width=rows, cache_bytes=self.cache_bytes // 2)
        if self.layers and not 0 < self.tile_tokens <= SMALL_TILE:
            return self._less(tile_tokens=SMALL_TILE, cache_bytes=0)
        if self.loss_slice_tokens > 16 or self.cpu_streams > 1:
            slices = min(16, self.loss_slice_tokens)
            return self._less(loss_slice_tokens=slices, cpu_streams=1, cache_bytes=0)
        has_room = free_bytes is None or self.predicted_parts.saved < free_bytes
        if self.layers and not self.states_on_disk and has_room:
            return self._less(states_on_disk=True, cache_bytes=0)
        return None

    def _less(self, **changes: Any) -> Plan:
        """A smaller plan, with notes of what is true of it."""
        smaller = replace(self, **changes)
        if not self.layers or any(note.startswith(ONE_SEGMENT) for note in self.notes):
            return smaller
        no_tiles = set(sentences(self, is_plain=False)) - set(sentences(self, is_plain=True))
        is_plain = not no_tiles & set(self.notes)
        old = {*sentences(self, is_plain=is_plain), SMALLER}
        changed = tuple(f"engine.{_PINS.get(name, name)}" for name in changes)
        kept = [note for note in self.notes if note not in old and not note.endswith(changed)]
        return replace(smaller, notes=(*kept, *sentences(smaller, is_plain=is_plain), SMALLER))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        values = asdict(self)
        values["rows_of_width"] = {str(width): rows for width, rows in self.rows_of_width.items()}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan | None:
        """The plan that `to_json` wrote; None where another version wrote it."""
        try:
            rows = {int(width): rows for width, rows in values["rows_of_width"].items()}
            read = {
                "rows_of_width": rows,
                "notes": tuple(values["notes"]),
                "scales": Scales(**values["scales"]),
                "predicted_parts": PredictedParts(**values["predicted_parts"]),
            }
            return cls(**{**values, **read})
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


def notes_of(plan: Plan, facts: ModelFacts, config: TrainingConfig, *, whole: bool) -> Iterator[str]:
    """What was traded for the budget, and what is pinned, in sentences."""
    pins = config.engine
    if pins.micro_batch_rows is not None:
        yield f"{pins.micro_batch_rows} rows at a time, pinned by engine.micro_batch_rows"
    if whole:
        yield f"{ONE_SEGMENT}: pins of segments, slices, CPU streams and reading from disk have no effect"
        return
    for name in ("kept_layers", "loss_slice_tokens", "cpu_streams", "streamed_layers"):
        if getattr(pins, name) is not None:
            yield f"{name.replace('_', ' ')}: {getattr(pins, name)}, pinned by engine.{name}"
    yield from sentences(plan, is_plain=facts.is_plain)


def sentences(plan: Plan, *, is_plain: bool) -> Iterator[str]:
    """What a plan trades for its budget, in sentences; ``is_plain`` as in `engine.facts`."""
    if plan.streamed_layers:
        yield (
            f"the weights of {plan.streamed_layers} of {plan.layers} layers are read from disk in every pass, "
            "because the base does not fit; next lines and completions are left out of the evidence, as each token of "
            "them would read it all"
        )
    if plan.vocabulary_on_disk:
        yield "embedding and head are read from disk too, the head in slices of the vocabulary"
    if plan.dequantize:
        yield "weights stay quantised in memory and become floats block by block: this backend multiplies only floats fast"
    if plan.kept_layers >= plan.layers:
        yield "no layer is recomputed"
    elif plan.kept_layers:
        yield f"{plan.layers - plan.kept_layers} of {plan.layers} layers are recomputed on the way back, to keep the budget"
    else:
        yield f"all {plan.layers} layers are recomputed on the way back, to keep the budget"
    if plan.kept_products:
        yield f"of these, {plan.kept_products} keep what their matrix products gave, and recompute only the rest"
    if plan.tile_tokens and plan.kept_layers < plan.layers:
        yield f"projections and MLP of recomputed layers take {plan.tile_tokens} positions at a time"
    elif not is_plain and plan.kept_layers < plan.layers:
        yield "layers take all positions at once: tiles are for layers whose parts take each position for itself"
    if plan.states_on_disk:
        yield "hidden states wait in a file for the way back, as rows of this length do not fit otherwise"
    if plan.attention_block and max(plan.rows_of_width) >= plan.attention_least:
        yield f"attention in blocks of {plan.attention_block} queries for rows of {plan.attention_least} tokens or more"
