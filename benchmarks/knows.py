"""Does an adapter know its repository? Many repositories that the base cannot have seen, all arms, means with intervals.

    python -m benchmarks.knows --name smollm2 --model PATH [--repositories smolagents,mcp,...]
        [--set optimizer.max_steps=200 ...] [--variant data.retrieval_share=0 --variant data.retrieval_share=0.3 ...]

Every repository gets an adapter for every variant of the settings, in a home below ``--work`` that only this uses; then each is
measured with the next repository's as its control, by ``mlx-gardener train`` and ``eval`` as anybody starts them. What is done
is kept and not done again, an unfinished training goes on, and the table is written anew after every step, so that it can be
stopped at any time. The base's answers are kept for all variants. Writes ``results/knows_NAME.json`` and ``.md``.
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
from benchmarks.machine import RESULTS, bar, describe
from benchmarks.unseen import SOURCES, fetch, packages
from mlx_gardener.evaluate.statistics import Change, share_change

ROOT = Path(__file__).parents[1]
ARMS = ("base", "base_bm25", "adapter", "adapter_bm25", "control")
METRICS = (
    ("bits_per_byte", "bits per byte", "{:.3f}"),
    ("next_line_exact", "next line exact", "{:.1%}"),
    ("next_line_similarity", "similarity", "{:.1%}"),
    ("cross_file_exact", "cross-file exact", "{:.1%}"),
    ("assertion_exact", "assertion exact", "{:.1%}"),
    ("fim_exact", "span exact", "{:.1%}"),
    ("answers_exact", "all answers exact", "{:.1%}"),
    ("answers_similarity", "similarity", "{:.1%}"),
    ("answers_f1", "own names F1", "{:.1%}"),
)
#: What is compared: an arm against another one.
PAIRS = (
    ("adapter", "base"),
    ("base_bm25", "base"),
    ("adapter_bm25", "base"),
    ("adapter_bm25", "base_bm25"),
    ("adapter_bm25", "adapter"),
    ("adapter", "control"),
)
#: Whatever is not given by --set.
SETTINGS = {
    "optimizer.epochs": "3",
    "training_timeout_minutes": "0",
    "min_training_chunks": "20",
    "continue_from": "never",
    "throttling.low_priority": "false",
    # The training's own test is kept small: all arms are measured afterwards, with a control for each.
    "evaluation.least_tasks": "0",
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
        "evaluation.arms": '["base", "adapter"]',
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


def evaluate(
    name: str, variant: str, control: str | None, tasks: int, arms: Sequence[str], work: Path
) -> dict[str, Any]:
    """The evidence on an adapter, kept; with what its training took."""
    from mlx_gardener.registry import ProjectRegistry

    project = f"{name}.{slug(variant)}"
    kept = work / f"{project}.evidence.json"
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


def arm_metrics(entry: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of every arm of an evidence."""
    return {arm["name"]: dict(arm["metrics"]) for arm in entry["evidence"]["arms"]}


def mean_change(changes: Mapping[str, float]) -> dict[str, Any]:
    """The mean over repositories of paired changes, with its 95 % interval; the repositories are the units."""
    names = sorted(changes)
    found: Change = share_change([0.0] * len(names), [changes[name] for name in names], names, seed=0)
    return {
        "change": round(found.change, 5),
        "low": round(found.low, 5),
        "high": round(found.high, 5),
        "repositories": len(names),
    }


