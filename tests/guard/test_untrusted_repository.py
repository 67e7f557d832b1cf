"""A repository that tries every trick: nothing of it is run, nothing beside it is read, nothing it says is drawn."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pathspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gardener.config import DataConfig
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.source import Scan, scan_repository
from mlx_gardener.source import walk as walk_module
from mlx_gardener.source.walk import _without_retries, head_commit, list_files, marked_paths
from tests.support.commands import gardener_here, train_flags
from tests.support.repositories import write_repository
from tests.support.trainings import until

CODE = (
    "def measure(basket):\n    total = sum(item.weight for item in basket)\n    return total / len(basket)\n"
)
SECRET = "def never_to_be_seen():\n    return 'this file lies outside of the repository'\n"
#: Of trainings whose processes and files are looked at, and not what was learned.
SHORT: dict[str, object] = {"optimizer.max_steps": 1, "evaluation.arms": '["base", "adapter"]'}
#: A device-control string, a title, a clear screen, a link, right-to-left overrides, an invisible tag, a new line.
TRICKS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.\u2066\u200b\U000e0041\u2028\x08\r"


def git(root: Path, *arguments: str, **options: object) -> bytes:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.invalid")
    command = ("git", "-C", str(root), *identity, *arguments)
    return subprocess.run(command, check=True, capture_output=True, env=environment, **options).stdout  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "trap"
    root.mkdir()
    (root / "good.py").write_text(CODE)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "First")
    return root


def scan(root: Path) -> Scan:
    return scan_repository(root, DataConfig(), quality_threshold=0.0, processes=1)


def kept(root: Path) -> list[str]:
    return [record.path for record in scan(root).files]


def set_traps(root: Path, marker: Path) -> None:
    """Every setting of git by which a repository could have a program run, each of which leaves ``marker``."""
    script = root / ".git" / "trap.sh"
    script.write_text(f"#!/bin/sh\necho ran >> {marker}\n")
    script.chmod(0o755)
    (root / ".git" / "hooks").mkdir(exist_ok=True)
    for hook in (
        "post-index-change",
        "post-checkout",
        "pre-auto-gc",
        "reference-transaction",
        "fsmonitor-watchman",
    ):
        (root / ".git" / "hooks" / hook).write_bytes(script.read_bytes())
        (root / ".git" / "hooks" / hook).chmod(0o755)
    run = str(script)
    included = root / ".git" / "included"
    included.write_text(f"[core]\n\tfsmonitor = {run}\n\thooksPath = {root}/.git/hooks\n")
    with (root / ".git" / "config").open("a") as config:
        config.write(
            f"""
