"""Several ranks train one adapter: the result is one process's, a dead rank is replaced, all of them stop together."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mlx_gardener import TrainingPhase, TrainingPipeline
from mlx_gardener.config import ParallelConfig, TrainingConfig, load_config
from mlx_gardener.errors import ConfigError, GardenerError, TrainingError
from mlx_gardener.events import StepCompleted, WarningRaised
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.interrupt import CANCEL_POLL_SECONDS
from mlx_gardener.runs.job import LOG_NAME
from mlx_gardener.runs.ranks import Group, hosts_of, launched_rank
from mlx_gardener.training.checkpoint import list_checkpoints
from mlx_gardener.training.parallel import Ranks
from tests.support.commands import train_flags
from tests.support.repositories import write_repository
from tests.support.trainings import WAIT, is_alive, standing_still, steps_done, tiny_settings, until
from tests.support.watchdog import INTERACTIVITY

HERE = "127.0.0.1"
STEPS = 10
#: Runs all of a command line, as a shell at the other end of ssh would.
SSH = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n'


def settings(model: Path, ranks: int, **more: object) -> TrainingConfig:
    chosen: dict[str, object] = {
        "optimizer.name": "sgd",  # AdamW divides roundings by their own size: see benchmarks/across_budgets.py
        "optimizer.max_steps": STEPS,
        "optimizer.epochs": 50,
        "evaluation.patience": 1000,
        "evaluation.per_epoch": 1,
        "evaluation.arms": ["base", "adapter"],
        "evaluation.tasks": 0,
        "lora.dropout": 0.1,
        "parallel.hosts": [HERE] * ranks if ranks > 1 else [],
    }
    return tiny_settings(model, **{**chosen, **more})


class Trained:
    """A training on the small repository, brought to its end, or interrupted by ``meanwhile`` first."""

    def __init__(self, config: TrainingConfig, repository: Path, home: Path) -> None:
        self.pipeline = TrainingPipeline(config, registry=ProjectRegistry(home))
        self.pipeline.registry.register_project("small", repository)
        self.pipeline.start_training("small")

    def complete(self) -> Trained:
        end = self.pipeline.wait_for_training_completion("small", timeout=WAIT)
        assert end.phase is TrainingPhase.COMPLETED, end.message
        return self

    @property
    def weights_file(self) -> Path:
        record = self.pipeline.registry.latest_training("small")
        assert record is not None
        return list_checkpoints(record.run_dir / "checkpoints")[-1] / "weights.safetensors"

    @property
    def losses(self) -> list[float]:
        events = self.pipeline.follow("small")
        return [event.loss for event in events if isinstance(event, StepCompleted)]

    def far_from(self, other: Trained) -> float:
        """How far the changes of the weights lie apart, B A of all modules: a share of the other's norm."""
        import mlx.core as mx

        ours, theirs = mx.load(str(self.weights_file)), mx.load(str(other.weights_file))
        modules = [name.removesuffix(".lora_a") for name in theirs if name.endswith(".lora_a")]
        apart = whole = 0.0
        for name in modules:
            own, wanted = (one[f"{name}.lora_a"] @ one[f"{name}.lora_b"] for one in (ours, theirs))
            apart += mx.square(own - wanted).sum().item()
            whole += mx.square(wanted).sum().item()
        assert whole > 0
        return (apart / whole) ** 0.5


class World:
    """A repository, and homes that know this machine: ranks that measure it beside ranks that wait take much longer."""

    def __init__(self, scratch: Path, cache: Path) -> None:
        self.repository, self._scratch, self._cache = write_repository(scratch / "repository"), scratch, cache

    def train(self, name: str, config: TrainingConfig) -> Trained:
        """Begin a training in the home of this name."""
        home = self._scratch / name
        if not home.exists():
            shutil.copytree(self._cache, home / "cache")
        return Trained(config, self.repository, home)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, trained_cache: Path) -> World:
    return World(tmp_path_factory.mktemp("parallel"), trained_cache)


@pytest.fixture(scope="module")
def two_ranks(tiny_model_dir: Path, world: World) -> Trained:
    """An undisturbed training by two ranks."""
    return world.train("two", settings(tiny_model_dir, 2)).complete()


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, world: World) -> Trained:
    """The same by one process."""
    return world.train("one", settings(tiny_model_dir, 1)).complete()


