"""The other processes of a training in parallel, from their start to their end, as a supervisor sees them.

In: `config.ParallelConfig`. Out: one `mlx_gardener.runs.rank` process per further rank, here or behind ssh, and the
environment in which rank 0's worker finds them, the same that `mlx.launch` makes. A rank gets its orders as a line of JSON
on stdin and answers with lines on stdout: ``ready``, ``connected``, then a ``beat`` every two seconds. So who cannot be
reached, who died and who is stuck is known by rank, and a rank whose stdin closes knows that its supervisor is gone.
Cost: a thread per rank.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import ConfigError, TrainingError
from mlx_gardener.platform.files import expanded, write_private
from mlx_gardener.platform.processes import how_it_ended, module_command
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_json

if TYPE_CHECKING:
    from mlx_gardener.config import ParallelConfig

logger = logging.getLogger(__name__)

#: A rank that has not said a word for so long is taken for dead; it says one every `BEAT_SECONDS`.
SILENCE_SECONDS, BEAT_SECONDS = 60.0, 2.0
#: How long a host may take to answer, and ranks to be ready and to connect: they import for some seconds, times as many as a
#: machine has busy processes for each core.
REACH_SECONDS, CONNECT_SECONDS = 60, 180.0
#: How long rank 0 may take to notice by itself that a rank died, and ranks that the training is over.
_GRACE_SECONDS = 30.0
#: Of a host file; a host takes some hundred bytes.
_MAX_HOSTFILE_BYTES = 2**20
#: mlx.launch's first port, used where several machines must agree on one.
_STARTING_PORT = 32323
_LOCAL = "127.0.0.1"
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")


@dataclass(frozen=True)
class Host:
    """Where a rank runs: the name for ssh, the address the others reach it at, and for JACCL its devices."""

    name: str
    address: str
    rdma: tuple[Any, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether its process is started here, without ssh."""
        return self.name in (_LOCAL, "localhost")


def check_hosts(config: ParallelConfig) -> None:
    """Refuse what a training in parallel would, where one is wanted; hosts are not reached out to.

    Raises:
        ConfigError: as `hosts_of`.
    """
    if config.is_wanted:
        hosts_of(config)


def hosts_of(config: ParallelConfig) -> list[Host]:
    """The hosts by rank.

    Raises:
        ConfigError: there are not at least two, the host file cannot be used, a name has no address, or the backend has to be
            started by a program of its own.
    """
    if config.backend == "mpi":
        raise ConfigError(
            "MPI starts its processes itself.",
            next_step="Run `mlx.launch --backend mpi --hosts ... mlx-gardener train ...` without --hosts of its own.",
        )
    if isinstance(config.hosts, str):
        hosts = _read_hostfile(expanded(config.hosts))
    else:
        hosts = [Host(name, _address_of(name)) for name in config.hosts]
    if len(hosts) < 2:
        raise ConfigError(
            "Training in parallel takes at least two hosts.",
            next_step="Name them with --hosts, this machine first: --hosts 127.0.0.1,127.0.0.1 for two processes here.",
        )
    return hosts


def _read_hostfile(path: Path) -> list[Host]:
    """mlx.launch's form: a list of ``{"ssh", "ips", "rdma"}``, or an object with that as ``hosts``."""
    from mlx_gardener.config import ParallelConfig  # pydantic, which most supervisors do without

    try:
        found = read_json(path, max_bytes=_MAX_HOSTFILE_BYTES)
        entries = found["hosts"] if isinstance(found, dict) else found
        hosts = []
        for entry in entries:
            name, ips = str(entry["ssh"]), entry.get("ips") or []
            ParallelConfig(hosts=(name,))  # no option for ssh among them
            hosts.append(
                Host(name, str(ips[0]) if ips else _address_of(name), tuple(entry.get("rdma") or ()))
            )
        return hosts
    except OSError as error:
        raise ConfigError(
            f"The host file {path.name} cannot be read ({reason_of(error)}).",
            next_step="Name another file with --hosts, or two hosts or more: --hosts 127.0.0.1,127.0.0.1 for two processes here.",
        ) from error
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"The host file {path.name} is not one of mlx.launch's: {reason_of(error)}.",
            next_step='It is a JSON list of {"ssh": NAME, "ips": [ADDRESS]}; `mlx.distributed_config` writes one.',
        ) from error