[include]
\tpath = included
[includeIf "gitdir:{root}/"]
\tpath = included
[core]
\tfsmonitor = {run}
\tfsmonitorHookVersion = 2
\thooksPath = {root}/.git/hooks
\tsshCommand = {run}
\tgitProxy = {run}
\tpager = {run}
\teditor = {run}
\taskPass = {run}
\talternateRefsCommand = {run}
\tuntrackedCache = true
\trepositoryformatversion = 1
[pager]
\tls-files = {run}
\tcheck-attr = {run}
\trev-parse = {run}
[alias]
\tls-files = !{run}
\tcheck-attr = !{run}
[filter "trap"]
\tclean = {run}
\tsmudge = {run}
\tprocess = {run}
\trequired = true
[diff]
\texternal = {run}
[diff "trap"]
\ttextconv = {run}
\tcommand = {run}
[merge "trap"]
\tdriver = {run}
[credential]
\thelper = !{run}
[gpg]
\tprogram = {run}
[uploadpack]
\tpackObjectsHook = {run}
[protocol]
\tallow = always
[protocol "ext"]
\tallow = always
[extensions]
\tpartialClone = origin
[remote "origin"]
\turl = ext::{run}
\tpromisor = true
\tuploadpack = {run}
\tvcs = trap
[submodule "sub"]
\tupdate = !{run}
\turl = ext::{run}
"""
        )
    (root / ".gitattributes").write_text("* filter=trap diff=trap merge=trap\ngen.py linguist-generated\n")
    (root / ".gitmodules").write_text(
        f'[submodule "sub"]\n\tpath = sub\n\turl = ext::{run}\n\tupdate = !{run}\n'
    )
    (root / "gen.py").write_text(CODE)


def test_nothing_of_a_repository_is_run(root: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    set_traps(root, marker)
    sub = root / "sub"
    sub.mkdir()
    git(sub, "init", "-q")
    set_traps(sub, marker)
    (root / "good.py").touch()
    found = scan(root)
    assert (
        {"good.py"} <= {record.path for record in found.files} <= {"good.py", ".gitattributes", ".gitmodules"}
    )
    assert found.dropped["generated"].examples == ["gen.py"] and found.commit
    assert not marker.exists(), "the scan ran something"
    subprocess.run(("git", "-C", str(root), "status"), capture_output=True, check=False)
    assert marker.exists(), "the traps were not set"


def test_a_missing_object_is_not_fetched(root: Path, tmp_path: Path) -> None:
    """A partial clone fetches what is missing, by whatever program its configuration names."""
    marker = tmp_path / "marker"
    head = git(root, "rev-parse", "HEAD").decode().strip()
    set_traps(root, marker)
    (root / ".git" / "objects" / head[:2] / head[2:]).unlink()
    head_commit(root)
    list_files(root)
    assert not marker.exists()


def rewrite_index(root: Path, old: bytes, new: bytes) -> None:
    """Name another path of the same length in the index, as no git would."""
    index = root / ".git" / "index"
    data = index.read_bytes()[:-20]
    assert data.count(old) == 1 and len(old) == len(new)
    data = data.replace(old, new)
    index.write_bytes(data + hashlib.sha1(data).digest())


@pytest.mark.parametrize("way", ["climb", "absolute", "link", "git"])
def test_an_index_cannot_name_files_outside(root: Path, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text(SECRET)
    (tmp_path / "aside.py").write_text(SECRET)
    blob = git(root, "hash-object", "-w", "--stdin", input=SECRET.encode()).decode().strip()

    def add(path: str) -> None:
        git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")

    if way == "climb":
        add("xx/aside.py")
        rewrite_index(root, b"xx/aside.py", b"../aside.py")
    elif way == "absolute":
        real = str(outside / "secret.py")
        add("x" + real[1:])
        rewrite_index(root, ("x" + real[1:]).encode(), real.encode())
    elif way == "link":
        add("linked/secret.py")
        (root / "linked").symlink_to(outside, target_is_directory=True)
    else:
        add("xxxx/trap.py")
        rewrite_index(root, b"xxxx/trap.py", b".git/trap.py")
        (root / ".git" / "trap.py").write_text(SECRET)
    assert kept(root) == ["good.py"]


@pytest.mark.parametrize("way", ["worktree", "gitdir", "alternate"])
def test_a_configuration_cannot_move_the_repository_elsewhere(root: Path, tmp_path: Path, way: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.py").write_text(SECRET)
    if way == "worktree":
        git(root, "config", "core.worktree", str(elsewhere))
    elif way == "gitdir":
        git(elsewhere, "init", "-q")
        git(elsewhere, "add", "-A")
        (root / ".git").rename(tmp_path / "old")
        (root / ".git").write_text(f"gitdir: {elsewhere}/.git\n")
    else:
        (root / ".git" / "commondir").write_text(f"{elsewhere}\n")
    assert set(kept(root)) <= {"good.py"}


def test_pipes_and_endless_files_are_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "GIT_SECONDS", 0.5)
    for name in (".gitignore", ".gitattributes", "pipe.py"):
        os.mkfifo(root / name)
    (root / "endless.py").symlink_to("/dev/zero")
    assert kept(root) == ["good.py"]


def test_a_hostile_gitignore_takes_no_time_where_there_is_no_git(tmp_path: Path) -> None:
    """The old way took longer than anybody would wait: time exponential in the stars."""
    name = "a" * 250
    (tmp_path / name).write_text(CODE)
    lines = ["*a" * 40 + "b", "**/" * 3 + "*a" * 40 + "b", "!", "/", "[", "\\", "a" * 5000, "kept.py"]
    (tmp_path / ".gitignore").write_text("\n".join(lines))
    (tmp_path / "kept.py").write_text(CODE)
    assert list_files(tmp_path) == [".gitignore", name]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(max_examples=400)
@given(
    st.text("ab*?/[!]", min_size=1, max_size=12), st.lists(st.text("ab/", min_size=1, max_size=8), max_size=6)
)
def test_patterns_without_retries_match_what_they_matched(line: str, paths: list[str]) -> None:
    try:
        pattern = pathspec.GitIgnoreSpec.from_lines([line]).patterns[0]
    except ValueError:
        return
    if pattern.regex is None:
        return
    quick = re.compile(_without_retries(pattern.regex.pattern))
    for path in paths:
        assert (pattern.regex.search(path) is None) == (quick.search(path) is None), (line, path)


@pytest.mark.usefixtures("known_home")
def test_strange_names_and_contents_are_spelled_out(tmp_path: Path, known_home: Path) -> None:
    root = write_repository(tmp_path / "drawn")  # enough code for a training, which a dry run asks for too
    names = [f"a{TRICKS}b.csv", "line\nbreak.lock", f"{TRICKS}.py"]
    for name in names:
        (root / name).write_text(CODE + f"api_key = 'q8Zx2Lw9Vt4Rb7Ny1Kc6Mf3'  # {TRICKS}\n")
    (root / os.fsdecode(b"\xff\xfe\x1b[2J.csv")).write_text(CODE)
    for arguments in (("scan", str(root)), ("scan", str(root), "--json"), ("train", str(root), "--dry-run")):
        done = gardener_here(*arguments, "--model", "seedling", FORCE_COLOR="", NO_COLOR="1")
        assert done.stdout, done.stderr
        assert_draws_nothing(done.stdout + done.stderr)
    assert "\\x1b" in gardener_here("scan", str(root), "--model", "seedling").stdout


def test_logs_messages_and_completions_are_spelled_out(tmp_path: Path, home: Path) -> None:
    from mlx_gardener.registry import ProjectRegistry, TrainingStatus
    from mlx_gardener.report.text import safe_lines
    from mlx_gardener.runs.job import LOG_NAME

    place = tmp_path / f"trick{TRICKS}"
    place.mkdir()
    registry = ProjectRegistry()
    registry.register_project("drawn", place)
    record = registry.begin_training("drawn", {})
    (record.run_dir / LOG_NAME).write_bytes((f"INFO {TRICKS}\n" * 3).encode() + b"\xff\x1b[2J\n")
    registry.finish_training(record.id, TrainingStatus.FAILED, f"It failed: {TRICKS}", {})
    for arguments in (("logs", "drawn"), ("status",), ("show", "drawn"), ("projects",), ("attach", "drawn")):
        done = gardener_here(*arguments)
        assert done.stdout or done.stderr
        assert_draws_nothing(done.stdout + done.stderr)
    assert_draws_nothing(safe_lines(f"def f():\n\treturn '{TRICKS}'\n"))


def assert_draws_nothing(text: str) -> None:
    """No control, format or separator characters but line ends and blanks; no lone surrogates."""
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"}
    assert not bad, f"{bad!r} would steer a terminal"


@pytest.mark.usefixtures("known_home")
def test_a_secret_in_the_repositorys_or_the_models_own_name_is_not_kept_nor_learned(
    tmp_path: Path, tiny_model_dir: Path, home: Path
) -> None:
    """The registry alone knows where they are: rows name places, and are never given away with an adapter."""
    from mlx_gardener.registry.database import DATABASE_NAME

    secret = "AKIA" + "Q3EGNJWKZ5RTY7UP"
    above = tmp_path / f"work-{secret}"
    root = write_repository(above / f"proj-{secret}")
    model = above / f"model-{secret}"
    shutil.copytree(tiny_model_dir, model)
    scan = scan_repository(root, DataConfig(), quality_threshold=0.0)
    assert scan.name == scan.to_json()["repository"] == "(secret)", "this is what rows begin with, too"
    done = gardener_here(
        "train", str(root), *train_flags(model, **SHORT), "--set", "data.repository_row_share=1"
    )
    assert done.returncode == 0, done.stderr
    kept = [path for path in home.rglob("*") if path.is_file() and not path.name.startswith(DATABASE_NAME)]
    assert {"manifest.json", "README.md", "report.html", "events.jsonl"} <= {path.name for path in kept}
    given = [path for path in kept if path.is_relative_to(home / "projects" / "project" / "adapters")]
    with_it = [path for path in kept if secret in path.name or secret.encode() in path.read_bytes()]
    assert not [path for path in with_it if path in given]
    # Where the model is stands in the settings of the run, which are the owner's alone.
    assert {path.name for path in with_it} <= {"job.json", "state.json", "events.jsonl", "worker.log"}
    assert all(f"proj-{secret}".encode() not in path.read_bytes() for path in with_it)
    assert f"proj-{secret}" not in done.stdout + done.stderr
    named = gardener_here("train", str(root), "--project", f"p-{secret}", *train_flags(model))
    assert named.returncode == 2 and "seems to hold a secret" in named.stderr and secret not in named.stderr
    empty = above / "empty"
    empty.mkdir()
    assert secret not in gardener_here("scan", str(empty), "--model", "seedling").stderr


def test_what_git_says_of_attributes_names_only_what_was_asked(root: Path) -> None:
    (root / ".gitattributes").write_text("* linguist-generated\n[attr]linguist-vendored x\n")
    assert marked_paths(root, ["good.py", "a\nb.py", "\x1b[2J"]) == dict.fromkeys(
        ["good.py", "a\nb.py", "\x1b[2J"], "generated"
    )


@pytest.mark.usefixtures("known_home")
def test_modules_that_lie_in_a_repository_are_not_imported(
    tmp_path: Path, tiny_model_dir: Path, home: Path
) -> None:
    """``python -m`` and multiprocessing look in the working directory first, which is the repository."""
    import sys

    from mlx_gardener.source.scan import PARALLEL_FILES

    root, marker = write_repository(tmp_path / "modules"), tmp_path / "marker"
    trap = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\nraise ImportError('a trap')\n"
    stolen = (
        "psutil",
        "json",
        "socket",
        "logging",
        "multiprocessing",
        "sitecustomize",
        "usercustomize",
        "numpy",
    )
    for name in (*stolen, "mlx_gardener/__init__", "mlx/core", "encodings/__init__"):
        (root / f"{name}.py").parent.mkdir(exist_ok=True)
        (root / f"{name}.py").write_text(trap)
    for number in range(PARALLEL_FILES):
        (root / f"small_{number}.py").write_text(f"SMALL_{number} = {number}\n")
    here = str(Path(__file__).parents[2])
    command = tmp_path / "bin" / "mlx-gardener"  # as an installed one: its own directory is searched first
    command.parent.mkdir()
    command.write_text(
        f"import sys; sys.path.insert(0, {here!r})\nfrom mlx_gardener.cli import main\nif __name__ == '__main__': main()\n"
    )
    flags = train_flags(tiny_model_dir, **SHORT, **{"evaluation.tasks": 0})
    unmeasured = ("--set", "evaluation.arms=[]")
    for arguments in (
        ("scan", "."),
        ("train", ".", *flags),
        ("train", ".", "--queue", "--fresh", *flags, *unmeasured),
    ):
        done = subprocess.run(
            [sys.executable, str(command), *arguments],
            cwd=root,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not marker.exists(), f"{arguments[0]} imported {marker.read_text()}"
        assert done.returncode == 0, done.stdout + done.stderr
    registry = ProjectRegistry(home)
    until(lambda: not registry.queue.entries(), "the queue's end")
    assert not marker.exists(), f"the queue imported {marker.read_text()}"
    assert [adapter.version for adapter in registry.list_adapters(root.name)] == ["v1", "v2"]
    subprocess.run([sys.executable, "-c", "import psutil"], cwd=root, capture_output=True, check=False)
    assert marker.exists(), "the traps were not set"
