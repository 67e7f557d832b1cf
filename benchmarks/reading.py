"""What a base, with or without an adapter attached, makes of held-out lines and stretches, without writing anything.

In: tasks or windows as evidence draws them, and a retriever or None. Out: losses in nats, bytes, and whether greedy writing gives
a line. Cost: the prompts' tokens, once forward.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_gardener.dataset import NextLineTask
from mlx_gardener.engine import model_facts
from mlx_gardener.evaluate.complete import PREFIX_TOKENS, SUFFIX_TOKENS
from mlx_gardener.evaluate.measure import task_prompt
from mlx_gardener.evaluate.rows import Window, plain_rows, rows_with_context
from mlx_gardener.model import BaseModel
from mlx_gardener.retrieval import Retriever

#: Tokens of a line that are read; longer ones are cut.
LINE_TOKENS = 64
#: Of the windows whose bits are counted: less than a training row, since half of one and the context go forward together.
ROW_TOKENS = 512


def lines_read(
    base: BaseModel, asked: Sequence[NextLineTask], retriever: Retriever | None
) -> list[tuple[float, int, bool]]:
    """Of every line its loss in nats, its bytes, and whether greedy writing gives it; of its first `LINE_TOKENS` tokens."""
    import mlx.core as mx

    sizes, room = (PREFIX_TOKENS, SUFFIX_TOKENS), model_facts(base.path).max_tokens - LINE_TOKENS
    found = []
    for task in asked:
        place, target = task_prompt(task, base.tokenizer, retriever, sizes, room), task.target.rstrip()
        line = mx.array(base.tokenizer.encode(place.begins + target)[:LINE_TOKENS])
        logits = base.model(mx.concatenate([mx.array(place.ids), line])[None, :-1])[0, -line.size :]
        logits = logits.astype(mx.float32)
        own = mx.take_along_axis(logits, line[:, None], axis=-1)[:, 0]
        nats = float((mx.logsumexp(logits, axis=-1) - own).sum())
        found.append((nats, len(target.encode()), bool((mx.argmax(logits, axis=-1) == line).all())))
    return found


def nats_of(base: BaseModel, windows: Sequence[Window], retriever: Retriever | None) -> tuple[float, int]:
    """The loss in nats of held-out windows, as evidence makes rows of them, and their bytes."""
    import mlx.core as mx
    import mlx.nn as nn

    widths = (ROW_TOKENS, 2 * ROW_TOKENS)
    rows = (
        plain_rows(windows, base.tokenizer, widths)
        if retriever is None
        else rows_with_context(windows, base.tokenizer, retriever, widths)
    )
    nats = 0.0
    for batch in rows.batches(1, seed=None):
        used = int((batch.document_ids[0] > 0).sum())
        tokens = mx.array(batch.tokens[:, :used])
        losses = nn.losses.cross_entropy(base.model(tokens[:, :-1]), tokens[:, 1:])
        nats += float((losses * mx.array(batch.loss_mask[:, 1:used])).sum())
    return nats, rows.source_bytes
