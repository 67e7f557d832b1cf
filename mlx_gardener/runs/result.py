"""What a run leaves behind: written down before it is registered, recorded in the registry, told at its end.

In: what the phases made. Out: JSON types and back. Cost: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from mlx_gardener.errors import RegistryError
from mlx_gardener.registry.names import is_version


@dataclass(frozen=True)
class RunResult:
    """The adapter of a run and what is known of it.

    Attributes:
        adapter_version: of the project.
        metrics, evidence, training: as JSON types; the evidence quotes source.
        unchanged_since: the version that was there already, as neither files nor settings have changed since; None where
            something was trained.
        cancelled_late: whether the run was cancelled while its adapter was measured.
    """

    adapter_version: str
    metrics: dict[str, Any]
    evidence: dict[str, Any]
    training: dict[str, Any]
    unchanged_since: str | None = None
    cancelled_late: bool = False

    def to_json(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: object) -> RunResult:
        """What `to_json` made.

        Raises:
            RegistryError: it did not make ``values``: a run that failed has no result, and files can be damaged.
        """
        if isinstance(values, dict) and is_version(values.get("adapter_version")):
            names = {field.name for field in fields(cls)}
            if {"metrics", "evidence", "training"} <= values.keys():
                return cls(**{name: value for name, value in values.items() if name in names})
        raise RegistryError(
            "The result of the training cannot be read.",
            next_step="Train again with `mlx-gardener train --fresh`.",
        )
