"""What is told of each request: one record, filled while it is answered; never a prompt, never an answer."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from starlette.types import Scope

_KEY = "mlx_gardener.access"
#: Said where an answer goes on from what stands before the caret alone.
SUFFIX_LEFT_OUT = "what follows is not shown: the base has no fill-in-the-middle markers"
_REFUSED_BELOW = "mlx_gardener.refused_below"


@dataclass
class Access:
    """A request and what came of it.

    Attributes:
        project: the model that was asked, "" where none was found.
        prompt_tokens, written_tokens: read and written; 0 where nothing was.
        retrieved_chunks, retrieved_tokens: of the repository's code in front of the prompt.
        client: address and what it calls itself.
        leaves_out_suffix: whether the base has no markers to be shown what follows the caret.
        ignored: fields of the request that are unknown, each told once in a server's life.
        refused: why it was not answered, "" where it was.
    """

    method: str
    path: str
    client: str
    project: str = ""
    status: int = 500
    prompt_tokens: int = 0
    written_tokens: int = 0
    retrieved_chunks: int = 0
    retrieved_tokens: int = 0
    seconds: float = 0.0
    leaves_out_suffix: bool = False
    ignored: list[str] = field(default_factory=list)
    refused: str = ""

    def as_json(self) -> dict[str, Any]:
        """For lines of JSON."""
        return asdict(self)

    def text(self) -> str:
        """One line for people."""
        tokens = f" {self.prompt_tokens}+{self.written_tokens} tokens" if self.prompt_tokens else ""
        line = f"{self.method} {self.path} {self.project or '-'} {self.status}{tokens} {self.seconds:.2f} s {self.client}"
        line += f"; {self.retrieved_tokens} tokens retrieved" if self.retrieved_tokens else ""
        line += f"; {SUFFIX_LEFT_OUT}" if self.leaves_out_suffix else ""
        line += f"; unknown fields are ignored: {', '.join(self.ignored)}" if self.ignored else ""
        return line + (f"; {self.refused[:300]}" if self.refused else "")


def access_of(scope: Scope) -> Access:
    """The record of the request that ``scope`` belongs to."""
    return cast(Access, scope[_KEY])


def begin_access(scope: Scope) -> Access:
    """Open a record for a request."""
    agents = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"user-agent"]
    address = scope.get("client")
    agent = f" {agents[0][:60]}" if agents else ""
    access = Access(scope["method"], scope["path"][:200], f"{address[0] if address else 'unknown'}{agent}")
    scope[_KEY] = access
    return access


def refuse_below(scope: Scope, status: int, message: str) -> None:
    """Say that the connection itself has answered a request whose body is not understood, with ``status``."""
    scope[_REFUSED_BELOW] = status, message


def refused_below(scope: Scope) -> tuple[int, str] | None:
    """What `refuse_below` was told of this request, if anything."""
    return cast("tuple[int, str] | None", scope.get(_REFUSED_BELOW))


@contextlib.contextmanager
def told_aside(tell: Callable[[Access], None]) -> Iterator[Callable[[Access], None]]:
    """Give each record to ``tell`` in a thread of its own: a stopped terminal or a pipe that nobody reads stops no answers.

    Where more than a thousand wait, new ones are left out; where nobody can be told any more, all are.
    """
    waiting: queue.Queue[Access | None] = queue.Queue(maxsize=1000)

    def telling() -> None:
        while (access := waiting.get()) is not None:
            try:
                tell(access)
            except OSError:  # the reader is gone, and the server's answers are not his
                return

    def on_request(access: Access) -> None:
        with contextlib.suppress(queue.Full):
            waiting.put_nowait(access)

    thread = threading.Thread(target=telling, name="serve-access", daemon=True)
    thread.start()
    try:
        yield on_request
    finally:
        with contextlib.suppress(queue.Full):
            waiting.put_nowait(None)
        thread.join(1.0)
