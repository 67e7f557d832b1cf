"""A GGUF base and adapters trained on it, in llama.cpp and here, on real code: how often both want the same next token.

``python benchmarks/gguf_round_trip.py FILE.gguf [ADAPTER ...]`` needs llama-cpp-python (`.venv-parity` has it). An ADAPTER is a
directory in mlx-lm's form (a registered version's ``mlx``); it is written as GGUF and put on FILE by llama.cpp as ``--lora``
does, and on the folder that FILE is read into here. Compared are the likeliest next tokens of every position of real code, and
greedy answers to FIM spans: they are the same exactly if every token that llama.cpp writes is the likeliest one here after those
before it, which one pass shows. Cost: layers are read one after the other; still, 5.7 GB were seen with a 1.5B model, and a
pass of 700 tokens took more than ten minutes of processor time, unfinished: it needs an idle machine with 8 GB free.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from machine import bar, describe, save

import mlx_gardener  # noqa: F401  first: it opens the fast BLAS
from mlx_gardener.model.lora import AdapterSettings

MAIN = Path(__file__).resolve().parent.parent
WIDTH, ANSWER, SPAN_TOKENS = 128, 32, 160
_PART = 128


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("adapters", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repository", type=click.Path(exists=True, path_type=Path), default=MAIN, help="Whose code.")
@click.option("--positions", default=2048, show_default=True, help="Positions of code.")
@click.option("--spans", default=20, show_default=True, help="Greedy answers.")
@click.option("--threads", default=2, show_default=True, help="llama.cpp's.")
@click.option("--out", default="gguf_round_trip", show_default=True, help="Name of the result.")
def main(
    file: Path,
    adapters: tuple[Path, ...],
    repository: Path,
    positions: int,
    spans: int,
    threads: int,
    out: str,
) -> None:
    """Compare FILE, alone and with each ADAPTER, in llama.cpp and here."""
    before, figures = describe(), {}
    texts = real_texts(file, repository, positions, spans)
    with tempfile.TemporaryDirectory() as scratch:
        for adapter in (None, *adapters):
            name = "base" if adapter is None else adapter_name(adapter)
            name += f" ({len(figures)})" if name in figures else ""
            packed = None if adapter is None else as_gguf(file, adapter, Path(scratch) / f"{name}.gguf")
            theirs, answers = llama_side(file, packed, *texts, threads)
            figures[name] = agreement(our_side(file, adapter, theirs, answers, texts), theirs, answers)
            print(name, figures[name], flush=True)
    rows = [
        row
        for name, found in figures.items()
        for row in (
            bar(f"likeliest next tokens, {name}", "llama.cpp", ">= 99 %", f"{found['top1']:.2%} of {found['positions']}",
                found["top1"] >= 0.99),
            bar(f"greedy answers to FIM spans, {name}", "llama.cpp", ">= 9 of 10",
                f"{found['same_answers']} of {found['answers']}", found["same_answers"] >= 0.9 * found["answers"]),
        )
    ]  # fmt: skip
    about = {
        "machine": before,
        "file": file.name,
        "repository": repository.name,
        "figures": figures,
        "bars": rows,
    }
    print(save(out, about))


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


def llama_side(
    file: Path, adapter: Path | None, rows: list[list[int]], prompts: list[list[int]], threads: int
) -> tuple[np.ndarray, list[list[int]]]:
    """llama.cpp's likeliest tokens (rows, WIDTH), and its greedy answers, at most ANSWER tokens, with what ended them."""
    import llama_cpp
    from llama_cpp_side import llama_session

    ends = end_tokens(file)
    most = max(WIDTH, *(len(prompt) + ANSWER for prompt in prompts), 1)
    with llama_session(llama_cpp, file, adapter, most_tokens=most, threads=threads) as decode:
        likeliest = np.stack([decode(row, 0).argmax(-1) for row in rows])
        answers = []
        for prompt in prompts:
            logits, answer = decode(prompt, 0), []
            while True:
                answer.append(int(logits[-1].argmax()))
                if answer[-1] in ends or len(answer) == ANSWER:
                    break
                logits = decode(answer[-1:], len(prompt) + len(answer) - 1)
            answers.append(answer)
    return likeliest, answers


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


def our_side(
    file: Path, adapter: Path | None, theirs: np.ndarray, answers: list[list[int]],
    texts: tuple[list[list[int]], list[list[int]]],
) -> list[np.ndarray]:  # fmt: skip
    """Our likeliest tokens of every row, and of every prompt with llama.cpp's answer; in one pass, layer by layer."""
    import mlx.core as mx

    from mlx_gardener.adapter.agreement import layers_given_up
    from mlx_gardener.adapter.loaded import attach_adapter
    from mlx_gardener.adapter.manifest import LoadedAdapter
    from mlx_gardener.model import load_base

    rows, prompts = texts
    sequences = [*rows, *(prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True))]
    width = max(map(len, sequences))
    tokens = np.zeros((len(sequences), width), dtype=np.int32)
    for place, ids in enumerate(sequences):
        tokens[place, : len(ids)] = ids  # what is filled up comes later, and changes nothing before it
    base = load_base(
        str(file), compute_dtype="float32", base_weights="dense", unread_layers=10**6, unread_words=True
    )

    def likeliest() -> np.ndarray:
        with layers_given_up(base.model):
            hidden = base.model.model(mx.array(tokens)).reshape(len(sequences) * width, -1)
            mx.eval(hidden)
        head = (
            base.model.lm_head if hasattr(base.model, "lm_head") else base.model.model.embed_tokens.as_linear
        )
        found = []
        for at in range(0, len(hidden), _PART):
            part = head(hidden[at : at + _PART]).argmax(-1)
            mx.eval(part)
            found.append(np.array(part))
        return np.concatenate(found).reshape(len(sequences), width)

    if adapter is None:
        found = likeliest()
    else:
        weights, settings = settings_of(adapter)
        with attach_adapter(base, LoadedAdapter(weights, settings, {}, adapter)):
            found = likeliest()
    return [found[place, : len(ids)] for place, ids in enumerate(sequences)]


def agreement(ours: list[np.ndarray], theirs: np.ndarray, answers: list[list[int]]) -> dict[str, float | int]:
    """How often the likeliest tokens are the same, and how many answers."""
    rows, filled = np.stack(ours[: len(theirs)]), ours[len(theirs) :]
    same = [
        bool(np.array_equal(mine[len(mine) - len(answer) :], answer))
        for mine, answer in zip(filled, answers, strict=True)
    ]
    return {
        "positions": int(theirs.size),
        "top1": float((rows == theirs).mean()),
        "answers": len(same),
        "same_answers": sum(same),
        "answer_tokens": sum(map(len, answers)),
    }


if __name__ == "__main__":
    main()
