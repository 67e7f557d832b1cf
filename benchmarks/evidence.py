"""Five real repositories, five arms: does an adapter know its own repository better than another one's adapter does?

    python -m benchmarks.evidence              # click, flask, requests, rich (PyPI), cobra (Debian): trains and evaluates
    python -m benchmarks.evidence kept         # the table of what has been evaluated so far
    python -m benchmarks.evidence calibration  # how often an A/A comparison is called a difference

The embedded model, which saw none of the five (`scripts/seedling_corpus.toml` lists what was kept from it; checked here).
Every repository gets an adapter first; then each adapter is measured with that of the next repository as its control.
What is done is kept in ``.quickstart/evidence`` and not done again. Cost: five to ten minutes a repository on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path
from typing import Any

import mlx_gardener  # noqa: F401  first: the fast BLAS must be opened before mlx is imported
from benchmarks.machine import RESULTS, bar, describe, save

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".quickstart" / "evidence"
REPOSITORIES = ("click", "flask", "requests", "rich", "cobra")
COBRA = "golang-github-spf13-cobra-dev"
SETTINGS = {
    "model": "seedling",
    "optimizer.epochs": 1,
    "optimizer.max_steps": 128,
    "optimizer.tokens_per_update": 1024,
    "data.sequence_lengths": [512],
    "evaluation.per_epoch": 1,
    "min_training_chunks": 20,
    "training_timeout_minutes": 60,
    "throttling.low_priority": False,
}
TASKS = 24
ARMS = ("base", "base_bm25", "adapter", "adapter_bm25", "control")
METRICS = (
    ("bits_per_byte", "bits per byte", "{:.3f}"),
    ("next_line_exact", "next line exact", "{:.1%}"),
    ("next_line_similarity", "next line similarity", "{:.1%}"),
    ("identifier_f1", "own names F1", "{:.1%}"),
    ("cross_file_exact", "cross-file exact", "{:.1%}"),
    ("assertion_exact", "assertion exact", "{:.1%}"),
    ("fim_exact", "span exact", "{:.1%}"),
    ("fim_parse_ok", "span parses", "{:.1%}"),
    ("stop_rate", "stops", "{:.1%}"),
)


def fetch(name: str) -> tuple[Path, str]:
    """The unpacked source distribution and its file's name."""
    target = WORK / "sources" / name
    download = WORK / "downloads" / name
    if not target.is_dir():
        download.mkdir(parents=True, exist_ok=True)
        if name == "cobra":
            subprocess.run(["apt-get", "download", COBRA], cwd=download, check=True, capture_output=True)
            unpacked = download / "unpacked"
            subprocess.run(["dpkg-deb", "-x", str(next(download.glob("*.deb"))), str(unpacked)], check=True)
            source = unpacked / "usr/share/gocode/src/github.com/spf13/cobra"
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
            subprocess.run([*command, "--dest", str(download), name], check=True, capture_output=True)
            with tarfile.open(next(download.glob("*.tar.gz"))) as archive:
                # Python before 3.11.4 has none.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(download / "unpacked")
            source = next((download / "unpacked").iterdir())
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    archives = [path.name for path in download.iterdir() if path.is_file()]
    return target, archives[0]


def unseen_by_seedling(name: str) -> str:
    """How the seedling's corpus keeps the repository out.

    Raises:
        SystemExit: it does not.
    """
    corpus = tomllib.loads((ROOT / "scripts" / "seedling_corpus.toml").read_text(encoding="utf-8"))
    card = json.loads((ROOT / "mlx_gardener/model/seedling/score.json").read_text(encoding="utf-8"))
    card_text = (ROOT / "mlx_gardener/model/seedling/README.md").read_text(encoding="utf-8")
    never, held_out = (
        next(line for line in card_text.splitlines() if line.startswith(start))
        for start in ("asyncclick", "Held-out packages")
    )
    assert corpus and card
    if name in never.rstrip(".").split(", "):
        return "named in the list of packages never trained on"
    if name == "cobra" and "golang-github-spf13-cobra" in held_out:
        return "held out: its figures are in the seedling's card"
    raise SystemExit(f"{name} may be in the seedling's training data; choose another repository.")


