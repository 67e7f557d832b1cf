"""The parsers of bytes that others wrote, one function each: what the property tests and the fuzzer call.

A target takes bytes and an empty directory to write them to. It returns when they gave a value or a `GardenerError` that
says what to do next, and raises whatever else came of them. Files of a directory are parts of the bytes, see `parts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import subprocess
import tempfile
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pathspec

from mlx_gardener.adapter.imports import to_one_shape
from mlx_gardener.adapter.manifest import (
    LoadedAdapter,
    load_adapter_directory,
    read_manifest,
    verify_files,
)
from mlx_gardener.adapter.peft_files import read_peft
from mlx_gardener.config import DataConfig, load_config
from mlx_gardener.editors import jsonc
from mlx_gardener.editors.change import _without_values
from mlx_gardener.engine.bases import look_at
from mlx_gardener.engine.facts import model_facts
from mlx_gardener.engine.speed import _kept
from mlx_gardener.errors import GardenerError
from mlx_gardener.evaluate.complete import CaretPrompt
from mlx_gardener.events import TrainingPhase
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.choose import read_model_config
from mlx_gardener.model.gguf import gguf_facts, read_gguf
from mlx_gardener.model.lora import lora_parameters
from mlx_gardener.model.stores.folders import hub_bases
from mlx_gardener.model.stores.ollama import ollama_bases
from mlx_gardener.model.tokens import load_tokenizer
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.registry.names import check_project_name, place_below, project_name_for
from mlx_gardener.runs.job import LOG_NAME, Job
from mlx_gardener.runs.journal import read_journal
from mlx_gardener.serve.bodies import ChatBody, CompletionBody, InfillBody, LlamaCompletionBody, parse
from mlx_gardener.serve.catalog import Target as Served
from mlx_gardener.serve.indexes import Indexes, Lookup
from mlx_gardener.serve.lsp import Bounded, language_server
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.ollama_bodies import GenerateBody, OllamaChatBody
from mlx_gardener.serve.prompts import chat_prompt, completion_prompts, infill_prompt
from mlx_gardener.serve.reading import read_json
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import BadRequestError
from mlx_gardener.source.chunks import CodePreprocessor
from mlx_gardener.source.duplicates import content_key, signature_of
from mlx_gardener.source.filters import drop_by_bytes, drop_by_path, drop_by_text
from mlx_gardener.source.secrets import TooManySecretsError, find_secrets
from mlx_gardener.source.walk import marked_paths, read_ignore
from mlx_gardener.training.checkpoint import load_checkpoint, newest_origin
from mlx_gardener.ui.answers import as_json
from mlx_gardener.ui.watching import Watched
from tests.guard import served
from tests.guard.seeds import CUT, SUFFIXES, safetensors
from tests.model.gguf.files import smallest_file

Target = Callable[[bytes, Path], None]


def parts(data: bytes, count: int) -> list[bytes]:
    """``data`` as ``count`` files, cut at `CUT`; missing ones are empty."""
    return (data.split(CUT, count - 1) + [b""] * count)[:count]


@contextlib.contextmanager
def may_refuse() -> Iterator[None]:
    """A refusal is an answer, if it says what to do next."""
    try:
        yield
    except GardenerError as error:
        assert error.message and error.next_step, f"no next step: {error!r}"


#: What reading takes of itself, however small a file is: objects and buffers.
_OWN_BYTES = 4 * 2**20


@contextlib.contextmanager
def allocates_at_most(limit: int) -> Iterator[None]:
    """Whether what is done takes no more memory at once, of Python's and numpy's."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak > limit:
        raise MemoryError(f"{peak:,} bytes, and {limit:,} are allowed")


def source(data: bytes, directory: Path) -> None:
    """A source file: the first byte chooses the language, the rest is looked at as the scan does."""
    path = "code" + SUFFIXES[data[0] % len(SUFFIXES)] if data else "code.py"
    raw, config = data[1:], DataConfig()
    drop_by_bytes(raw, config)
    text = raw.decode(errors="ignore")
    whole = text.encode()
    if whole.strip():
        drop_by_path(path, config)
        drop_by_text(path, text, config)
    with contextlib.suppress(TooManySecretsError):
        find_secrets(text)
    content_key(text)
    signature_of(text)
    covered = 0
    for chunk in CodePreprocessor(config).preprocess_file(path, text):
        assert covered <= chunk.start_byte < chunk.end_byte <= len(whole), "chunks lie side by side"
        assert not whole[covered : chunk.start_byte].strip(), "nothing is left out between chunks"
        assert 1 <= chunk.start_line <= chunk.end_line
        assert 0.0 <= chunk.metadata["quality"] <= 1.0
        covered = chunk.end_byte


