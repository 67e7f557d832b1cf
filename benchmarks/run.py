"""The engine's benchmarks, in turn, and the table and picture of what they saw.

    python benchmarks/run.py                 all that runs in about two hours on two cores
    python benchmarks/run.py quantized ...   only these
    python benchmarks/run.py --table         only the table and picture, from results that are there

Each benchmark writes ``results/NAME.json``; here ``results/engine.md`` and ``results/engine.svg`` are made of them. The big
bases need 22 GB of disk and are run by ``python benchmarks/big_bases.py DIRECTORY``; ``step_profile.py``, which looks into
Linux's BLAS, by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from machine import RESULTS

BENCHMARKS = (
    "against_mlx_lm",
    "mixed_lengths",
    "quantized",
    "streamed",
    "memory_plan",
    "across_budgets",
    "loss_curve",
    "ablation",
)
WITH_BARS = (*BENCHMARKS[:4], "step_profile", "big_bases", *BENCHMARKS[4:])
_MARKS = {True: "met", False: "missed", None: ""}


def results() -> dict[str, dict[str, Any]]:
    """What is in the result files of benchmarks that have been run."""
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for name in WITH_BARS
        if (RESULTS / f"{name}.json").exists()
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """All bars as a Markdown table, then the ablation's."""
    lines = [
        "# The engine's benchmarks",
        "",
        "Written by `python benchmarks/run.py`; figures are of the machine that each result file describes.",
        "",
        "![Peak memory and speed](engine.svg)",
        "",
        "| measure | against | bar | seen | | result |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        for row in result.get("bars", ()):
            cells = (row["measure"], row["against"], row["bar"], row["seen"], _MARKS[row["met"]])
            lines.append("| " + " | ".join(cells) + f" | [{name}]({name}.json) |")
    if "ablation" in found:
        lines += [
            "",
            "## Each technique switched off",
            "",
            "The side without a comma is the reference of those below it.",
            "",
            "| side | tokens/s | of the reference | peak, MiB | of the reference |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['side']} | {row['tokens_per_second']} | {row['speed_ratio']:.2f} | {row['peak_mib']} | {row['peak_ratio']:.2f} |"
            for row in found["ablation"]["ablation"]
        ]
    machines = {name: result["machine"] for name, result in found.items()}
    lines += ["", "## Machines", ""]
    for name, one in machines.items():
        where = f"{one['chip']}, {one['cores']} cores, {one['memory_gib']} GiB, {one['system']}"
        lines.append(
            f"- {name}: {where}, MLX {one['mlx']} ({one['backend']}), mlx-lm {one['mlx_lm']}, {one['date']}"
        )
    return "\n".join(lines) + "\n"


def picture(found: dict[str, dict[str, Any]]) -> str:
    """Two rows of bars as SVG: peak memory beyond the weights, and speed, of one step at the 0.5B shape."""
    sides = found.get("against_mlx_lm", {}).get("sides", {})
    panels = (
        ("Peak memory beyond the weights, MiB (less is better)", "peak_beyond_weights_mib"),
        ("Tokens a second (more is better)", "tokens_per_second"),
    )
    parts, top = [], 28
    for title, key in panels:
        parts.append(f'<text x="12" y="{top}" class="title">{title}</text>')
        most = max((one[key]["median"] for one in sides.values()), default=1)
        for name, one in sides.items():
            top += 26
            value = one[key]["median"]
            kind = "theirs" if name.startswith("mlx_lm") else "ours"
            parts.append(f'<text x="12" y="{top}" class="label">{name}</text>')
            parts.append(
                f'<rect x="170" y="{top - 13}" width="{max(2, 400 * value / most):.0f}" height="17" class="{kind}"/>'
            )
            parts.append(
                f'<text x="{178 + 400 * value / most:.0f}" y="{top}" class="label">{value:,.0f}</text>'
            )
        top += 44
    style = (
        "text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600}.ours{fill:#2f855a}.theirs{fill:#a0aec0}"
        "@media(prefers-color-scheme:dark){text{fill:#eee}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {top - 10}" role="img" '
        f'aria-label="One training step at a 0.5B shape">\n<style>{style}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(BENCHMARKS))
@click.option(
    "--table", "only_table", is_flag=True, help="Make table and picture of the results that are there."
)
def main(names: tuple[str, ...], only_table: bool) -> None:
    """Run benchmarks and draw what they saw."""
    failed = []
    for number, name in enumerate(() if only_table else names or BENCHMARKS, start=1):
        print(f"== {number} of {len(names or BENCHMARKS)}: {name}", flush=True)
        started = time.monotonic()
        done = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))])
        print(f"== {name} took {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
        if done.returncode:
            failed.append(name)
    found = results()
    (RESULTS / "engine.md").write_text(table(found), encoding="utf-8")
    (RESULTS / "engine.svg").write_text(picture(found), encoding="utf-8")
    print("wrote", RESULTS / "engine.md")
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
