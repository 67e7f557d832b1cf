"""The next edit at a place of a project's working tree: what follows, by its adapter, from what was changed since the last commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import DataError, ModelError
from mlx_gardener.registry import ProjectRegistry

if TYPE_CHECKING:
    from mlx_gardener.source.commits import FileChange

#: Changed files beside the one of the caret: no more changes are shown.
_MOST_FILES = 4


@dataclass(frozen=True)
class NextEdit:
    """What a window becomes: its rows before and after, and the ``diff`` of the file, "" where no edit is due.

    Attributes:
        first_line: of the window, from 1.
        version: of the adapter that wrote it; None for the base alone.
        why_none: why there is no edit where the model wrote something else than the window, "" else.
        note: what it had too little to go on from, and what to do about it; "" where nothing is known to lack.
    """

    project: str
    version: str | None
    base_model: str
    path: str
    first_line: int
    before: str
    after: str
    diff: str
    why_none: str = ""
    note: str = ""


def next_edit(
    project: str,
    path: str,
    text: str,
    line: int,
    *,
    version: str | None = None,
    with_adapter: bool = True,
    max_tokens: int | None = None,
) -> NextEdit:
    """What ``project``'s adapter makes of the 21 lines around ``line`` of a file, after what was changed since the last commit.

    Args:
        path: of the file in the repository; ``text`` is what stands in it, ``line`` where the caret is, from 1.
        version: of the adapter; the active one when None.
        with_adapter: False asks the base alone, to compare.
        max_tokens: at most so many are written; twice the window and some when None.

    Raises:
        RegistryError: there is no such project or version.
        AdapterError: the adapter's files are damaged or do not fit the base.
        ModelError: the base is not there, or has no markers for a form of next edits.
        DataError: the repository cannot be read, or the window is too long for the model.
    """
    from mlx_gardener.adapter import PeftManager, attach_adapter
    from mlx_gardener.adapter.base import base_name, load_adapter_base
    from mlx_gardener.config import load_config
    from mlx_gardener.dataset.edit_forms import ZETA_END, edit_form, edit_prompt
    from mlx_gardener.dataset.edits import example_at
    from mlx_gardener.engine.facts import model_facts
    from mlx_gardener.evaluate.complete import whole_characters, written_ids
    from mlx_gardener.runs.parent import without_forgotten
    from mlx_gardener.source.uncommitted import uncommitted_changes

    registry = ProjectRegistry()
    record = registry.get_adapter(project, version)
    adapter = PeftManager(registry).load_adapter(project, record.version)
    base = load_adapter_base(base_name(registry, record), adapter)
    if edit_form(base.tokenizer) is None:
        raise ModelError(
            f"The base of {project!r} has no markers for a form of next edits.",
            next_step="Train on a base with Qwen's or Seed-Coder's markers; plain completions work with any.",
        )
    data, root = without_forgotten(load_config(), registry, project).data, registry.get_project(project).path
    recent = uncommitted_changes(root, data, most=_MOST_FILES, always=path)
    note = what_lacks(root, recent, adapter.manifest if with_adapter else {}, project)
    recent = [change for change in recent if change.path != path or change.after == text]
    example = example_at(path, text, min(line - 1, text.count("\n")), recent)
    window = len(base.tokenizer.encode(example.current)) + 1
    most_new = 2 * window + 64 if max_tokens is None else max_tokens
    found = edit_prompt(example, base.tokenizer, model_facts(base.path).max_tokens - most_new + window)
    if found is None:
        raise DataError(
            f"The lines around {path}:{line} are too long for this model.",
            next_step="Name a place with shorter lines.",
        )
    with attach_adapter(base, adapter) if with_adapter else nullcontext():
        ids = [token for token, _ in written_ids(base, found[0], max_new_tokens=most_new)]
    written = whole_characters(base.tokenizer.decode(ids)).removesuffix(ZETA_END)
    after = written.rstrip("\n") + example.current[len(example.current.rstrip("\n")) :]
    why = (
        "its answer did not end"
        if len(ids) == most_new
        else "it wrote nothing"
        if not written.strip()
        else ""
    )
    rows, size = text.split("\n"), example.current.count("\n") + 1
    made = rows if why else [*rows[: example.line - 1], *after.split("\n"), *rows[example.line - 1 + size :]]
    diff = "\n".join(unified_diff(rows, made, f"a/{path}", f"b/{path}", lineterm=""))
    return NextEdit(
        project, record.version if with_adapter else None, record.base_model, path, example.line, example.current,
        example.current if why else after, diff, why, note,
    )  # fmt: skip


def what_lacks(root: Path, recent: Sequence[FileChange], manifest: Mapping[str, Any], project: str) -> str:
    """Why little can be expected of a next edit, with what to do about it; "" where nothing is known to lack.

    Args:
        recent: what was changed since the last commit.
        manifest: of the adapter that is asked; empty for the base alone.
    """
    from mlx_gardener.source.walk import Git

    if not recent and Git(root).ask("rev-parse", "--verify", "--quiet", "HEAD") is None:
        return (
            "There is no commit to tell changes by: commit (after `git init` where there is no git repository), change something, "
            "and ask again."
        )
    if not recent:
        return (
            "No file of the last commit was changed since, and a next edit follows from what was changed: "
            "change something near the line, and ask again."
        )
    learned = (manifest.get("data") or {}).get("summary")
    edits = (learned or {}).get("edits") or {}
    if learned and not edits.get("examples"):
        why = f" ({edits['why']})" if "why" in edits else ""
        return (
            f"The adapter has learned from no past edits{why}: where the repository has a history of commits by now, "
            f"`mlx-gardener train --fresh --project {project}` learns from it."
        )
    return ""
