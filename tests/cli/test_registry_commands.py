"""registry check, repair, gc, backup and restore, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_gardener.registry import ProjectRegistry
from tests.registry.worlds import install_adapter
from tests.support.commands import gardener, gardener_here


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    made = ProjectRegistry()
    made.register_project("small", repository)
    for version in ("v1", "v2", "v3"):
        install_adapter(made, "small", version)
    return made


def test_check_tells_by_its_exit_code_and_repair_mends(registry: ProjectRegistry) -> None:
    assert gardener_here("registry", "check").returncode == 0
    (registry.get_adapter("small").directory / "README.md").write_text("changed")
    quick = gardener_here("registry", "check", "--quick")
    assert quick.returncode == 0 and "All is well" in quick.stdout
    found = gardener_here("registry", "check")
    assert found.returncode == 1 and "small/v3" in found.stdout and "repair" in found.stdout
    (problem,) = json.loads(gardener_here("registry", "check", "--json").stdout)["problems"]
    assert (problem["kind"], problem["subject"]) == ("wrong_files", "small/v3")
    mended = gardener_here("registry", "repair")
    assert mended.returncode == 0 and "out of use" in mended.stdout
    assert gardener_here("registry", "check").returncode == 0
    assert "nothing to mend" in gardener_here("registry", "repair").stdout
    assert json.loads(gardener_here("registry", "repair", "--json").stdout) == {"done": []}


def test_gc_says_what_goes_before_it_does(registry: ProjectRegistry) -> None:
    planned = json.loads(gardener_here("registry", "gc", "--keep", "1", "--dry-run", "--json").stdout)
    assert [item["subject"] for item in planned["items"]] == ["small/v2", "small/v1"]
    assert planned["freed_bytes"] > 0 and len(registry.list_adapters("small")) == 3
    asked = gardener("registry", "gc", "--keep", "1")  # nobody answers
    assert asked.returncode == 2 and "version small/v2" in asked.stdout
    assert "Delete these 2" in asked.stderr and "--yes" in asked.stderr
    assert gardener_here("registry", "gc", "--keep", "1", "--json").returncode == 2
    assert len(registry.list_adapters("small")) == 3
    done = gardener_here("registry", "gc", "--keep", "1", "--yes")
    assert done.returncode == 0 and f"{planned['freed_bytes']:,} bytes are freed" in done.stdout
    assert [adapter.version for adapter in registry.list_adapters("small")] == ["v3"]
    assert gardener_here("registry", "gc", "--keep", "0").returncode == 2


def test_a_backup_is_restored_elsewhere_and_in_place_only_when_asked(
    registry: ProjectRegistry, tmp_path: Path
) -> None:
    file = tmp_path / "backup.tar"
    assert gardener("registry", "backup", str(file)).returncode == 0
    again = gardener("registry", "backup", str(file))
    assert again.returncode == 2 and "--force" in again.stderr
    assert gardener("registry", "backup", str(file), "--force").returncode == 0
    registry.close()
    refused = gardener("registry", "restore", str(file))
    assert refused.returncode == 2 and "--replace" in refused.stderr
    replaced = gardener("registry", "restore", str(file), "--replace")
    assert replaced.returncode == 0 and "home.replaced-" in replaced.stdout
    elsewhere = {"MLX_GARDENER_HOME": str(tmp_path / "elsewhere")}
    assert gardener("registry", "restore", str(file), **elsewhere).returncode == 0
    shown = json.loads(gardener("show", "small", "--json", **elsewhere).stdout)
    assert [item["version"] for item in shown["adapters"]] == ["v1", "v2", "v3"]
    (tmp_path / "no.tar").write_bytes(b"no archive")
    broken = gardener("registry", "restore", str(tmp_path / "no.tar"), MLX_GARDENER_HOME=str(tmp_path / "x"))
    assert broken.returncode == 1 and "cannot be restored" in broken.stderr and not (tmp_path / "x").exists()
