"""What tests ask of the page's answers, and what its form sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.support.trainings import SMALL

TOKEN = "a-token-of-the-tests-only"


class Asking:
    """A client of the page's answers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.headers = {"authorization": f"Bearer {TOKEN}"}

    def get(self, path: str, /, **names: str) -> Any:
        done = self.raw("GET", path, params=names)
        assert done.status_code == 200, done.text
        return done.json()

    def post(self, path: str, /, **body: Any) -> Any:
        done = self.raw("POST", path, json=body)
        assert done.status_code == 200, done.text
        return done.json()

    def refused(self, path: str, /, **body: Any) -> str:
        done = self.raw("POST", path, json=body)
        assert done.status_code == 400, done.text
        return str(done.json()["error"]["message"])

    def raw(
        self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        known = self.headers if headers is None else headers
        return httpx.request(method, f"{self.address}/ui/api/{path}", headers=known, timeout=600, **more)


def tiny(model: Path, **more: object) -> dict[str, object]:
    """What the form sends for a training of a tiny model."""
    settings = {
        **SMALL, "evaluation.tasks": 2, "evaluation.max_new_tokens": 4, "throttling.low_priority": False,
        "progress_update_interval": 0.5, **more,
    }  # fmt: skip
    lines = "\n".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    return {"model": str(model), "budget": 1.0, "timeout": 0, "epochs": 100, "more": lines}
