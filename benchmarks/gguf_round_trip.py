"""A GGUF base and adapters trained on it, in llama.cpp and here, on real code: how often both want the same next token.

``python benchmarks/gguf_round_trip.py FILE.gguf [ADAPTER ...]`` needs llama.cpp as `llama_cpp_side` finds it (`.venv-parity` has
it). An ADAPTER is a directory in mlx-lm's form (a registered version's ``mlx``); it is written as GGUF and put on FILE by
llama.cpp as ``--lora`` does, and on the folder that FILE is read into here. Compared are the likeliest next tokens of every
position of real code, and greedy answers to FIM spans: they are the same exactly if every token that llama.cpp writes is the
likeliest one here after those before it, which one pass shows. Each side is a process of its own, one after the other, that
gives likeliest tokens back and no logits; llama.cpp rounds what it multiplies quantised weights with to 8 bits, which
``--floats`` leaves out: it compares with the weights of FILE as float32 in llama.cpp, too (four bytes a weight on disk). What
a side gave is kept below ``--work`` and found again. Cost, 1.5B model: 2.3 GB, four minutes of processor time a side.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from machine import bar, describe, save

import mlx_gardener  # noqa: F401  first: it opens the fast BLAS
from mlx_gardener.model.lora import AdapterSettings

MAIN = Path(__file__).resolve().parent.parent
WIDTH, ANSWER, SPAN_TOKENS = 512, 24, 128
_PART = 128


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("adapters", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repository", type=click.Path(exists=True, path_type=Path), default=MAIN, help="Whose code.")
@click.option("--positions", default=2048, show_default=True, help="Positions of code.")
@click.option("--spans", default=20, show_default=True, help="Greedy answers.")
@click.option("--threads", default=os.cpu_count(), show_default=True, help="llama.cpp's.")
@click.option("--floats", is_flag=True, help="Also with the file's weights as float32 in llama.cpp.")
@click.option("--work", type=click.Path(path_type=Path), default=None, help="Where a side's tokens are kept.")
@click.option("--out", default="gguf_round_trip", show_default=True, help="Name of the result.")
def main(
    file: Path,
    adapters: tuple[Path, ...],
    repository: Path,
    positions: int,
    spans: int,
    threads: int,
    floats: bool,
    work: Path | None,
    out: str,
) -> None:
    """Compare FILE, alone and with each ADAPTER, in llama.cpp and here."""
    before, figures = describe(), {}
    work = work or Path(tempfile.mkdtemp(prefix="gguf_round_trip-"))
    work.mkdir(parents=True, exist_ok=True)
    texts = work / "texts.json"
    if not texts.exists():  # a later call compares the same, also when the repository has changed
        texts.write_text(json.dumps(real_texts(file, repository, positions, spans)), encoding="utf-8")
    rows, prompts = json.loads(texts.read_text(encoding="utf-8"))
    bare: list[list[int]] = []
    for adapter in (None, *adapters):
        name = "base" if adapter is None else adapter_name(adapter)
        name += f" ({len(figures)})" if name in figures else ""
        packed = None if adapter is None else as_gguf(file, adapter, work / f"{name}.gguf")
        ours = side(work, our_side, file, adapter, rows)
        theirs = side(work, llama_side, file, packed, rows, prompts, threads)
        whole = [prompt + answer[:-1] for prompt, answer in zip(prompts, theirs["answers"], strict=True)]
        told = side(work, our_side, file, adapter, whole)
        bare = bare or ours["likeliest"]
        figures[name] = agreement(ours, told["likeliest"], theirs, bare) | {
            "sides": {"llama.cpp": cost(theirs), "here": cost(ours), "here, answers": cost(told)}
        }
        if floats:
            exact = side(work, llama_side, as_floats(file, work / "floats.gguf"), packed, rows, [], threads)
            same = np.array(ours["likeliest"]) == np.array(exact["likeliest"])
            figures[name] |= {"top1_of_floats": float(same.mean())}
        print(name, figures[name], flush=True)
    rows_of_bars = [
        row
        for name, found in figures.items()
        for row in (
            bar(f"likeliest next tokens, {name}", "llama.cpp", ">= 99 %", f"{found['top1']:.2%} of {found['positions']}",
                found["top1"] >= 0.99),
            *([bar(f"the same, its weights as float32 in llama.cpp, {name}", "llama.cpp", ">= 99 %",
                   f"{found['top1_of_floats']:.2%} of {found['positions']}", found["top1_of_floats"] >= 0.99)]
              if floats else ()),
            *([bar(f"greedy answers to FIM spans, {name}", "llama.cpp", ">= 9 of 10",
                   f"{found['same_answers']} of {found['answers']}", found["same_answers"] >= 0.9 * found["answers"])]
              if prompts else ()),
        )
    ]  # fmt: skip
    about = {
        "machine": before,
        "file": file.name,
        "repository": repository.name,
        "figures": figures,
        "bars": rows_of_bars,
    }
    print(save(out, about))


def side(work: Path, run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What ``run(*arguments)`` gives in a process of its own, with the seconds and memory it took; from a file if it was run."""
    told = json.dumps([contents_of(value) if isinstance(value, Path) else value for value in arguments])
    place = work / f"{run.__name__}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    if not place.exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            found = alone.submit(_measured, run, *arguments).result()
        place.write_text(json.dumps(found), encoding="utf-8")
    kept: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    print(f"{run.__name__}: {kept['seconds']:.0f} s, {kept['peak_bytes'] / 1e9:.1f} GB", flush=True)
    return kept


