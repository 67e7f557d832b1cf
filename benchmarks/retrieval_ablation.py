"""Which retrieved code holds what a line needs: chunks by BM25, signatures by structure, or both?

    python -m benchmarks.retrieval_ablation [--repositories smolagents,mcp] [--tokenizer DIRECTORY] [--tasks 155]
    python -m benchmarks.retrieval_ablation --model DIRECTORY --answers 30 --name retrieval_answers

Held-out cross-file lines of repositories that no base of 2024 has seen (`unseen.toml`), as evidence asks for them. For each way to
retrieve, within the same tokens: the share of lines whose context holds a name that the line needs from another file, the share
where it holds that name's definition, how often every such name is there, and the milliseconds of a lookup. That needs no model,
only a tokenizer. With ``--model`` a base also reads the lines, with nothing retrieved and in two of the ways: how often greedy
writing gives the line, and how many bits a byte of it takes, which tells ways apart by far fewer lines. Writes ``results/NAME.json``
and ``.md``. Cost: a scan of each repository, and some ms a line and way; with a model a prompt of about 1,100 tokens each. What is
done of a repository is kept in ``--work`` and not done again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  first: the fast BLAS must be opened before mlx is imported
from benchmarks.knows_tables import mean_change, told
from benchmarks.machine import RESULTS, describe
from benchmarks.reading import ROW_TOKENS, lines_read, nats_of
from benchmarks.unseen import SOURCES, fetch, packages
from mlx_gardener.config import DataConfig
from mlx_gardener.dataset import NextLineTask, cross_file_tasks, names_defined, next_line_tasks, split_files
from mlx_gardener.dataset.examples import Excerpt, excerpts_of
from mlx_gardener.dataset.tasks import uses_of_other_files
from mlx_gardener.evaluate.complete import caret_prompt
from mlx_gardener.evaluate.metrics import bits_per_byte
from mlx_gardener.evaluate.rows import Window, draw_windows, make_windows
from mlx_gardener.model import BaseModel, CodeTokenizer, load_base, load_tokenizer, seedling_path
from mlx_gardener.retrieval import Retriever, code_in_front, index_of_files
from mlx_gardener.retrieval.definitions import names_defined_in
from mlx_gardener.source import read_source, scan_repository

ROOT = Path(__file__).parents[1]
#: Ways to retrieve: the share of the tokens that is for signatures.
WAYS = {
    "chunks by BM25": 0.0,
    "a third signatures": 1 / 3,
    "half signatures": 0.5,
    "two thirds signatures": 2 / 3,
    "signatures": 1.0,
}
#: Nothing in front, of which only answers say anything.
NOTHING = "nothing"
#: Ways that a model is asked in.
ANSWERING = ("chunks by BM25", "half signatures")
ANSWERS = (
    "bits_per_byte", "cross_file_exact", "cross_file_bits_per_byte", "next_line_exact", "next_line_bits_per_byte",
)  # fmt: skip
MEASURES = ("name", "definition", "all_names", "name_or_shown")


def needed_names(task: NextLineTask, excerpt: Excerpt, defined: Mapping[str, frozenset[str]]) -> list[str]:
    """The names in a task's line that other files define."""
    data = excerpt.text.encode()
    places = [at for line, at in uses_of_other_files(excerpt, defined) if line == task.line - 1]
    found = (re.match(rb"\w+", data[at:]) for at in places)
    return list(dict.fromkeys(match[0].decode() for match in found if match))


