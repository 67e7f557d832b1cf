"""What preparing a repository kept and dropped, in figures, for people and for the manifest.

In: the scan, its parts, the rows made of them. Out: a `DataSummary`, which events and manifests hold as JSON. Cost: nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gardener.dataset.cache import TokenCache
    from mlx_gardener.dataset.rows import RowSet
    from mlx_gardener.dataset.split import Split
    from mlx_gardener.source import Scan


@dataclass(frozen=True)
class DataSummary:
    """Counts of files, chunks, rows and tokens.

    Attributes:
        dropped: unit and count of what each filter took, by its name.
        chunks_over_maximum: good chunks that were left out, as there are more than ``max_training_chunks``.
        files_changed_while_reading: left out too.
        languages: files, chunks and bytes, by language.
        secrets: found, and kept out.
        split: files and bytes of each part.
        train_loss_tokens: that count in the loss; the others are context or padding.
        padding_fraction: of the training rows.
        validation_bytes, test_bytes: of source that is predicted.
        fill_in_the_middle: whether the base has markers for it.
        texts_tokenized, texts_from_cache: how many had to be read into tokens, and how many were known.
        held_out_since: the oldest commit whose files were held out; None where files were drawn.
        edits: next edits from past commits: their form, commits there are and that were used, examples, those in which no edit is
            due, tokens, held-out examples, and commits left out by reason; or ``why`` there are none. None where none are wanted.
        continued_from: the version that the training goes on from, and what changed since; None where it begins anew.
        retrieval: examples that were made with retrieved code in front, and the tokens of that; None where none were asked for.
        general_loss_tokens: of ``train_loss_tokens``, those of general code; None where none was asked for.
        not_continued: the version that it might have gone on from, and why it does not.
    """

    files_seen: int
    files_kept: int
    chunks_found: int
    chunks_kept: int
    dropped: dict[str, dict[str, Any]]
    chunks_over_maximum: int
    files_changed_while_reading: int
    languages: dict[str, Any]
    secrets: int
    near_duplicate_clusters: int
    split: dict[str, Any]
    train_rows: int
    train_tokens: int
    train_loss_tokens: int
    padding_fraction: float
    validation_bytes: int
    test_bytes: int
    fill_in_the_middle: bool
    texts_tokenized: int
    texts_from_cache: int
    held_out_since: str | None = None
    edits: dict[str, Any] | None = None
    continued_from: dict[str, Any] | None = None
    not_continued: dict[str, Any] | None = None
    retrieval: dict[str, int] | None = None
    general_loss_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def summarise(
    scan: Scan,
    split: Split,
    train: RowSet,
    validation: RowSet,
    test: RowSet,
    cache: TokenCache,
    *,
    over_maximum: int,
    lost: int,
    can_fill: bool,
) -> DataSummary:
    """The figures of prepared data.

    Args:
        over_maximum: chunks that were left out, as there were more than the settings allow.
        lost: files that changed while they were read.
        can_fill: whether the base has markers for fill-in-the-middle.
    """
    return DataSummary(
        files_seen=scan.files_seen,
        files_kept=len(scan.files),
        chunks_found=scan.chunks_found,
        chunks_kept=scan.chunks_kept - over_maximum,
        dropped={rule: {"unit": item.unit, "count": item.count} for rule, item in scan.dropped.items()},
        chunks_over_maximum=over_maximum,
        files_changed_while_reading=lost,
        languages=scan.languages,
        secrets=len(scan.secrets),
        near_duplicate_clusters=scan.near_duplicate_clusters,
        split=split.describe(),
        held_out_since=split.since,
        train_rows=len(train),
        train_tokens=train.total_tokens,
        train_loss_tokens=train.loss_tokens,
        padding_fraction=round(train.padding_tokens / max(1, train.total_tokens), 4),
        validation_bytes=validation.source_bytes,
        test_bytes=test.source_bytes,
        fill_in_the_middle=can_fill,
        texts_tokenized=cache.misses,
        texts_from_cache=cache.hits,
    )