def ignore(data: bytes, directory: Path) -> None:
    """A .gitignore, and a name that is matched against it."""
    name, content = parts(data, 2)
    file = directory / ".gitignore"
    file.write_bytes(content)
    spec = read_ignore(file)
    assert isinstance(spec, pathspec.GitIgnoreSpec)
    for path in (name.decode(errors="surrogateescape"), "a" * 200, "a/b/c/d.py", "b" * 60 + "/"):
        spec.match_file(path)


def attributes(data: bytes, directory: Path) -> None:
    """A .gitattributes, read by git, whose answer we parse; and names of files as no system makes them."""
    names, content = parts(data, 2)
    if not (directory / ".git").exists():
        subprocess.run(("git", "init", "-q", str(directory)), check=True, capture_output=True)
    (directory / ".gitattributes").write_bytes(content)
    paths = [name.decode(errors="surrogateescape") for name in names.split(b"\n") if b"\0" not in name]
    marked = marked_paths(directory, paths)
    assert set(marked) <= set(paths) and set(marked.values()) <= {"generated", "vendored"}


def config(data: bytes, directory: Path) -> None:
    """A settings file."""
    file = directory / "gardener.toml"
    file.write_bytes(data)
    with may_refuse():
        load_config(file, environment={})


def adapter(data: bytes, directory: Path) -> None:
    """An adapter's directory: manifest, settings and weights."""
    manifest, settings, weights = parts(data, 3)
    form = directory / "mlx"
    form.mkdir(exist_ok=True)
    (directory / "manifest.json").write_bytes(manifest)
    (form / "adapter_config.json").write_bytes(settings)
    (form / "adapters.safetensors").write_bytes(weights)
    with may_refuse():
        verify_files(directory, read_manifest(directory))
    with may_refuse():
        loaded = load_adapter_directory(directory)
        assert isinstance(loaded, LoadedAdapter)
        assert sum(array.nbytes for array in loaded.weights.values()) <= len(weights)


def checkpoint(data: bytes, directory: Path) -> None:
    """A checkpoint whose sums are right, whatever it holds; and the same with sums of somebody else."""
    body, state, weights = parts(data, 3)
    place = directory / "step-00000001"
    place.mkdir(exist_ok=True)
    names = [f"{name}.safetensors" for name in ("weights", "best", "optimizer")]
    for name in names:
        (place / name).write_bytes(weights)
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(body)
        if isinstance(value, dict):
            value["files"] = dict.fromkeys(names, hashlib.sha256(weights).hexdigest())
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        (place / "state.json").write_text(json.dumps({"sha256": digest, "body": value}))
        _look_at_checkpoint(directory)
    (place / "state.json").write_bytes(state)
    _look_at_checkpoint(directory)


def _look_at_checkpoint(directory: Path) -> None:
    from mlx_gardener.config import TrainingConfig
    from mlx_gardener.runs.recovery import plan_of

    with may_refuse():
        found = newest_origin(directory)
        plan_of(found[1] if found else None, TrainingConfig())
        load_checkpoint(directory, fingerprint="0" * 64, warn=lambda message: None)


def journal(data: bytes, directory: Path) -> None:
    """A journal of another version, or with half lines, and a log; what is read can be shown and written again, by the page, too."""
    from io import StringIO

    from rich.console import Console

    from mlx_gardener.report.live import LiveView

    file = directory / "events.jsonl"
    file.write_bytes(data)
    events, offset = read_journal(file)
    assert 0 <= offset <= len(data) and (offset == 0 or data[offset - 1 : offset] == b"\n")
    shown = StringIO()
    with LiveView(Console(file=shown, force_terminal=False, width=100), project="fuzz") as view:
        for event in events:
            json.dumps(event.to_json())
            view(event)
    assert not set(shown.getvalue()) - {"\n"} - set(filter(str.isprintable, shown.getvalue()))
    (directory / LOG_NAME).write_bytes(data)
    status, phase = TrainingStatus.TRAINING, TrainingPhase.TRAINING
    config = {"model": "seedling", "memory_limit_gb": 1.0}
    record = TrainingRecord(
        "a", "p", status, phase, 1.0, "m", {}, directory, None, config, {}, 1.0, 1.0, None
    )
    json.dumps(as_json(Watched(record).look(record)), allow_nan=False)


