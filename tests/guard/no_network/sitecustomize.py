"""Cuts a process and its children off: every connection but to this machine's own files fails and is written down."""

from __future__ import annotations

import os
import socket
from typing import Any

_real_connect, _real_connect_ex = socket.socket.connect, socket.socket.connect_ex


def _refuse(what: str) -> OSError:
    with open(os.environ["TRIED_FILE"], "a") as file:
        file.write(f"{what}\n")
    return OSError(101, "Network is unreachable")


def _connect(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX:
        raise _refuse(f"connect {address!r}")
    _real_connect(self, address)


def _connect_ex(self: socket.socket, address: Any) -> int:
    if self.family != socket.AF_UNIX:
        raise _refuse(f"connect {address!r}")
    return _real_connect_ex(self, address)


def _lookup(host: Any, *rest: Any, **options: Any) -> Any:
    raise _refuse(f"look up {host!r}")


socket.socket.connect = _connect  # type: ignore[method-assign]
socket.socket.connect_ex = _connect_ex  # type: ignore[method-assign]
socket.getaddrinfo = _lookup