def peers_of(trained: TrainingPipeline) -> list[int]:
    """The process ids of the ranks after 0."""
    record = trained.registry.latest_training("small")
    assert record is not None and record.pid is not None
    peers = []
    for one in psutil.Process(record.pid).children(recursive=True):  # below an ssh
        with suppress(psutil.NoSuchProcess):  # it may end meanwhile
            peers += [one.pid] if one.cmdline()[-1:] == ["mlx_gardener.runs.rank"] else []
    return peers


def test_two_ranks_learn_what_one_process_does(two_ranks: Trained, alone: Trained) -> None:
    assert len(two_ranks.losses) == STEPS
    assert two_ranks.losses == pytest.approx(alone.losses, rel=1e-4)
    assert alone.losses[-1] < alone.losses[0], "it learned something that could differ"
    assert two_ranks.far_from(alone) < 1e-3
    manifest = json.loads(
        (two_ranks.pipeline.registry.get_adapter("small").directory / "manifest.json").read_text()
    )
    assert manifest["training"]["ranks"] == 2 and HERE not in json.dumps(manifest)


def test_a_killed_rank_is_named_and_the_group_goes_on_to_the_same_bytes(
    tiny_model_dir: Path, world: World, two_ranks: Trained
) -> None:
    config = settings(tiny_model_dir, 2, checkpoint_interval_seconds=1e-6)
    disturbed = world.train("disturbed", config)
    until(lambda: steps_done(disturbed.pipeline) >= 2, "two steps")
    with standing_still(disturbed.pipeline, "small"):
        record, (peer,) = disturbed.pipeline.registry.latest_training("small"), peers_of(disturbed.pipeline)
        assert record is not None
        with (record.run_dir / LOG_NAME).open("a") as log:
            log.write(INTERACTIVITY)  # what a Mac's rank leaves there, whose stderr it is
        os.kill(peer, signal.SIGKILL)
    until(lambda: peers_of(disturbed.pipeline) not in ([], [peer]), "another rank")
    gentler = psutil.Process(peers_of(disturbed.pipeline)[0]).environ()
    assert gentler["AGX_RELAX_CDM_CTXSTORE_TIMEOUT"] == "1"
    disturbed.complete()
    told = [one.message for one in disturbed.pipeline.follow("small") if isinstance(one, WarningRaised)]
    assert any(
        f"Rank 1 on {HERE}" in one and "SIGKILL" in one and "last checkpoint" in one for one in told
    ), told
    assert disturbed.weights_file.read_bytes() == two_ranks.weights_file.read_bytes()


