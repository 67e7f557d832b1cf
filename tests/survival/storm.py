"""Trainings that are killed and broken on purpose, resumed until they are done, and compared with one left in peace.

Every run has a home of its own, with a copy of the first one's token cache and measured speeds, so that none sees what
another left; what counts is the bytes of the adapter's weight files, and that the registry finds nothing to complain of.
Cost: about 3 seconds a run with a tiny model, 7 with the embedded one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.events import WarningRaised
from mlx_gardener.registry import ProjectRegistry, TrainingRecord, TrainingStatus
from mlx_gardener.runs.manager import TrainingPipeline

#: The smallest plan there is: a worker that is started again after memory ran out takes the same one, and ends with the
#: same bytes. (A smaller one adds floats in another order, and ends within float tolerance.)
SMALLEST_PLAN = {
    "engine.micro_batch_rows": 1,
    "engine.kept_layers": 0,
    "engine.loss_slice_tokens": 16,
    "engine.cpu_streams": 1,
}
#: How a worker dies by other hands than SIGKILL's; see `Storm.broken`.
DEATHS = ("abort", "cgroup", "rlimit")
#: Bytes that a cgroup grants; what a worker had before is not counted.
CGROUP_BYTES = 4 * 2**20
FAULT_DIRECTORY = Path(__file__).parent / "fault"
WAYS = ("worker", "everything", "call")
#: The home of the undisturbed run, and the project in every home.
REFERENCE, NAME = "reference", "small"
_MOST_STARTS = 12
_WAIT_SECONDS = 600.0


@dataclass
class Story:
    """What became of one run: how often it was hit and started, and whether it ended as it should.

    ``starts`` are by hand, ``deaths`` those of workers that their supervisor mended.
    """

    name: str
    way: str
    hits: list[str] = field(default_factory=list)
    starts: int = 0
    deaths: int = 0
    completed: bool = False
    identical: bool = False
    adapters: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Completed once, with the bytes of the undisturbed run, in a registry without problems."""
        return self.completed and self.identical and self.adapters == 1 and not self.problems

    def to_json(self) -> dict[str, Any]:
        """The story as JSON types."""
        return asdict(self)


