"""Fifty processes that change one registry at once.

    python benchmarks/registry_storm.py [--processes 50] [--operations 100]

Projects, trainings, adapters and queue entries are made, changed and removed; every process keeps account of what it was
told is done. Bars: nothing lost and nothing made up, no operation over 5 s, and `registry check` clean, afterwards and
at every moment meanwhile (one more process checks all the while).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click
from machine import describe, save

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.registry.storm import blow

BAR_SECONDS = 5.0


@click.command()
@click.option("--processes", default=50, show_default=True)
@click.option("--operations", default=100, show_default=True, help="Of each process.")
@click.option("--rounds", default=2, show_default=True)
def main(processes: int, operations: int, rounds: int) -> None:
    """Let the storms blow and write the result; exit code 1 when a bar is missed."""
    machine = describe()
    os.chdir(Path(__file__).parents[1])
    results = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch) / "home"
            os.environ["MLX_GARDENER_HOME"] = str(home)
            result = blow(home, processes=processes, operations=operations)
        results.append(result)
        click.echo(
            f"round {number + 1}: {result['operations']} operations in {result['seconds']} s, the longest "
            f"{result['longest_seconds']} s; {len(result['differences'])} differences, "
            f"{len(result['problems_afterwards'])} problems; {len(result['problems_meanwhile'])} in "
            f"{result['checks_meanwhile']} checks meanwhile"
        )
    good = all(
        result["longest_seconds"] <= BAR_SECONDS
        and not (result["differences"] or result["problems_afterwards"] or result["problems_meanwhile"])
        for result in results
    )
    save("registry_storm", {"machine": machine, "bar_seconds": BAR_SECONDS, "good": good, "rounds": results})
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