def _measured(run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    began = time.monotonic()
    found = run(*arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return found | {
        "seconds": time.monotonic() - began,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def contents_of(place: Path) -> list[Any]:
    """What tells a file, or a directory's files, from others: size, and sha256 where that is quick."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [
        [file.stat().st_size, file.stat().st_size < 2**28 and hashlib.sha256(file.read_bytes()).hexdigest()]
        for file in files
        if file.is_file()
    ]


def adapter_name(directory: Path) -> str:
    """What an adapter is called: its version's directory, where it is one of a registry."""
    return directory.parent.name if directory.name == "mlx" else directory.name


def real_texts(
    file: Path, repository: Path, positions: int, spans: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of code, and prompts with FIM spans in functions of other files; none where the model has no markers for that."""
    from mlx_gardener.model import load_tokenizer

    tokenizer = load_tokenizer(folder_of(file))
    files = [
        path for path in sorted(repository.rglob("*.py")) if ".venv" not in str(path.relative_to(repository))
    ]
    encoded = [
        ids for path in files if len(ids := tokenizer.encode(path.read_text(encoding="utf-8"))) > 2 * WIDTH
    ]
    step = max(1, len(encoded) // max(1, -(-positions // WIDTH) + spans))
    spread = encoded[::step]
    rows = [ids[WIDTH // 2 : WIDTH // 2 + WIDTH] for ids in spread[: -(-positions // WIDTH)]]
    assert len(rows) * WIDTH >= positions, "the repository has too little code"
    prompts = []
    if tokenizer.markers is not None:
        for ids in [ids for ids in spread[len(rows) :] if len(ids) > 2 * SPAN_TOKENS][:spans]:
            middle = len(ids) // 2
            prefix, suffix = (
                ids[middle - SPAN_TOKENS // 2 : middle],
                ids[middle + 12 : middle + SPAN_TOKENS // 2],
            )
            prompts.append(tokenizer.markers.prompt(prefix, suffix))
    return rows, prompts


def folder_of(file: Path) -> Path:
    """The MLX folder that the file is read into."""
    from mlx_gardener.model import choose_model, resolve_model

    return resolve_model(choose_model(str(file)))


def settings_of(adapter: Path) -> tuple[dict[str, Any], AdapterSettings]:
    """Weights and settings of an adapter in mlx-lm's form."""
    from mlx_gardener.model.lora import load_arrays
    from mlx_gardener.platform.untrusted import read_json

    settings = AdapterSettings.from_json(read_json(adapter / "adapter_config.json"))
    return load_arrays(adapter / "adapters.safetensors"), settings


def as_gguf(file: Path, adapter: Path, place: Path) -> Path:
    """The adapter as GGUF, as `export --form gguf` writes it."""
    from mlx_gardener.adapter.gguf_files import write_gguf_adapter
    from mlx_gardener.platform.untrusted import read_json

    weights, settings = settings_of(adapter)
    config = read_json(folder_of(file) / "config.json")
    write_gguf_adapter(place, weights, settings, config, name=adapter_name(adapter), base=file.name)
    return place


def as_floats(file: Path, place: Path) -> Path:
    """The file with every tensor as float32, as the `gguf` package dequantises it."""
    import gguf

    from mlx_gardener.adapter.gguf_merged import _writer_like

    if not place.exists():
        reader, part = gguf.GGUFReader(file), place.with_suffix(".part")
        writer = _writer_like(reader, part, {}, file_type=gguf.LlamaFileType.ALL_F32)
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            writer.add_tensor(tensor.name, values.reshape([int(size) for size in reversed(tensor.shape)]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.rename(place)
    return place


def llama_side(
    file: Path, adapter: Path | None, rows: list[list[int]], prompts: list[list[int]], threads: int
) -> dict[str, Any]:
    """llama.cpp's likeliest tokens of every row and how far the next likeliest is, and its greedy answers.

    An answer has at most ANSWER tokens, with the one that ended it.
    """
    from llama_cpp_side import llama_session

    ends = end_tokens(file)
    most = max(WIDTH, *(len(prompt) + ANSWER for prompt in prompts), 1)
    likeliest: list[list[int]] = []
    ahead: list[list[float]] = []
    answers: list[list[int]] = []
    with llama_session(file, adapter, most_tokens=most, at_once=_PART, threads=threads) as decode:
        for row in rows:
            tops: list[np.ndarray] = []
            gaps: list[np.ndarray] = []
            for at in range(0, len(row), _PART):
                logits = decode(row[at : at + _PART], at)
                tops.append(logits.argmax(-1))
                two = np.partition(logits, -2, axis=-1)[:, -2:]
                gaps.append(two[:, 1] - two[:, 0])
            likeliest.append(np.concatenate(tops).tolist())
            ahead.append(np.concatenate(gaps).tolist())
        for prompt in prompts:
            for at in range(0, len(prompt), _PART):
                logits = decode(prompt[at : at + _PART], at)
            answer: list[int] = []
            while True:
                answer.append(int(logits[-1].argmax()))
                if answer[-1] in ends or len(answer) == ANSWER:
                    break
                logits = decode(answer[-1:], len(prompt) + len(answer) - 1)
            answers.append(answer)
    return {"likeliest": likeliest, "ahead": ahead, "answers": answers}


def end_tokens(file: Path) -> set[int]:
    """What ends an answer: the end of a text, and every marker."""
    from mlx_gardener.model import load_tokenizer

    tokenizer = load_tokenizer(folder_of(file))
    marks = tokenizer.markers
    found = {tokenizer.eos_id, tokenizer.file_id, tokenizer.repo_id}
    return {
        index
        for index in found | (set() if marks is None else {marks.prefix, marks.suffix, marks.end})
        if index is not None
    }


def our_side(file: Path, adapter: Path | None, sequences: list[list[int]]) -> dict[str, Any]:
    """Our likeliest tokens of every sequence, all in one pass, layer by layer."""
    import mlx.core as mx

    from mlx_gardener.adapter.agreement import give_up, layers_given_up
    from mlx_gardener.adapter.loaded import attach_adapter
    from mlx_gardener.adapter.manifest import LoadedAdapter
    from mlx_gardener.model import load_lazy_base

    width = max(map(len, sequences), default=0)
    if not width:
        return {"likeliest": []}
    tokens = np.zeros((len(sequences), width), dtype=np.int32)
    for place, ids in enumerate(sequences):
        tokens[place, : len(ids)] = ids  # what is filled up comes later, and changes nothing before it
    base = load_lazy_base(str(file))

    def found() -> np.ndarray:
        words = base.model.model.embed_tokens
        with layers_given_up(base.model):
            hidden = base.model.model(mx.array(tokens)).reshape(len(sequences) * width, -1)
            mx.eval(hidden)
        head = getattr(base.model, "lm_head", None)
        if head is None:
            head = words.as_linear
        else:
            give_up(words)
        parts = []
        for at in range(0, len(hidden), _PART):
            part = head(hidden[at : at + _PART]).argmax(-1)
            mx.eval(part)
            parts.append(np.array(part))
        return np.concatenate(parts).reshape(len(sequences), width)

    if adapter is None:
        tops = found()
    else:
        weights, settings = settings_of(adapter)
        with attach_adapter(base, LoadedAdapter(weights, settings, {}, adapter)):
            tops = found()
    return {"likeliest": [tops[place, : len(ids)].tolist() for place, ids in enumerate(sequences)]}


def agreement(
    ours: dict[str, Any], whole: list[list[int]], theirs: dict[str, Any], bare: list[list[int]]
) -> dict[str, Any]:
    """How often the likeliest tokens are the same, how sure llama.cpp was where not, and how many answers are the same.

    Args:
        whole: our likeliest tokens of prompts with llama.cpp's answers.
        bare: our likeliest tokens without an adapter: how many of them it changes.
    """
    mine, wanted, ahead = (
        np.array(value) for value in (ours["likeliest"], theirs["likeliest"], theirs["ahead"])
    )
    other = mine != wanted
    told = [
        [top == token for top, token in zip(tops[len(tops) - len(answer) :], answer, strict=True)]
        for tops, answer in zip(whole, theirs["answers"], strict=True)
    ]
    return {
        "positions": int(wanted.size),
        "top1": float((~other).mean()),
        "llama_cpp_is_ahead_by_where_the_same": round(float(np.median(ahead[~other])), 3),
        "llama_cpp_is_ahead_by_at_most_where_not": round(float(ahead[other].max(initial=0)), 3),
        "changed_by_the_adapter": float((mine != np.array(bare)).mean()),
        "answers": len(told),
        "same_answers": sum(map(all, told)),
        "answer_tokens": sum(map(len, told)),
        "same_answer_tokens": sum(map(sum, told)),
    }


def cost(found: dict[str, Any]) -> dict[str, float]:
    """What a side took."""
    seconds = {name: round(found[name], 1) for name in ("seconds", "processor_seconds")}
    return seconds | {"peak_gb": round(found["peak_bytes"] / 1e9, 2)}


if __name__ == "__main__":
    main()
