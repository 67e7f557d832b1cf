"""Streamed bases: the same gradients as in memory, from one file or many, dense or quantised, and never all at once."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_gardener.engine import Engine, Plan, PredictedParts
from mlx_gardener.engine.operations import Operations, operations
from mlx_gardener.engine.verify import largest_difference, split_problem
from mlx_gardener.model import load_base
from tests.engine.zoo import with_adapters
from tests.support.engines import batch, prepared, write_again


@pytest.mark.parametrize(("shards", "bits"), [(1, None), (3, None), (2, 4), (1, 8)])
def test_a_streamed_base_gives_the_gradients_of_a_resident_one(
    tiny_model_dir: Path, tmp_path: Path, shards: int, bits: int | None
) -> None:
    path = write_again(tiny_model_dir, tmp_path / "again", shards=shards, bits=bits)
    base, engine = prepared(path, streamed_layers=0, base_weights="dense")
    weights = with_adapters(base.model)
    expected = engine.loss_and_gradients(weights, batch(), seed=0)
    streamed_base, streamed = prepared(path, streamed_layers=2, base_weights="stored" if bits else "dense")
    assert streamed.streamed is not None and streamed.streamed.layers == {0, 1}
    with_adapters(streamed_base.model)
    for _ in range(2):  # the second step reads everything again
        found = streamed.loss_and_gradients(weights, batch(), seed=0)
        assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
        assert largest_difference(found.gradients, expected.gradients) <= 1e-5


def test_a_base_in_the_hub_s_cache_is_streamed_through_its_links(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_model_dir.iterdir())):
        (blobs / f"{number:040x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    base, engine = prepared(tiny_model_dir, streamed_layers=0)
    expected = engine.loss_and_gradients(with_adapters(base.model), batch(), seed=0)
    base, engine = prepared(snapshot, streamed_layers=64, vocabulary_on_disk=True)
    found = engine.loss_and_gradients(with_adapters(base.model), batch(), seed=0)
    assert largest_difference(found.gradients, expected.gradients) <= 1e-5


def test_streamed_weights_are_dropped_after_use(tiny_model_dir: Path) -> None:
    base, engine = prepared(tiny_model_dir, streamed_layers=3)
    weights = with_adapters(base.model)
    mx.eval(weights)
    before = mx.get_active_memory()
    engine.loss_and_gradients(weights, batch(), seed=0)
    layer = sum(value.nbytes for _, value in tree_flatten(base.model.layers[0].parameters()))
    assert mx.get_active_memory() - before < layer


def test_quantised_products_by_way_of_floats_are_mlx_s_own() -> None:
    mx.random.seed(0)
    packed = mx.quantize(mx.random.normal((200, 64)), group_size=32, bits=4)
    x = mx.random.normal((3, 7, 64))

    def product(x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, *packed, transpose=True, group_size=32, bits=4)

    outer = mx.random.normal((3, 7, 200))
    expected = mx.vjp(product, [x], [outer])
    own = mx.quantized_matmul
    with operations(Operations(dequantize=True)):
        assert mx.quantized_matmul is not own
        found = mx.vjp(product, [x], [outer])
    assert mx.quantized_matmul is own
    for one, other in zip(found, expected, strict=True):
        assert mx.allclose(one[0], other[0], rtol=1e-5, atol=1e-4)


def test_a_wrong_cut_is_found_at_load(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    engine = Engine(base.model, Plan({64: 2}, 2**32, 0, PredictedParts(), ()), dtype=base.dtype)
    assert split_problem(engine, base) is None
    first = base.model.layers[0]

    class Impure(nn.Module):
        """Gives something else every time it is called, as code with a hidden state would."""

        use_sliding = False

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = first, 0

        def __call__(self, *args: object, **kwargs: object) -> mx.array:
            self.calls += 1
            made: mx.array = self.inner(*args, **kwargs) * (1 + 0.1 * self.calls)
            return made

    base.model.layers[0] = Impure()
    problem = split_problem(Engine(base.model, engine.plan, dtype=base.dtype), base)
    assert problem is not None and "differ" in problem
