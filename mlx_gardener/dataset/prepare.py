"""TrainingDataPreparator: a repository to `PreparedData`, step by step, with an account of what was kept and dropped."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset.cache import TokenCache
from mlx_gardener.dataset.changes import Continuation, Earlier, continue_split, known_files
from mlx_gardener.dataset.edit_rows import make_edit_rows
from mlx_gardener.dataset.edits import EditExample
from mlx_gardener.dataset.examples import Encoder, Excerpt, example_of, excerpts_of, training_pieces
from mlx_gardener.dataset.general import general_examples
from mlx_gardener.dataset.retrieved import RetrievedExamples
from mlx_gardener.dataset.rows import Document, RowSet, bucket, pack
from mlx_gardener.dataset.split import Split, split_files
from mlx_gardener.dataset.summary import DataSummary, summarise
from mlx_gardener.errors import DataError, TrainingError
from mlx_gardener.source import FileRecord, Scan, dependency_order, read_source, scan_repository
from mlx_gardener.source.history import added_files

if TYPE_CHECKING:
    from mlx_gardener.model import CodeTokenizer
    from mlx_gardener.registry import ProjectRegistry

_SCAN_SHARE = 0.6
_FILES_AT_ONCE = 64
#: From this share of changed bytes on, "auto" begins anew: most of what the adapter knows is not there any more.
_MOST_CHANGED = 0.5
#: Where a training goes on from an adapter: of the bytes to learn from, those that have not changed (judgement).
_REPLAY_SHARE = 0.5
#: Why a training begins anew: there is nothing to go on with, and nothing to learn from that the version has not seen.
UNCHANGED = "no file has changed since"


@dataclass(frozen=True)
class PreparedData:
    """What training and evaluation work on; ``data_sha256`` is over all rows.

    ``files`` are those the adapter will know, by path: digits of their sha256, and their part; ``continued_from`` is the
    version that the training goes on from, ``first_update`` the updates that it has done on the same rows.
    ``held_out_edits`` are edits of test files in past commits.
    """

    train: RowSet
    validation: RowSet
    test: RowSet
    split: Split
    scan: Scan
    test_excerpts: tuple[Excerpt, ...]
    data_sha256: str
    summary: DataSummary
    files: dict[str, list[str]]
    continued_from: str | None = None
    first_update: int = 0
    held_out_edits: tuple[EditExample, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The part of a manifest that says what was trained on."""
        return {
            "data_sha256": self.data_sha256,
            "commit": self.scan.commit,
            "file_list_sha256": self.scan.file_list_sha256,
            "files": self.files,
            "summary": self.summary.to_json(),
            "trained_files": trained_files(self.split),
        }


def trained_files(split: Split) -> dict[str, list[str]]:
    """Short hashes of contents and paths of all files that a training saw, validation included; sorted.

    16 hexadecimal digits each: enough to tell files apart, and no path is told.
    """
    seen = (*split.train, *split.validation)
    return {
        "content_sha256": sorted(record.sha256[:16] for record in seen),
        "path_sha256": sorted(path_hash(record.path) for record in seen),
    }


