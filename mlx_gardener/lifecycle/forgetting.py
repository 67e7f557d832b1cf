"""Forgetting a path: leave it out for ever, train again from scratch, and show what is left of it.

A LoRA adapter cannot unlearn a file; one that never saw it has nothing to unlearn. Shown are, for the base, the version
before and the one after: bits per byte on the path, and how often its text goes on verbatim when its beginning is given.
Cost: a training, and the base loaded once more, within the same budget.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlx_gardener.dataset import Earlier
from mlx_gardener.errors import AdapterError, DataError, RegistryError
from mlx_gardener.platform.files import is_directory
from mlx_gardener.platform.untrusted import read_bytes
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.manager import TrainingPipeline, completed_training
from mlx_gardener.runs.parent import knows

if TYPE_CHECKING:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.engine import Engine
    from mlx_gardener.model import BaseModel

#: Places tried, tokens shown before each and tokens that must follow exactly.
PLACES, SHOWN_TOKENS, VERBATIM_TOKENS = 24, 48, 12
_MAX_FILES, _MAX_FILE_BYTES, _WIDTH = 50, 200_000, 512


@dataclass(frozen=True)
class Recall:
    """How well something knows a text: bits per byte, and the share of places that go on verbatim.

    ``verbatim`` is None where weights are read from disk for every token that is written, which would take hours.
    """

    who: str
    bits_per_byte: float
    verbatim: float | None


@dataclass(frozen=True)
class Knowing:
    """Versions that have ``learned`` from a path, and those of which that ``cannot_be_known``: imported ones, mostly."""

    learned: tuple[str, ...]
    cannot_be_known: tuple[str, ...]


@dataclass(frozen=True)
class Forgotten:
    """``before`` is the version that was active, ``after`` the new one; ``recall`` is None where nothing could be measured, and
    ``is_gone`` where that is not known.

    ``knowing`` are versions that have learned from the path, ``purged`` those of them that were deleted;
    ``cannot_be_known`` those that do not say what they learned from. ``shown`` are the files that ``recall`` is over,
    ``not_shown`` what it is not over (files and versions), each with the reason.
    """

    path: str
    before: str | None
    after: str
    recall: tuple[Recall, ...] | None
    is_gone: bool | None
    knowing: tuple[str, ...]
    purged: tuple[str, ...]
    cannot_be_known: tuple[str, ...]
    shown: tuple[str, ...]
    not_shown: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types."""
        return asdict(self)


def clean_path(root: Path, path: str) -> str:
    """``path`` as from the repository's root, with forward slashes.

    Raises:
        DataError: it lies outside, or is the root itself.
    """
    given = Path(path)
    pure = PurePosixPath(
        given.relative_to(root).as_posix() if given.is_absolute() and given.is_relative_to(root) else path
    )
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise DataError(
            f"{path!r} is no path within {root.name!r}.",
            next_step="Name a file or directory of the repository.",
        )
    return pure.as_posix()