def model(data: bytes, directory: Path) -> None:
    """A model's config.json and the header of its weights."""
    written, weights = parts(data, 2)
    (directory / "config.json").write_bytes(written)
    (directory / "model.safetensors").write_bytes(weights)
    with may_refuse():
        read_model_config(directory)
        model_facts(directory)


def tokenizer(data: bytes, directory: Path) -> None:
    """A model's tokenizer.json and tokenizer_config.json."""
    written, settings = parts(data, 2)
    (directory / "tokenizer.json").write_bytes(written)
    (directory / "tokenizer_config.json").write_bytes(settings)
    with may_refuse():
        found = load_tokenizer(directory)
        ids = found.encode("def f(x):\n    return x\n")
        assert all(0 <= index < found.vocab_size for index in ids)


@cache
def _import_for_gguf() -> None:
    """Reads a file, for the modules that are imported for it, which take megabytes once."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        file.write_bytes(smallest_file())
        gguf_facts(file)
        read_gguf(file, Path(place) / "bases")


def gguf(data: bytes, directory: Path) -> None:
    """A GGUF file: its facts, and the folder that it is read into; neither takes more memory than four times the file."""
    _import_for_gguf()
    (directory / "model.gguf").write_bytes(data)
    with may_refuse():
        with allocates_at_most(4 * len(data) + _OWN_BYTES):
            gguf_facts(directory / "model.gguf")
            folder = read_gguf(directory / "model.gguf", directory / "bases")
        model_facts(folder)
        load_tokenizer(folder)


def stores(data: bytes, directory: Path) -> None:
    """What other programs keep beside models: a manifest of Ollama's, config.json, a tokenizer, a model card, licence text."""
    manifest, written, words, card, licence = parts(data, 5)
    named = directory / "manifests/registry.ollama.ai/library/a/latest"
    folder = directory / "models--org--a/snapshots/main"
    for place in (named.parent, folder, directory / "blobs"):
        place.mkdir(parents=True, exist_ok=True)
    named.write_bytes(manifest)
    (directory / "blobs" / f"sha256-{'0' * 64}").write_bytes(licence)
    (folder / "config.json").write_bytes(written)
    (folder / "tokenizer.json").write_bytes(words)
    (folder / "README.md").write_bytes(card)
    (folder / "model.safetensors").write_bytes(safetensors({}))
    found = [*ollama_bases(directory), *hub_bases(directory, "hf")]
    assert [base.name for base in found] == ["ollama:a:latest", "hf:org/a"]
    assert all(base.path.resolve().is_relative_to(directory.resolve()) for base in found)
    for known in look_at(found):
        json.dumps(known.base.to_json())


@cache
def _base() -> BaseModel:
    return load_base("seedling")


@cache
def _lookup() -> Lookup:
    """Of a base alone, which has no repository to look into."""
    metrics = Metrics()
    return Lookup(
        Indexes(ProjectRegistry(), "off", metrics), metrics, Served("seedling", "seedling", "seedling", None)
    )


def peft(data: bytes, directory: Path) -> None:
    """An adapter as PEFT saves it: settings and weights, brought into the shape that the embedded model takes."""
    settings, weights = parts(data, 2)
    (directory / "adapter_config.json").write_bytes(settings)
    (directory / "adapter_model.safetensors").write_bytes(weights)
    with may_refuse():
        found = read_peft(directory)
        found.scale_of("model.layers.0.self_attn.q_proj")
        shaped, written = to_one_shape(found, _base())
        rank = written.rank
        assert all(rank in array.shape for name, array in shaped.items() if not name.endswith(".m"))
    assert not lora_parameters(_base().model), "the base is left as it was"


def requests(data: bytes, directory: Path) -> None:
    """A request's body, as far as the tokens that the model is shown."""

    def chat_ids(body: ChatBody | OllamaChatBody, *more: Any) -> list[CaretPrompt]:
        base, room, limits, _ = more
        text = "\n".join(message.plain()["content"] for message in body.messages)
        return chat_prompt(text, base, room, limits)

    def llama_ids(body: LlamaCompletionBody, *more: Any) -> list[CaretPrompt]:
        return completion_prompts(CompletionBody(prompt=body.prompt), *more)

    def generate_ids(body: GenerateBody, *more: Any) -> list[CaretPrompt]:
        if body.suffix and not body.raw:
            return infill_prompt(body.infill(), *more)
        return completion_prompts(body.completion(), *more)

    kinds: list[tuple[Any, Callable[..., list[CaretPrompt]]]] = [
        (CompletionBody, completion_prompts), (InfillBody, infill_prompt), (ChatBody, chat_ids),
        (LlamaCompletionBody, llama_ids), (GenerateBody, generate_ids), (OllamaChatBody, chat_ids),
    ]  # fmt: skip
    kind, prompts_of = kinds[data[0] % len(kinds)] if data else kinds[0]
    with contextlib.suppress(BadRequestError):  # which says what would be possible
        body, _ = parse(kind, read_json(data[1:]))
        if isinstance(body, GenerateBody | OllamaChatBody):
            assert isinstance(body.unloads, bool) and len(body.ignored()) <= len(body.options) + 1
            sampled = body.sampled()
        else:
            sampled = body
        sampled.sampling()
        limits = sampled.limits(1024)
        assert 0 <= limits.max_tokens <= 1024
        for prompt in prompts_of(body, _base(), 2048, limits, _lookup()):
            ids = prompt.ids
            least = min(1, limits.max_tokens) if limits.as_fits else limits.max_tokens
            assert 0 < len(ids) <= 2048 - least
            assert all(0 <= index < _base().tokenizer.vocab_size for index in ids)


