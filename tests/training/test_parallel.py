"""What ranks of a parallel training send each other arrives as it was."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from safetensors.numpy import load

from mlx_gardener.dataset.rows import Document, RowSet, pack
from mlx_gardener.training.parallel import pack_arrays


def test_rows_that_were_sent_are_the_same_rows_in_the_same_order() -> None:
    def document(length: int) -> Document:
        mask = np.arange(length) % 3 > 0
        return Document(np.arange(length, dtype=np.int32) + length, mask, int(mask.sum()), False)

    rows = pack([document(length) for length in (1000, 60, 500, 12, 90)], (64, 512, 1024), pad_id=0)
    sent = RowSet.from_arrays(load(pack_arrays(rows.arrays())))
    assert sent.sha256() == rows.sha256() and sent.widths == rows.widths
    ours, theirs = ([*one.batches(512, seed=3)] for one in (rows, sent))
    assert [batch.tokens.tolist() for batch in ours] == [batch.tokens.tolist() for batch in theirs]


def test_weights_and_scalars_that_were_sent_keep_type_and_shape() -> None:
    arrays = {"b": mx.array([[1.5, -2.0]]), "a": mx.array(3, dtype=mx.uint64), "empty": mx.zeros((0, 4))}
    sent = load(pack_arrays(arrays))
    for name, value in arrays.items():
        assert sent[name].shape == value.shape and np.array_equal(sent[name], np.array(value))
        assert sent[name].dtype == np.array(value).dtype