def forget(
    pipeline: TrainingPipeline,
    project: str,
    path: str,
    *,
    purge: bool = False,
    run: Callable[[], None],
    tell: Callable[[str], None] | None = None,
) -> Forgotten:
    """Leave ``path`` out of the project from now on, train it again without, and compare.

    A version that has learned from the path is active no more afterwards, whatever the new one's verdict.

    Args:
        purge: delete versions that have learned from it, checkpoints of earlier runs and the cache of its tokens. Versions
            that do not say what they learned from stay.
        run: waits for the training that was started, and may show it.
        tell: told what is being done.

    Raises:
        DataError: the path lies outside of the repository, neither it nor any version has it, or the repository is gone.
        TrainingError: the project is being trained; or the training failed, and the path stays left out.
        AdapterError, ModelError, MemoryBudgetError: it is trained, but what is left could not be measured; nothing was purged then.
    """
    say = tell or (lambda text: None)
    registry = pipeline.registry
    found = registry.get_project(project)
    path = find_path(registry, project, path)
    texts, not_shown = _texts(found.path, path)
    was_forgotten = path in registry.forgotten_paths(project)
    registry.forget_path(project, path)  # before the training, which leaves out what is recorded here
    try:
        pipeline.start_training(project, fresh=True)
    except BaseException:
        if not was_forgotten:
            registry.remember_path(project, path)
        raise
    run()
    after = completed_training(pipeline, project).result["adapter_version"]
    all_knowing = versions_that_know(registry, project, path)
    knowing = [version for version in all_knowing.learned if version != after]
    if registry.get_project(project).active_adapter in knowing:
        registry.activate_adapter(project, None)
    before = found.active_adapter
    recall = None
    if texts:
        say("Comparing what is left of it")
        versions = [version for version in (before, after) if version]
        recall, others = _recall(registry, project, versions, texts, pipeline.config)
        not_shown |= others
    is_gone = None if recall is None else _is_gone(recall, before, after)
    purged: list[str] = []
    if purge:
        say("Deleting what knew it")
        purged = _purge(registry, project, knowing)
    return Forgotten(
        path,
        before,
        after,
        recall,
        is_gone,
        tuple(knowing),
        tuple(purged),
        tuple(version for version in all_knowing.cannot_be_known if version != after),
        tuple(texts) if recall is not None else (),
        not_shown,
    )


def find_path(registry: ProjectRegistry, project: str, path: str) -> str:
    """``path`` as `clean_path`, when the repository or a version of the project's adapter has it.

    Raises:
        DataError: it lies outside, or nothing has it; offers near names.
    """
    from mlx_gardener.source.walk import list_files

    root = registry.get_project(project).path
    path = clean_path(root, path)
    names = set(list_files(root)) if is_directory(root) else set()
    for earlier in _earlier(registry, project).values():
        names |= set() if earlier is None else earlier.files.keys()
    names |= {parent.as_posix() for name in names for parent in PurePosixPath(name).parents} - {"."}
    if path in names or os.path.lexists(root / path):
        return path
    near = difflib.get_close_matches(path, sorted(names), n=3, cutoff=0.5)
    if not near:  # the right name at another place
        near = sorted(name for name in names if PurePosixPath(name).name == PurePosixPath(path).name)[:3]
    raise DataError(
        f"Neither the repository of {project!r} nor a version of its adapter has {path!r}.",
        next_step=f"Did you mean {', '.join(near)}?" if near else "Name it as from the repository's root.",
    )


def versions_that_know(registry: ProjectRegistry, project: str, path: str) -> Knowing:
    """Which versions have learned from a path, and which do not say what they learned from."""
    found = _earlier(registry, project)
    return Knowing(
        tuple(version for version, earlier in found.items() if earlier is not None and knows(earlier, path)),
        tuple(version for version, earlier in found.items() if earlier is None),
    )


def _earlier(registry: ProjectRegistry, project: str) -> dict[str, Earlier | None]:
    """What each version knows; None where its manifest does not say it, or cannot be read."""
    from mlx_gardener.adapter.manifest import read_manifest

    found: dict[str, Earlier | None] = {}
    for record in registry.list_adapters(project):
        try:
            found[record.version] = Earlier.of_manifest(record.version, read_manifest(record.directory))
        except AdapterError:
            found[record.version] = None
    return found


def _texts(root: Path, path: str) -> tuple[dict[str, str], dict[str, str]]:
    """Texts below ``path`` by their own paths, as far as they are there, and why others are not measured."""
    from mlx_gardener.source import decode_source
    from mlx_gardener.source.walk import list_files

    texts: dict[str, str] = {}
    without: dict[str, str] = {}
    for name in list_files(root) if is_directory(root) else ():
        file = root / name
        if name != path and not name.startswith(f"{path}/"):
            continue
        if file.is_symlink() or not file.is_file():
            without[name] = "it is no plain file"
        elif file.stat().st_size > _MAX_FILE_BYTES:
            without[name] = f"it is longer than {_MAX_FILE_BYTES:,} bytes"
        elif len(texts) >= _MAX_FILES:
            without[name] = f"only {_MAX_FILES} files are measured"
        else:
            try:
                texts[name] = decode_source(read_bytes(file, max_bytes=_MAX_FILE_BYTES, follow_links=False))
            except (OSError, ValueError):
                without[name] = "it cannot be read as text in UTF-8 or UTF-16"
            if not texts.get(name, "?"):
                del texts[name]
                without[name] = "it is empty"
    return texts, without