def path_hash(path: str) -> str:
    """The short hash of a path, as in `trained_files`."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:16]


class TrainingDataPreparator:
    """Prepares training data with one tokenizer and one configuration.

    Args:
        cache_dir: where token ids are kept between runs.
        on_progress: told the share done (0 to 1) and a line for people.
        interrupt: asked between files; may raise.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        tokenizer: CodeTokenizer,
        cache_dir: Path,
        on_progress: Callable[[float, str], None] | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.cache_dir = cache_dir
        self._on_progress = on_progress or (lambda share, message: None)
        self._interrupt = interrupt or (lambda: None)
        self._lost: list[str] = []
        self._general_tokens = 0
        self._contents: frozenset[str] = frozenset()

    def prepare_training_data(
        self, project_name: str, *, registry: ProjectRegistry | None = None
    ) -> PreparedData:
        """`prepare` for a registered project.

        Raises:
            RegistryError: there is no such project.
        """
        from mlx_gardener.registry import ProjectRegistry

        return self.prepare((registry or ProjectRegistry()).get_project(project_name).path)

    def prepare(
        self, root: Path, *, earlier: Earlier | None = None, must_continue: bool = False
    ) -> PreparedData:
        """Scan, filter, select, split, tokenise and pack the repository at ``root``.

        Args:
            earlier: the adapter version to go on from, where something and less than half has changed since.
            must_continue: go on from it however much has changed; nothing is an error.

        Raises:
            DataError: it cannot be read or does not split, or fewer chunks than ``min_training_chunks`` pass; says how many
                were found and what took them.
            TrainingError: nothing changed since ``earlier``, and ``must_continue``.
        """
        scan = scan_repository(
            root,
            self.config.data,
            quality_threshold=self.config.training_data_quality_threshold,
            on_progress=lambda share, message: self._on_progress(_SCAN_SHARE * share, message),
            interrupt=self._interrupt,
        )
        _check_count(scan, self.config)
        self._general_tokens, self._contents = 0, frozenset(record.sha256 for record in scan.files)
        files, over_maximum = select_best(scan.files, self.config.max_training_chunks)
        added = None if self.config.data.split == "files" else added_files(scan.root)
        split = split_files(files, self.config.data, seed=self.config.seed, added=added)
        going_on = (
            None
            if earlier is None
            else find_continuation(split, earlier, seed=self.config.seed, must=must_continue)
        )
        whole, split = (split, split) if going_on is None else (going_on.whole, going_on.split)
        cache = TokenCache(self.cache_dir, self.tokenizer)
        try:
            encoder = Encoder(cache, repository=scan.name)
            retrieved = self._retrieved(scan, whole.train)
            documents = self._train_documents(scan.root, split.train, encoder, retrieved)
            validation, validation_excerpts = self._evaluation_rows(scan.root, split.validation, encoder)
            test, test_excerpts = self._evaluation_rows(scan.root, split.test, encoder)
            held_out = [excerpt.text for excerpt in (*validation_excerpts, *test_excerpts)]
            edits = make_edit_rows(
                scan.root, split, added or {}, held_out, self.config, cache,
                other_tokens=sum(len(document.tokens) for document in documents),
                interrupt=self._interrupt,
                on_look=lambda done, count: self._on_progress(0.95, f"Looked at {done} of {count} past commits"),
            )  # fmt: skip
            train = pack(
                [*documents, *edits.documents],
                self.config.data.sequence_lengths,
                pad_id=self.tokenizer.pad_id,
            )
        finally:
            cache.close()
        if not len(train) or not len(validation) or not len(test):
            raise DataError(
                "After reading the files again one part of the split is empty.",
                next_step="Do not change the repository while it is read, then train again.",
            )
        digest = hashlib.sha256((train.sha256() + validation.sha256() + test.sha256()).encode()).hexdigest()
        told = "" if retrieved is None else f", {retrieved.count} examples with retrieved code"
        self._on_progress(1.0, f"{train.loss_tokens:,} tokens to learn from in {len(train)} rows{told}")
        summary = summarise(
            scan, split, train, validation, test, cache,
            over_maximum=over_maximum, lost=len(self._lost), can_fill=self.tokenizer.markers is not None,
        )  # fmt: skip
        if retrieved is not None:
            made = {"examples": retrieved.count, "context_tokens": retrieved.context_tokens}
            summary = replace(summary, retrieval=made)
        if self.config.data.general_share:
            summary = replace(summary, general_loss_tokens=self._general_tokens)
        summary = replace(summary, edits=edits.told)
        if going_on is not None and earlier is not None:
            changed = {
                "changed_files": going_on.changed_files,
                "changed_share": round(going_on.changed_share, 4),
                "replayed_files": going_on.replayed_files,
            }
            summary = replace(summary, continued_from={"version": earlier.version, **changed})
        parent = earlier if going_on is not None else None
        first_update = 0
        if (
            going_on is None
            and earlier is not None
            and earlier.is_unfinished
            and earlier.data_sha256 == digest
        ):
            parent, first_update = earlier, earlier.updates_done
            done = {"version": earlier.version, "updates_done": first_update}
            summary = replace(summary, continued_from=done)
        if earlier is not None and parent is None:
            why = {"version": earlier.version, "why": _why_anew(whole, earlier)}
            summary = replace(summary, not_continued=why)
        return PreparedData(
            train,
            validation,
            test,
            split,
            scan,
            tuple(test_excerpts),
            digest,
            summary,
            known_files(whole, parent),
            None if parent is None else parent.version,
            first_update,
            edits.held_out,
        )

    def _retrieved(self, scan: Scan, files: Sequence[FileRecord]) -> RetrievedExamples | None:
        """What makes examples with retrieved code, where a share of them is wanted."""
        if not self.config.data.retrieval_share:
            return None
        self._on_progress(_SCAN_SHARE, "Indexing the training part for retrieval")
        return RetrievedExamples(scan.root, files, self.tokenizer, self.config, name=scan.name)

    def _train_documents(
        self,
        root: Path,
        files: Sequence[FileRecord],
        encoder: Encoder,
        retrieved: RetrievedExamples | None,
    ) -> list[Document]:
        config = self.config.data
        choose = random.Random(self.config.seed)
        documents: list[Document] = []
        ordered = dependency_order(files)
        in_repository_rows = {
            record.path for record in ordered if choose.random() < config.repository_row_share
        }
        run: list[Excerpt] = []
        for at in range(0, len(ordered), _FILES_AT_ONCE):
            excerpts: list[Excerpt] = []
            for record in ordered[at : at + _FILES_AT_ONCE]:
                self._interrupt()
                found = self._read(root, record)
                (run if record.path in in_repository_rows else excerpts).extend(found)
            pieces = training_pieces(excerpts, config, seed=self.config.seed)
            can_fill = self.tokenizer.markers is not None
            told = ""
            if retrieved is not None:
                made, plain, pieces = retrieved.taken_from(pieces, self._interrupt)
                documents += encoder.retrieved_documents(made, retrieved.width)
                documents += encoder.documents(plain)
                told = f", {retrieved.count} with retrieved code"
            documents += encoder.documents([example_of(piece, config, can_fill=can_fill) for piece in pieces])
            share = _SCAN_SHARE + (0.9 - _SCAN_SHARE) * min(1.0, (at + _FILES_AT_ONCE) / len(ordered))
            self._on_progress(share, f"Made {len(documents)} examples{told}")
        if run:
            documents.append(encoder.repository_document(run))
        return documents + self._general_documents(documents, encoder)

    def _general_documents(self, own: Sequence[Document], encoder: Encoder) -> list[Document]:
        """General code for ``data.general_share`` of all that is learned from; all there is of it where that is less."""
        share = self.config.data.general_share
        if not share:
            return []
        wanted = share / (1 - share) * sum(int(document.loss_mask.sum()) for document in own)
        made = general_examples(
            self.config.data,
            can_fill=self.tokenizer.markers is not None,
            seed=self.config.seed,
            without=self._contents,
        )
        taken: list[Document] = []
        for document in encoder.documents(made):
            if self._general_tokens >= wanted:
                break
            taken.append(document)
            self._general_tokens += int(document.loss_mask.sum())
        return taken

    def _evaluation_rows(
        self, root: Path, files: Sequence[FileRecord], encoder: Encoder
    ) -> tuple[RowSet, list[Excerpt]]:
        widths = self.config.data.sequence_lengths
        excerpts: list[Excerpt] = []
        for record in files:
            self._interrupt()
            excerpts += self._read(root, record)
        documents = [document for excerpt in excerpts for document in encoder.windows(excerpt, widths[-1])]
        return bucket(documents, (widths[0] // 2, *widths), pad_id=self.tokenizer.pad_id), excerpts

    def _read(self, root: Path, record: FileRecord) -> list[Excerpt]:
        """A file's excerpts; one that changed or vanished since the scan is counted and left out."""
        try:
            return excerpts_of(read_source(root, record), record)
        except DataError:
            self._lost.append(record.path)
            return []


def find_continuation(fresh: Split, earlier: Earlier, *, seed: int, must: bool) -> Continuation | None:
    """How to go on from ``earlier`` with what changed; None where a training begins anew, or has the same files.

    Raises:
        TrainingError: it ``must`` go on, and there is nothing to go on with.
    """
    found = continue_split(fresh, earlier, replay_share=_REPLAY_SHARE, seed=seed)
    if must and not found.changed_files and not earlier.is_unfinished:
        raise TrainingError(
            f"No training file has changed since {earlier.version}, so there is nothing to go on with.",
            next_step="Train from scratch with --fresh.",
        )
    usable = found.changed_files and found.whole.validation and found.whole.test
    return found if usable and (must or found.changed_share < _MOST_CHANGED) else None


def _why_anew(fresh: Split, earlier: Earlier) -> str:
    """Why a training begins anew though there is a version to go on from; `UNCHANGED` where there is nothing to go on with."""
    if earlier.is_same_as(fresh):
        return (
            "its time limit ended it, and settings have changed since" if earlier.is_unfinished else UNCHANGED
        )
    if any(earlier.is_new(record) for record in fresh.train):
        return "half of the code or more has changed since, or too few files would be left to measure on"
    return "no file that it would learn from has changed since, only others or fewer"


def check_enough(scan: Scan, config: TrainingConfig) -> None:
    """Whether a training of what a scan found would begin.

    Raises:
        DataError: as `TrainingDataPreparator.prepare`: too few chunks, or files that are alike.
    """
    _check_count(scan, config)
    split_files(select_best(scan.files, config.max_training_chunks)[0], config.data, seed=config.seed)


def _check_count(scan: Scan, config: TrainingConfig) -> None:
    if scan.chunks_kept >= config.min_training_chunks:
        return
    taken = ", ".join(
        f"{rule.replace('_', ' ')} {_counted(dropped.count, dropped.unit)}"
        for rule, dropped in sorted(scan.dropped.items())
    )
    raise DataError(
        f"Only {_counted(scan.chunks_kept, 'good chunks')} {'was' if scan.chunks_kept == 1 else 'were'} found in "
        f"{_counted(scan.files_seen, 'files')}; "
        f"{config.min_training_chunks} are needed. Dropped: {taken or 'nothing'}.",
        next_step="Train on a larger repository, lower min_training_chunks or training_data_quality_threshold, "
        "or see `mlx-gardener scan` for what was dropped.",
    )


def _counted(count: int, plural: str) -> str:
    return f"{count} {plural if count != 1 else plural.removesuffix('s')}"


def select_best(files: Sequence[FileRecord], maximum: int) -> tuple[list[FileRecord], int]:
    """The files with at most ``maximum`` chunks in all, those of best quality, and how many were left out."""
    chunks = [(chunk.quality, chunk.id) for record in files for chunk in record.chunks]
    if len(chunks) <= maximum:
        return list(files), 0
    keep = {identity for _, identity in sorted(chunks, key=lambda item: (-item[0], item[1]))[:maximum]}
    selected = []
    for record in files:
        kept = tuple(chunk for chunk in record.chunks if chunk.id in keep)
        if kept:
            selected.append(replace(record, chunks=kept))
    return selected, len(chunks) - sum(len(record.chunks) for record in selected)
