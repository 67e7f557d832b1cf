"""A hub on 127.0.0.1 that has one model: the few requests that the hub's client makes, answered from a directory."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_with(name: str, directory: Path, *, seconds_a_file: float = 0.0) -> Iterator[str]:
    """Serve ``directory`` as the model ``name`` while this lasts; gives the address."""
    files = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{name}/tree/"):
                body = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                self.send(json.dumps(body).encode(), {})
            elif path.startswith(f"/api/models/{name}"):
                listed = [{"rfilename": file} for file in files]
                self.send(json.dumps({"id": name, "sha": REVISION, "siblings": listed}).encode(), {})
            elif path.startswith(f"/{name}/resolve/") and path.rpartition("/")[2] in files:
                data = files[path.rpartition("/")[2]]
                if self.command == "GET":
                    time.sleep(seconds_a_file)
                self.send(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": REVISION})
            else:
                self.send(b"", {"X-Error-Code": "RepoNotFound"}, status=404)

        def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
