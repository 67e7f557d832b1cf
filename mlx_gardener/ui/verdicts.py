"""What the evidence says of a version, as the report says it, and versions beside each other.

In: a project and a version. Out: the report's texts, tables and pictures (`report.story`, `report.advice`), and the tasks that
were kept with their source, where the training's record is still there. Cost: reading a manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlx_gardener.adapter.versions import diff_versions
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report import advice, story
from mlx_gardener.report.html import interval_plots
from mlx_gardener.report.known import known_of, version_to_show
from mlx_gardener.report.recipe import about_version
from mlx_gardener.source.languages import language_of
from mlx_gardener.ui.answers import Handlers, looking, picture


class Verdicts:
    """Handlers over the registry."""

    def __init__(self, registry: ProjectRegistry) -> None:
        self._registry = registry

    def handlers(self) -> Handlers:
        """By path."""
        return {
            "projects/{project}/verdict": looking(self.verdict),
            "projects/{project}/compare": looking(self.compare),
        }

    def verdict(self, project: str, version: str | None = None) -> dict[str, Any]:
        """What is known of a version: the named one, else the active, else the newest; how to get one where there is none."""
        self._registry.get_project(project)
        if not version and not self._registry.list_adapters(project):
            return {
                "project": project,
                "version": None,
                "way_to_an_adapter": self._registry.way_to_an_adapter(project),
            }
        record = version_to_show(self._registry, project, version or None)
        known = known_of(self._registry, record)
        evidence = known.get("evidence")
        told = {
            "project": project,
            "version": record.version,
            "base": record.base_model,
            "active": record.active,
            "versions": [item.version for item in self._registry.list_adapters(project)],
        }
        if not evidence:
            return {**told, "evidence": None}
        headline, sign = advice.headline(evidence)
        steps = advice.next_steps(
            evidence, about_version(self._registry, record), training=known.get("training")
        )
        return {
            **told,
            "evidence": {
                "verdict": evidence["verdict"],
                "answers": story.answers(evidence),
                "headline": headline,
                "sign": sign,
                "meaning": advice.meaning(evidence),
                "reason": story.reason(evidence),
                "remarks": story.remarks(evidence),
                "notes": list(evidence.get("notes") or ()),
                "power": advice.power(evidence),
                "guards": [{**asdict(guard), "sign": guard.sign} for guard in story.guards(evidence)],
                "arms": _table(story.arms_table(evidence)),
                "kinds": _table(story.kinds_table(evidence)),
                "plots": [
                    {"title": title, **picture(str(plot))}
                    for title, plot in interval_plots(story.changes(evidence))
                ],
                "samples": [_sample(sample) for sample in evidence.get("samples") or ()],
                "steps": [{"text": step.text, "commands": list(step.commands)} for step in steps],
                "glossary": [list(entry) for entry in advice.GLOSSARY],
            },
        }

    def compare(self, project: str, first: str, second: str) -> dict[str, Any]:
        """Two versions beside each other, as `mlx-gardener diff`."""
        found = diff_versions(self._registry, project, first, second).to_json()
        titles = {name: title for name, (title, _, _) in story.METRICS.items()}
        return {**found, "titles": titles}


def _table(found: story.Table) -> dict[str, Any]:
    """A table as JSON types; ``best`` are (row, column) of what is best in its row."""
    return {
        "columns": list(found.columns),
        "rows": [list(row) for row in found.rows],
        "best": [list(place) for place in sorted(found.best)],
    }


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A task that both answered, with the words and figures that the page shows beside it."""
    kind = str(sample.get("kind", ""))
    return {
        **sample,
        "kind_title": story.KINDS.get(kind, kind),
        "language": language_of(str(sample["path"])),
        "similarity": story.similarity(sample),
    }
