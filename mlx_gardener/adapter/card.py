"""The README.md that goes along with an export: what it is, of what, how good, how it was compared, how to load it."""

from __future__ import annotations

from typing import Any


def render_export_card(facts: dict[str, Any]) -> str:
    """The card in Markdown.

    Args:
        facts: form, what, project, version, base, commit, evidence, rank, quantised, agreement and notes.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mlx_gardener.adapter", "templates"),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("export_card.md").render(facts)
