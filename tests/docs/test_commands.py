"""Every command in README and docs is run, in the order in which a reader meets it, in a small world of its own.

What takes minutes by its nature (the two set-up scripts, benchmarks, the fuzzer) is not run to its end here: its script
must be there and know every option that the page gives it; tests of their own run short versions.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mlx_gardener.cli import cli
from tests.conftest import STORE_VARIABLES, without_stores, write_repository, write_tiny_model
from tests.docs.commands import PAGES, ROOT, Line, quoted, shown

HUB_MODEL = "Qwen/Qwen2.5-Coder-0.5B"  # here a tiny random one by that name
#: Small enough to train in a second or two.
SETTINGS = {
    "MODEL": HUB_MODEL,
    "MIN_TRAINING_CHUNKS": "5",
    "OPTIMIZER__MAX_STEPS": "1",
    "OPTIMIZER__TOKENS_PER_UPDATE": "512",
    "DATA__ROW_WIDTHS": "[128]",
    "EVALUATION__PER_EPOCH": "1",
    "EVALUATION__NEXT_LINE_TASKS": "2",
    "EVALUATION__SAMPLES": "1",
    "EVALUATION__LEAST_TASKS": "2",
    "EVALUATION__LEAST_ROWS": "4",
    "EVALUATION__MEMORISATION_PLACES": "0",
    "EVALUATION__ARMS": '["base", "adapter"]',
    "EVALUATION__MAX_NEW_TOKENS": "8",
    "ENGINE__REHEARSE": "false",  # tests/engine/test_rehearse.py
    "NEIGHBOUR__LOW_PRIORITY": "false",
}
BASH = shutil.which("bash") or "bash"
#: Commands that do the same on whichever page they stand.
ONCE = re.compile(r"mlx-gardener (doctor|serve)\b")
LONG_TRAINING = "mlx-gardener train . --fresh --detach --epochs 100 --max-steps 5000"


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

    def run(self, command: str) -> None:
        """Run ``command`` in the project's directory and expect it to succeed."""
        connects, environment = "mlx-gardener connect" in command, self._environment
        if connects:  # no editor of this machine, whatever its version and plug-ins; tests/editors runs those
            environment = {**environment, "PATH": str(Path(sys.executable).parent)}
        done = subprocess.run(
            (BASH, "-c", command), cwd=self.project, env=environment, capture_output=True, text=True,
            input="y\n" if connects else "", timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def run_until_it_serves(self, command: str) -> None:
        """Start a command that goes on for ever; it must stay, and end well when interrupted."""
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
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            done = subprocess.run(
                ("mlx-gardener", "status", "--json"), env=self._environment, capture_output=True, text=True
            )
            if not re.search(r'"(training|queued|running)"', done.stdout):
                return
            time.sleep(0.5)
        raise AssertionError(f"a training does not end: {done.stdout[-2000:]}")


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, trained_cache: Path
) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("reader"), tiny_tokenizer_dir, trained_cache)
    found.run("mlx-gardener train . --json")
    yield found
    found.wait_for_trainings()


def is_long(line: Line) -> bool:
    """Whether a command takes minutes, or installs packages, by its nature."""
    return bool(
        re.match(
            r"(bash )?(\./)?scripts/|python (benchmarks|scripts|examples)/|python -m tests|\.ci/run",
            line.text,
        )
    )


def is_ours(line: Line) -> bool:
    return line.text.startswith(("mlx-gardener", "eval ", "cd ", "export ")) or "| mlx-gardener" in line.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_can_be_typed(page: Path, world: World) -> None:
    lines = shown(page)
    others = [str(line) for line in lines if not is_long(line) and not is_ours(line)]
    assert not others, (
        f"nothing here runs these; name a command of ours, or run them by a test of their own: {others}"
    )
    for line in lines:
        if ONCE.match(line.text) and tuple(line.words) in world.tried:
            continue
        world.tried.add(tuple(line.words))
        if is_long(line):
            assert_known(line)
        elif re.search(r"mlx-gardener serve\b", line.text):
            world.run_until_it_serves(line.text)
        else:
            if "mlx-gardener cancel" in line.text:  # there has to be something to cancel
                world.run(LONG_TRAINING)
            world.run(line.text)
            if re.search(r"--(detach|queue)", line.text):
                world.wait_for_trainings()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_in_passing_is_there(page: Path) -> None:
    for line in quoted(page):
        if is_long(line):
            assert_known(line)
        else:
            assert_parses(line)


def assert_known(line: Line) -> None:
    """The script is there, and its text or its --help knows every option it is given."""
    words = [word for word in line.words if word not in ("python", "bash", "-m")]
    script = ROOT / (words[0].replace(".", "/") + ".py" if words[0].startswith("tests.") else words[0])
    assert script.is_file(), f"{line}: there is no {words[0]}"
    text = script.read_text()
    for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        spelled = option[2:].replace("-", "_")
        assert option in text or f"{spelled}:" in text, f"{line}: {words[0]} does not know {option}"


def assert_parses(line: Line) -> None:
    """The command and its options exist; what stands for a value (PROJECT, FILE, ...) is taken as one."""
    words = [word.strip("[]") for word in line.words[1:] if word not in ("...", "…", "|")]
    command: click.Command = cli
    context = click.Context(cli, info_name="mlx-gardener")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: there is no command {words[0]!r}"
        command, words = found, words[1:]
    known = {
        name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)
    }
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known | {"--debug"}, f"{line}: there is no option {word!r}"


def test_a_command_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match="no command 'prune'"):
        assert_parses(Line("page", "mlx-gardener prune --all"))
    with pytest.raises(AssertionError, match="no option '--budgets'"):
        assert_parses(Line("page", "mlx-gardener plan --budgets 3"))
    with pytest.raises(AssertionError, match="does not know --fastest"):
        assert_known(Line("page", "python benchmarks/run.py --fastest"))
    assert shlex.split("a  # b", comments=True) == ["a"]