class Storm:
    """A reference run, and runs to compare with it.

    Args:
        repository: what is trained on.
        scratch: where the homes and fault files go.
        model: the base model.
        more: settings beside those that every storm has.
        cache: of a home that knows this machine already; the first run begins with a copy of it.
    """

    def __init__(
        self,
        repository: Path,
        scratch: Path,
        model: str,
        *,
        steps: int = 6,
        more: dict[str, Any] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.repository, self.fault_file = repository, scratch / "fault.json"
        self._homes = scratch / "homes"
        settings = {
            "model": model,
            "min_training_chunks": 5,
            "training_data_quality_threshold": 0.1,
            "lora.rank": 4,
            "optimizer.learning_rate": 0.01,
            "optimizer.tokens_per_update": 256,
            "optimizer.max_steps": steps,
            "data.sequence_lengths": [64, 128],
            "evaluation.per_epoch": 8,
            "evaluation.patience": 100,
            "evaluation.tasks": 0,
            "evaluation.arms": ["base", "adapter"],
            "checkpoint_interval_seconds": 1e-6,
            "progress_update_interval": 0.5,
            "throttling.low_priority": False,
        } | (more or {})
        self._config = load_config(environment={}, overrides=settings)
        case = _Case(self._homes / REFERENCE, self._config)
        if cache is not None:
            shutil.copytree(cache, case.home / "cache")
        with self._fault("count", 0):
            case.start(repository)
            case.wait()
        self.calls: list[str] = json.loads(self.fault_file.with_suffix(".calls").read_text())
        record = case.record()
        if record.status is not TrainingStatus.COMPLETED:
            raise RuntimeError(f"the undisturbed run failed: {record.message}")
        self.seconds = record.updated_at - record.started_at
        self.reference = case.digests()
        if case.pipeline.registry.check():
            raise RuntimeError("the undisturbed run left problems in the registry")

    def run(self, number: int, *, seed: int) -> Story:
        """One run, killed by SIGKILL once to three times: the worker, all its processes, or the worker at a write."""
        choose = random.Random(seed * 1_000_003 + number)
        story = Story(f"run-{number:03d}", WAYS[number % len(WAYS)])
        if story.way == "call":
            kind = choose.choice(
                sorted(set(self.calls))
            )  # most calls are writes of checkpoints: each kind in its turn
            at = choose.choice([number for number, label in enumerate(self.calls, 1) if label == kind])
            story.hits.append(f"write call {at} ({self.calls[at - 1]})")
            with self._fault("kill", at):
                return self._to_the_end(story, moments=[])
        span = self.seconds
        while True:
            moments = [choose.random() * span for _ in range(choose.randint(1, 3))]
            story = self._to_the_end(Story(story.name, story.way), moments=moments)
            if story.hits or not story.good:
                return story
            span *= 0.75  # the run was faster than the first one, and over before it was hit

    def broken(self, action: str, at: int, *, procs: Path | None = None) -> Story:
        """One run in whose ``at``-th write call something goes wrong.

        Args:
            action: ENOSPC, EIO or short, an error of the call; abort or cgroup, the death of the worker in it, by SIGABRT
                or by the kernel's out-of-memory killer; rlimit, no memory any more from it on.
            procs: the ``cgroup.procs`` of the cgroup that "cgroup" is about.
        """
        story = Story(f"{action.lower()}-{at:03d}", action, hits=[f"write call {at} ({self.calls[at - 1]})"])
        with self._fault(action, at, procs):
            return self._to_the_end(story, moments=[])

    def _to_the_end(self, story: Story, moments: list[float]) -> Story:
        """A case in a home of its own, where nothing of another one is: good ones are deleted, others kept to be looked at."""
        case = _Case(self._homes / story.name, self._config)
        shutil.copytree(self._homes / REFERENCE / "cache", case.home / "cache")
        try:
            return self._tell(story, case, list(moments))
        finally:
            case.end()
            if story.good:
                shutil.rmtree(case.home)

    def _tell(self, story: Story, case: _Case, moments: list[float]) -> Story:
        began = time.monotonic()
        while story.starts < _MOST_STARTS and not story.completed:
            story.starts += 1
            case.start(self.repository)
            while moments and _strike(story, case, moments[0]):
                moments.pop(0)
                if story.way == "everything":
                    break
            case.wait()
            story.completed = case.record().status is TrainingStatus.COMPLETED
            story.deaths += sum(
                isinstance(event, WarningRaised) and event.message.startswith("The worker process")
                for event in case.pipeline.follow(NAME)
            )
        story.seconds = round(time.monotonic() - began, 2)
        registry = case.pipeline.registry
        story.adapters = len(registry.list_adapters(NAME))
        story.identical = bool(story.adapters) and case.digests() == self.reference
        story.problems = [problem.message for problem in registry.check()]
        if not story.completed:
            story.problems.append(case.record().message)
        return story

    def _fault(
        self, action: str, at: int, procs: Path | None = None
    ) -> contextlib.AbstractContextManager[None]:
        return fault(self.fault_file, action, at, procs)


@contextlib.contextmanager
def fault(file: Path, action: str, at: int = 0, procs: Path | None = None) -> Iterator[None]:
    """While this lasts, the next worker (for "orphan" its supervisor) has the fault, which ``file`` tells it."""
    chosen = {"action": action, "at": at} | ({"procs": str(procs)} if procs else {})
    file.write_text(json.dumps(chosen))
    paths = [str(FAULT_DIRECTORY), *(path for path in sys.path if path)]
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "GARDENER_TEST_FAULT")}
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "GARDENER_TEST_FAULT": str(file)}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        file.unlink(missing_ok=True)


class _Case:
    """One home with one project in it."""

    def __init__(self, home: Path, config: TrainingConfig) -> None:
        self.home = home
        self.pipeline = TrainingPipeline(config, registry=ProjectRegistry(home))

    def start(self, repository: Path) -> None:
        self.pipeline.registry.register_project(NAME, repository)
        self.pipeline.start_training(NAME)

    def wait(self) -> None:
        self.pipeline.wait_for_training_completion(NAME, timeout=_WAIT_SECONDS)

    def record(self) -> TrainingRecord:
        record = self.pipeline.registry.latest_training(NAME)
        if record is None:
            raise RuntimeError(f"nothing was trained in {self.home.name}")
        return record

    def digests(self) -> dict[str, str]:
        directory = self.pipeline.registry.get_adapter(NAME).directory
        return {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*.safetensors"))
        }

    def end(self) -> None:
        """Leave no process behind, whatever the case came to, that would slow the next one."""
        for record in self.pipeline.registry.active_trainings():
            _kill(_processes(record.pid))
        self.pipeline.registry.close()


def _strike(story: Story, case: _Case, after_seconds: float) -> bool:
    """Kill after a while; False when the run was over before."""
    record = case.record()
    deadline = time.monotonic() + after_seconds
    while time.monotonic() < deadline:
        if case.record().finished_at is not None:
            return False
        time.sleep(0.005)
    victims = _processes(record.pid)
    _kill(victims[1:] if story.way == "worker" else victims)
    now = case.record()
    story.hits.append(f"{story.way} after {after_seconds:.2f} s in {now.phase} at {now.percent:.0f} %")
    return True


def _kill(victims: list[psutil.Process]) -> None:
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()


def _processes(pid: int | None) -> list[psutil.Process]:
    """A supervisor and its worker, in that order; fewer where they are gone."""
    try:
        supervisor = psutil.Process(pid)
        return [supervisor, *supervisor.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
