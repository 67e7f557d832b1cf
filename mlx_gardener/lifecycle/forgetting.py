"""Forgetting a path: leave it out for ever, train again from scratch, and show what is left of it.

A LoRA adapter cannot unlearn a file; one that never saw it has nothing to unlearn. Shown are, for the base, the version
before and the one after: bits per byte on the path, and how often its text goes on verbatim when its beginning is given.
Cost: a training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlx_gardener.continuation import knows
from mlx_gardener.dataset import Earlier
from mlx_gardener.errors import DataError
from mlx_gardener.registry import ProjectRegistry

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel
    from mlx_gardener.trainings import TrainingPipeline

#: Places tried, tokens shown before each and tokens that must follow exactly.
PLACES, SHOWN_TOKENS, VERBATIM_TOKENS = 24, 48, 12
_MAX_FILES, _MAX_FILE_BYTES, _WIDTH = 50, 200_000, 512


@dataclass(frozen=True)
class Recall:
    """How well something knows a text: bits per byte, and the share of places that go on verbatim."""

    who: str
    bits_per_byte: float
    verbatim: float


@dataclass(frozen=True)
class Forgotten:
    """``before`` is the version that was active, ``after`` the new one; ``recall`` is None where the path is not there to
    measure with. ``knowing`` are versions that have learned from the path, ``purged`` those of them that were deleted."""

    path: str
    before: str | None
    after: str
    recall: tuple[Recall, ...] | None
    is_gone: bool | None
    knowing: tuple[str, ...]
    purged: tuple[str, ...]

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
        purge: delete versions that have learned from it, checkpoints of earlier runs and the cache of its tokens.
        run: waits for the training that was started, and may show it.
        tell: told what is being done.

    Raises:
        DataError: the path lies outside of the repository.
        TrainingError: the training failed; the path stays left out.
    """
    from mlx_gardener.api import training_result

    say = tell or (lambda text: None)
    registry = pipeline.registry
    found = registry.get_project(project)
    path = clean_path(found.path, path)
    registry.forget_path(project, path)
    texts = _texts(found.path, path)
    pipeline.start_training(project, fresh=True)
    run()
    after = training_result(pipeline, project).adapter_version
    knowing = [version for version in versions_that_know(registry, project, path) if version != after]
    before = found.active_adapter
    recall = None
    if texts:
        say("Comparing what is left of it")
        recall = tuple(_recall(registry, project, [version for version in (before, after) if version], texts))
    is_gone = None if recall is None else _is_gone(recall, before, after)
    if registry.get_project(project).active_adapter in knowing:
        registry.activate_adapter(project, None)
    purged: list[str] = []
    if purge:
        say("Deleting what knew it")
        purged = _purge(registry, project, knowing)
    return Forgotten(path, before, after, recall, is_gone, tuple(knowing), tuple(purged))


def versions_that_know(registry: ProjectRegistry, project: str, path: str) -> list[str]:
    """Versions that have learned from a path, and those whose manifest does not say what they know."""
    from mlx_gardener.adapter.manifest import read_manifest

    found = []
    for record in registry.list_adapters(project):
        earlier = Earlier.of_manifest(record.version, read_manifest(record.directory))
        if earlier is None or knows(earlier, path):
            found.append(record.version)
    return found


def _texts(root: Path, path: str) -> dict[str, str]:
    """Texts below ``path`` by their own paths, as far as they are there; links are not followed."""
    from mlx_gardener.source import decode_source
    from mlx_gardener.source.walk import list_files

    texts: dict[str, str] = {}
    for name in list_files(root):
        file = root / name
        if (name == path or name.startswith(f"{path}/")) and file.is_file() and not file.is_symlink():
            if file.stat().st_size > _MAX_FILE_BYTES or len(texts) >= _MAX_FILES:
                continue
            try:
                texts[name] = decode_source(file.read_bytes())
            except UnicodeDecodeError:
                continue  # no text was ever learned from it
    return {name: text for name, text in texts.items() if text}


def _recall(
    registry: ProjectRegistry, project: str, versions: list[str], texts: dict[str, str]
) -> list[Recall]:
    from mlx_gardener.adapter import PeftManager, attach_adapter
    from mlx_gardener.adapter.base import base_name, load_adapter_base

    manager = PeftManager(registry)
    newest = manager.load_adapter(project, versions[-1])
    base = load_adapter_base(base_name(registry, registry.get_adapter(project, versions[-1])), newest)
    found = [_measure("base", base, texts)]
    for version in versions:
        adapter = manager.load_adapter(project, version)
        if adapter.manifest["base"]["weights_sha256"] != base.weights_sha256:
            continue  # of another base, it cannot be measured on this one
        with attach_adapter(base, adapter):
            found.append(_measure(version, base, texts))
    return found


def _measure(who: str, base: BaseModel, texts: dict[str, str]) -> Recall:
    from mlx_gardener.lifecycle.staleness import bits_per_byte_of

    return Recall(who, bits_per_byte_of(base, texts, width=_WIDTH), verbatim_rate(base, texts))


def verbatim_rate(base: BaseModel, texts: dict[str, str]) -> float:
    """Share of places, evenly spread, at which the text goes on exactly for `VERBATIM_TOKENS`, written greedily."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlx_gardener.evaluate.complete import build_prompt

    spans = []
    for path, text in texts.items():
        ids = base.tokenizer.encode(text)
        last = len(ids) - VERBATIM_TOKENS
        spans += [(path, ids, at) for at in range(min(SHOWN_TOKENS, max(1, last)), last, VERBATIM_TOKENS)]
    spans = spans[:: max(1, len(spans) // PLACES)][:PLACES]
    hits = 0
    for path, ids, at in spans:
        prompt = build_prompt(base.tokenizer, "", None, path) + ids[max(0, at - SHOWN_TOKENS) : at]
        wanted = ids[at : at + VERBATIM_TOKENS]
        for (token, _), right in zip(
            generate_step(mx.array(prompt), base.model, max_tokens=VERBATIM_TOKENS), wanted, strict=False
        ):
            if int(token) != right:
                break
        else:
            hits += 1
    return hits / max(1, len(spans))


def _is_gone(recall: tuple[Recall, ...], before: str | None, after: str) -> bool:
    """Whether the new version goes on verbatim no more often than the base, or than half as often as before."""
    found = {item.who: item for item in recall}
    old = found.get(before or "")
    limit = max(found["base"].verbatim, old.verbatim / 2 if old is not None else 0.0)
    return found[after].verbatim <= limit


def _purge(registry: ProjectRegistry, project: str, versions: list[str]) -> list[str]:
    """Delete versions, the project's checkpoints but for the new training's result, and all cached tokens."""
    for version in versions:
        registry.remove_adapter(project, version, delete_files=True)
    latest = registry.latest_training(project)
    runs = registry.project_directory(project) / "runs"
    for directory in runs.iterdir() if runs.is_dir() else ():
        if latest is None or directory != latest.run_dir:
            shutil.rmtree(directory)
    shutil.rmtree(registry.home / "cache" / "tokens", ignore_errors=True)
    return versions