def messages(data: bytes, directory: Path) -> None:
    """What an editor sends to the language server, as messages of its protocol or as bytes: ours never fails."""
    from pygls.io_ import StdinAsyncReader, run_async

    framed = (b"Content-Length: %d\r\n\r\n" % len(body) + body for body in data[1:].split(CUT))
    stream = data[1:] if data[:1] == b"\0" else b"".join(framed)
    asked: list[int] = []

    async def ask(project: str | None, path: str, prefix: str, suffix: str) -> str:
        asked.append(len(path) + len(prefix) + len(suffix))
        return prefix[-3:]

    async def read() -> None:
        server = language_server(_registry(), ServeSettings(), ask)
        failures: list[Exception] = []
        server.report_server_error = lambda error, source: failures.append(error)  # type: ignore[method-assign,assignment]
        server.protocol.set_writer(_Sink())
        reader = StdinAsyncReader(Bounded(io.BytesIO(stream)), server.thread_pool)
        with contextlib.suppress(SystemExit):  # it was told to exit
            await run_async(threading.Event(), reader, server.protocol)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        failures += [
            found
            for found in await asyncio.gather(*others, return_exceptions=True)
            if isinstance(found, Exception)
        ]
        server.shutdown()
        for failure in failures:
            frames = traceback.extract_tb(failure.__traceback__)
            if frames and "mlx_gardener" in frames[-1].filename:
                raise failure

    logging.getLogger("pygls").setLevel(logging.CRITICAL + 1)  # as the command has it
    with contextlib.suppress(SystemExit), may_refuse():
        asyncio.run(read())


class _Sink:
    """Where answers go."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


@cache
def _registry() -> ProjectRegistry:
    return ProjectRegistry(tempfile.mkdtemp())


def editor_settings(data: bytes, directory: Path) -> None:
    """An editor's settings: what is put there is there, alone, and what is taken out again leaves them as they were."""
    text = data[1:].decode(errors="replace")
    keys = (("a", "b", "c"), ("a",), ("edit_predictions", "open_ai_compatible_api"))[
        data[0] % 3 if data else 0
    ]
    with may_refuse():
        before = jsonc.read(text)
        changed = jsonc.put(text, keys, {"url": "http://127.0.0.1:1/"})
        assert jsonc.value_at(changed, keys) == {"url": "http://127.0.0.1:1/"}
        undone, left = _without_values(changed, text, [[list(keys), {"url": "http://127.0.0.1:1/"}]])
        assert not left and jsonc.read(undone) == before


def run_files(data: bytes, directory: Path) -> None:
    """The small files of a run and of the cache: job, and the backend's speeds."""
    (directory / "job.json").write_bytes(data)
    (directory / "backend.json").write_bytes(data)
    with may_refuse():
        Job.read(directory)
    _kept(directory)


def names(data: bytes, directory: Path) -> None:
    """Names of projects, and places that a registry names: what is accepted stays below the home."""
    text = data.decode(errors="surrogateescape")
    home = directory / "home"
    with may_refuse():
        check_project_name(text)
        assert (home / text).resolve().parent == home.resolve()
    if "\0" not in text:
        check_project_name(project_name_for(directory / text))
    with may_refuse():
        place = place_below(home, text, "own")
        assert place.resolve().is_relative_to((home / "projects" / "own").resolve())


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        source,
        ignore,
        attributes,
        config,
        adapter,
        checkpoint,
        journal,
        model,
        tokenizer,
        gguf,
        stores,
        peft,
        requests,
        messages,
        editor_settings,
        run_files,
        names,
        served.endpoints,
        served.tools,
        served.edits,
    )
}