def train_all() -> dict[str, dict[str, Any]]:
    """An adapter for every repository that has none yet; what was trained on by name."""
    from mlx_gardener import train
    from mlx_gardener.config import load_config
    from mlx_gardener.registry import ProjectRegistry

    # The training's own evaluation is kept small: all arms are measured below, with a control for each.
    overrides = {
        **SETTINGS,
        "evaluation.arms": ["base", "adapter"],
        "evaluation.tasks": 8,
        "evaluation.time_share": 0,
    }
    config = load_config(environment={}, overrides=overrides)
    found = {}
    for name in REPOSITORIES:
        path, archive = fetch(name)
        known = {project.name for project in ProjectRegistry().list_projects()}
        started = time.monotonic()
        if name not in known or not ProjectRegistry().list_adapters(name):
            train(path, project=name, config=config)
            print(f"{name}: trained in {time.monotonic() - started:.0f} s", flush=True)
        record = ProjectRegistry().list_adapters(name)[-1]
        manifest = json.loads((record.directory / "manifest.json").read_text())
        summary = manifest["data"]["summary"]
        found[name] = {
            "archive": archive,
            "unseen": unseen_by_seedling(name),
            "files": summary["files_kept"],
            "train_tokens": manifest["training"]["tokens_seen"],
            "steps": manifest["training"]["steps"],
            "training_seconds": manifest["training"]["seconds"],
        }
    return found


def evaluate_all(*, only_kept: bool) -> dict[str, Any]:
    """The evidence on every adapter, its control being the next repository's.

    Args:
        only_kept: leave out repositories that have not been evaluated yet.
    """
    from mlx_gardener.evaluate.registered import evaluate_adapter
    from mlx_gardener.registry import ProjectRegistry

    registry = ProjectRegistry()
    found = {}
    for number, name in enumerate(REPOSITORIES):
        control = REPOSITORIES[(number + 1) % len(REPOSITORIES)]
        kept = WORK / f"evidence-{name}.json"
        if not kept.exists():
            if only_kept:
                continue
            version = registry.list_adapters(name)[-1].version
            started = time.monotonic()
            done = evaluate_adapter(registry, name, version, control=control, tasks=TASKS, arms=ARMS)
            told = {
                "control": control,
                "seconds": round(time.monotonic() - started),
                **done.evidence.to_json(),
            }
            kept.write_text(json.dumps(told))
            print(
                f"{name}: evaluated in {told['seconds']} s: {told['verdict']}: {told['reason']}", flush=True
            )
        found[name] = json.loads(kept.read_text())
    return found


def calibration() -> dict[str, Any]:
    """How often nothing is called a difference, by number of files, 1000 seeds; by our interval and by percentiles."""
    import numpy as np

    from mlx_gardener.evaluate.statistics import relative_change

    table = []
    for files in (3, 5, 8, 12, 30):
        ours = percentiles = 0
        for seed in range(1000):
            random = np.random.default_rng(seed)
            sizes = random.lognormal(7, 1.2, files)
            spread = 0.02 * (np.median(sizes) / sizes) ** 0.25
            first, second = (sizes * (1 + random.standard_t(4, files) * spread) for _ in range(2))
            ours += relative_change(list(first), list(second), seed=seed).spans_zero
            drawn = random.integers(0, files, (1000, files))
            low, high = np.quantile(second[drawn].sum(1) / first[drawn].sum(1) - 1, (0.025, 0.975))
            percentiles += bool(low <= 0 <= high)
        table.append(
            {"files": files, "inconclusive": ours / 1000, "percentile_bootstrap": percentiles / 1000}
        )
    return {
        "seeds": 1000,
        "noise": "Student t (4) of 2 % at a median file, sizes lognormal (sigma 1.2)",
        "rows": table,
    }


