"""The README.md of an adapter: what it is, how good it is, how to load it, how it was made."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlx_gardener.report import advice, story
from mlx_gardener.report.code import highlight_code
from mlx_gardener.report.svg import change_bar
from mlx_gardener.report.text import counted, duration, gigabytes, safe_lines

_environment: Environment | None = None


def environment() -> Environment:
    """The templates of this room; HTML is escaped, Markdown is not."""
    global _environment
    if _environment is None:
        _environment = Environment(
            loader=PackageLoader("mlx_gardener.report", "templates"),
            autoescape=lambda name: name is not None and name.endswith(".html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        _environment.filters |= {
            "percent": lambda value: f"{value:+.1%}" if abs(value) >= 0.0005 else "0.0%",
            "lines": lambda value: safe_lines(str(value)),
            "code": highlight_code,
            "similarity": story.similarity,
            "kind": lambda name: story.KINDS.get(name, name),
            "change_bar": lambda change, most: Markup(change_bar(change, most=most)),
            "gigabytes": gigabytes,
            "counted": counted,
            "duration": duration,
        }
    return _environment


def render_model_card(facts: dict[str, Any]) -> str:
    """The model card in Markdown.

    Args:
        facts: project, version, base_model, and the manifest's details (config, data, metrics, evidence, training).
    """
    evidence = facts["evidence"]
    changes = [change for change in story.changes(evidence) if change.metric == "bits_per_byte"]
    template = environment().get_template("model_card.md")
    return template.render(
        facts,
        headline=advice.headline(evidence)[0],
        table=story.arms_table(evidence),
        changes=changes,
        kept=story.kept(facts["training"]),
        guards=story.guards(evidence),
    )
