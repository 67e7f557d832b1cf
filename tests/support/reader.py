"""A reader of the docs: a machine of their own, on which commands are typed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener_here
from tests.support.models import STORE_VARIABLES, without_stores, write_tiny_model
from tests.support.repositories import write_repository

HUB_MODEL = "Qwen/Qwen2.5-Coder-0.5B"  # here a tiny random one by that name


#: Small enough to train in a second or two.
SETTINGS = {
    "MODEL": HUB_MODEL,
    "MIN_TRAINING_CHUNKS": "5",
    "OPTIMIZER__MAX_STEPS": "1",
    "OPTIMIZER__TOKENS_PER_UPDATE": "512",
    "DATA__SEQUENCE_LENGTHS": "[128]",
    "DATA__VALIDATION_FRACTION": "0.02",
    "EVALUATION__PER_EPOCH": "1",
    "EVALUATION__TASKS": "2",
    "EVALUATION__ARMS": '["base", "adapter"]',
    "EVALUATION__MAX_NEW_TOKENS": "8",
    "ENGINE__DRY_RUN": "false",  # tests/engine/test_dry_run.py
    "THROTTLING__LOW_PRIORITY": "false",
}


BASH = shutil.which("bash") or "bash"


def cache_model(hub: Path, tokenizer_dir: Path) -> None:
    """Write `HUB_MODEL` as a hub's client would have left it in the directory that HF_HOME names."""
    store = hub / "hub" / f"models--{HUB_MODEL.replace('/', '--')}"
    write_tiny_model(
        store / "snapshots" / "0123abc", tokenizer_dir, model_type="qwen2", architectures=["Qwen2ForCausalLM"]
    )
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("0123abc")


class World:
    """A user's machine: a home that knows it, ``~/my/code``, a project's directory to work in, a model in the hub's cache."""

    def __init__(self, root: Path, tokenizer_dir: Path, cache: Path) -> None:
        self.root, self.tried = root, set[tuple[str, ...]]()
        (root / "home").mkdir(mode=0o700)
        shutil.copytree(cache, root / "home" / "cache")
        self.project = root / "my-project"
        write_repository(self.project)
        (self.project / "src").mkdir()
        parts = [path.read_text() for path in sorted(self.project.glob("core/*.py"))]
        (self.project / "src" / "app.py").write_text("\n".join(parts))
        write_repository(root / "my" / "code", modules=10)
        self._environment = os.environ | {
            **{f"MLX_GARDENER_{name}": value for name, value in SETTINGS.items()},
            "MLX_GARDENER_HOME": str(root / "home"),
            **without_stores(root),
            "HF_HOME": str(root / "hub"),
            "HF_HUB_OFFLINE": "1",
            "BROWSER": "true",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for name in STORE_VARIABLES:
            self._environment.pop(name, None)
        for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
            self._environment[name] = "Test"
        for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
            self._environment[name] = "test@example.invalid"
        for command in ("git init -q", "git add -A", "git commit -qm First"):
            self.run(command)
        cache_model(root / "hub", tokenizer_dir)
        #: A server is started for the proof at the port that the pages name; other suites on this machine do so, too.
        self._usual_port = FileLock(Path(tempfile.gettempdir()) / "mlx_gardener-tests-usual-port.lock")

    def run(self, command: str) -> None:
        """Run ``command`` in the project's directory and expect it to succeed."""
        connects, environment = "mlx-gardener connect" in command, self._environment
        if connects:  # no editor of this machine, whatever its version and plug-ins; tests/editors runs those
            environment = {**environment, "PATH": str(Path(sys.executable).parent)}
        with self._usual_port if connects else nullcontext():
            done = subprocess.run(
                (BASH, "-c", command), cwd=self.project, env=environment, capture_output=True, text=True,
                input="y\n" if connects else "", timeout=900,
            )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def run_here(self, command: str) -> None:
        """Run a plain command of ours in the project's directory and in this process, and expect it to succeed."""
        from huggingface_hub import constants

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_CACHE", str(self.root / "hub" / "hub"))
            _, *arguments = shlex.split(command, comments=True)
            done = gardener_here(*arguments, cwd=self.project, **self._environment)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def run_until_it_serves(self, command: str) -> None:
        """Start a command that goes on for ever; it must stay, and end well when interrupted.

        On a port of its own where it names none: the usual one may be in use here.
        """
        if "--port" not in command:
            command = re.sub(r"mlx-gardener (serve|ui)\b", r"\g<0> --port 0", command, count=1)
        process = subprocess.Popen(
            ("bash", "-c", f"exec {command}"), cwd=self.project, env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            said = ""
            for line in process.stdout:
                said += line
                if "http://" in line:
                    break
            assert process.poll() is None and "http://" in said, f"{command}\n{said[-3000:]}"
        finally:
            process.terminate()
        process.communicate(timeout=600)
        assert process.returncode in (0, -15, 143), said[-3000:]

    def wait_for_trainings(self) -> None:
        """Until nothing trains or waits any more."""
        registry = ProjectRegistry(self.root / "home")
        deadline = time.monotonic() + 600
        while registry.active_trainings() or registry.queue.entries():
            assert time.monotonic() < deadline, f"a training does not end: {registry.active_trainings()}"
            time.sleep(0.1)