def cancel_at_once(pipeline: TrainingPipeline) -> None:
    """Its worker looks for the wish some times a second: it stands still until it would."""
    with standing_still(pipeline, "small"):
        assert pipeline.cancel_training("small")
        time.sleep(2 * CANCEL_POLL_SECONDS)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_one_of_them_behind_ssh_go_on_with_what_one_process_began_and_a_wish_to_cancel_ends_all(
    tiny_model_dir: Path,
    world: World,
    alone: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    begun = world.train(f"{ranks} ranks", settings(tiny_model_dir, 1, checkpoint_interval_seconds=1e-6))
    until(lambda: steps_done(begun.pipeline) >= 2, "two steps")
    cancel_at_once(begun.pipeline)
    assert begun.pipeline.wait_for_training_completion("small", WAIT).phase is TrainingPhase.CANCELLED
    done = steps_done(begun.pipeline)
    hosts = [HERE, "127.0.0.2", HERE, HERE]  # Linux answers on all of 127.*; all but one name needs ssh
    if sys.platform != "linux":
        hosts = [HERE] * 4
    place = {"parallel.hosts": hosts[:ranks], "parallel.starting_port": _a_free_port()}
    several = settings(tiny_model_dir, ranks, **place)
    assert (
        TrainingPipeline(several, registry=begun.pipeline.registry).unfinished_training("small") is not None
    )
    together = world.train(f"{ranks} ranks", several)
    until(lambda: steps_done(together.pipeline) >= done + 2, "two more steps")
    others = peers_of(together.pipeline)
    cancel_at_once(together.pipeline)
    assert together.pipeline.wait_for_training_completion("small", WAIT).phase is TrainingPhase.CANCELLED
    assert len(others) == ranks - 1
    until(lambda: not any(is_alive(pid) for pid in others), "the other ranks' end")
    until_now = steps_done(together.pipeline)
    assert done + 2 <= until_now < STEPS
    assert together.losses == pytest.approx(alone.losses[done:until_now], rel=1e-4)


def test_variables_for_all_ranks_arrive_behind_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("ssh", SSH.replace("exec sh", "exec env -u GENTLER sh")),  # a real one takes no variables along
        ("python", '#!/bin/sh\n[ "$GENTLER" = "a b" ] && echo ready\ncat >/dev/null\n'),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    config = ParallelConfig(hosts=[HERE, "127.0.0.2"], python=str(tmp_path / "python"))
    group = Group(config, tmp_path)
    try:
        assert group.assemble({"GENTLER": "a b"})["GENTLER"] == "a b"
    finally:
        group.close()


def _a_free_port() -> int:
    with socket.socket() as one:
        one.bind((HERE, 0))
        return min(int(one.getsockname()[1]), 64000)


def test_a_host_that_cannot_be_reached_is_named(
    tiny_model_dir: Path, repository: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'No route to host' >&2\nexit 255\n")
    ssh.chmod(0o700)
    monkeypatch.setenv("PATH", f"{ssh.parent}{os.pathsep}{os.environ['PATH']}")
    config = settings(tiny_model_dir, 2, **{"parallel.hosts": [HERE, "127.0.0.2"]})
    pipeline = Trained(config, repository, home).pipeline
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    assert end.phase is TrainingPhase.FAILED
    assert "Rank 1 on 127.0.0.2 cannot be reached" in end.message and "255" in end.message, end.message


@pytest.mark.slow  # test_ranks_agree... has two processes that find each other as mlx.launch lets them
@pytest.mark.usefixtures("known_home")
def test_under_mlx_launch_rank_0_speaks_and_the_others_are_quiet(
    tiny_model_dir: Path, repository: Path
) -> None:
    launcher = "from mlx._distributed_utils.launch import main; main()"  # the command mlx.launch
    command = [
        *(sys.executable, "-c", launcher, "-n", "2", "--starting-port", str(_a_free_port()), "--"),
        *(sys.executable, "-m", "mlx_gardener", "train", str(repository), "--project", "small"),
        *train_flags(tiny_model_dir),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("is in the registry") == 1, done.stdout
    assert "2 ranks together" in done.stdout and "rank with" not in done.stderr, done.stderr


#: Two ranks that say what they see; run with their rank as the argument.
TWO = """
import json, sys
import mlx_gardener
from mlx_gardener.errors import GardenerError, TrainingError
from mlx_gardener.training.parallel import Ranks
ranks = Ranks.connect("ring", 600)
seen = [ranks.any(ranks.rank == 1), ranks.any(False)]
seen.append(ranks.from_first(lambda: b"abcde" * 3).decode() if sys.argv[1] == "0" else ranks.from_first(bytes).decode())
seen.append(ranks.sum_numbers(lambda: (1.5, 10**ranks.rank)))
try:
    if sys.argv[2] == "differ":
        ranks.check_same({"version": "same", "base model": "abc"[ranks.rank]})
    def compute():
        if ranks.rank == 1:
            raise TrainingError("memory ran out here")
        return (1.0,)
    ranks.sum_numbers(compute)
except GardenerError as error:
    seen.append(type(error).__name__ + ": " + error.message)
print(json.dumps(seen), flush=True)
"""


@pytest.mark.parametrize("how", ["differ", "fail"])
def test_ranks_agree_and_what_goes_wrong_on_one_is_told_on_all(tmp_path: Path, how: str) -> None:
    ports = [_a_free_port(), _a_free_port()]
    (tmp_path / "hosts.json").write_text(json.dumps([[f"{HERE}:{port}"] for port in ports]))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), how],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "MLX_RANK": str(rank),
                "MLX_HOSTFILE": str(tmp_path / "hosts.json"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        for rank in range(2)
    ]
    seen = [json.loads(one.communicate(timeout=WAIT)[0].splitlines()[-1]) for one in both]
    for rank, (*agreed, error) in enumerate(seen):
        assert agreed == [True, False, "abcde" * 3, [3.0, 11]]
        if how == "differ":
            assert error == "TrainingError: Rank 1 has another base model than rank 0: b instead of a."
        else:
            told = "OtherRankError: Rank 1 had to stop: memory ran out here"
            assert error == (told if rank == 0 else "TrainingError: memory ran out here")


def test_a_rank_that_waits_alone_is_ended_by_the_clock(tmp_path: Path) -> None:
    ports = [_a_free_port(), _a_free_port()]
    (tmp_path / "hosts.json").write_text(json.dumps([[f"{HERE}:{port}"] for port in ports]))
    code = (
        "import mlx_gardener\nfrom mlx_gardener.training.parallel import Ranks\nRanks.connect('ring', 0.3)\n"
    )
    environment = {**os.environ, "MLX_RANK": "0", "MLX_HOSTFILE": str(tmp_path / "hosts.json")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=WAIT, check=False)
    assert done.returncode == -signal.SIGALRM


def test_a_rank_that_begins_late_is_waited_for_and_one_that_never_does_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLX's ring gives up after 31 seconds, and a machine with 37 busy processes takes longer to start rank 0."""
    import mlx.core as mx

    asked: list[str] = []

    def init(*, strict: bool, backend: str) -> mx.distributed.Group:
        asked.append(backend)
        if len(asked) % 3:
            raise RuntimeError(f"[ring] Couldn't connect (error: {errno.ECONNREFUSED})")
        return mx_init()

    mx_init = mx.distributed.init
    monkeypatch.setattr(mx.distributed, "init", init)
    assert Ranks.connect("ring", 60.0).size == 1 and asked == ["ring"] * 3
    with pytest.raises(TrainingError, match="nobody listens on"):
        Ranks.connect("ring", 0.05)
    assert len(asked) == 4, "the alarm would have ended it in the next"
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_backend_that_mlx_lacks_and_a_taken_port_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="no nccl on this machine; it has ring"):
        Ranks.connect("nccl", 5.0)
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        taken.listen()
        hosts = [[f"{HERE}:{taken.getsockname()[1]}"], [f"{HERE}:{_a_free_port()}"]]
        (tmp_path / "hosts.json").write_text(json.dumps(hosts))
        monkeypatch.setenv("MLX_RANK", "0")
        monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts.json"))
        with pytest.raises(TrainingError, match="port that is taken"):
            Ranks.connect("ring", 5.0)