def changes(
    found: Mapping[str, Mapping[str, Any]],
    arm: str,
    against: str,
    metric: str,
    other: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """By repository, what a metric of an arm is beyond that of another one; of bits per byte the relative change.

    Args:
        other: where ``against`` is taken from; the same evidence when None.
    """
    result = {}
    for name, entry in found.items():
        if other is not None and name not in other:
            continue
        mine, theirs = arm_metrics(entry).get(arm, {}), arm_metrics((other or found)[name]).get(against, {})
        if metric in mine and metric in theirs and (metric != "bits_per_byte" or theirs[metric]):
            result[name] = (
                mine[metric] / theirs[metric] - 1
                if metric == "bits_per_byte"
                else mine[metric] - theirs[metric]
            )
    return result


def means(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """By variant: the mean of every arm's metrics, and the changes between arms; and between variants, of the same arm.

    Args:
        found: variant, repository, what `evaluate` gives.
    """
    result: dict[str, Any] = {}
    first = next(iter(found), "")
    for variant, entries in found.items():
        arms: dict[str, dict[str, float]] = {}
        for arm in ARMS:
            rows = [arm_metrics(entry).get(arm, {}) for entry in entries.values()]
            for metric, *_ in METRICS:
                values = [row[metric] for row in rows if metric in row]
                if values:
                    arms.setdefault(arm, {})[metric] = round(sum(values) / len(values), 5)
        pairs = [
            {"arm": arm, "against": against, "metric": metric, **mean_change(between)}
            for arm, against in PAIRS
            for metric, *_ in METRICS
            if (between := changes(entries, arm, against, metric))
        ]
        beside = [
            {"arm": arm, "against": first, "metric": metric, **mean_change(between)}
            for arm in ("adapter", "adapter_bm25")
            for metric, *_ in METRICS
            if variant != first and (between := changes(entries, arm, arm, metric, found[first]))
        ]
        result[variant] = {"arms": arms, "changes": pairs, "against_first": beside}
    return result


def bars(mean: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, over the repositories that are done."""

    def change(arm: str, against: str, metric: str) -> dict[str, Any] | None:
        pick = (arm, against, metric)
        return next(
            (row for row in mean["changes"] if (row["arm"], row["against"], row["metric"]) == pick), None
        )

    rows = []
    for metric, points, relative in (
        ("next_line_exact", 0.1, 0.4),
        ("cross_file_exact", 0.15, 0.6),
        ("assertion_exact", 0.1, None),
    ):
        seen, base = change("adapter_bm25", "base", metric), mean["arms"].get("base", {}).get(metric)
        if seen is not None and base is not None:
            met = seen["change"] >= points or (
                relative is not None and base > 0 and seen["change"] / base >= relative
            )
            wanted = f"+{points:.0%}" + (f" or +{relative:.0%} relative" if relative else "")
            rows.append(bar(f"{metric}: adapter + retrieval", "base", wanted, told(seen), met))
    if (seen := change("adapter_bm25", "base_bm25", "next_line_exact")) is not None:
        rows.append(
            bar(
                "next_line_exact: adapter + retrieval",
                "base + retrieval",
                "interval above zero",
                told(seen),
                seen["low"] > 0,
            )
        )
    if (seen := change("adapter", "base", "bits_per_byte")) is not None:
        rows.append(bar("bits per byte: adapter", "base", "-15%", told(seen), seen["change"] <= -0.15))
    lost = changes(found, "adapter", "control", "bits_per_byte")
    if lost:
        worse = sum(value < 0 for value in lost.values())
        rows.append(
            bar(
                "the control loses",
                "adapter of another repository",
                "all",
                f"{worse} of {len(lost)}",
                worse == len(lost),
            )
        )
    guards = [
        guard
        for entry in found.values()
        for guard in entry["evidence"]["guards"]
        if guard["name"] == "forgetting"
    ]
    if guards:
        passed = sum(guard["passed"] for guard in guards)
        rows.append(
            bar(
                "forgetting within its guard",
                "base",
                "all",
                f"{passed} of {len(guards)}",
                passed == len(guards),
            )
        )
    return rows


def told(change: Mapping[str, Any]) -> str:
    """``+4.2% (+1.0% to +7.4%)``; of one repository, which tells nothing of others, the change alone."""
    if change["repositories"] < 2:
        return f"{change['change']:+.1%}"
    return f"{change['change']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as ``benchmarks/results/knows_NAME.md`` holds them."""
    titles = [title for _, title, _ in METRICS]
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"# What adapters know of repositories that {result['model']} cannot have seen",
        "",
        f"{machine['chip']}, {machine['cores']} cores, {machine['memory_gib']} GiB, MLX {machine['mlx']} "
        f"({machine['backend']}), {machine['date']}. "
        f"{result['tasks']} tasks of each kind and repository at most, on held-out files. Settings beside the defaults: "
        + ", ".join(f"`{key}={value}`" for key, value in settings.items())
        + f". Made by `python -m benchmarks.knows`; `knows_{result['name']}.json` has every interval.",
    ]
    for variant, entries in result["evidence"].items():
        mean = result["means"][variant]
        lines += ["", f"## {variant or 'as set'}", ""]
        lines += ["| repository | arm | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
        rows = [
            (name, arm, values)
            for name, entry in entries.items()
            for arm, values in arm_metrics(entry).items()
        ]
        rows += [(f"**mean of {len(entries)}**", arm, values) for arm, values in mean["arms"].items()]
        for name, arm, values in rows:
            cells = [form.format(values[metric]) if metric in values else "" for metric, _, form in METRICS]
            lines.append(f"| {name} | {arm} | " + " | ".join(cells) + " |")
        for title, key in (
            ("change", "changes"),
            (f"against {next(iter(result['evidence'])) or 'as set'}", "against_first"),
        ):
            if not mean[key]:
                continue
            lines += [
                "",
                f"| {title}, mean over repositories | " + " | ".join(titles) + " |",
                "|---" * (len(titles) + 1) + "|",
            ]
            for arm, against in dict.fromkeys((row["arm"], row["against"]) for row in mean[key]):
                found = {
                    row["metric"]: row for row in mean[key] if (row["arm"], row["against"]) == (arm, against)
                }
                cells = [told(found[metric]) if metric in found else "" for metric, *_ in METRICS]
                lines.append(f"| {arm} against {against or 'as set'} | " + " | ".join(cells) + " |")
        lines += ["", "| bar | against | wanted | seen | met |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['measure']} | {row['against']} | {row['bar']} | {row['seen']} | {'yes' if row['met'] else 'no'} |"
            for row in result["bars"][variant]
        ]
        lines += [
            "",
            "| repository | files | kB to learn from | updates | minutes | with retrieved code | verdict |",
            "|---" * 7 + "|",
        ]
        for name, entry in entries.items():
            retrieval = entry["retrieval"] or {"examples": 0}
            lines.append(
                f"| {name} | {entry['files']} | {entry['train_bytes'] / 1000:.0f} | {entry['updates']} | "
                f"{entry['training_seconds'] / 60:.1f} | {retrieval['examples']} | {entry['evidence']['verdict']} |"
            )
    lines += [
        "",
        "Changes of bits per byte are relative, others in points; 95 % intervals with repositories as the units. Of a repository "
        "alone, intervals by file are in the JSON file.",
    ]
    return "\n".join(lines) + "\n"


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
    "--sources",
    default=SOURCES,
    type=click.Path(path_type=Path),
    help="Where source archives are fetched to.",
)
@click.option("--work", default=ROOT / ".quickstart" / "knows", type=click.Path(path_type=Path))
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path))
def main(
    name: str, model: str, repositories: str, given: tuple[str, ...], variants: tuple[str, ...],
    tasks: int, arms: str, sources: Path, work: Path, results: Path,
) -> None:  # fmt: skip
    """Train, measure, and write the tables; go on where it was stopped."""
    listed = packages()
    wanted = [item for item in repositories.split(",") if item] or list(listed)
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
    found: dict[str, dict[str, Any]] = {variant: {} for variant in tried}
    failed: list[str] = []
    for number, repository in enumerate(names):
        control = names[(number + 1) % len(names)] if len(names) > 1 else None
        for variant in tried:
            try:
                for trained in filter(None, (repository, control)):
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
