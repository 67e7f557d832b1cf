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
import struct
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
from gguf import GGMLQuantizationType as Kind

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
from mlx_gardener.source.languages import GRAMMARS, LANGUAGES
from mlx_gardener.source.secrets import TooManySecretsError, find_secrets
from mlx_gardener.source.walk import marked_paths, read_ignore
from mlx_gardener.training.checkpoint import load_checkpoint, newest_origin
from mlx_gardener.ui.answers import as_json
from mlx_gardener.ui.watching import Watched
from tests.guard import served
from tests.model.gguf.files import smallest_file

Target = Callable[[bytes, Path], None]

CUT = served.CUT
_GGUF_KINDS = (
    Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
    Kind.IQ4_NL, Kind.IQ4_XS, Kind.MXFP4,
)  # fmt: skip
_SUFFIX_OF = {language: suffix for suffix, language in reversed(LANGUAGES.items())}
_SUFFIXES = [_SUFFIX_OF[language] for language in (*GRAMMARS, "markdown", "json")]


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
    path = "code" + _SUFFIXES[data[0] % len(_SUFFIXES)] if data else "code.py"
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

    def chat_ids(body: ChatBody | OllamaChatBody, *more: Any) -> list[list[int]]:
        base, room, limits, _ = more
        text = "\n".join(message.plain()["content"] for message in body.messages)
        return chat_prompt(text, base, room, limits)

    def llama_ids(body: LlamaCompletionBody, *more: Any) -> list[list[int]]:
        return completion_prompts(CompletionBody(prompt=body.prompt), *more)

    def generate_ids(body: GenerateBody, *more: Any) -> list[list[int]]:
        if body.suffix and not body.raw:
            return infill_prompt(body.infill(), *more)
        return completion_prompts(body.completion(), *more)

    kinds: list[tuple[Any, Callable[..., list[list[int]]]]] = [
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
        for ids in prompts_of(body, _base(), 2048, limits, _lookup()):
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


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: what is usual, and what has been wrong before."""
    array = {"model.layers.0.q.lora_a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}
    good = safetensors(array, b"\0" * 8)
    huge = safetensors(
        {"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**60]}}, b"\0" * 8
    )
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 1, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    deep = b"[" * 100_000
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    pair = safetensors(
        {
            f"{place}A.weight": {"dtype": "F32", "shape": [1, 256], "data_offsets": [0, 1024]},
            f"{place}B.weight": {"dtype": "F32", "shape": [256, 1], "data_offsets": [1024, 2048]},
        },
        b"\0" * 2048,
    )
    lora = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    body = {
        "format_version": 2,
        "state": {"step": 1, "fingerprint": "0" * 64, "validation": [[1, 2.0, 1.0]]},
        "origin": {"config": {}, "plan": {"budget_bytes": 2**32, "rows_of_width": {"64": 1}, "notes": []}},
    }
    manifest = {
        "base": {"weights_sha256": ""}, "config": {}, "data": {}, "metrics": {}, "training": {},
        "files": {"mlx/adapter_config.json": {"sha256": "", "bytes": 1}},
    }  # fmt: skip
    sizes = {
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9,
        "num_experts": 4, "quantization": {"bits": 4}, "text_config": {},
    }  # fmt: skip
    codes = (
        b"class A:\n    def f(self):\n        return 1\n\n\ndef g(x):\n    import os\n    return x\n",
        b"import { a } from 'b';\nexport const f = () => { return a; };\n// c\nclass A { m() {} }\n",
        b"#include <a.h>\n#ifdef A\nint f(int a) { return a; }\n#endif\nnamespace a { namespace b { class C {}; } }\n",
        b'package a\n\nimport (\n\t"b"\n)\n\nfunc F() int { return 1 }\n',
        b"key = 'AKIAIOSFODNN7EXAMPLF'\nurl = 'https://user:hunter2abc@host'\n-----BEGIN PRIVATE KEY-----\n",
    )
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "ab": 3, "</s>": 4}
    words = {
        "version": "1.0",
        "added_tokens": [
            {"id": 4, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
        ],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]]},
    }  # fmt: skip
    digest = f"sha256:{'0' * 64}"
    layers = {
        "layers": [
            {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": 1}
            for kind in ("model", "license")
        ]
    }
    event = {"event": "WarningRaised", "message": "w", "timestamp": 1.0}
    step = {
        "event": "StepCompleted", "step": 1, "total_steps": 2, "epoch": 0.1, "loss": 2.0, "tokens": 3,
        "learning_rate": 0.1, "gradient_norm": 1.0, "seconds": 0.1, "tokens_per_second": 30.0, "memory_bytes": 1,
        "peak_bytes": 2, "budget_bytes": 3, "eta_seconds": None, "timestamp": 1.0,
    }  # fmt: skip
    prepared = {
        "event": "DataPrepared",
        "summary": {"languages": {"python": {"bytes": 3}}, "chunks_kept": 1, "files_kept": 1,
                    "train_loss_tokens": 5, "padding_fraction": 0.1},
    }  # fmt: skip
    planned = {
        "event": "PlanChosen",
        "plan": {"rows_of_width": {"64": 1}, "predicted_peak_bytes": 1, "budget_bytes": 2, "notes": ["n"]},
    }
    ended = {"event": "TrainingEnded", "phase": "completed", "message": "m", "result": {}}
    lines = [
        json.dumps(values).encode() + b"\n"
        for values in (event, step, prepared, planned, ended)
    ]  # fmt: skip
    job = {
        "training_id": "a", "project": "p", "config": {}, "resume": "never", "journal_offset": 0,
    }  # fmt: skip

    def text(value: object) -> bytes:
        return json.dumps(value).encode()

    def message(method: str, params: object, number: int | None = None) -> dict[str, object]:
        told = {"jsonrpc": "2.0", "method": method, "params": params}
        return told if number is None else told | {"id": number}

    opened, caret = {"uri": "file:///a/b%20c.py"}, {"line": 1, "character": 9}
    there = {"start": {"line": 0, "character": 1}, "end": caret}
    talk = [
        message("initialize", {"processId": None, "rootUri": None, "capabilities": {"general": {"positionEncodings": ["utf-8"]}}}, 1),
        message("initialized", {}),
        message("textDocument/didOpen", {"textDocument": opened | {"languageId": "python", "version": 1,
                "text": "a\f\u2028\r\n\U0001f600 = b"}}),
        message("textDocument/didChange", {"textDocument": opened | {"version": 2},
                "contentChanges": [{"range": there, "text": "x\n"}]}),
        message("textDocument/inlineCompletion", {"textDocument": opened, "position": caret, "context": {"triggerKind": 2}}, 2),
        message("$/cancelRequest", {"id": 2}),
        message("textDocument/inlineCompletion", {"textDocument": opened, "position": {"line": 9**9, "character": 0},
                "context": {"triggerKind": 1, "selectedCompletionInfo": {"range": there, "text": "\ud800"}}}, "3"),
        message("textDocument/didChange", {"textDocument": opened | {"version": 3}, "contentChanges": [{"text": "y"}]}),
        message("textDocument/didClose", {"textDocument": opened}),
        message("shutdown", None, 4),
        message("exit", None),
    ]  # fmt: skip

    found: dict[str, list[bytes]] = {
        "source": [bytes([number]) + code for number in range(len(_SUFFIXES)) for code in codes],
        "ignore": [b"a.py" + CUT + b"*.py\n!b\n/c/\n**/d\n[a-z]?\n#x\n", b"a" * 99 + CUT + b"*a" * 30 + b"b\n"],
        "attributes": [b"a.py\nb\n" + CUT + b"*.py linguist-generated\nb linguist-vendored=true\n[attr]m -a\n"],
        "config": [b'model = "seedling"\n[lora]\nrank = 8\n[data]\nsequence_lengths = [64, 128]\n', b"a = " + deep],
        "adapter": [
            CUT.join((text(manifest), text(settings), good)),
            CUT.join((text(manifest), text(settings), huge)),
            CUT.join((deep, deep, safetensors(deep))),
            CUT.join((text(manifest), text(settings), safetensors(array, length=2**60))),
        ],
        "checkpoint": [
            CUT.join((text(body), b"{}", good)),
            CUT.join((text(body), deep, huge)),
            CUT.join((deep, b"[]", b"")),
        ],
        "journal": [b"".join(lines), *lines, lines[0] + lines[1][:20], deep + b"\n", b"[1]\n",
                    b'{"event": "DataPrepared", "summary": {}}\n', b'{"event": "PlanChosen", "plan": {}}\n'],
        "gguf": [
            *(smallest_file(kind) for kind in _GGUF_KINDS),
            smallest_file(byte_level=True), smallest_file()[:700], b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        ],
        "stores": [
            CUT.join((text(layers), text(sizes), text(words), b"---\nlicense: mit\n---\n", b"Apache License")),
            CUT.join((text({"layers": [{"digest": "sha256:../../x"}]}), b"[]", b"[]", b"---\n" * 99, b"\xff")),
            CUT.join((deep, deep, b'{"added_tokens": ' + deep, b"---\nlicense: [", b"")),
            CUT.join((b"[]", text({**sizes, "architectures": 3, "quantization": {"bits": 0}}), b'{"added_tokens": [3]}', b"", b"")),
        ],
        "model": [
            text(sizes) + CUT + good,
            text(sizes) + CUT + huge,
            deep + CUT + safetensors(deep),
            text(sizes | {"hidden_size": 1e999, "head_dim": -1}) + CUT + good,
        ],
        "tokenizer": [text(words) + CUT + text({"eos_token": "</s>"}), deep + CUT + deep],
        "peft": [
            CUT.join((text(lora), pair)),
            CUT.join((text(lora | {"rank_pattern": {"^(a|a)*$": 1, "q_proj": 1}, "use_rslora": True}), pair)),
            CUT.join((text(lora | {"rank_pattern": {"(.*.*.*.*.*.*.*.*)*!": 3}}), pair)),
            CUT.join((text(lora | {"r": 10**6}), huge)),
            CUT.join((deep, good)),
        ],
        "requests": [
            b"\0" + text({"prompt": "def f(", "suffix": "pass", "path": "a.py", "max_tokens": 3, "stop": ["\n"]}),
            b"\0" + text({"prompt": [[1, 2], [8192]], "n": 2, "seed": -1, "temperature": 0.5, "logprobs": 2}),
            b"\1" + text({"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "c", "filename": "d"}],
                          "n_predict": -1, "samplers": ["top_k"], "t_max_predict_ms": 1e300}),
            b"\2" + text({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
            b"\4" + text({"prompt": "<|repo_name|>a\n<|file_sep|>b.py\nc\n<|file_sep|>d.py"
                           "<|system_separator_istruction_repository_level|>def f(", "suffix": "pass", "keep_alive": "5m",
                           "options": {"num_predict": 3, "stop": "x", "num_ctx": 9, "seed": -1, "top_k": 0}}),
            b"\4" + text({"prompt": "x", "raw": True, "stream": False, "keep_alive": 0, "images": []}),
            b"\5" + text({"messages": [{"role": "USER", "content": "hi", "images": None}], "think": False}),
            b"\0" + deep, b"\1[]", b"\4" + deep,
        ],
        "messages": [
            b"\1" + CUT.join(map(text, talk)), b"\1" + CUT.join(map(text, [*talk[:2], *talk[3:]])), b"\1" + deep,
            b"\0Content-Length: 2\r\n\r\n[]Content-Length: x\r\n\r\nContent-Length: 99\r\n\r\n{", b"\0" + deep,
            b"\0Content-Length: %d\r\n\r\n{}" % 10**30,
        ],
        "editor_settings": [
            b'\0{\n  // c\n  "a": { "b": 1, },\n}\n', b"\0", b"\1/* only */", b'\1{"a": [1, 2], "b": {}}',
            b'\2{\r\n\t"edit_predictions": null /* x */ ,\r\n\t"\\u0061": 1e3\r\n}', b"\0" + deep,
            b'\1{"a": null}', '\0{\r\n"x": {}, // \u00e9\n}'.encode(), '\2{ // \u00e9\r\n // \ufffd\n}'.encode(),
        ],
        "run_files": [text(job), text({"key": "k", "kind": "cpu", "cores": 2}), deep, b"[]"],
        "names": [b"projects/own/runs/a", b"../x", b"/etc", b"nul.txt", b"a\xff", "\uff41".encode()],
        **served.seeds(),
    }  # fmt: skip
    return found[name]