def markdown(trained: dict[str, Any], found: dict[str, Any], aa: dict[str, Any]) -> str:
    """The tables as `benchmarks/results/evidence.md` holds them."""
    count = "five" if len(found) == len(REPOSITORIES) else f"{len(found)} of five"
    lines = [f"# Evidence on {count} repositories the embedded model never saw", ""]
    lines += [
        f"Seedling (7.6 million parameters), {SETTINGS['optimizer.max_steps']} updates of "
        f"{SETTINGS['optimizer.tokens_per_update']} tokens each, {TASKS} tasks of each kind, on held-out files. Made by "
        "`python -m benchmarks.evidence`; `evidence.json` has every interval.",
        "",
        "| repository | " + " | ".join(("arm", *(title for _, title, _ in METRICS))) + " |",
        "|---" * (len(METRICS) + 2) + "|",
    ]
    for name, evidence in found.items():
        for arm in evidence["arms"]:
            cells = [
                form.format(arm["metrics"][key]) if key in arm["metrics"] else "" for key, _, form in METRICS
            ]
            lines.append(f"| {name} | {arm['title']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| repository | verdict | right adapter against control | adapter against base + retrieval |",
        "|---|---|---|---|",
    ]
    for name, evidence in found.items():
        cells = [evidence["verdict"]]
        for arm, against, sign in (("adapter", "control", 1), ("base_bm25", "adapter", 1)):
            change = pair(evidence, arm, against)
            told = f"{sign * change['change']:+.1%} ({change['low']:+.1%} to {change['high']:+.1%})"
            cells.append(told if arm == "adapter" else f"base + retrieval is {told}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Changes are of bits per byte, with 95 % intervals by file; below zero the first named is better.",
        "",
    ]
    for name, evidence in found.items():
        failed = [guard["reason"] for guard in evidence["guards"] if not guard["passed"]]
        lines.append(
            f"- {name} ({trained[name]['archive']}): {evidence['reason']} {evidence['power']['note']}"
        )
        lines += [f"  Guard: {reason}" for reason in failed]
    lines += [
        "",
        "## A/A: the same thing against itself",
        "",
        "| files | inconclusive | percentile bootstrap |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['files']} | {row['inconclusive']:.1%} | {row['percentile_bootstrap']:.1%} |"
        for row in aa["rows"]
    ]
    return "\n".join(lines) + "\n"


def pair(evidence: dict[str, Any], arm: str, against: str) -> dict[str, Any]:
    """The comparison of two arms' bits per byte."""
    return next(
        found
        for found in evidence["comparisons"]
        if (found["arm"], found["against"], found["metric"]) == (arm, against, "bits_per_byte")
    )


def main() -> None:
    if sys.argv[1:] == ["calibration"]:
        print(json.dumps(calibration(), indent=2))
        return
    os.environ["MLX_GARDENER_HOME"] = str(WORK / "home")
    machine = describe()
    trained, found, aa = train_all(), evaluate_all(only_kept=sys.argv[1:] == ["kept"]), calibration()
    lost = [name for name in found if pair(found[name], "adapter", "control")["change"] < 0]
    clearly = [name for name in found if pair(found[name], "adapter", "control")["high"] < 0]
    least = min(row["inconclusive"] for row in aa["rows"])
    bars = [
        bar(
            "the control loses to the right adapter, bits per byte",
            "adapter of another repository",
            "5 of 5",
            f"{len(lost)} of {len(found)} that were evaluated, {len(clearly)} with the whole interval",
            len(lost) == len(REPOSITORIES),
        ),
        bar(
            "A/A comparisons that are inconclusive",
            "chance",
            ">= 95 %",
            f"{least:.1%} at least",
            least >= 0.95,
        ),
    ]
    result = {
        "machine": machine,
        "settings": SETTINGS,
        "tasks": TASKS,
        "bars": bars,
        "repositories": trained,
        "calibration": aa,
        "evidence": found,
    }
    save("evidence", result)
    (RESULTS / "evidence.md").write_text(markdown(trained, found, aa), encoding="utf-8")
    print((RESULTS / "evidence.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
