"""Ask a server of the embedded model as each client asks; see ``scripts/clients``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlx_gardener.editors.settings import block_of
from mlx_gardener.model import load_base
from mlx_gardener.model.choose import seedling_path
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.support.adapters import make_projects

#: What a prompt and its answer may have where chats are asked for, most of which name no limit of their own.
CHAT_TOKENS = 256
REQUESTS = Path(__file__).parents[1] / "tests" / "serve" / "requests"
HERE = Path(__file__).parent
#: Enough of the embedded base to have chats.
_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def clients() -> list[dict[str, Any]]:
    """Every client with its source, its recorded requests, and the paths they are sent to."""
    found: list[dict[str, Any]] = json.loads((REQUESTS / "clients.json").read_text(encoding="utf-8"))
    return found


def answered(address: str, name: str, path: str) -> str:
    """What is wrong with the answer to a recorded request; "" where nothing is."""
    body = json.loads((REQUESTS / f"{name}.json").read_text(encoding="utf-8"))
    answer = httpx.post(address + path, json=body, timeout=600)
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.strip()]
    try:
        found = [json.loads(line) for line in lines if line != "[DONE]"]
    except ValueError:
        return f"no JSON: {answer.text[:200]}"
    errors = [one["error"] for one in found if isinstance(one, dict) and "error" in one]
    return str(errors[0]) if errors else "" if found else "nothing"


@contextmanager
def served(root: Path, *, with_chats: bool) -> Iterator[tuple[str, ProjectRegistry]]:
    """A server of four projects on the embedded base, in a home of its own."""
    os.environ["MLX_GARDENER_HOME"] = str(root / "home")
    model, settings = "seedling", ServeSettings(port=0, max_queued_seconds=600.0)
    if with_chats:
        model = str(shutil.copytree(seedling_path(), root / "chatty"))
        (Path(model) / "chat_template.jinja").write_text(_TEMPLATE)
        settings = replace(settings, max_context_tokens=CHAT_TOKENS)
    registry = make_projects(load_base(model), root / "code", model, ["alpha", "beta", "gamma", "delta"])
    with serving(registry, settings) as address:
        yield address, registry


def ask_recorded() -> int:
    """Send all of them; the number of clients that are not answered."""
    wrong = 0
    with ExitStack() as stack:
        for with_chats in (False, True):
            root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with served(root, with_chats=with_chats) as (address, _):
                for client in clients():
                    if ("needs" in client) != with_chats:
                        continue
                    problems = [
                        f"{name}: {problem}"
                        for name, path in client["requests"]
                        if (problem := answered(address, name, path))
                    ]
                    wrong += bool(problems)
                    print(
                        f"{'NOT ' if problems else ''}answered  {client['client']} ({client['source']})",
                        flush=True,
                    )
                    for problem in problems:
                        print(f"    {problem}")
    return wrong


def run_editor(program: str, script: str, root: Path, **environment: str) -> dict[str, Any]:
    """What a script (``scripts/clients_*``) found in an editor without a screen, started with no configuration but ours."""
    result = root / "result.json"
    result.unlink(missing_ok=True)
    screen = ["--headless"] if "nvim" in Path(program).name else ["--not-a-term", "-T", "dumb"]
    subprocess.run(
        [program, *screen, "-u", "NONE", "-i", "NONE", "-n", "-S", str(HERE / script)],
        env={**os.environ, "HOME": str(root), "RESULT": str(result), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=900,
        check=False,
    )
    return (
        dict(json.loads(result.read_text(encoding="utf-8")))
        if result.exists()
        else {"error": "it said nothing"}
    )


def metric(address: str, name: str) -> float:
    """A value of /metrics."""
    lines = httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"mlx_gardener_{name} ")))


def ask_llama_vim(program: str, plugin: Path, address: str, root: Path) -> str:
    """What went wrong when llama.vim asked, its completion was taken, and it asked again; "" where nothing did."""
    settings = root / "llama.vim"
    settings.write_text(block_of("vim", "beta", address, None), encoding="utf-8")
    found = run_editor(
        program, "clients_llama.vim", root, PLUGIN=str(plugin), SETTINGS=str(settings), ADDRESS=address
    )
    if found.get("error"):
        return str(found["error"])
    if not found["shown"].strip() or found["shown"].split("\n")[0] not in found["taken"]:
        return f"shown {found['shown']!r}, and then the text was {found['taken']!r}"
    read, cached = metric(address, "prompt_tokens_total"), metric(address, "cached_tokens_total")
    return "" if cached > 0.3 * read else f"only {cached:.0f} of {read:.0f} tokens were not read again"


def ask_neovim(program: str, address: str, registry: ProjectRegistry, root: Path) -> str:
    """What went wrong when Neovim's own language client asked; "" where nothing did."""
    file = Path(registry.get_project("beta").path) / "sums.py"
    file.write_text(
        "import os\n\n\ndef add(first, second):\n    return \n\n\nprint(add(1, 2))\n", encoding="utf-8"
    )
    found = run_editor(
        program, "clients_lsp.lua", root, FILE=str(file), ADDRESS=address, PYTHON=sys.executable
    )
    return "" if found.get("text") else str(found.get("error") or "no completion")


@click.command()
@click.option("--vim", help="A Vim to run llama.vim in (9.1 or newer).")
@click.option("--neovim", help="A Neovim to run llama.vim and the language client in (0.11 or newer).")
@click.option(
    "--llama-vim", type=click.Path(exists=True, path_type=Path), help="A checkout of ggml-org/llama.vim."
)
@click.option("--recorded/--no-recorded", default=True, help="Send the recorded requests.")
def main(vim: str | None, neovim: str | None, llama_vim: Path | None, recorded: bool) -> None:
    """Send every client's recorded request to a server of the embedded model, and say which is no longer answered (then it ends
    with 1): two minutes on two cores."""
    print("Loading and serving the embedded model ...", file=sys.stderr)
    wrong = ask_recorded() if recorded else 0
    for program in (vim, neovim):
        if program is None:
            continue
        tries: list[tuple[str, Any]] = []
        if llama_vim is not None:
            place = llama_vim.resolve()
            tries.append(("llama.vim", lambda a, r, t, p=program, d=place: ask_llama_vim(p, d, a, t)))
        if program == neovim:
            tries.append(("its language client", lambda a, r, t, p=program: ask_neovim(p, a, r, t)))
        for name, ask in tries:
            with (
                tempfile.TemporaryDirectory() as directory,
                served(Path(directory), with_chats=False) as (address, registry),
            ):
                problem = ask(address, registry, Path(directory))
            wrong += bool(problem)
            print(
                f"{'NOT ' if problem else ''}answered  {name} in {program}"
                + (f": {problem}" if problem else "")
            )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
