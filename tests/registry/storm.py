"""Many processes that change one registry at once, each keeping its own account of what has to come out.

Every process works on projects of its own, on one that all share (where a refusal is an answer too), and in the
queue; a last one runs `check` all the while, which may find nothing at any moment.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_gardener.errors import RegistryError, TrainingError
from mlx_gardener.events import TrainingPhase, TrainingProgress
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from tests.registry.worlds import install_adapter

SHARED = "shared"
_GO = "go"


@dataclass
class Account:
    """What one process did, as far as it was told that it is done."""

    projects: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    shared_trainings: dict[str, str] = field(default_factory=dict)
    shared_adapters: list[str] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)
    refused: int = 0
    done: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    longest_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Worker:
    """One process of the storm."""

    def __init__(self, number: int, operations: int) -> None:
        self.name, self.operations = f"w{number:02d}", operations
        self.choose = random.Random(number)
        self.registry = ProjectRegistry()
        self.account = Account()
        self.training: TrainingRecord | None = None
        self.made = 0

    def work(self) -> Account:
        """All operations; a training under way at the end is finished."""
        kinds: list[Callable[[], str]] = [
            self.register, self.begin, self.update, self.update, self.update, self.finish, self.adapter, self.adapter,
            self.shared_adapter, self.activate, self.activate_shared, self.remove_adapter, self.remove_project,
            self.read, self.read, self.enqueue,
        ]  # fmt: skip
        count = 0
        while count < self.operations:
            act = self.choose.choice(kinds)
            started = time.perf_counter()
            kind = act()
            if kind:
                count += 1
                self.account.done[kind] += 1
                seconds = time.perf_counter() - started
                self.account.longest_seconds[kind] = max(self.account.longest_seconds[kind], seconds)
        while self.training is not None:
            self.finish()
        return self.account

    def own(self) -> str:
        """One of the projects of this process; empty where there is none."""
        return self.choose.choice(sorted(self.account.projects)) if self.account.projects else ""

    def register(self) -> str:
        self.made += 1
        name = f"{self.name}-{self.made}"
        self.registry.register_project(name, Path("/") / name)
        self.account.projects[name] = {"adapters": [], "active": None, "trainings": {}}
        return "register project"

    def begin(self) -> str:
        if self.training is not None:
            return ""
        project = self.choose.choice([SHARED, self.own() or SHARED])
        try:
            self.training = self.registry.begin_training(project, {"worker": self.name})
        except TrainingError:
            self.account.refused += 1  # others train the shared one
            return "begin, refused"
        self.registry.claim_training(self.training.id, os.getpid())
        return "begin training"

    def update(self) -> str:
        if self.training is None:
            return ""
        percent = self.choose.random() * 100
        progress = TrainingProgress(TrainingPhase.TRAINING, percent, self.name, {"percent": percent})
        self.registry.update_training(self.training.id, progress)
        assert self.registry.get_training(self.training.id).details == {"percent": percent}
        return "update training"

    def finish(self) -> str:
        if self.training is None:
            return ""
        status = self.choose.choice(
            [TrainingStatus.COMPLETED, TrainingStatus.FAILED, TrainingStatus.CANCELLED]
        )
        self.registry.finish_training(self.training.id, status, self.name, {"worker": self.name})
        if self.training.project == SHARED:
            self.account.shared_trainings[self.training.id] = status
        else:
            self.account.projects[self.training.project]["trainings"][self.training.id] = status
        self.training = None
        return "finish training"

    def adapter(self) -> str:
        project = self.own()
        if not project:
            return ""
        self.made += 1
        version = f"v{self.made}"
        install_adapter(self.registry, project, version, os.urandom(64))
        mine = self.account.projects[project]
        mine["adapters"].append(version)
        mine["active"] = version
        return "register adapter"

    def shared_adapter(self) -> str:
        self.made += 1
        version = f"{self.name}v{self.made}"
        install_adapter(self.registry, SHARED, version, os.urandom(64))
        self.account.shared_adapters.append(version)
        return "register adapter"

    def activate(self) -> str:
        project = self.own()
        if not project or not self.account.projects[project]["adapters"]:
            return ""
        version = self.choose.choice(self.account.projects[project]["adapters"])
        self.registry.activate_adapter(project, version)
        self.account.projects[project]["active"] = version
        return "activate adapter"

    def activate_shared(self) -> str:
        """A version that another process may be removing."""
        versions = self.registry.list_adapters(SHARED)
        if not versions:
            return ""
        with suppress(RegistryError):
            self.registry.activate_adapter(SHARED, self.choose.choice(versions).version)
        return "activate adapter"

    def remove_adapter(self) -> str:
        project = self.own()
        if self.account.shared_adapters and self.choose.random() < 0.5:
            version = self.account.shared_adapters.pop(
                self.choose.randrange(len(self.account.shared_adapters))
            )
            self.registry.remove_adapter(SHARED, version, delete_files=True)
            return "remove adapter"
        if not project or not self.account.projects[project]["adapters"]:
            return ""
        mine = self.account.projects[project]
        version = mine["adapters"].pop(self.choose.randrange(len(mine["adapters"])))
        self.registry.remove_adapter(project, version, delete_files=True)
        mine["active"] = None if mine["active"] == version else mine["active"]
        return "remove adapter"

    def remove_project(self) -> str:
        project = self.own()
        if not project or len(self.account.projects) < 3:
            return ""
        if self.training is not None and self.training.project == project:
            return ""
        self.registry.remove_project(project)
        del self.account.projects[project]
        self.account.removed.append(project)
        if project in self.account.queued:
            self.account.queued.remove(project)
        return "remove project"

    def read(self) -> str:
        self.registry.list_projects()
        self.registry.active_trainings()
        self.registry.latest_training(SHARED)
        for project, mine in self.account.projects.items():
            seen = {adapter.version for adapter in self.registry.list_adapters(project)}
            assert seen == set(mine["adapters"]), (project, seen, mine)
        return "read"

    def enqueue(self) -> str:
        project = self.own()
        if not project:
            return ""
        if project in self.account.queued:
            assert self.registry.queue.remove(project)
            self.account.queued.remove(project)
        else:
            self.registry.queue.add(project, {}, budget_bytes=1)
            self.account.queued.append(project)
        return "queue"


def blow(home: Path, *, processes: int, operations: int, timeout_seconds: float = 900.0) -> dict[str, Any]:
    """Let ``processes`` do ``operations`` each on the registry of ``home`` (which ``MLX_GARDENER_HOME`` names).

    Returns:
        What was lost or made up (``differences``), what `check` found meanwhile and afterwards, and the seconds that
        the longest operation of each kind took.
    """
    registry = ProjectRegistry(home)
    registry.register_project(SHARED, Path("/shared"))
    scratch = home.parent / "storm"
    scratch.mkdir()
    command = [sys.executable, "-m", "tests.registry.storm", str(scratch)]
    started = [
        subprocess.Popen([*command, str(number), str(operations)], stderr=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    watcher = subprocess.Popen([*command, "watch"], stderr=subprocess.PIPE, text=True)
    while len(list(scratch.glob("*.ready"))) < processes + 1:
        if any(process.poll() is not None for process in [*started, watcher]):
            break
        time.sleep(0.01)
    began = time.monotonic()
    (scratch / _GO).touch()
    errors = [process.communicate(timeout=timeout_seconds)[1] for process in started]
    seconds = time.monotonic() - began
    (scratch / "over").touch()
    errors.append(watcher.communicate(timeout=timeout_seconds)[1])
    failed = [error for process, error in zip([*started, watcher], errors, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(f"{len(failed)} processes failed; the first: {failed[0]}")
    accounts = [
        Account(**json.loads((scratch / f"{number}.json").read_text())) for number in range(processes)
    ]
    watched = json.loads((scratch / "watch.json").read_text())
    longest: dict[str, float] = defaultdict(float)
    for account in accounts:
        for kind, value in account.longest_seconds.items():
            longest[kind] = max(longest[kind], round(value, 4))
    return {
        "processes": processes,
        "operations": sum(sum(account.done.values()) for account in accounts),
        "operations_of_kind": {
            kind: sum(account.done.get(kind, 0) for account in accounts) for kind in sorted(longest)
        },
        "seconds": round(seconds, 2),
        "longest_seconds_of_kind": dict(sorted(longest.items())),
        "longest_seconds": max(longest.values()),
        "differences": _differences(registry, accounts),
        "problems_afterwards": [problem.message for problem in registry.check()],
        "checks_meanwhile": watched["checks"],
        "problems_meanwhile": watched["problems"],
    }


def _differences(registry: ProjectRegistry, accounts: list[Account]) -> list[str]:
    """Everything that is not as the accounts say, a sentence each."""
    found: list[str] = []

    def same(what: str, seen: object, told: object) -> None:
        if seen != told:
            found.append(f"{what}: the registry has {seen}, the processes were told {told}")

    own = {name: mine for account in accounts for name, mine in account.projects.items()}
    same("projects", {item.name for item in registry.list_projects()}, {SHARED, *own})
    for name, mine in own.items():
        same(name, registry.get_project(name).active_adapter, mine["active"])
        same(name, sorted(item.version for item in registry.list_adapters(name)), sorted(mine["adapters"]))
        same(name, _trainings(registry, name), mine["trainings"])
    shared = [version for account in accounts for version in account.shared_adapters]
    same(SHARED, sorted(item.version for item in registry.list_adapters(SHARED)), sorted(shared))
    told = {key: status for account in accounts for key, status in account.shared_trainings.items()}
    same(SHARED, _trainings(registry, SHARED), told)
    queued = sorted(name for account in accounts for name in account.queued)
    same("queue", sorted(entry.project for entry in registry.queue.entries()), queued)
    removed = [name for account in accounts for name in account.removed]
    same("directories", [name for name in removed if registry.project_directory(name).exists()], [])
    return found


def _trainings(registry: ProjectRegistry, project: str) -> dict[str, str]:
    runs = registry.project_directory(project) / "runs"
    ids = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    return {key: registry.get_training(key).status.value for key in ids}


def _wait_for_the_start(scratch: Path, name: str) -> None:
    (scratch / f"{name}.ready").touch()
    while not (scratch / _GO).exists():
        time.sleep(0.002)


def _watch(scratch: Path) -> None:
    registry = ProjectRegistry()
    _wait_for_the_start(scratch, "watch")
    checks, problems = 0, []
    while not (scratch / "over").exists():
        problems += [f"{problem.kind}: {problem.message}" for problem in registry.check()]
        checks += 1
    (scratch / "watch.json").write_text(json.dumps({"checks": checks, "problems": problems}))


def _main(scratch: Path, role: str, *rest: str) -> None:
    if role == "watch":
        _watch(scratch)
        return
    worker = Worker(int(role), int(rest[0]))
    _wait_for_the_start(scratch, role)
    (scratch / f"{role}.json").write_text(json.dumps(vars(worker.work())))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *sys.argv[2:])