def _address_of(name: str) -> str:
    try:
        return socket.gethostbyname(name.rpartition("@")[2])
    except OSError as error:
        raise ConfigError(
            f"The host {name!r} has no address ({reason_of(error)}).",
            next_step="Write its IP address, or correct the name.",
        ) from error


def launched_rank(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """(rank, backend) where `mlx.launch` or mpirun started this process as one of several; else None."""
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return int(environment["OMPI_COMM_WORLD_RANK"]), "mpi"
    rank = environment.get("MLX_RANK", "")
    if not rank.isdecimal():
        return None
    if environment.get("MLX_JACCL_COORDINATOR"):
        return int(rank), "jaccl"
    if int(environment.get("MLX_WORLD_SIZE", "1")) > 1:
        return int(rank), "nccl"
    hostfile = Path(environment.get("MLX_HOSTFILE", ""))
    if hostfile.is_file() and hostfile.read_text(encoding="utf-8").strip():
        return int(rank), "ring"
    return None


class Group:
    """The ranks of one worker: started, connected, watched and ended with it.

    Args:
        run_dir: where rank 0's files for MLX are written.

    Attributes:
        death: rank, host and a sentence on the first rank that died before its time; None while all is well.

    Raises:
        ConfigError: see `hosts_of`.
    """

    def __init__(self, config: ParallelConfig, run_dir: Path) -> None:
        self._config, self._run_dir, self._hosts = config, run_dir, hosts_of(config)
        self._ranks: list[_RankProcess] = []
        self._over = threading.Event()
        self.death: str | None = None
        self._variables, self._files = self._describe()

    def assemble(self, more: Mapping[str, str]) -> dict[str, str]:
        """Start all ranks and wait until each is ready to connect; returns rank 0's environment.

        Args:
            more: variables that all ranks get beside those of the group.

        Raises:
            TrainingError: a host cannot be reached in time, or its rank cannot work; says which and why.
        """
        local = max(1, (os.cpu_count() or 1) // sum(host.is_local for host in self._hosts))
        threads = {
            name: os.environ.get(name, str(local)) for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        for rank, host in enumerate(self._hosts[1:], start=1):
            self._ranks.append(_RankProcess(rank, host, self._config, more))
            orders = {
                "backend": self._config.backend.removesuffix("-ring"),  # of JACCL, MLX knows by a variable
                "environment": {
                    **self._variables,
                    "MLX_RANK": str(rank),
                    **(threads if host.is_local else {}),
                },
                "files": self._files,
            }
            self._ranks[-1].say(json.dumps(orders))
        self._wait_for("ready", "cannot be reached")
        environment = {**more, **self._variables, "MLX_RANK": "0", **threads}
        for name, content in self._files.items():
            write_private(self._run_dir / f"{name.lower()}.json", content)
            environment[name] = str(self._run_dir / f"{name.lower()}.json")
        return environment

    def watch(self, worker: subprocess.Popen[bytes]) -> None:
        """Let the ranks connect with rank 0's worker, and end it where one of them dies or is stuck."""
        for member in self._ranks:
            member.say("go")
        threading.Thread(target=self._watch, args=(worker,), name="ranks", daemon=True).start()

    def close(self) -> None:
        """End all ranks: by closing their stdin first, by force where that does not help."""
        self._over.set()
        for member in self._ranks:
            member.close()
        deadline = time.monotonic() + _GRACE_SECONDS
        for member in self._ranks:
            try:
                member.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()

    def _watch(self, worker: subprocess.Popen[bytes]) -> None:
        connect_by = time.monotonic() + CONNECT_SECONDS
        while not self._over.wait(0.2):
            late = [member for member in self._ranks if "connected" not in member.heard]
            if late and time.monotonic() > connect_by:
                self.death = (
                    f"Rank {late[0].rank} on {late[0].host.name} did not connect within "
                    f"{CONNECT_SECONDS:g} seconds"
                )
            if self.death or self._look():
                logger.error("%s", self.death)
                self._end(worker)
                return

    def find_death(self) -> str | None:
        """Which rank died first, where the worker says that one did; its end may be a moment away."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while not self._look() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.death

    def _look(self) -> bool:
        """Whether a rank can do nothing more; names the one that others lost before those that lost it."""
        problems = [(member, member.problem()) for member in self._ranks]
        dead = [(member, problem) for member, problem in problems if problem is not None]
        guilty = [found for found in dead if found[0].process.poll() != os.EX_TEMPFAIL]
        if guilty or (dead and all(member.process.poll() is not None for member in self._ranks)):
            member, problem = (guilty or dead)[0]
            self.death = self.death or f"Rank {member.rank} on {member.host.name} {problem}"
        return self.death is not None

    def _end(self, worker: subprocess.Popen[bytes]) -> None:
        """The worker notices a lost rank by itself, writes a checkpoint and ends; unless the network just went silent."""
        for member in self._ranks:
            member.close()
        try:
            worker.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()

    def _wait_for(self, word: str, otherwise: str) -> None:
        deadline = time.monotonic() + CONNECT_SECONDS
        for member in self._ranks:
            while word not in member.heard:
                problem = member.problem()
                if problem is None and time.monotonic() > deadline:
                    problem = f"did not answer within {CONNECT_SECONDS:g} seconds"
                if problem is not None:
                    raise TrainingError(
                        f"Rank {member.rank} on {member.host.name} {otherwise}: it {problem}.",
                        next_step=f"See that `ssh {member.host.name}` works without a password and that mlx_gardener is "
                        "installed there (parallel.python), then train again."
                        if not member.host.is_local
                        else "`mlx-gardener logs` shows what it said.",
                    )
                time.sleep(0.02)

    def _describe(self) -> tuple[dict[str, str], dict[str, str]]:
        """Variables, and contents of files that variables name, by which MLX finds the group: as mlx.launch sets them."""
        hosts, backend = self._hosts, self._config.backend
        first = hosts[0].address
        port = self._config.starting_port or _STARTING_PORT
        if backend == "nccl":
            return (
                {"NCCL_HOST_IP": first, "NCCL_PORT": str(port), "MLX_WORLD_SIZE": str(len(hosts))},
                {},
            )
        if backend.startswith("jaccl"):
            ring = {"MLX_JACCL_RING": "1"} if backend == "jaccl-ring" else {}
            devices = json.dumps([host.rdma for host in hosts])
            return {"MLX_JACCL_COORDINATOR": f"{first}:{port}", **ring}, {"MLX_IBV_DEVICES": devices}
        ports = [port + rank for rank in range(len(hosts))]
        if self._config.starting_port is None and all(host.is_local for host in hosts):
            ports = _free_ports(len(hosts))
        ring_hosts = [[f"{host.address}:{at}"] for host, at in zip(hosts, ports, strict=True)]
        return {}, {"MLX_HOSTFILE": json.dumps(ring_hosts)}


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_LOCAL, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class _RankProcess:
    """One rank, or the ssh that leads to it, and what it has said."""

    def __init__(self, rank: int, host: Host, config: ParallelConfig, environment: Mapping[str, str]) -> None:
        self.rank, self.host = rank, host
        self.heard: set[str] = set()
        self._error = ""
        if host.is_local:
            command = module_command("mlx_gardener.runs.rank")
        else:
            variables = [f"{name}={value}" for name, value in environment.items()]
            python = [config.python or sys.executable, "-P", "-m", "mlx_gardener.runs.rank"]
            there = shlex.join(["env", *variables, *python])
            timeout = f"ConnectTimeout={REACH_SECONDS}"
            command = [*_SSH, "-o", timeout, host.name, there]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._heard_at = time.monotonic()
        threading.Thread(target=self._listen, name=f"rank-{rank}", daemon=True).start()

    def say(self, line: str) -> None:
        """A line on its stdin; nothing where it is gone, which `problem` tells."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError:
            logger.info("rank %d is gone already", self.rank)

    def close(self) -> None:
        """Close its stdin, by which it knows that it has to end."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except OSError:
            logger.info("rank %d is gone already", self.rank)

    def problem(self) -> str | None:
        """Why it will do nothing more, as the end of a sentence; None while it works, or when it is done."""
        code = self.process.poll()
        if code is None:
            silent = time.monotonic() - self._heard_at
            if "connected" in self.heard and silent > SILENCE_SECONDS:
                self.process.kill()
                return f"has not been heard of for {silent:.0f} seconds"
            return None
        if code == 0:
            return None if "connected" in self.heard else "ended before it was connected"
        return self._error or how_it_ended(code)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, text = line.strip().partition(" ")
            self._heard_at = time.monotonic()
            self.heard.add(word)
            if word == "error":
                self._error = f"said: {text}"