def measure(
    root: Path,
    tokenizer: CodeTokenizer,
    *,
    tasks: int,
    context_tokens: int,
    base: BaseModel | None = None,
    answers: int = 0,
    windows_measured: int = 8,
) -> dict[str, Any]:
    """What each way's context holds, on the held-out cross-file lines of one repository, and what ``base`` answers to some."""
    scan = scan_repository(root, DataConfig(), quality_threshold=0.5)
    split = split_files(scan.files, DataConfig(), seed=0)
    excerpts = [
        excerpt for record in split.test for excerpt in excerpts_of(read_source(root, record), record)
    ]
    # What no training file defines cannot be retrieved, whatever the way.
    defined = names_defined(split.train)
    asked = cross_file_tasks(excerpts, tasks, defined, seed=0)
    index = index_of_files(root, split.train, name=scan.name)
    needs = []
    for task in asked:
        own = next(item for item in excerpts if item.path == task.path and item.text.startswith(task.prefix))
        needs.append(needed_names(task, own, defined))
    found: dict[str, Any] = {}
    for way, share in WAYS.items():
        retriever = Retriever(index, tokenizer, limit_tokens=context_tokens, signatures=share)
        counts = dict.fromkeys(MEASURES, 0)
        used, took = 0, []
        for task, names in zip(asked, needs, strict=True):
            place = caret_prompt(tokenizer, task.prefix, None, task.path)
            began = time.thread_time()
            ids, _ = code_in_front(retriever, task.path, task.prefix, own=place.ids)
            took.append(time.thread_time() - began)
            used += len(ids)
            text = tokenizer.decode(ids)
            there = [name for name in names if re.search(rf"\b{name}\b", text)]
            shown = tokenizer.decode(place.ids)
            counts["name"] += bool(there)
            counts["all_names"] += len(there) == len(names)
            counts["definition"] += bool(set(names) & set(names_defined_in(text)))
            counts["name_or_shown"] += all(
                name in there or re.search(rf"\b{name}\b", shown) for name in names
            )
        number = max(1, len(asked))
        found[way] = {
            **{measure: round(count / number, 4) for measure, count in counts.items()},
            "tokens": round(used / number, 1),
            "lookup_ms": round(1000 * sorted(took)[len(took) // 2], 2) if took else None,
        }
    if base is not None:
        lines = next_line_tasks(excerpts, answers, seed=0)
        windows = draw_windows(make_windows(excerpts, tokenizer, ROW_TOKENS), windows_measured, seed=0)
        for way in (NOTHING, *ANSWERING):
            retriever = None
            if way != NOTHING:
                retriever = Retriever(index, tokenizer, limit_tokens=context_tokens, signatures=WAYS[way])
            found.setdefault(way, {}).update(
                {
                    f"{kind}_{name}": value
                    for kind, places in (("cross_file", asked[:answers]), ("next_line", lines))
                    for name, value in answered(base, places, retriever).items()
                }
                | {"bits_per_byte": bits_per_byte_of(base, windows, retriever)}
            )
    return {
        "lines": len(asked),
        "files": len({task.path for task in asked}),
        "chunks": index.chunk_count,
        "ways": found,
    }


def answered(base: BaseModel, asked: Sequence[NextLineTask], retriever: Retriever | None) -> dict[str, float]:
    """How near the base is to the lines that stand there, behind the prompts that evidence asks them with."""
    found = lines_read(base, asked, retriever)
    return {
        "exact": sum(exact for _, _, exact in found) / max(1, len(found)),
        "bits_per_byte": bits_per_byte(sum(nats for nats, _, _ in found), sum(size for _, size, _ in found))
        if found
        else 0.0,
        "answers": len(found),
    }


def bits_per_byte_of(base: BaseModel, windows: Sequence[Window], retriever: Retriever | None) -> float:
    """Bits per byte of held-out windows, as evidence makes rows of them."""
    return bits_per_byte(*nats_of(base, windows, retriever))


def markdown(result: Mapping[str, Any]) -> str:
    """The table as ``benchmarks/results/retrieval_ablation.md`` holds it."""
    lines = [
        "# What retrieved code holds of what a line needs",
        "",
        f"{sum(entry['lines'] for entry in result['repositories'].values())} held-out cross-file lines of "
        f"{', '.join(result['repositories'])}, {result['context_tokens']} tokens of context, tokenizer "
        f"{result['tokenizer']}. Means over repositories. Made by `python -m benchmarks.retrieval_ablation`.",
        "",
        "| way | a needed name | its definition | all needed names | all names in context or prompt | tokens | lookup ms |",
        "|---" * 7 + "|",
    ]
    for way, values in result["means"].items():
        cells = [f"{values[name]:.1%}" for name in MEASURES]
        lines.append(
            f"| {way} | " + " | ".join(cells) + f" | {values['tokens']:.0f} | {values['lookup_ms']:.1f} |"
        )
    heads = (
        "against chunks by BM25",
        "a needed name",
        "its definition",
        "all needed names",
        "all in context or prompt",
    )
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for way, values in result["changes"].items():
        lines.append(f"| {way} | " + " | ".join(told(values[name]) for name in MEASURES) + " |")
    if result["answers"]:
        lines += [
            "",
            f"{result['model']} on {result['answered']} of these lines, and as many of any kind:",
            "",
        ]
        titles = " | ".join(name.replace("_", " ") for name in ANSWERS)
        lines += [f"| way | {titles} |", "|---" * (len(ANSWERS) + 1) + "|"]
        for way, values in result["answers"].items():
            cells = [
                f"{values[name]:.4f}" if name.endswith("bits_per_byte") else f"{values[name]:.1%}"
                for name in ANSWERS
            ]
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
        lines += ["", f"| against chunks by BM25 | {titles} |", "|---" * (len(ANSWERS) + 1) + "|"]
        for way, values in result["answer_changes"].items():
            lines.append(f"| {way} | " + " | ".join(told(values[name]) for name in ANSWERS) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option(
    "--repositories", default="", help="Names from unseen.toml, or directories; all listed by default."
)
@click.option("--tokenizer", default=None, type=click.Path(path_type=Path), help="A model's directory.")
@click.option(
    "--model",
    default=None,
    type=click.Path(path_type=Path),
    help="A base that answers, and whose tokenizer it is.",
)
@click.option(
    "--answers",
    default=30,
    show_default=True,
    help="Lines of each kind of a repository that the model reads.",
)
@click.option(
    "--windows", default=8, show_default=True, help="Stretches of a repository whose bits are counted."
)
@click.option("--tasks", default=155, show_default=True)
@click.option("--context", default=384, show_default=True, help="Tokens of retrieved code.")
@click.option("--name", default="retrieval_ablation", show_default=True, help="Of the results.")
@click.option("--sources", default=SOURCES, type=click.Path(path_type=Path))
@click.option("--work", default=ROOT / ".quickstart" / "ablation", type=click.Path(path_type=Path))
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(
    repositories: str, tokenizer: Path | None, model: Path | None, answers: int, windows: int, tasks: int, context: int, name: str,
    sources: Path, work: Path, results: Path,
) -> None:  # fmt: skip
    """Measure, and write the tables."""
    listed = packages()
    places = {
        Path(item).name: fetch(listed[item], sources) if item in listed else Path(item).resolve()
        for item in [entry for entry in repositories.split(",") if entry] or listed
    }
    place = model or tokenizer or seedling_path()
    base = None if model is None else load_base(str(model))
    loaded = load_tokenizer(place) if base is None else base.tokenizer
    directory = work / name
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    for repository, root in places.items():
        kept = directory / f"{repository}.json"
        asked_for = {
            "tokenizer": place.name,
            "model": str(model),
            "answers": answers,
            "windows": windows,
            "tasks": tasks,
            "context": context,
        }
        if kept.exists() and (entry := json.loads(kept.read_text()))["asked"] == asked_for:
            found[repository] = entry["found"]
            continue
        found[repository] = measure(
            root,
            loaded,
            tasks=tasks,
            context_tokens=context,
            base=base,
            answers=answers,
            windows_measured=windows,
        )
        kept.write_text(json.dumps({"asked": asked_for, "found": found[repository]}))
        print(repository, json.dumps(found[repository]), flush=True)
        write(found, name, results, tokenizer=place.name, context=context, model=model)
    write(found, name, results, tokenizer=place.name, context=context, model=model)
    print((results / f"{name}.md").read_text(encoding="utf-8"))


def write(
    found: Mapping[str, Any], name: str, results: Path, *, tokenizer: str, context: int, model: Path | None
) -> None:
    """Means over the repositories that are done, and the result files."""
    asked = {repository: entry["ways"] for repository, entry in found.items() if entry["lines"]}
    first = next(iter(WAYS))

    def mean(way: str, measure: str) -> float:
        return round(sum(ways[way][measure] for ways in asked.values()) / max(1, len(asked)), 4)

    def change(way: str, measure: str) -> dict[str, Any]:
        """Of bits per byte relative, as everywhere."""
        found = {}
        for repository, ways in asked.items():
            mine, theirs = ways[way][measure], ways[first][measure]
            found[repository] = mine / theirs - 1 if measure.endswith("bits_per_byte") else mine - theirs
        return mean_change(found)

    answering = [] if model is None else [NOTHING, *ANSWERING]
    result = {
        "machine": describe(),
        "tokenizer": tokenizer,
        "model": None if model is None else model.name,
        "context_tokens": context,
        "means": {way: {key: mean(way, key) for key in (*MEASURES, "tokens", "lookup_ms")} for way in WAYS},
        "changes": {way: {key: change(way, key) for key in MEASURES} for way in WAYS if way != first},
        "answered": sum(ways[first].get("cross_file_answers", 0) for ways in asked.values()),
        "answers": {way: {key: mean(way, key) for key in ANSWERS} for way in answering},
        "answer_changes": {
            way: {key: change(way, key) for key in ANSWERS} for way in answering if way != first
        },
        "repositories": dict(found),
    }
    (results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (results / f"{name}.md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
