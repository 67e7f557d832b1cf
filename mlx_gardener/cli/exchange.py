"""``mlx-gardener export`` and ``import``: adapters for and from other programs."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from mlx_gardener.cli.completion import complete_models, complete_projects, complete_versions
from mlx_gardener.cli.options import as_json_option, name_type, place_type
from mlx_gardener.cli.renamed import renamed
from mlx_gardener.platform.files import existing_directory

_FORMS = ("mlx", "peft", "fused", "gguf", "gguf-fused", "gguf-base", "modelfile", "ollama", "lmstudio")


@click.command()
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("destination", required=False, type=place_type)
@click.option(
    "--version", shell_complete=complete_versions, help="Adapter version; the active one by default."
)
@click.option("--form", type=click.Choice(_FORMS), default="mlx", show_default=True, help="See above.")
@click.option(
    "--base",
    metavar="MODEL",
    shell_complete=complete_models,
    help="The base model, where it is not where it was trained.",
)
@click.option(
    "--bits", type=click.Choice(["4", "8"]), help="Quantise the fused form, if the adapter survives it."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Floats of merged models; auto is the base's own.",
)
@click.option(
    "--quantise",
    type=click.Choice(["q4_0", "q8_0", "q4_k_m"]),
    help="Quantise a merged GGUF model, if the adapter survives it; q4_k_m wants llama.cpp.",
)
@click.option(
    "--create", metavar="NAME", help="Let Ollama take the form ollama or modelfile under this name."
)
@as_json_option
def export(
    project: str,
    destination: Path | None,
    version: str | None,
    form: str,
    base: str | None,
    bits: str | None,
    dtype: str,
    quantise: str | None,
    create: str | None,
    as_json: bool,
) -> None:
    """Write PROJECT's adapter to the new directory DESTINATION, in a form that another program loads.

    mlx: mlx-lm. peft: Hugging Face PEFT. fused: the base with the adapter merged in. gguf: the adapter for llama.cpp,
    on the GGUF file it was trained on; gguf-base the base to put it on; gguf-fused both in one file. modelfile: that
    with a Modelfile for Ollama; ollama: the adapter on the model that Ollama has. lmstudio: the merged model where
    LM Studio finds it, for which DESTINATION is left out.

    What was written is loaded back and compared with the adapter on real text; where it does not agree it is refused.
    """
    from mlx_gardener.adapter.base import base_name
    from mlx_gardener.adapter.exports import export_adapter
    from mlx_gardener.registry import ProjectRegistry
    from mlx_gardener.report.export_view import next_command
    from mlx_gardener.report.story import as_sentence
    from mlx_gardener.report.text import safe_text

    if destination is None and form != "lmstudio":
        raise click.UsageError("Missing argument 'DESTINATION'.")
    registry = ProjectRegistry()

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"{text} ...", err=True)

    done = export_adapter(
        registry, project, version, form, destination, base=base, bits=None if bits is None else int(bits),
        dtype=dtype, quantise=quantise, create=create, tell=tell,
    )  # fmt: skip
    if as_json:
        figures = None if done.agreement is None else done.agreement.to_json()
        shown = {"directory": str(done.directory), "form": form, "agreement": figures, "notes": done.notes}
        click.echo(json.dumps(shown, indent=2))
        return
    click.echo(f"Wrote the {form} form to {safe_text(str(done.directory))}.")
    for line in (*(() if done.agreement is None else (done.agreement.sentence(),)), *done.notes):
        click.echo(safe_text(as_sentence(line)))
    model = base or base_name(registry, registry.get_adapter(project, version))
    command = next_command(form, done.directory, project=project, base=model)
    if create is not None:
        command = f"ollama run {create}"
    click.echo(f"Next{', in Python' * (form == 'peft')}: {safe_text(command)}")


@click.command(name="import")
@click.argument("project", type=name_type, shell_complete=complete_projects)
@click.argument("path", required=False, metavar="PATH", type=place_type)
@click.option("--project", "named", type=name_type, hidden=True)
@click.option(
    "--repository",
    type=place_type,
    help="Registers a new project.",
)
@click.option(
    "--base",
    metavar="MODEL",
    shell_complete=complete_models,
    help="The model it was trained on; what it names itself by default.",
)
@click.option("--activate", is_flag=True, help="Let other programs pick it up.")
@as_json_option
def import_(
    project: str,
    path: Path | None,
    named: str | None,
    repository: Path | None,
    base: str | None,
    activate: bool,
    as_json: bool,
) -> None:
    """Take the PEFT adapter in the directory PATH into the registry, as a new version of PROJECT's without evidence;
    or the adapter of llama.cpp's in the GGUF file PATH.

    Only safetensors, JSON and GGUF are read; pickled weights (adapter_model.bin) are refused.
    """
    from mlx_gardener.adapter import PeftManager
    from mlx_gardener.adapter.gguf_imports import import_gguf_adapter
    from mlx_gardener.adapter.imports import import_adapter

    if named is not None:  # until 0.2: import PATH --project PROJECT
        if path is not None:
            raise click.UsageError("Name the project once: import PROJECT PATH.")
        path, project = Path(project), renamed("--project", "PROJECT, in front of PATH,", named, None)
    if path is None:
        raise click.UsageError("Missing argument 'PATH'.")
    take = import_gguf_adapter if path.is_file() else import_adapter
    path = (
        path.resolve()
        if path.is_file()
        else existing_directory(path, "Name the directory of a PEFT adapter.")
    )
    manager = PeftManager()
    if repository is not None:
        repository = existing_directory(repository, "Name the root directory of a repository.")
    with nullcontext() if repository is None else manager.registry.registering(project, repository):
        record = take(manager, project, path, base=base, activate=activate)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "project": project,
                    "version": record.version,
                    "active": record.active,
                    "base_model": record.base_model,
                }
            )
        )
        return
    use = (
        "active"
        if activate
        else f"not active: `mlx-gardener activate {project} {record.version}` makes it so"
    )
    click.echo(f"Imported as {project}/{record.version}, without evidence; {use}.")
