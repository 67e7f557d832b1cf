"""The tiny world the tests share: a home, a repository, a tokenizer and a base model, all real and all small."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from filelock import FileLock

if sys.dont_write_bytecode:
    # Tests start a thousand processes, and each would compile the package again: a tenth of what a small training takes.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side, one a core: a product on two threads would take the other's core for nothing.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import mlx_gardener  # noqa: F401  first: the fast BLAS must be opened before mlx is imported
from mlx_gardener.platform.ending import end_process
from tests.support.models import STORE_VARIABLES, without_stores, write_tiny_model, write_tiny_tokenizer
from tests.support.repositories import write_repository

if TYPE_CHECKING:
    from mlx_gardener import TrainingPipeline

# Every request by `httpx` reads all certificates again, 25 ms of each, though nothing here is encrypted.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]

# No example has to be made or done in so many milliseconds, which a busy machine takes for any; the same are drawn every time.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

#: Files that take half a minute and more, longest first: begun last, one of them would keep a single process busy at the end.
LONG_FILES = (
    "survival/test_supervision.py",
    "docs/test_commands.py",
    "runs/test_manager.py",
    "survival/test_parallel.py",
    "engine/test_load.py",
    "survival/test_kill_storm.py",
    "serve/test_hostile.py",
    "training/test_loop.py",
    "evaluate/test_arms.py",
    "lifecycle/test_lifecycle.py",
    "serve/test_answers.py",
    "docs/test_python.py",
    "training/test_checkpoint.py",
    "cli/test_command_line.py",
    "cli/test_first_hour.py",
    "serve/test_large_bodies.py",
    "benchmarks/test_engine_benchmarks.py",
    "survival/test_queue.py",
    "serve/test_clients.py",
    "source/test_secrets.py",
    "adapter/test_exports.py",
    "guard/test_untrusted_repository.py",
    "report/test_notebook.py",
    "ui/test_trainings.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: at for at, name in enumerate(LONG_FILES)}
    assert not (gone := [str(path) for path in places if not path.is_file()]), gone
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_configure() -> None:
    """A background job of a shell that is not interactive ignores Ctrl-C, and so would all processes that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Servers of the tests have computed in this process, which must not be aborted at its end for that."""
    if not hasattr(session.config, "workerinput"):  # what one of xdist's ends with is asked by nobody
        session.config.add_cleanup(lambda: end_process(int(exitstatus)))


def _runnable_ns() -> dict[str, int]:
    """How long each of this process's threads, but for the one that asks, has computed or waited for a core: nanoseconds."""
    found = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended
            if task.parent.name != str(threading.get_native_id()):
                found[task.parent.name] = sum(int(word) for word in task.read_text().split()[:2])
    return found


@pytest.fixture(scope="module", autouse=True)
def nothing_computes_on() -> Iterator[None]:
    """No file's tests leave a thread at work: one that went round and round made all tests after it three times as long."""
    yield
    for _ in range(100):
        before, began = _runnable_ns(), time.monotonic_ns()
        time.sleep(0.05)
        took = time.monotonic_ns() - began
        if all(spent - before.get(task, 0) < 0.2 * took for task, spent in _runnable_ns().items()):
            return
    pytest.fail(f"a thread computes on: {[thread.name for thread in threading.enumerate()]}")


