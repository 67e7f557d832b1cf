"""Models in folders: MLX folders and GGUF files below a directory, as LM Studio, Jan, oMLX and the hub's cache keep them.

In: a directory. Out: `StoredBase`s, without a file of them being opened. Links within the directory are followed; what a
link leads out of it is named, with the reason, and left alone. Cost: one listing of each directory, at most 20,000 entries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import cached_file, read_bytes, read_head

#: Deeper than any store nests, and more than any has: a disk's root that was named by mistake ends soon.
_DEPTH, _ENTRIES = 6, 20_000
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class StoredBase:
    """A model that lies on this machine.

    Attributes:
        name: what `choose_model` takes, and its owner calls it: ``ollama:qwen2.5-coder:1.5b``.
        store: hf, ollama, lmstudio, llamacpp, jan, omlx, path or embedded.
        path: its MLX folder, or its GGUF file, of several shards the first.
        is_gguf: which of the two.
        files: a GGUF's shards; empty for a folder.
        licence: as the store says; None where it does not.
        why_not: what stands against training on it that can be seen without opening it.
    """

    name: str
    store: str
    path: Path
    is_gguf: bool
    files: tuple[Path, ...] = ()
    licence: str | None = None
    why_not: str | None = None


def place_of(path: Path) -> Path:
    """Where a model is, by its own name: in the hub's cache a shard is a link to a blob, whose name tells no others."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def bases_below(root: Path, store: str, name_of: Callable[[str], str]) -> Iterator[StoredBase]:
    """All models below ``root``.

    Args:
        name_of: the name of what lies at a path relative to ``root`` (with ``/``; empty for ``root`` itself).
    """
    left = _ENTRIES
    waiting = [(root, 0, False)]  # directory, how deep, whether within a model's folder
    while waiting:
        directory, depth, within = waiting.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue  # another user's: it is not for us to see
        left -= len(entries)
        if left < 0:
            return
        names = {entry.name for entry in entries}
        below = directory.relative_to(root).as_posix().removeprefix(".")
        is_folder = "config.json" in names or "adapter_config.json" in names
        if is_folder and not within:  # those within one are parts of it: tokenizers, poolings, other formats
            yield _folder(directory, names, store, name_of(below))
        yield from _ggufs(directory, names, root, store, name_of, below)
        inside = [entry for entry in entries if _may_be_directory(entry)]
        for entry in reversed(inside):
            path = directory / entry.name
            if entry.is_symlink() and not _within(path, root):
                if (path / "config.json").is_file():
                    yield StoredBase(
                        name_of(f"{below}/{entry.name}".strip("/")),
                        store,
                        path,
                        False,
                        why_not=_leads_out(path),
                    )
            elif depth < _DEPTH and not entry.is_symlink():
                waiting.append((path, depth + 1, within or is_folder))


def hub_bases(root: Path, store: str) -> Iterator[StoredBase]:
    """The models in a cache of the hub's layout, each in the snapshot that its ``main`` means, else in the newest."""
    try:
        repositories = sorted(path for path in root.glob("models--*") if path.is_dir())
    except OSError:
        return
    for repository in repositories:
        snapshot = _snapshot(repository)
        if snapshot is None:
            continue
        name = repository.name.removeprefix("models--").replace("--", "/", 1)

        def name_of(below: str, name: str = name) -> str:
            return f"{store}:{name}/{below}".rstrip("/")

        licence = card_licence(snapshot)
        for found in bases_below(snapshot, store, name_of):
            if (
                found.path == snapshot or found.is_gguf
            ):  # folders within one are tokenizers, onnx and the like
                yield StoredBase(**{**vars(found), "licence": licence})


