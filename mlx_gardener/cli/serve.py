"""``mlx-gardener serve``: answer editors with the projects' adapters."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_gardener.cli.completion import complete_projects
from mlx_gardener.cli.options import config_option, host_option, name_type, retrieval_option, token_option

if TYPE_CHECKING:
    from mlx_gardener.config import RetrievalWish


@click.command()
@click.argument("projects", type=name_type, nargs=-1, shell_complete=complete_projects)
@host_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8012, show_default=True, help="0 takes a free one."
)
@token_option
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="GB that bases and adapters may take.",
)
@click.option(
    "--queue",
    "max_queued",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Requests that may wait.",
)
@click.option(
    "--context",
    type=click.IntRange(128, 1_000_000),
    default=8192,
    show_default=True,
    help="Tokens of prompt and answer together, if the model allows as many.",
)
@retrieval_option
@click.option(
    "--in-use",
    is_flag=True,
    help="Count what stays of answers in their files, by hashes that stay here; `report` shows it.",
)
@click.option(
    "--compare",
    type=click.FloatRange(0, 0.9),
    metavar="SHARE",
    help="The share of requests that the base answers in the adapter's place, to compare both; turns --in-use on.",
)
@config_option
@click.option("--allow-host", multiple=True, help="Another name that clients may call this server by.")
@click.option("--quiet", is_flag=True, help="No line for each request.")
@click.option(
    "--json", "as_json", is_flag=True, help="Tell tests' results, the address and requests as JSON lines."
)
def serve(
    projects: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    budget: float,
    max_queued: int,
    context: int,
    retrieval: RetrievalWish | None,
    in_use: bool,
    compare: float | None,
    config_file: Path | None,
    allow_host: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Serve completions of PROJECTS (all that have an adapter by default) until Ctrl-C.

    /v1/models, /v1/completions, /v1/chat/completions; llama.cpp's /infill, /completion and /props; Ollama's /api/generate,
    /api/chat, /api/tags, /api/show and /api/ps. A request's `model` is a project (or a name that editors know, such as
    qwen2.5-coder:PROJECT), and a version that is activated is served from the next request on. Each request leaves one
    line: method, path, project, status, tokens read and written, seconds, client; why, where it was refused. Where the
    version's evidence speaks for it, code of the repository is retrieved and stands in front of prompts; the answer's header
    X-Gardener-Retrieval says which.
    """
    from mlx_gardener.config import GIB, load_config
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.text import safe_text
    from mlx_gardener.serve.access import Access, told_aside
    from mlx_gardener.serve.server import SelfTest
    from mlx_gardener.serve.server import serve as run
    from mlx_gardener.serve.settings import ServeSettings, choose_token
    from mlx_gardener.ui import make_page, page_address, page_token

    registry = ProjectRegistry()
    wishes: dict[str, Any] = {"serve.retrieval": retrieval, "serve.evidence_in_use": True if in_use else None}
    if compare is not None:
        wishes["serve.compare"] = compare
    if compare:
        wishes["serve.evidence_in_use"] = True
    config = load_config(config_file, overrides=wishes).serve
    chosen, origin = choose_token(host, token, registry.home)
    asked_by_page = page_token(chosen)
    settings = ServeSettings(
        host=host,
        port=port,
        projects=projects,
        token=chosen,
        budget_bytes=int(budget * GIB),
        max_queued=max_queued,
        max_context_tokens=context,
        retrieval=config.retrieval,
        evidence_in_use=config.evidence_in_use,
        compare=config.compare,
        allowed_hosts=allow_host,
    )

    def show_test(test: SelfTest) -> None:
        if as_json:
            click.echo(json.dumps({"event": "tested", **vars(test)}))
        elif test.problem is not None:
            click.echo(f"  {test.model}: cannot be served. {safe_text(test.problem)}", err=True)
        else:
            click.echo(
                f"  {test.model} {test.version} on {test.base}: changes the base's logits on a test text by up to {test.change:.3g}; "
                f"retrieval is {test.retrieval}"
            )

    def show_ready(address: str, end: object) -> None:
        page = page_address(address, asked_by_page if chosen is None else None)
        if as_json:
            click.echo(json.dumps({"event": "ready", "address": address, "page": page}))
            return
        asked = "no token is asked for on loopback" if chosen is None else f"the token is from {origin}"
        click.echo(f"Listening on {address}; {asked}. Ctrl-C ends.")
        click.echo(f"The page of all projects is at {page}")

    def show_request(access: Access) -> None:
        if as_json:
            click.echo(json.dumps({"event": "request", **access.as_json()}))
        else:
            click.echo(f"{time.strftime('%H:%M:%S')} {safe_text(access.text())}")

    if not as_json:
        if settings.evidence_in_use:
            told = f"; the base alone answers {settings.compare:.0%} of requests" * bool(settings.compare)
            click.echo(
                f"What stays of completions is counted, without text; `mlx-gardener report` shows it{told}."
            )
        click.echo("Loading and testing what is served:")
    with told_aside((lambda _: None) if quiet else show_request) as on_request:
        run(
            registry,
            settings,
            on_test=show_test,
            on_ready=show_ready,
            on_request=on_request,
            page=make_page(asked_by_page),
        )
