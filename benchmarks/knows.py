"""Does an adapter know its repository? Many repositories that the base cannot have seen, all arms, means with intervals.

    python -m benchmarks.knows --name smollm2 --model PATH [--repositories smolagents,mcp,...]
        [--set optimizer.max_steps=200 ...] [--variant data.retrieval_share=0 --variant data.retrieval_share=0.3 ...]
        [--add RESULT.json ...]

Every repository gets an adapter for every variant of the settings, in a home below ``--work`` that only this uses; then each is
measured with the next repository's as its control, by ``mlx-gardener train`` and ``eval`` as anybody starts them. What is done
is kept and not done again, an unfinished training goes on, and the table is written anew after every step, so that it can be
stopped at any time. The base's answers are kept for all variants. Writes ``results/knows_NAME.json`` and ``.md``. What was
measured elsewhere by the same settings is added to the table by ``--add``, without anything being measured again.
Cost: what trainings and evaluations cost; the overhead is some seconds a repository.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import mlx_gardener  # noqa: F401  first: the fast BLAS must be opened before mlx is imported
from benchmarks.knows_tables import ARMS, bars, markdown, means
from benchmarks.machine import RESULTS, describe
from benchmarks.unseen import SOURCES, fetch, packages

ROOT = Path(__file__).parents[1]
#: Whatever is not given by --set.
SETTINGS = {
    "optimizer.epochs": "3",
    "training_timeout_minutes": "0",
    "min_training_chunks": "20",
    "continue_from": "never",
    "throttling.low_priority": "false",
    # The training has no test of its own: all arms are measured afterwards, with a control for each.
    "evaluation.arms": "[]",
    # How much is measured follows from --tasks alone.
    "evaluation.tasks": "0",
    "evaluation.time_share": "0",
}


def slug(variant: str) -> str:
    """A variant as a part of a name: ``data.retrieval_share=0.3`` is ``retrieval_share-0.3``."""
    short = ",".join(
        part.rpartition(".")[2] if "=" not in part else _short(part) for part in variant.split(",")
    )
    return re.sub(r"[^A-Za-z0-9._]+", "-", short).strip("-.") or "plain"


def _short(part: str) -> str:
    key, _, value = part.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def gardener(*arguments: str, home: Path, log: Path) -> None:
    """A command of the package in its own process, what it says added to a log.

    Raises:
        click.ClickException: it failed.
    """
    with log.open("ab") as told:
        environment = {**os.environ, "MLX_GARDENER_HOME": str(home)}
        done = subprocess.run(
            [sys.executable, "-m", "mlx_gardener", *arguments],
            env=environment, cwd=ROOT, stdout=told, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-12:]
        raise click.ClickException("\n".join([f"{' '.join(arguments[:2])} failed; see {log}", *last]))


def train(name: str, source: Path, variant: str, model: str, settings: Mapping[str, str], work: Path) -> None:
    """An adapter of a repository by a variant's settings, unless there is one; an unfinished training goes on."""
    from mlx_gardener.registry import ProjectRegistry

    project = f"{name}.{slug(variant)}"
    registry = ProjectRegistry(work / "home")
    known = {entry.name for entry in registry.list_projects()}
    if project in known and registry.list_adapters(project):
        return
    chosen = {
        **SETTINGS,
        **settings,
        **_settings(variant.split(",")),
    }
    flags = [flag for key, value in chosen.items() for flag in ("--set", f"{key}={value}")]
    began = time.monotonic()
    gardener(
        "train", str(source), "--project", project, "--model", model, *flags,
        home=work / "home", log=work / f"{project}.log",
    )  # fmt: skip
    print(f"{project}: trained in {time.monotonic() - began:.0f} s", flush=True)


def kept_evidence(name: str, variant: str, work: Path) -> Path:
    """Where the evidence on an adapter is kept; the entries of a result's ``evidence`` may be put there to add to them elsewhere."""
    return work / f"{name}.{slug(variant)}.evidence.json"


def evaluate(
    name: str, variant: str, control: str | None, tasks: int, arms: Sequence[str], work: Path
) -> dict[str, Any]:
    """The evidence on an adapter, kept; with what its training took."""
    from mlx_gardener.registry import ProjectRegistry

    project = f"{name}.{slug(variant)}"
    kept = kept_evidence(name, variant, work)
    if not kept.exists():
        partial, began = kept.with_suffix(".partial"), time.monotonic()
        wanted = [arm for arm in arms if arm != "control" or control is not None]
        flags = ["--tasks", str(tasks), "--arms", ",".join(wanted), "--json", "--output", str(partial)]
        if control is not None:
            flags += ["--control", f"{control}.{slug(variant)}"]
        gardener("eval", project, *flags, home=work / "home", log=work / f"{project}.log")
        record = ProjectRegistry(work / "home").list_adapters(project)[-1]
        manifest = json.loads((record.directory / "manifest.json").read_text(encoding="utf-8"))
        summary, training = manifest["data"]["summary"], manifest["training"]
        told = json.loads(partial.read_text(encoding="utf-8"))
        told["samples"] = []  # answers, and so pieces of the repository
        about = {
            "files": summary["files_kept"],
            "train_bytes": summary["split"]["train"]["bytes"],
            "retrieval": summary.get("retrieval"),
            "updates": training["steps"],
            "tokens": training["tokens_seen"],
            "training_seconds": training["seconds"],
            "evaluation_seconds": round(time.monotonic() - began),
            "control": control,
        }
        partial.write_text(json.dumps({**about, "evidence": told}, indent=1) + "\n", encoding="utf-8")
        partial.rename(kept)
        print(f"{project}: {told['verdict']}: {told['reason']}", flush=True)
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs as a dictionary.

    Raises:
        click.BadParameter: one is none.
    """
    found = {}
    for pair in filter(None, pairs):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE.")
        found[key] = value
    return found


def elsewhere(
    added: Sequence[Path], asked: Mapping[str, Any], variants: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The evidence of other results by variant and repository; of the same repository the last one's.

    Args:
        asked: what they must have been asked: model, settings and tasks.

    Raises:
        click.BadParameter: one was asked something else.
    """
    found: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
    for file in added:
        result = json.loads(file.read_text(encoding="utf-8"))
        for key, value in asked.items():
            if result.get(key) != value:
                raise click.BadParameter(
                    f"{file} has other {key}: {result.get(key)!r}, not {value!r}.", param_hint="--add"
                )
        for variant in variants:
            found[variant] |= result["evidence"].get(variant, {})
    return found


