"""Embedding and head on disk: the same losses and gradients, and no table in memory."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_gardener.engine import head_loss
from mlx_gardener.engine.call_graph import CannotSplit
from mlx_gardener.engine.verify import largest_difference
from mlx_gardener.engine.vocabulary import VocabularyShards
from tests.engine.zoo import TOLERANCE, VOCAB, batch, engine, tiny_model, with_adapters
from tests.support.engines import prepared, write_again


@pytest.fixture(autouse=True)
def _several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "MOST_ROWS", VOCAB // 3)
    monkeypatch.setattr(head_loss, "LEAST_ROWS", 1)


def written(model: nn.Module, directory: Path) -> Path:
    mx.save_safetensors(str(directory / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return directory


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("settings", [{}, {"cpu_streams": 2, "rows": 1}], ids=str)
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "gemma2", "cohere", "granite", "starcoder2"])
def test_tied_scaled_and_soft_capped_heads_give_the_same_gradients(
    model_type: str, settings: dict[str, int], on_disk: bool, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    vocabulary = VocabularyShards(
        model, VOCAB, dtype=mx.float32, path=written(model, tmp_path) if on_disk else None
    )
    weights = with_adapters(model)
    resident = engine(model)
    expected = resident.loss_and_gradients(weights, batch(), seed=0)
    rows = resident.read_rows(batch())
    cut = engine(model, **settings)
    vocabulary.install()
    cut.vocabulary = vocabulary
    found = cut.loss_and_gradients(weights, batch(), seed=0)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    assert largest_difference(found.gradients, expected.gradients) <= TOLERANCE
    again = cut.read_rows(batch())
    assert [row.loss for row in again] == pytest.approx([row.loss for row in rows], rel=1e-5)
    assert [row.likeliest.tolist() for row in again] == [row.likeliest.tolist() for row in rows]


@pytest.mark.parametrize(("shards", "bits"), [(1, None), (2, 4)])
def test_a_base_wholly_on_disk_trains_like_one_in_memory(
    tiny_model_dir: Path, tmp_path: Path, shards: int, bits: int | None
) -> None:
    path = write_again(tiny_model_dir, tmp_path / "again", shards=shards, bits=bits)
    base, resident = prepared(path, streamed_layers=0, base_weights="dense", vocabulary_on_disk=False)
    expected = resident.loss_and_gradients(with_adapters(base.model), batch(), seed=0)
    base, engine = prepared(path, streamed_layers=64, vocabulary_on_disk=True)
    assert engine.plan.vocabulary_on_disk and engine.vocabulary is not None and engine.plan.kept_layers == 0
    weights = with_adapters(base.model)
    for _ in range(2):
        found = engine.loss_and_gradients(weights, batch(), seed=0)
        assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
        assert largest_difference(found.gradients, expected.gradients) <= 1e-5
    kept = sum(
        value.nbytes
        for name, value in tree_flatten(base.model.parameters())
        if not name.startswith("model.layers.")
    )
    assert kept < 8192  # norms


def test_a_bfloat16_table_is_read_as_it_is(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.set_dtype(mx.bfloat16)
    vocabulary = VocabularyShards(model, VOCAB, dtype=mx.float32, path=written(model, tmp_path))
    expected = model.lm_head.weight.astype(mx.float32)
    vocabulary.install()
    vocabulary.head_input(lambda: model(mx.zeros((1, 3), dtype=mx.int32)))
    shards = [shard for shards in vocabulary.slices(100, 2) for shard in shards]
    assert mx.array_equal(mx.concatenate([shard.rows for shard in shards]), expected)
    assert [shard.first for shard in shards][:3] == [0, 50, 100]


def test_tables_under_another_name_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    other = {f"{name}.x": value for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), other)
    with pytest.raises(CannotSplit, match="hold no"):
        VocabularyShards(model, VOCAB, dtype=mx.float32, path=tmp_path)


def test_a_head_on_disk_never_gives_wrong_answers_unasked(tmp_path: Path) -> None:
    model = tiny_model("llama")
    vocabulary = VocabularyShards(model, VOCAB, dtype=mx.float32, path=written(model, tmp_path))
    vocabulary.install()
    with pytest.raises(RuntimeError, match="on disk"):
        model(mx.zeros((1, 3), dtype=mx.int32))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_model_whose_head_is_in_memory_can_be_called_as_before(model_type: str) -> None:
    model = tiny_model(model_type)
    tokens = mx.array([[5, 6, 7]])
    before = model(tokens)
    vocabulary = VocabularyShards(model, VOCAB, dtype=mx.float32)
    vocabulary.install()
    assert mx.array_equal(model(tokens), before)
