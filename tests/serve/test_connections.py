"""Connections that send half a request, a byte now and then, or a name that is none: never waited for, bounded, refused."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.access import Access
from mlx_gardener.serve.server import serving
from tests.support.requests import HEAD, World, connected, ended, post
from tests.support.trainings import until

TOKEN = "correct-horse-battery-staple"


def test_half_requests_are_not_waited_for(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), head_seconds=0.3, body_seconds=0.3)
    for half in (b"", b"POST /infi", HEAD):
        with connected(address) as connection:
            connection.sendall(half)
            said = ended(connection)
            assert b"408" in said and b"did not arrive in time" in said
    for half in (b"content-length: 4000000\r\n\r\n", b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n'):
        with connected(address) as connection:
            connection.sendall(HEAD + half)
            said = ended(connection)
            assert b"408" in said and b"did not arrive in time" in said
    patient = start(projects=("alpha",), body_seconds=0.3)
    with connected(patient) as connection:  # refused before it was read, and still not waited for
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4000000\r\n\r\n{")
        assert b"415" in ended(connection)
    assert httpx.get(f"{patient}/health", timeout=60).status_code == 200


def test_a_byte_now_and_then_does_not_keep_a_connection(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), head_seconds=0.5)
    with connected(address) as connection:
        with pytest.raises(OSError):
            for _ in range(1200):
                connection.sendall(b"x")
                time.sleep(0.05)


def test_a_client_that_does_not_read_is_not_waited_for(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), max_connections=1, body_seconds=0.3)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        ask = b"GET /" + b"x" * 190 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"
        connection.settimeout(0.2)
        with contextlib.suppress(OSError):  # full, or closed by then
            for _ in range(20_000):
                connection.sendall(ask * 100)
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=60).status_code == 200:
                    return
            time.sleep(0.05)
    raise AssertionError("the connection is still held")


def test_connections_are_bounded(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), max_connections=3)
    held = [connected(address) for _ in range(3)]
    for connection in held:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" in connection.recv(4096)
    with connected(address) as one_more:
        said = ended(one_more)
    assert b"503" in said and json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "busy"
    for connection in held:
        connection.close()
    answer = httpx.Client(transport=httpx.HTTPTransport(retries=5)).get(f"{address}/health", timeout=60)
    assert answer.status_code in (200, 503)


def test_bytes_that_wait_are_bounded_over_all_requests(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), max_waiting_bytes=3000)
    body = {"input_prefix": "x = " * 100, "n_predict": 2}
    with connected(address) as connection:
        connection.sendall(HEAD + b"content-length: 2950\r\n\r\n" + b" " * 2900)
        assert any(post(address, "/infill", body).status_code == 503 for _ in range(100))
    for _ in range(600):
        if (status := post(address, "/infill", body).status_code) == 200:
            break
        time.sleep(0.05)
    assert status == 200


def test_a_token_is_asked_for_before_a_body_is_waited_for(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",), token=TOKEN)
    with connected(address) as connection:
        connection.sendall(HEAD + b"content-length: 4000000\r\n\r\n")
        assert b"401" in connection.recv(4096)


def test_a_client_that_leaves_while_it_sends_is_no_fault_of_ours(world: World) -> None:
    seen: list[Access] = []
    with serving(world[0], ServeSettings(port=0, projects=("alpha",)), seen.append) as address:
        with connected(address) as connection:
            connection.sendall(HEAD + b'content-length: 4000\r\n\r\n{"input_prefix": "x')
            time.sleep(0.2)
        until(lambda: len(seen) == 1, "the line of the request")
        assert (seen[0].status, seen[0].refused) == (499, "The client went away.")
        counted = httpx.get(f"{address}/metrics", timeout=60).text
    assert 'status="499"' in counted and 'status="500"' not in counted


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_is_answered_is_told_and_counted_as_one(
    world: World, stream: bool
) -> None:
    seen: list[Access] = []
    body = {"prompt": "x = ", "max_tokens": 1500, "n": 8, "stream": stream}
    with serving(world[0], ServeSettings(port=0, projects=("alpha",)), seen.append) as address:
        with connected(address) as connection:
            content = json.dumps(body).encode()
            head = HEAD.replace(b"/infill", b"/v1/completions")
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content)
            if stream:
                assert b"200" in connection.recv(4096)
            else:
                time.sleep(0.2)
        until(lambda: len(seen) == 1, "the line of the request")
        assert (seen[0].status, seen[0].refused) == (499, "The client went away.")
        counted = httpx.get(f"{address}/metrics", timeout=60).text
    assert 'path="/v1/completions",status="499"} 1' in counted


def asked(address: str, line: str, *headers: str) -> tuple[int, str]:
    """Status and text of what a server says to a request of these bytes."""
    with connected(address) as connection:
        head = "\r\n".join((f"{line} HTTP/1.1", "connection: close", *headers))
        connection.sendall(f"{head}\r\n\r\n".encode())
        head, _, text = ended(connection).decode().partition("\r\n\r\n")
    return int(head.split()[1]), text


def test_a_request_may_name_its_whole_url(start: Callable[..., str]) -> None:
    address = start(projects=("alpha",))
    place = address.removeprefix("http://")
    status, text = asked(address, f"GET {address}/props", f"host: {place}")
    assert status == 200 and "default_generation_settings" in text
    assert asked(address, f"GET HTTP://{place}/props?model=alpha", "host: evil.example")[0] == 200
    assert asked(address, "GET http://evil.example/props", f"host: {place}")[0] == 403
    assert asked(address, "GET http:///props", f"host: {place}")[0] == 403
    assert asked(address, f"GET {address}?model=alpha", f"host: {place}") == asked(
        address, "GET /", f"host: {place}"
    )


@pytest.mark.parametrize(
    "host", ["evil@127.0.0.1", "127.0.0.1:evil", "127.0.0.1/..", "127.0.0.1#", "127.0.0.1?", "[::1", "::1", "", "[127.0.0.1]x"]
)  # fmt: skip
def test_what_is_no_host_is_refused(host: str, start: Callable[..., str]) -> None:
    assert asked(start(projects=("alpha",)), "GET /health", f"host: {host}")[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8012", "LOCALHOST", "localhost:", "[::1]:1", "127.8.8.8"])
def test_hosts_of_this_machine_are_answered(host: str, start: Callable[..., str]) -> None:
    assert asked(start(projects=("alpha",)), "GET /health", f"host: {host}")[0] == 200


def test_an_offer_to_upgrade_is_passed_over_in_silence(
    start: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    address = start(projects=("alpha",))
    offer = ("host: localhost", "upgrade: websocket", "connection: upgrade")
    assert asked(address, "GET /health", *offer)[0] == 200
    assert not caplog.records


def test_no_more_of_a_name_is_told_back_than_shows_which(start: Callable[..., str]) -> None:
    address, long = start(projects=("alpha",)), "x" * 3000
    for line, *headers in (
        ("GET /health", f"host: {long}"),
        (f"GET /{long}", "host: localhost"),
        (f"DELETE /projects/{long}/props", "host: localhost"),
        (f"GET /projects/{long}/props", "host: localhost"),
    ):
        assert "x" * 100 in asked(address, line, *headers)[1]
        assert "x" * 201 not in asked(address, line, *headers)[1]