def report(
    name: str,
    model: str,
    tasks: int,
    settings: Mapping[str, str],
    machine: Any,
    found: Mapping[str, Any],
    where: Path,
) -> None:
    """Write what is done so far."""
    done = {variant: entries for variant, entries in found.items() if entries}
    if not done:
        return
    mean = means(done)
    result = {
        "name": name,
        "model": Path(model).name,
        "machine": machine,
        "settings": dict(settings),
        "tasks": tasks,
        "repositories": {
            repository: vars(packages()[repository])
            for repository in dict.fromkeys(repository for entries in done.values() for repository in entries)
            if repository in packages()
        },
        "bars": {variant: bars(mean[variant], entries) for variant, entries in done.items()},
        "means": mean,
        "evidence": done,
    }
    (where / f"knows_{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (where / f"knows_{name}.md").write_text(markdown(result), encoding="utf-8")


@click.command()
@click.option("--name", required=True, help="Of the run and its results.")
@click.option("--model", default="seedling", show_default=True)
@click.option(
    "--repositories", default="", help="Names from unseen.toml, or directories; all listed by default."
)
@click.option("--set", "given", multiple=True, metavar="KEY=VALUE", help="A setting of every training.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Settings of a variant; several are compared.",
)
@click.option("--tasks", default=60, show_default=True, help="Of each kind, in every repository.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option(
    "--add",
    "added",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A result whose repositories are added to the table; with it only named --repositories are measured.",
)
@click.option(
    "--sources",
    default=SOURCES,
    type=click.Path(path_type=Path),
    help="Where source archives are fetched to.",
)
@click.option("--work", default=ROOT / ".quickstart" / "knows", type=click.Path(path_type=Path))
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(
    name: str, model: str, repositories: str, given: tuple[str, ...], variants: tuple[str, ...],
    tasks: int, arms: str, added: tuple[Path, ...], sources: Path, work: Path, results: Path,
) -> None:  # fmt: skip
    """Train, measure, and write the tables; go on where it was stopped."""
    listed = packages()
    wanted = [item for item in repositories.split(",") if item] or ([] if added else list(listed))
    places: dict[str, Path] = {}
    for item in wanted:
        if item in listed:
            places[item] = fetch(listed[item], sources)
        elif Path(item).is_dir():
            places[Path(item).name] = Path(item).resolve()
        else:
            raise click.BadParameter(
                f"{item!r} is neither in {LIST_NAME} nor a directory.", param_hint="--repositories"
            )
    settings, tried = _settings(given), variants or ("",)
    directory, names, machine = work.resolve() / name, list(places), describe()
    directory.mkdir(parents=True, exist_ok=True)
    asked = {"model": model, "settings": settings, "tasks": tasks, "arms": arms}
    note = directory / "asked.json"
    if note.exists() and json.loads(note.read_text()) != asked:
        raise click.UsageError(f"{directory} was begun with other settings ({note}); choose another --name.")
    note.write_text(json.dumps(asked))
    found = elsewhere(added, {"model": Path(model).name, "settings": settings, "tasks": tasks}, tried)
    report(name, model, tasks, settings, machine, found, results)
    failed: list[str] = []
    for number, repository in enumerate(names):
        control = names[(number + 1) % len(names)] if len(names) > 1 else None
        for variant in tried:
            try:
                measured = kept_evidence(repository, variant, directory).exists()
                for trained in () if measured else filter(None, (repository, control)):
                    train(trained, places[trained], variant, model, settings, directory)
                found[variant][repository] = evaluate(
                    repository, variant, control, tasks, arms.split(","), directory
                )
            except click.ClickException as error:  # the others go on; it is tried again the next time
                print(f"{repository}, {variant or 'as set'}: {error.message}", flush=True)
                failed.append(f"{repository} ({variant or 'as set'})")
                continue
            report(name, model, tasks, settings, machine, found, results)
    if failed:
        raise click.ClickException(f"Not measured: {', '.join(failed)}; the same command tries again.")
    print((results / f"knows_{name}.md").read_text(encoding="utf-8"))


LIST_NAME = "unseen.toml"

if __name__ == "__main__":
    main()
