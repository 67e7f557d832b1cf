"""Connections, bounded before anything of a request is understood: how many there are, how long each may take to ask, and in
how many parts.

uvicorn waits for ever for the end of a head or a body, and takes every connection. A socket that sends half a line holds a
descriptor; a few hundred of them would leave none for the adapters' files. And a body in chunks of a byte each would keep the
event loop for a minute: each part costs it some 20 microseconds, however short.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, cast

import h11
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_gardener.serve.access import refuse_below
from mlx_gardener.serve.errors import error_body

#: What a body may take beyond its own limit, until the connection is closed without an answer.
_GRACE_SECONDS = 2.0
_MOST_HEAD_BYTES = 2**16
#: Parts (chunks, or what one read of the socket brings) in which a body may come: 256 bytes each on average for the longest.
_MOST_PARTS = 2**14
#: A URL as a request's target: authority; path and query.
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


class _TooManyPartsError(Exception):
    """A body comes in more parts than it may."""


class _Connection(h11.Connection):
    """h11's, that counts the parts of a body."""

    _parts = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._parts = 0
            return _as_asked_here(event)
        if isinstance(event, h11.Data):
            self._parts += 1
            if self._parts > _MOST_PARTS:
                raise _TooManyPartsError
        return event


def _as_asked_here(request: h11.Request) -> h11.Request:
    """A request whose target is a whole URL with the path and the Host that it names (RFC 9112, 3.2.2).

    And without an offer to upgrade, which may be passed over (RFC 9110, 7.8) and which uvicorn warns of.
    """
    found = _ABSOLUTE.fullmatch(request.target)
    headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
    target = request.target
    if found is not None:
        headers = [(b"host", found[1]), *((name, value) for name, value in headers if name != b"host")]
        target = found[2] if found[2].startswith(b"/") else b"/" + found[2]
    return h11.Request(
        method=request.method, headers=headers, target=target, http_version=request.http_version
    )


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

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.conn = _Connection(h11.SERVER, _MOST_HEAD_BYTES)

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

        def handle_events(self) -> None:
            try:
                super().handle_events()
            except _TooManyPartsError:
                message = f"The request comes in more than {_MOST_PARTS} parts. Send larger ones."
                self._refuse(413, message, "too_large")

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
            self._refuse(400, msg, "bad_request")

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

        def _refuse(self, status: int, message: str, code: str) -> None:
            """Answer a request that is not understood, or whose body is not; in the middle of an answer nothing can be said."""
            under_way = self.cycle is not None and not self.cycle.response_complete
            if under_way and self.conn.our_state is not h11.SEND_RESPONSE:
                self.transport.abort()
                return
            if under_way:
                refuse_below(cast(Scope, self.cycle.scope), status, message)
            self._answer(status, message, "invalid_request_error", code)

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