def _snapshot(repository: Path) -> Path | None:
    try:
        commit = read_bytes(repository / "refs" / "main", max_bytes=256).decode().strip()
        named = repository / "snapshots" / commit
        if "/" not in commit and commit not in (".", "..") and named.is_dir():
            return named
    except (OSError, ValueError):
        pass  # llama.cpp and others need no reference
    try:
        snapshots = [path for path in (repository / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return None
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _folder(directory: Path, names: set[str], store: str, name: str) -> StoredBase:
    why_not = None
    if "config.json" not in names:
        why_not = "it is an adapter, not a base"
    return StoredBase(name, store, directory, False, why_not=why_not, licence=card_licence(directory))


def _ggufs(
    directory: Path, names: set[str], root: Path, store: str, name_of: Callable[[str], str], below: str
) -> Iterator[StoredBase]:
    shards: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf"):
            match = _SHARD.fullmatch(name)
            shards.setdefault(name if match is None else f"{match[1]}-of-{match[3]}", []).append(name)
    for group in shards.values():
        match = _SHARD.fullmatch(group[0])
        title = group[0] if match is None else f"{match[1]}.gguf"
        files = tuple(directory / name for name in group)
        why_not = next((reason for file in files if (reason := _why_no_file(file, root))), None)
        if match is not None and why_not is None and len(group) != int(match[3]):
            why_not = f"{int(match[3]) - len(group)} of its {int(match[3])} shards are not here"
        name = name_of(f"{below}/{title}".strip("/"))
        yield StoredBase(name, store, files[0], True, files=files, why_not=why_not)


def _why_no_file(file: Path, root: Path) -> str | None:
    """Why a GGUF file is left alone, seen from outside."""
    try:
        if not file.is_symlink():
            return None if file.is_file() else "it is no plain file"
        if _within(file, root):
            return None if file.is_file() else "it is a link to nothing"
        cached_file(file)
        return None
    except ValueError:
        return _leads_out(file)
    except OSError as error:
        return f"it cannot be read ({reason_of(error)})"


def _leads_out(path: Path) -> str:
    return f"it is a link out of its store: name {os.path.realpath(path)} itself"


def _within(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _may_be_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(".")
    except OSError:
        return False


def card_licence(directory: Path) -> str | None:
    """The licence that the head of a model card names; None without a card, or where it names none."""
    try:
        head = read_head(directory / "README.md", 64 * 1024).decode(errors="replace")
    except (OSError, ValueError):
        return None
    match = re.match(r"---\s*\n(.*?)\n---\s*\n", head, re.DOTALL)
    if match is None:
        return None
    found = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([\w.+/ -]{1,60})", match[1], re.MULTILINE))
    licence = found.get("license_name") if found.get("license") == "other" else found.get("license")
    return licence.strip() if licence else found.get("license")


#: What models that write no text are called, and files that say so of others.
_NO_WRITERS = re.compile(r"embedding|embed(?![a-z])|rerank", re.IGNORECASE)
EMBEDS = "it makes embeddings, not text"
_EMBEDDING_FILES = ("modules.json", "config_sentence_transformers.json")


def is_called_embedding(name: str) -> bool:
    """Whether a model is called as those are that make embeddings, though many are built as those that write text."""
    return _NO_WRITERS.search(name) is not None


def why_no_base(directory: Path, config: dict[str, object]) -> str | None:
    """Why the model in a folder is none that writes text by an architecture known to mlx-lm; None where it is one."""
    kinds = config.get("architectures")
    named = [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []
    repository = next((place.parent.name for place in directory.parents if place.name == "snapshots"), "")
    if any((directory / name).exists() for name in _EMBEDDING_FILES) or is_called_embedding(
        repository or directory.name
    ):
        return EMBEDS
    writes = [
        kind for kind in named if kind.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel"))
    ]
    if named and not writes:
        return f"it is a {named[0]}, which writes no text"
    if (directory / "adapter_config.json").exists():
        return "it is an adapter, not a base"
    if not _is_known_to_mlx_lm(str(config["model_type"])):
        return f"its architecture {config['model_type']!r} is not known to mlx-lm"
    return None


def _is_known_to_mlx_lm(model_type: str) -> bool:
    """Whether mlx-lm has the architecture; the library, which takes seconds to import, is asked only for other names of it."""
    from importlib.util import find_spec

    package = find_spec("mlx_lm")
    models = (
        [Path(place) / "models" for place in (package.submodule_search_locations or ())] if package else []
    )
    if any((place / f"{model_type}.py").is_file() for place in models):
        return True
    from mlx_lm.utils import MODEL_REMAPPING

    return model_type in MODEL_REMAPPING
