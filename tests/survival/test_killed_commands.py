"""``import`` and ``rollback`` killed at their writes: nothing is half there, and repair as well as the same command ends it.

Real processes, killed by SIGKILL just before or after a write call (`fault.sitecustomize`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.adapter import PeftManager
from mlx_gardener.registry import ProjectRegistry
from tests.registry.worlds import install_adapter
from tests.support.commands import gardener_here
from tests.support.peft import write_peft

ROOT = Path(__file__).parents[2]
START = """
import sys
from pathlib import Path
from tests.survival.fault.sitecustomize import Fault, install
install(Fault(Path(sys.argv[1])))
from mlx_gardener.cli import main
sys.argv = ["mlx-gardener", *sys.argv[2:]]
main()
"""


#: A call of an import, its number among those of its name, and whether the process dies after it. They come in this order; the
#: commits make the tables, register the project, note the base and register the adapter.
MOMENTS = [
    ("mkdir", 1, True),
    ("save_safetensors", 1, False),
    ("write", 1, False),
    ("save_safetensors", 2, False),
    ("write", 4, False),
    ("fsync", 1, True),
    ("rename", 1, False),
    ("rename", 1, True),
    ("commit", 4, False),
    ("commit", 4, True),
]


def run(scratch: Path, fault: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in which something happens."""
    file = scratch / "fault.json"
    file.write_text(json.dumps(fault))
    return subprocess.run(
        [sys.executable, "-c", START, str(file), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def versions_of(registry: ProjectRegistry) -> list[str]:
    """The project's versions; every one of them is whole, and nothing but them is there or wrong."""
    assert registry.check() == []
    if not registry.list_projects():
        return []
    versions = [record.version for record in registry.list_adapters("web")]
    for version in versions:
        assert PeftManager(registry).load_adapter("web", version).weights
    adapters = registry.project_directory("web") / "adapters"
    assert sorted(versions) == sorted(path.name for path in adapters.glob("*"))
    return versions


def import_killed(fault: dict[str, Any], home: Path, scratch: Path, arguments: tuple[str, ...]) -> int:
    """Kill an import; how many versions there are after a repair, and after the same command again."""
    killed = run(scratch, fault, *arguments)
    assert killed.returncode == -9, killed.stderr
    for staged in home.rglob(".new-*"):
        os.utime(staged, (1, 1))  # that nobody is about to lock a directory is told by its age
    if home.exists():
        shutil.copytree(home, scratch / "copy")
    with closing(ProjectRegistry(scratch / "copy")) as registry:
        registry.repair()
        repaired = versions_of(registry)
    again = gardener_here(*arguments)
    assert again.returncode == 0, again.stderr
    with closing(ProjectRegistry(home)) as registry:
        versions = versions_of(registry)
    assert versions in (["v1"], ["v1", "v2"]) and len(repaired) <= 1
    return len(versions)


@pytest.fixture
def import_command(repository: Path, tiny_model_dir: Path, tmp_path: Path) -> tuple[str, ...]:
    source = write_peft(tmp_path / "peft", {"model.layers.0.self_attn.q_proj": 4})
    return ("import", "web", str(source), "--repository", str(repository), "--base", str(tiny_model_dir))


@pytest.mark.parametrize(("call", "number", "after"), MOMENTS)
def test_an_import_that_is_killed_leaves_nothing_half_and_is_done_again(
    call: str, number: int, after: bool, home: Path, tmp_path: Path, import_command: tuple[str, ...]
) -> None:
    fault = {"action": "kill", "of": call, "at": number, "after": after}
    count = import_killed(fault, home, tmp_path, import_command)
    assert count == (2 if (call, after) == ("commit", True) else 1), "it is known once, unless both were done"


@pytest.mark.slow
def test_an_import_that_is_killed_at_any_write_leaves_nothing_half(
    home: Path, tmp_path: Path, import_command: tuple[str, ...]
) -> None:
    assert run(tmp_path, {"action": "count", "at": 0}, *import_command).returncode == 0
    calls = json.loads((tmp_path / "fault.calls").read_text())
    assert len(calls) > 20
    for at in range(1, len(calls) + 1):
        for after in (False, True):
            shutil.rmtree(home, ignore_errors=True)
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            import_killed({"action": "kill", "at": at, "after": after}, home, tmp_path, import_command)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("command", "twice"), [(("rollback", "web"), "v1"), (("activate", "web", "v2"), "v2")]
)
def test_going_back_is_done_or_not_where_it_is_killed(
    command: tuple[str, ...], twice: str, after: bool, repository: Path, tmp_path: Path
) -> None:
    with closing(ProjectRegistry()) as registry:
        registry.register_project("web", repository)
        for version in ("v1", "v2", "v3"):
            install_adapter(registry, "web", version)
        killed = run(tmp_path, {"action": "kill", "of": "commit", "at": 1, "after": after}, *command)
        assert killed.returncode == -9, killed.stderr
        assert registry.check() == []
        assert registry.get_project("web").active_adapter == ("v2" if after else "v3")
        again = gardener_here(*command)
        assert again.returncode == 0, again.stderr
        assert registry.get_project("web").active_adapter == (twice if after else "v2")
        assert registry.check() == [] and len(registry.list_adapters("web")) == 3
