"""Whether another repository's adapter can be compared with is told without loading one."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_gardener.evaluate.registered import find_control, may_have_control
from mlx_gardener.registry import ProjectRegistry
from tests.registry.worlds import install_adapter


def test_a_control_is_foretold_from_manifests_alone(tmp_path: Path) -> None:
    """A run asked twice for its control, and each time an adapter was loaded."""
    registry = ProjectRegistry()
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        registry.register_project(name, tmp_path / name)
    mine = registry.get_project("mine")
    base = "a" * 64

    def install(project: str) -> Path:
        manifest = install_adapter(registry, project, "v1").directory / "manifest.json"
        told = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**told, "base": {**told["base"], "weights_sha256": base}}))
        return manifest

    install("mine")
    assert not may_have_control(registry, mine, base), "only its own"
    manifest = install("other")
    assert may_have_control(registry, mine, base), "its weights cannot be loaded, and are not"
    assert find_control(registry, mine, base)[0] is None
    assert not may_have_control(registry, mine, "f" * 64)
    manifest.write_text("{")
    assert not may_have_control(registry, mine, base)