def test_a_host_file_is_found_wherever_its_reader_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(environment={}, overrides={"parallel.hosts": "hosts.json"})
    assert TrainingPipeline(config).config.parallel.hosts == str(tmp_path / "hosts.json")


def test_hosts_come_from_a_list_or_from_a_host_file_of_mlx_launch(tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    entries = [{"ssh": "127.0.0.1", "ips": ["10.0.0.1"]}, {"ssh": "me@mini", "ips": ["10.0.0.2"]}]
    for content in (entries, {"backend": "ring", "hosts": entries}):
        file.write_text(json.dumps(content))
        first, second = hosts_of(ParallelConfig(hosts=str(file)))
        assert (first.address, first.is_local) == ("10.0.0.1", True)
        assert (second.name, second.address, second.is_local) == ("me@mini", "10.0.0.2", False)
    for content in ("[", '[{"ips": []}]', '[{"ssh": "-oProxyCommand=x", "ips": ["10.0.0.1"]}]'):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"hosts\.json is not one of"):
            hosts_of(ParallelConfig(hosts=str(file)))
    with pytest.raises(ConfigError, match=r"host file mini\.local cannot be read") as alone:
        hosts_of(ParallelConfig(hosts="mini.local"))
    assert "two hosts or more" in alone.value.next_step
    with pytest.raises(ConfigError, match="at least two"):
        hosts_of(ParallelConfig(hosts=(HERE,)))
    with pytest.raises(ConfigError, match="no address"):
        hosts_of(ParallelConfig(hosts=(HERE, "no-such-host.invalid")))
    with pytest.raises(GardenerError, match="MPI starts"):
        Group(ParallelConfig(hosts=(HERE, HERE), backend="mpi"), tmp_path)
    with pytest.raises(ConfigError, match="no name or address"):
        ParallelConfig(hosts=(HERE, "-oProxyCommand=x"))


def test_who_was_launched_knows_rank_and_backend(tmp_path: Path) -> None:
    file, empty = tmp_path / "hosts.json", tmp_path / "empty"
    file.write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    empty.write_text("\n")
    assert launched_rank({}) is None
    assert launched_rank({"MLX_RANK": "0", "MLX_HOSTFILE": str(empty)}) is None, "mlx.launch with one host"
    assert launched_rank({"MLX_RANK": "1", "MLX_HOSTFILE": str(file)}) == (1, "ring")
    assert launched_rank({"MLX_RANK": "1", "MLX_WORLD_SIZE": "2", "NCCL_PORT": "1"}) == (1, "nccl")
    assert launched_rank({"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "10.0.0.1:1"}) == (0, "jaccl")
    assert launched_rank({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}) == (1, "mpi")