@pytest.fixture(autouse=True)
def mlx_is_unbounded() -> None:
    """MLX's limits belong to the process, and an engine sets them: under those of a tiny one all after it takes twice the time."""
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.set_memory_limit(2**34)
        mx.set_cache_limit(2**26)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MLX_GARDENER_HOME; set for every test, so that none touches the user's own."""
    for name in [
        name for name in os.environ if name.startswith("MLX_GARDENER_") and name != "MLX_GARDENER_BLAS"
    ]:
        monkeypatch.delenv(name)
    directory = tmp_path / "home"
    monkeypatch.setenv("MLX_GARDENER_HOME", str(directory))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return directory


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and a user's home without any other program's models: none of this machine's are seen."""
    from huggingface_hub import constants

    cache = tmp_path / "user" / ".cache" / "huggingface" / "hub"
    for name, value in without_stores(tmp_path / "user").items():
        monkeypatch.setenv(name, value)
    for name in STORE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        constants, "HF_HUB_OFFLINE", True
    )  # read when the library was imported, whenever that was
    return cache


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository that is not under git."""
    return write_repository(tmp_path / "repository")


@pytest.fixture
def git_repository(repository: Path) -> Path:
    """The same, committed to git."""
    settings = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "-A"), (*settings, "commit", "-qm", "First")):
        subprocess.run(("git", "-C", str(repository), *command), check=True, capture_output=True)
    return repository


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tokenizer for the shared repository."""
    source = write_repository(tmp_path_factory.mktemp("words"))
    return write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), source)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A random three-layer llama with the tiny tokenizer."""
    return write_tiny_model(tmp_path_factory.mktemp("model"), tiny_tokenizer_dir)


#: A home beside `trained_cache`.
TRAINED_BY_COMMAND = "trained-by-command"


@pytest.fixture(scope="session")
def trained_cache(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The cache of two homes in which the shared repository was trained on, with the settings of most tests.

    In it are the speeds of this machine, what dry runs took, and the losses and answers of the tiny base and of the two
    adapters that come out. It is made once for all processes of a session. What else is in the homes lies beside it.
    """
    from mlx_gardener import ProjectRegistry, TrainingPhase, TrainingPipeline, load_config
    from tests.support.commands import TRAIN_SETTINGS
    from tests.support.trainings import tiny_settings

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    made = root / "trained"
    with FileLock(root / "trained.lock"):
        if not made.exists():
            # Named like `repository`: rows and prompts with retrieved code say what they were retrieved from.
            repository = write_repository(root / "trained-on" / "repository")
            flagged = {"model": str(tiny_model_dir), **TRAIN_SETTINGS}
            os.environ["PYTHONPROFILEIMPORTTIME"] = "1"  # for tests/runs/test_manager.py
            cache = None
            for name, config in (
                ("trained-home", tiny_settings(tiny_model_dir)),
                (TRAINED_BY_COMMAND, load_config(environment={}, overrides=flagged)),
            ):
                home = root / name
                home.mkdir(mode=0o700, exist_ok=True)
                if cache is not None:
                    cache.rename(home / "cache")
                registry = ProjectRegistry(home)
                registry.register_project("small", repository)
                pipeline = TrainingPipeline(config, registry=registry)
                pipeline.start_training("small")
                end = pipeline.wait_for_training_completion("small", timeout=600)
                assert end.phase is TrainingPhase.COMPLETED, end.message
                registry.close()
                cache = home / "cache"
                os.environ.pop("PYTHONPROFILEIMPORTTIME", None)
            cache.rename(made)
    return made


@pytest.fixture
def known_home(home: Path, trained_cache: Path) -> Path:
    """A home in which somebody trained before: a training here need not measure again what it knows."""
    home.mkdir(mode=0o700, exist_ok=True)
    shutil.copytree(trained_cache, home / "cache")
    return home


@pytest.fixture
def trained_home(known_home: Path, repository: Path, trained_cache: Path) -> Path:
    """A home whose project ``small`` stands for the repository and has an adapter, as a command with `TRAIN_SETTINGS` leaves it."""
    from mlx_gardener import ProjectRegistry

    shutil.copytree(trained_cache.with_name(TRAINED_BY_COMMAND), known_home, dirs_exist_ok=True)
    ProjectRegistry(known_home).register_project("small", repository, replace=True)
    return known_home


@pytest.fixture
def trained_model_dir(trained_home: Path) -> Path:
    """The base that was trained there: another process's tiny model, perhaps."""
    from mlx_gardener import ProjectRegistry

    record = ProjectRegistry(trained_home).latest_training("small")
    assert record is not None
    return Path(record.config["model"])


@pytest.fixture
def endless_pipeline(tiny_model_dir: Path, repository: Path, known_home: Path) -> TrainingPipeline:
    """A pipeline whose trainings only end when somebody ends them; the project ``small`` is registered."""
    from mlx_gardener import TrainingPipeline
    from tests.support.trainings import endless

    made = TrainingPipeline(endless(tiny_model_dir))
    made.registry.register_project("small", repository)
    return made
