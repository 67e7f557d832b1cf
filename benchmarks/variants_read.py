"""Which of several adapters of a repository is nearest to its held-out lines, with nothing and with retrieved code in front?

    python -m benchmarks.variants_read --model DIRECTORY --repositories chonkie,markitdown --name retrieval_share
        --adapter "none=HOME:{}.plain" --adapter "0.3=HOME:{}.retrieval_share-0.3"

Adapters are those that `knows` trained on repositories of `unseen.toml` (``{}`` in a project's name is the repository's); the first is
what the others are compared with. The lines are those that evidence asks for, and are read instead of written: how many bits a byte of
them takes, and whether greedy writing gives them. Bits tell variants apart by far fewer lines than right answers do.
Writes ``results/variants_NAME.json`` and ``.md``; what is done is kept in ``--work``.
Cost: prompts of 650 to 1,050 tokens, once for each line, adapter and way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  first: the fast BLAS must be opened before mlx is imported
from benchmarks.knows_tables import mean_change, told
from benchmarks.machine import RESULTS, describe
from benchmarks.reading import ROW_TOKENS, lines_read, nats_of
from benchmarks.unseen import SOURCES, fetch, packages
from mlx_gardener.adapter import attach_adapter, load_adapter_directory
from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.config import DataConfig
from mlx_gardener.dataset import cross_file_tasks, names_defined, next_line_tasks, split_files
from mlx_gardener.dataset.examples import excerpts_of
from mlx_gardener.evaluate.metrics import bits_per_byte
from mlx_gardener.evaluate.rows import draw_windows, make_windows
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.retrieval import Retriever, index_of_files
from mlx_gardener.retrieval.context import CONTEXT_TOKENS
from mlx_gardener.source import read_source, scan_repository

ROOT = Path(__file__).parents[1]
#: What stands in front.
FRONTS = ("nothing", "retrieved")
#: Kinds of what is read: stretches of held-out files, and lines.
KINDS = ("code", "next_line", "cross_file")
BASE = "base"


def adapter_of(place: str, repository: str) -> Path:
    """The directory of a project's newest adapter.

    Args:
        place: HOME:PROJECT; ``{}`` in the project's name is the repository's.
    """
    home, _, project = place.rpartition(":")
    records = ProjectRegistry(Path(home)).list_adapters(project.replace("{}", repository))
    if not records:
        raise click.ClickException(f"{place} has no adapter of {repository}; train it by benchmarks.knows.")
    return records[-1].directory


def read(
    root: Path,
    base: BaseModel,
    adapters: Mapping[str, Path],
    *,
    lines: int,
    windows: int,
    tell: Any,
    done: Iterable[tuple[str, str]] = (),
) -> None:
    """Read a repository's held-out lines with each adapter, and the base where "base" is among them with no directory.

    Args:
        tell: told (adapter, front, entries), an entry for each line or stretch: kind, nats, bytes, exact.
        done: pairs of adapter and front that are known.

    Raises:
        click.ClickException: an adapter was trained on what is held out here.
    """
    scan = scan_repository(root, DataConfig(), quality_threshold=0.5)
    split = split_files(scan.files, DataConfig(), seed=0)
    held_out = {record.path for record in split.test}
    excerpts = [
        excerpt for record in split.test for excerpt in excerpts_of(read_source(root, record), record)
    ]
    asked = {
        "next_line": next_line_tasks(excerpts, lines, seed=0),
        "cross_file": cross_file_tasks(excerpts, lines, names_defined(split.train), seed=0),
    }
    stretches = draw_windows(make_windows(excerpts, base.tokenizer, ROW_TOKENS), windows, seed=0)
    index = index_of_files(root, split.train, name=scan.name)
    for name, directory in adapters.items():
        adapter = None if name == BASE else load_adapter_directory(directory, read_manifest(directory))
        if adapter is not None:
            parts = {path: part for path, (_, part) in adapter.manifest["data"]["files"].items()}
            if {path for path, part in parts.items() if part == "test"} != held_out:
                raise click.ClickException(f"{name}: its training held out other files of {root}.")
        for front in FRONTS:
            if (name, front) in done:
                continue
            retriever = None
            if front != "nothing":
                retriever = Retriever(index, base.tokenizer, limit_tokens=CONTEXT_TOKENS)
            with nullcontext() if adapter is None else attach_adapter(base, adapter):
                entries = [
                    {"kind": kind, "nats": nats, "bytes": size, "exact": exact}
                    for kind, tasks in asked.items()
                    for nats, size, exact in lines_read(base, tasks, retriever)
                ]
                nats, size = nats_of(base, stretches, retriever)
                entries.append({"kind": "code", "nats": nats, "bytes": size, "exact": False})
            tell(name, front, entries)


def figures(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bits per byte of each kind, and the share of its lines that greedy writing gives."""
    found = {}
    for kind in KINDS:
        own = [entry for entry in entries if entry["kind"] == kind]
        if not own:
            continue
        nats, size = sum(entry["nats"] for entry in own), sum(entry["bytes"] for entry in own)
        found[f"{kind} bits"] = bits_per_byte(nats, size)
        if kind != "code":
            found[f"{kind} exact"] = sum(bool(entry["exact"]) for entry in own) / len(own)
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as ``benchmarks/results/variants_NAME.md`` holds them."""
    measures = list(next(iter(result["means"].values())))
    machine = result["machine"]
    lines = [
        f"# Held-out lines by variants: {result['name']}",
        "",
        f"{machine['chip']}, {machine['cores']} cores, MLX {machine['mlx']} ({machine['backend']}), {machine['date']}. "
        f"{result['model']}; {', '.join(result['repositories'])}; {result['lines']} lines of each kind and "
        f"{result['windows']} stretches of {ROW_TOKENS} tokens a repository at most. "
        "Means over repositories. Made by `python -m benchmarks.variants_read`.",
        "",
        f"| adapter | in front | {' | '.join(measures)} |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for way, values in result["means"].items():
        cells = [
            f"{values[name]:.1%}" if name.endswith("exact") else f"{values[name]:.4f}" for name in measures
        ]
        lines.append(f"| {' | '.join(way.split('|'))} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| against {result['first']} | in front | {' | '.join(measures)} |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for way, values in result["changes"].items():
        lines.append(
            f"| {' | '.join(way.split('|'))} | {' | '.join(told(values[name]) for name in measures)} |"
        )
    lines += [
        "",
        "Changes of bits are relative, of right lines in points; 95 % intervals with repositories as the units.",
    ]
    return "\n".join(lines) + "\n"


def write(
    name: str, found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], first: str, results: Path, **about: Any
) -> None:  # fmt: skip
    """Means over repositories, changes against ``first``, and the result files; ``found`` is by repository and ADAPTER|FRONT."""
    by = {repository: {way: figures(ways[way]) for way in ways} for repository, ways in found.items()}
    ways = [way for way in next(iter(by.values())) if all(way in values for values in by.values())]
    measures = [
        measure
        for measure in next(iter(by.values()))[ways[0]]
        if all(measure in values[ways[0]] for values in by.values())
    ]

    def change(way: str, measure: str) -> dict[str, Any]:
        against = f"{first}|{way.partition('|')[2]}"
        pairs = {
            repository: (values[way][measure], values[against][measure]) for repository, values in by.items()
        }
        return mean_change(
            {
                repository: mine - theirs if measure.endswith("exact") else mine / theirs - 1
                for repository, (mine, theirs) in pairs.items()
            }
        )

    result = {
        "name": name,
        **about,
        "machine": describe(),
        "repositories": list(by),
        "first": first,
        "means": {
            way: {measure: sum(values[way][measure] for values in by.values()) / len(by) for measure in measures}
            for way in ways
        },
        "changes": {
            way: {measure: change(way, measure) for measure in measures}
            for way in ways
            if way.partition("|")[0] != first
        },
        "by_repository": by,
    }  # fmt: skip
    (results / f"variants_{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (results / f"variants_{name}.md").write_text(markdown(result), encoding="utf-8")


@click.command()
@click.option("--name", required=True, help="Of the results.")
@click.option("--model", required=True, type=click.Path(path_type=Path))
@click.option(
    "--repositories", required=True, help="Names from unseen.toml, or directories, with commas between."
)
@click.option("--adapter", "adapters", multiple=True, required=True, metavar="NAME=HOME:PROJECT")
@click.option("--base/--no-base", "with_base", default=True, help="Whether the base alone reads, too.")
@click.option("--lines", default=20, show_default=True, help="Of each kind and repository, at most.")
@click.option("--windows", default=10, show_default=True, help="Stretches of a repository.")
@click.option("--sources", default=SOURCES, type=click.Path(path_type=Path))
@click.option("--work", default=ROOT / ".quickstart" / "variants", type=click.Path(path_type=Path))
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(
    name: str, model: Path, repositories: str, adapters: tuple[str, ...], with_base: bool, lines: int, windows: int,
    sources: Path, work: Path, results: Path,
) -> None:  # fmt: skip
    """Read, and write the tables."""
    places = dict(entry.split("=", 1) for entry in adapters)
    base, listed = load_base(str(model)), packages()
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for item in repositories.split(","):
        root = fetch(listed[item], sources) if item in listed else Path(item).resolve()
        repository = Path(item).name
        kept = work / f"{name}.{repository}.json"
        ways = found[repository] = json.loads(kept.read_text()) if kept.exists() else {}
        wanted = ({BASE: root} if with_base else {}) | {
            adapter: adapter_of(place, repository) for adapter, place in places.items()
        }

        def tell(adapter: str, front: str, entries: Any, ways: Any = ways, kept: Path = kept) -> None:
            ways[f"{adapter}|{front}"] = entries
            kept.write_text(json.dumps(ways))
            print(kept.stem, adapter, front, figures(entries), flush=True)

        read(
            root, base, wanted, lines=lines, windows=windows, tell=tell, done=[tuple(way.split("|")) for way in ways]
        )  # fmt: skip
        write(name, found, next(iter(places)), results, model=model.name, lines=lines, windows=windows)
    print((results / f"variants_{name}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