def _recall(
    registry: ProjectRegistry,
    project: str,
    versions: list[str],
    texts: dict[str, str],
    config: TrainingConfig,
) -> tuple[tuple[Recall, ...], dict[str, str]]:
    """How well the base and each version know the texts, and why others are not measured."""
    from mlx_gardener.adapter import PeftManager, attach_adapter
    from mlx_gardener.adapter.base import load_adapter_engine

    manager = PeftManager(registry)
    newest = manager.load_adapter(project, versions[-1])
    record = registry.get_adapter(project, versions[-1])
    base, engine = load_adapter_engine(registry, record, newest, config)
    found, without = [_measure("base", base, engine, texts)], dict[str, str]()
    for version in versions:
        try:
            adapter = manager.load_adapter(project, version)
        except (AdapterError, RegistryError) as error:
            without[version] = error.message
            continue
        if adapter.manifest["base"].get("weights_sha256") != base.weights_sha256:
            without[version] = "it belongs to another base model than the new version"
            continue
        with attach_adapter(base, adapter):
            found.append(_measure(version, base, engine, texts))
    return tuple(found), without


def _measure(who: str, base: BaseModel, engine: Engine, texts: dict[str, str]) -> Recall:
    from mlx_gardener.lifecycle.staleness import bits_per_byte_of

    verbatim = None if engine.streamed is not None else verbatim_rate(base, engine, texts)
    return Recall(who, bits_per_byte_of(base, engine, texts, (_WIDTH,)), verbatim)


def verbatim_rate(base: BaseModel, engine: Engine, texts: dict[str, str]) -> float:
    """Share of places, evenly spread, at which the text goes on exactly for `VERBATIM_TOKENS`, written greedily."""
    from mlx_gardener.evaluate.complete import build_prompt
    from mlx_gardener.evaluate.generate import generate_many

    spans = []
    for path, text in texts.items():
        ids = base.tokenizer.encode(text)
        last = len(ids) - VERBATIM_TOKENS
        spans += [(path, ids, at) for at in range(min(SHOWN_TOKENS, max(1, last)), last, VERBATIM_TOKENS)]
    spans = spans[:: max(1, len(spans) // PLACES)][:PLACES]
    prompts = [
        build_prompt(base.tokenizer, "", None, path) + ids[max(0, at - SHOWN_TOKENS) : at]
        for path, ids, at in spans
    ]
    answers = generate_many(base, prompts, max_new_tokens=VERBATIM_TOKENS, engine=engine)
    wanted = [tuple(ids[at : at + VERBATIM_TOKENS]) for _, ids, at in spans]
    hits = sum(answer.ids == right for answer, right in zip(answers, wanted, strict=True))
    return hits / max(1, len(spans))


def _is_gone(recall: tuple[Recall, ...], before: str | None, after: str) -> bool | None:
    """Whether the new version goes on verbatim no more often than the base, or than half as often as before; None for unknown."""
    found = {item.who: item.verbatim for item in recall}
    base, new, old = found["base"], found[after], found.get(before or "")
    if base is None or new is None:
        return None
    return new <= max(base, (old or 0.0) / 2)


def _purge(registry: ProjectRegistry, project: str, versions: list[str]) -> list[str]:
    """Delete versions, the project's checkpoints but for the new training's result, and all cached tokens and answers."""
    from mlx_gardener.evaluate.registered import ANSWERS

    for version in versions:
        registry.remove_adapter(project, version, delete_files=True)
    runs = registry.project_directory(project) / "runs"
    for directory in sorted(runs.iterdir()) if runs.is_dir() else ():
        registry.remove_run(project, directory)
    for cache in ("cache/tokens", ANSWERS):
        registry.discard(registry.home / cache)
    return versions
