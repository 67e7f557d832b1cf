"""A server's life: load and test what is served, listen, and end without cutting anybody off in the middle of a word."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlx_gardener.errors import ConfigError, GardenerError, RegistryError
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.catalog import Catalog, Target
from mlx_gardener.serve.page import PageMaker
from mlx_gardener.serve.parts import Parts, running
from mlx_gardener.serve.settings import ServeSettings
from mlx_gardener.serve.worker import Worker

#: How long answers that are being written may go on after the end was asked for, seconds.
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class SelfTest:
    """What came of loading a model at the start.

    ``change`` is the largest difference that the adapter makes to a logit of a fixed text; ``problem`` says why the model
    will answer with errors, where it will; ``retrieval`` whether code of the repository stands in front of prompts, and why.
    """

    model: str
    base: str
    version: str
    change: float
    problem: str | None
    retrieval: str = ""


def self_test(parts: Parts) -> Iterator[SelfTest]:
    """Load every served project's active adapter, see that it changes what the base says, and read its repository's index."""
    for target in parts.catalog.targets():
        if target.record is not None and "@" not in target.id:
            test = _test(parts.worker, target)
            yield replace(test, retrieval=parts.indexes.open(target) if test.problem is None else "")


def _test(worker: Worker, target: Target) -> SelfTest:
    assert target.record is not None
    changes: list[float] = []

    def enter() -> None:
        _, resident = worker.residents.enter(target)
        changes.append(resident.change if resident is not None else 0.0)

    problem = None
    try:
        worker.run(enter)
    except GardenerError as error:
        problem = error.in_terminal
    change = changes[0] if changes else 0.0
    return SelfTest(target.id, target.base_id, target.record.version, change, problem)


def listen(settings: ServeSettings) -> socket.socket:
    """A socket on the settings' address; port 0 takes a free one.

    Raises:
        ConfigError: the address is not this machine's, or taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except (OSError, UnicodeError) as error:  # the latter of a name that is too long for one
        is_other = isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be listened on ({reason_of(error)}).",
            next_step="Name an address of this machine with --host: 127.0.0.1, or 0.0.0.0 for all it has."
            if is_other
            else "Choose a --port above 1023."
            if isinstance(error, PermissionError)
            else "Choose another --port, or end what listens there.",
        ) from error
    return found


def serve(
    registry: ProjectRegistry,
    settings: ServeSettings,
    *,
    on_test: Callable[[SelfTest], None],
    on_ready: Callable[[str, Callable[[], None]], None],
    on_request: Callable[[Access], None] = lambda _: None,
    page: PageMaker | None = None,
    loads_ahead: bool = True,
) -> None:
    """Serve until interrupted, terminated or stopped.

    Args:
        on_request: told of each request when it is answered, on the event loop's thread.
        on_test: told what came of each model's test before the first request is taken.
        on_ready: told the address when requests are taken, and what to call to end the server.
        page: makes the web page at ``/``.
        loads_ahead: load and test what is served before the first request; else there need be nothing to serve yet.

    Raises:
        ConfigError: the address cannot be listened on.
        RegistryError: the registry cannot be read, has no such project, or no adapter to serve that passes its test.
    """
    import uvicorn

    from mlx_gardener.serve.app import Server
    from mlx_gardener.serve.connections import bounded_protocol

    for name in settings.projects:
        registry.get_adapter(name)
    if loads_ahead and not Catalog(registry, settings.projects).targets():
        raise RegistryError(
            "No project has an adapter yet: there is nothing to serve.",
            next_step="Train one with `mlx-gardener train PATH`.",
        )
    with (
        contextlib.closing(listen(settings)) as found,
        running(registry, settings) as parts,
    ):
        tests = []
        if loads_ahead:
            parts.catalog.editors_names()  # reads the bases' cards now, and not on the event loop while somebody waits
        for result in self_test(parts) if loads_ahead else ():
            on_test(result)
            tests.append(result)
        if tests and all(result.problem is not None for result in tests):
            raise RegistryError(
                f"Nothing can be served: {tests[0].model}: {tests[0].problem}",
                next_step="Train it again, or serve another project.",
            )

        server = Server(parts, on_request, page)

        class Uvicorn(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                host, port = found.getsockname()[:2]
                on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", self._end)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                server.end()
                await super().shutdown(sockets)

            def _end(self) -> None:
                self.should_exit = True

        config = uvicorn.Config(
            server.app(),
            http=bounded_protocol(
                max_connections=settings.max_connections,
                head_seconds=settings.head_seconds,
                body_seconds=settings.body_seconds,
            ),
            ws="none",
            log_level="warning",
            access_log=False,  # ours has the project and the tokens, and no query
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            timeout_keep_alive=30,
        )
        Uvicorn(config).run(sockets=[found])


@contextlib.contextmanager
def serving(
    registry: ProjectRegistry,
    settings: ServeSettings,
    on_request: Callable[[Access], None] = lambda _: None,
    **more: Any,
) -> Iterator[str]:
    """A server in a thread of its own while the block runs; gives its address. ``more`` is passed on to `serve`.

    Raises:
        GardenerError: as `serve`.
    """
    ready, ends, failures = threading.Event(), [], []
    address = ""

    def on_ready(where: str, end: Callable[[], None]) -> None:
        nonlocal address
        address = where
        ends.append(end)
        ready.set()

    def run() -> None:
        try:
            serve(
                registry, settings, on_test=lambda _: None, on_ready=on_ready, on_request=on_request, **more
            )
        except Exception as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="serve", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        raise failures[0]
    try:
        yield address
    finally:
        ends[0]()
        thread.join()
    if failures:
        raise failures[0]
