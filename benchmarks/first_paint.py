"""How soon the web page is painted with a hundred projects, in a real browser that was never there before.

    python benchmarks/first_paint.py [--projects 100] [--rounds 15]

A registry of 100 projects, each with an adapter of a tiny model, is shown by `mlx-gardener ui` in a process of its own. Each
round opens the page in headless Chromium with an empty cache and reads the browser's own clock, which starts as it begins to
ask for the page: ``first_paint_ms`` is its "first contentful paint" (https://web.dev/articles/fcp), ``all_shown_ms`` is when
the last project stands in the list. Needs Chromium or Chrome (``scripts/test --browser`` installs it). Takes about a minute.
Writes ``results/first_paint.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

import mlx_gardener  # noqa: F401  # preloads the BLAS

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import bar, describe, save, spread

from mlx_gardener.config import LoraConfig
from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from tests.support.adapters import make_adapter
from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.ui.browser import browser, tab

MOST_MS = 200


def make_registry(home: Path, code: Path, projects: int) -> ProjectRegistry:
    """Projects with an adapter each."""
    tokenizer, model = code / "tokenizer", code / "model"
    tokenizer.mkdir()
    model.mkdir()
    write_tiny_tokenizer(tokenizer, Path(__file__).parent)
    write_tiny_model(model, tokenizer)
    registry, base = ProjectRegistry(home), load_base(str(model))
    for number in range(projects):
        root = code / f"project-{number:03d}"
        root.mkdir()
        registry.register_project(root.name, root)
        make_adapter(registry, root.name, base, LoraConfig(rank=2), seed=number + 1)
    return registry


@click.command()
@click.option("--projects", default=100, show_default=True)
@click.option("--rounds", default=15, show_default=True)
def main(projects: int, rounds: int) -> None:
    """Measure and write the result."""
    machine = describe()
    painted: list[float] = []
    shown: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        home, code = Path(scratch, "home"), Path(scratch, "code")
        code.mkdir()
        click.echo(f"Making {projects} projects ...", err=True)
        make_registry(home, code, projects)
        command = [sys.executable, "-m", "mlx_gardener", "ui", "--port", "0", "--json"]
        environment = {**os.environ, "MLX_GARDENER_HOME": str(home)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())
            with browser() as opened:
                for number in range(rounds):
                    with tab(opened, address["address"]) as (page, _):
                        page.goto(address["page"])
                        page.get_by_role("button", name=f"Manage project-{projects - 1:03d}").wait_for()
                        shown.append(page.evaluate("performance.now()"))
                        painted.append(
                            page.evaluate(
                                "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                            )
                        )
                    click.echo(f"{number + 1} of {rounds}: {painted[-1]:.0f} ms", err=True)
            server.terminate()
    found = spread(painted)
    result = {
        "machine": machine,
        "projects": projects,
        "first_paint_ms": found,
        "all_shown_ms": spread(shown),
        "bars": [
            bar(
                "first contentful paint, median",
                f"a registry of {projects} projects",
                f"<= {MOST_MS} ms",
                f"{found['median']:.0f} ms",
                found["median"] <= MOST_MS,
            )
        ],
    }
    print(json.dumps(result["bars"], indent=1), save("first_paint", result))


if __name__ == "__main__":
    main()
