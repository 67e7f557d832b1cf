"""Losses of a base that are computed once: by its weights, its type and the rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_gardener.dataset import Batch
from mlx_gardener.engine import Engine, base_topic, kept_row_losses, kept_row_readings
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.platform.kept import FILE_NAME, KeptValues
from tests.support.engines import batch, engine, plan


class Counting(Engine):
    """An engine that counts the rows it computes."""

    rows = 0

    def row_losses(self, batch: Batch, **settings: object) -> list[float]:
        self.rows += len(batch.tokens)
        return super().row_losses(batch, **settings)  # type: ignore[arg-type]


@pytest.fixture
def base(tiny_model_dir: Path) -> BaseModel:
    return load_base(str(tiny_model_dir))


def test_only_rows_that_were_not_seen_are_computed(base: BaseModel, tmp_path: Path) -> None:
    given, store = batch(), KeptValues(tmp_path / "kept")
    expected = engine(base, plan(2)).row_losses(given)
    counting = Counting(base.model, plan(2), dtype=base.dtype)
    assert kept_row_losses(counting, base, given, store) == expected
    assert counting.rows == len(expected)
    assert kept_row_losses(counting, base, given, store) == expected
    assert counting.rows == len(expected)
    given.tokens[3, 2] += 1
    given.loss_mask[4, 2] = not given.loss_mask[4, 2]
    changed = kept_row_losses(counting, base, given, store)
    assert counting.rows == len(expected) + 2
    assert changed == pytest.approx(engine(base, plan(2)).row_losses(given), rel=1e-6)
    assert changed[3] != expected[3] and changed[4] != expected[4]


def test_likeliest_tokens_are_kept_beside_losses_and_computed_again_where_they_are_damaged(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, store = batch(), KeptValues(tmp_path / "kept")

    def told() -> list[tuple[float, list[int]]]:
        rows = kept_row_readings(engine(base, plan(2)), base, given, store)
        return [(row.loss, row.likeliest.tolist()) for row in rows]

    expected = [(row.loss, row.likeliest.tolist()) for row in engine(base, plan(2)).read_rows(given)]
    assert kept_row_losses(engine(base, plan(2)), base, given, store) == [loss for loss, _ in expected]
    assert told() == expected
    real = Engine.read_rows
    monkeypatch.setattr(Engine, "read_rows", lambda *_, **__: pytest.fail("computed again"))
    assert told() == expected
    monkeypatch.setattr(Engine, "read_rows", real)
    too_many, too_large = str([1.0, [1] * 99]), str([1.0, [2**40]])
    no_readings = ("[1.0]", "[1, [2]]", '[1.0, ["a"]]', "[1.0, 2]", "1.0", "{", "[Infinity, [1]]")
    for damage in (*no_readings, too_many, too_large):
        with closing(sqlite3.connect(store.directory / FILE_NAME)) as connection, connection:
            changed = connection.execute(
                "UPDATE kept SET value = ? WHERE topic = ?", (damage, base_topic(base, "readings"))
            )
        assert changed.rowcount == len(given.tokens) and told() == expected


def test_another_base_type_or_attention_has_losses_of_its_own(base: BaseModel, tmp_path: Path) -> None:
    import mlx.core as mx

    given, store = batch(), KeptValues(tmp_path / "kept")
    counting = Counting(base.model, plan(2), dtype=base.dtype)
    kept_row_losses(counting, base, given, store)
    others = (replace(base, weights_sha256="other"), replace(base, dtype=mx.bfloat16))
    for number, other in enumerate(others, start=2):
        kept_row_losses(counting, other, given, store)
        assert counting.rows == number * len(given.tokens)
    apart = Counting(base.model, plan(2), dtype=base.dtype, per_document=True)
    kept_row_losses(apart, base, given, store)
    assert apart.rows == len(given.tokens)


def test_what_is_damaged_is_computed_again(base: BaseModel, tmp_path: Path) -> None:
    given, store = batch(), KeptValues(tmp_path / "kept")
    expected = kept_row_losses(engine(base, plan(2)), base, given, store)
    for damage in (b"", b"{", b"no database" * 100):
        (store.directory / FILE_NAME).write_bytes(damage)
        assert kept_row_losses(engine(base, plan(2)), base, given, store) == expected
