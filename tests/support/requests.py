"""What tests send to a server, and how they read what it says."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx

from mlx_gardener.model import BaseModel
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.indexes import Indexes, Lookup
from mlx_gardener.serve.metrics import Metrics

JSON = {"content-type": "application/json"}
World = tuple[ProjectRegistry, BaseModel]
#: What editors' plugins sent, as it was recorded.
REQUESTS = Path(__file__).parents[1] / "serve" / "requests"
HEAD = b"POST /projects/alpha/infill HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def looks_nothing_up(registry: ProjectRegistry, target: Target) -> Lookup:
    """Retrieval for a request that is made without a server."""
    metrics = Metrics()
    return Lookup(Indexes(registry, "off", metrics), metrics, target)


def post(address: str, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(address + path, json=body, headers=headers, timeout=600)


def message(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


def connected(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=600)


def ended(connection: socket.socket) -> bytes:
    """What a server says until it closes a connection; waits for that."""
    said = b""
    while part := connection.recv(4096):
        said += part
    return said


def request(name: str) -> dict[str, Any]:
    return dict(json.loads((REQUESTS / f"{name}.json").read_text()))


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]
