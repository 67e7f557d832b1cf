"""Retrieval as evidence measures it: the index over the training part, and what a measured arm says about using it.

The index, the search and the form in a prompt are `mlx_gardener.retrieval`'s, which also serves. Good retrieval is what a
fine-tuned model has to beat, so it is an arm of every evaluation. A query is what an editor would have: the file's path and
the code before the place, never what is to be guessed. Cost: under a second for some thousand chunks, some milliseconds a
query, and the training part's text in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_gardener.dataset import PreparedData
from mlx_gardener.dataset.examples import Excerpt, excerpts_of
from mlx_gardener.errors import DataError
from mlx_gardener.evaluate.evidence import answers_state
from mlx_gardener.retrieval import Index, Retriever, index_of_files
from mlx_gardener.source import read_source

__all__ = ["Retriever", "retrieval_helps", "training_excerpts", "training_index"]


def training_excerpts(data: PreparedData) -> list[Excerpt]:
    """The text of the training part; files that changed since the scan are left out, as they were from the rows."""
    excerpts: list[Excerpt] = []
    for record in data.split.train:
        try:
            excerpts += excerpts_of(read_source(data.scan.root, record), record)
        except DataError:
            continue  # counted when the rows were made (files_changed_while_reading)
    return excerpts


def training_index(data: PreparedData) -> Index:
    """Every chunk of the training part."""
    return index_of_files(data.scan.root, data.split.train, name=data.scan.name)


def retrieval_helps(evidence: Mapping[str, Any], *, with_adapter: bool = True) -> tuple[bool, str]:
    """Whether recorded evidence speaks for retrieval, and why, a phrase.

    The arm with retrieved code is compared with the same arm without. Retrieval loses where the whole interval of the change in
    bits per byte lies above zero or answers are worse (`answers_state`), and gains where it lies below zero or answers are better.
    It helps where it gains and does not lose: where neither is sure, a longer prompt is not worth its time. Evidence of earlier
    versions has no intervals of the adapter's two arms: there the change in bits per byte alone decides.

    Args:
        evidence: `Evidence.to_json`.
        with_adapter: compare the arms of the adapter, else those of the base.
    """
    plain = "adapter" if with_adapter else "base"
    arms = {arm["name"]: arm["metrics"] for arm in evidence.get("arms", ())}
    without, found = arms.get(plain, {}), arms.get(f"{plain}_bm25", {})
    if "bits_per_byte" not in without or "bits_per_byte" not in found:
        return False, f"its evidence has no arm of the {plain} with retrieval"
    change = found["bits_per_byte"] / without["bits_per_byte"] - 1 if without["bits_per_byte"] else 0.0
    told = f"{change:+.1%} bits per byte in its evidence"
    intervals = {
        item["metric"]: (item["low"], item["high"])
        for item in evidence.get("comparisons", ())
        if (item["arm"], item["against"]) == (f"{plain}_bm25", plain)
    }
    low, high = intervals.get("bits_per_byte", (change, change))
    answers = answers_state((metric, *ends) for metric, ends in intervals.items())
    gains, loses = high < 0 or answers == "better", low > 0 or answers == "worse"
    if not gains and not loses:
        told += ", which chance explains as well"
    elif answers in ("better", "worse"):
        told += f", and {answers} answers"
    return gains and not loses, told
