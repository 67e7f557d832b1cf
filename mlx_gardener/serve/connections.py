"""Connections, bounded before anything of a request is understood: how many there are, and how long each may take to ask.

uvicorn waits for ever for the end of a head or a body, and takes every connection. A socket that sends half a line holds a
descriptor; a few hundred of them would leave none for the adapters' files.
"""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_gardener.serve.errors import error_body

#: What a body may take beyond its own limit, until the connection is closed without an answer.
_GRACE_SECONDS = 2.0


def bounded_protocol(
    *, max_connections: int, head_seconds: float, body_seconds: float
) -> type[asyncio.Protocol]:
    """A protocol for uvicorn's ``http`` setting.

    Args:
        max_connections: open ones; one more is answered 503 and closed.
        head_seconds: from a connection's start, or a request's first byte, to the end of its headers.
        body_seconds: from there to the body's end; and how long a client may read nothing of what is written.
    """

    class Bounded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _reader: asyncio.TimerHandle | None = None
        _waits_for: tuple[str, int] | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._answer(503, "Too many connections are open already.", "server_error", "busy")
                return
            self._watch()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unset_timer()
            self._unset_reader()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unset_reader()
            self._reader = self.loop.call_later(body_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._unset_reader()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.transport.abort()  # in the middle of another answer nothing can be said
                return
            self._answer(400, msg, "invalid_request_error", "bad_request")

        def _watch(self) -> None:
            """Time what is being waited for; a byte now and then does not wind the clock again."""
            state, waits_for = self.conn.their_state, None
            if state is h11.SEND_BODY:
                waits_for = ("body", id(self.cycle))
            elif state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
                waits_for = ("head", id(self.cycle))
            if waits_for == self._waits_for:
                return
            self._unset_timer()
            self._waits_for = waits_for
            if waits_for is not None:
                seconds = head_seconds if waits_for[0] == "head" else body_seconds + _GRACE_SECONDS
                self._timer = self.loop.call_later(seconds, self._late)

        def _late(self) -> None:
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE:
                self._answer(408, "The request did not arrive in time.", "invalid_request_error", "too_slow")
            else:
                self.transport.abort()

        def _unset_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _unset_reader(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

        def _answer(self, status: int, message: str, kind: str, code: str) -> None:
            """Say why, and close: the request is not understood, so that nothing else can be said about it."""
            body = json.dumps(error_body("openai", status, message, kind, code)).encode()
            head = (
                f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Bounded
