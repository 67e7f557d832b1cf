"""The next edits of a training: documents to learn from, examples to measure on, an account of both; and tasks of these examples.

In: a repository, its split, and how many tokens the other documents have. Out: `EditRows`; `EditTask`s. Cost: `source.commits` bounds
what is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset.edit_forms import edit_documents, edit_form, edit_prompt, learned_forms
from mlx_gardener.dataset.edits import EditExample, collect_edits
from mlx_gardener.dataset.rows import Document
from mlx_gardener.dataset.split import Split
from mlx_gardener.dataset.turns import in_turn
from mlx_gardener.source.commits import typed_commits
from mlx_gardener.source.history import Added

if TYPE_CHECKING:
    from mlx_gardener.dataset.cache import TokenCache
    from mlx_gardener.model import CodeTokenizer

#: So many times the examples that are wanted are made, as a quarter and more are longer than a row, and others lose changes.
_SPARE = 1.6


@dataclass(frozen=True)
class EditRows:
    """Documents to learn from, held-out examples, and what `DataSummary.edits` says of them; None where none are wanted."""

    documents: tuple[Document, ...] = ()
    held_out: tuple[EditExample, ...] = ()
    told: dict[str, Any] | None = None


def make_edit_rows(
    root: Path,
    split: Split,
    added: Mapping[str, Added],
    held_out_texts: Iterable[str],
    config: TrainingConfig,
    cache: TokenCache,
    *,
    other_tokens: int,
    interrupt: Callable[[], None],
    on_look: Callable[[int, int], None],
) -> EditRows:
    """Edits of past commits, as many as ``data.edit_share`` allows beside ``other_tokens``.

    Args:
        added: what `added_files` says, where the split went by it.
        held_out_texts: of validation and test part.
        on_look: told how many commits were looked at, and how many there are to look at.
    """
    share, form = config.data.edit_share, edit_form(cache.tokenizer)
    if not share:
        return EditRows()
    if form is None:
        return EditRows(told={"why": "the base has no markers for a form of next edits"})
    wanted = share / (1 - share) * other_tokens
    found = collect_edits(
        root,
        split,
        held_out_texts,
        config.data,
        since_age=next((item.age for item in added.values() if item.commit == split.since), None),
        wanted_tokens=_SPARE * wanted,
        seed=config.seed,
        interrupt=interrupt,
        on_look=on_look,
    )
    if not found.counts["commits"]:
        return EditRows(told={"why": "there is no history"})
    documents: list[Document] = []
    quiet = tokens = 0
    used: set[str] = set()
    made = edit_documents(found.train, cache, config.data.sequence_lengths[-1])
    for example, document in zip(found.train, made, strict=True):
        if document is None:
            found.counts["examples longer than a row"] += 1
        elif tokens + len(document.tokens) <= wanted:
            documents.append(document)
            tokens += len(document.tokens)
            quiet += not example.is_due
            used.add(example.commit)
    told = {
        "form": " and ".join(learned_forms(form)),
        "commits": found.counts.pop("commits"),
        "commits_used": len(used),
        "examples": len(documents),
        "no_edit_due": quiet,
        "tokens": tokens,
        "held_out": len(found.held_out),
        "left_out": dict(sorted(found.counts.items())),
    }
    return EditRows(tuple(documents), tuple(found.held_out), told)


#: What a commit gives at most, about: for forecasts alone.
_TOKENS_OF_COMMIT = 4000


def edits_ahead(
    root: Path, config: TrainingConfig, tokenizer: CodeTokenizer, other_tokens: float
) -> dict[str, Any]:
    """What a training would take from history, without reading it: commits that people wrote, and at most so many ``tokens``.

    ``why`` says why there are none.
    """
    share = config.data.edit_share
    if not share:
        return {"why": "data.edit_share is 0", "tokens": 0}
    if edit_form(tokenizer) is None:
        return {"why": "the base has no markers for a form of next edits", "tokens": 0}
    counts = typed_commits(root)
    if not counts["commits"]:
        return {"why": "there is no history", "tokens": 0}
    tokens = min(share / (1 - share) * other_tokens, float(_TOKENS_OF_COMMIT * counts["typed"]))
    return {"commits": counts["commits"], "commits_by_people": counts["typed"], "tokens": int(tokens)}


@dataclass(frozen=True)
class EditTask:
    """A window of a held-out edit: token ids of the prompt and of what should be written.

    ``is_due`` is False where that is the window as it is.
    """

    path: str
    line: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    is_due: bool


def edit_tasks(
    examples: Sequence[EditExample], count: int, tokenizer: CodeTokenizer, most_tokens: int, *, seed: int
) -> list[EditTask]:
    """``count`` windows with an edit and as many without one, drawn without repeats, from files in turn.

    There are fewer when there are not as many. The first of each kind are those that a smaller ``count`` draws.

    Args:
        most_tokens: of prompt and answer together; examples that are longer are left out.
    """
    found: list[EditTask] = []
    for is_due in (True, False):
        same = [example for example in examples if example.is_due == is_due]
        turns = in_turn(same, lambda example: example.path, random.Random(f"{seed}\0edits"))
        asked = ((example, edit_prompt(example, tokenizer, most_tokens)) for example in turns)
        tasks = (
            EditTask(example.path, example.line, tuple(ids[0]), tuple(ids[1]), is_due)
            for example, ids in asked
            if ids is not None
        )
        found += islice(tasks, count)
    return found
