"""Options that several commands have, and what they give: the settings, a directory, one JSON document. Cost: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_gardener.cli.completion import complete_models, complete_settings


class _PlaceType(click.Path):
    """A place by its name; an empty one, as an unset variable of a shell gives, is not the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; '.' is the current directory.", param, ctx)
        return super().convert(value, param, ctx)


class _NameType(click.types.StringParamType):
    """The name of a project; an empty one, as an unset variable of a shell gives, stands for none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; `mlx-gardener projects` lists them.", param, ctx)
        return super().convert(value, param, ctx)


name_type = _NameType()
place_type = _PlaceType(path_type=Path)
file_type = _PlaceType(path_type=Path, dir_okay=False)

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
model_option = click.option(
    "--model",
    shell_complete=complete_models,
    help="auto, seedling, a hub id, a directory, a GGUF file, or what `models` lists. [default: auto]",
)
budget_option = click.option(
    "--budget", type=float, metavar="GB", help="Memory the training may take. [default: 4]"
)
config_option = click.option("--config", "config_file", type=place_type, help="A TOML file of settings.")
settings_option = click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_settings,
    help="Any setting, as in train.",
)
retrieval_option = click.option(
    "--retrieval",
    type=click.Choice(["auto", "on", "off"]),
    help="Code of the repository in front of prompts; auto: where the version's evidence speaks for it. [default: auto]",
)
host_option = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; other than loopback needs a token.",
)
token_option = click.option(
    "--token", help="Bearer token to ask for; MLX_GARDENER_TOKEN does the same and stays out of `ps`."
)


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("lora.rank=8",)`` as ``{"lora.rank": 8}``; values are read as TOML, else as text."""
    from mlx_gardener.config import parse_value

    settings = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--set")
        settings[key.strip()] = parse_value(text.strip())
    return settings
