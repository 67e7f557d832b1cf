"""The editing session that is committed is one: its keys lead from file to file, and its requests are what stands around the caret."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def keystrokes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("keystrokes", "keystroke_session"):
        sys.modules.pop(name, None)
    return __import__("keystrokes")


def test_keys_of_a_change_type_it_and_take_wrong_ones_back(
    keystrokes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import random

    import keystroke_session

    monkeypatch.setattr(keystroke_session, "WRONG", 0.3)
    old = "import os\n\n\ndef add(first, second):\n    return first\n\n\nprint(add(1, 2))\n"
    new = "import sys\n\n\ndef add(first, second):\n    total = first + second\n    return total\n\n\nprint(add(1, 2))\n"
    keys = [key for change in keystroke_session.keys_of("a.py", old, new, random.Random(3)) for key in change]
    rows = [[key.file, key.at, key.taken, key.typed, int(key.asks)] for key in keys]
    session: dict[str, Any] = {"files": {"a.py": old}, "keys": rows}
    seen = list(keystroke_session.replayed(session))
    assert seen[-1][1] == new
    assert any(key.taken == 1 and not key.typed for key, _, _ in seen), "some were wrong"
    assert all(text[caret - len(key.typed) : caret] == key.typed for key, text, caret in seen)


def test_the_sessions_requests_are_what_stands_around_the_caret(keystrokes: ModuleType) -> None:
    session = json.loads(keystrokes.SESSION.read_text(encoding="utf-8"))
    assert "Redistribution and use in source and binary forms" in session["licence"]
    texts = [(text, caret) for key, text, caret in keystrokes.replayed(session) if key.asks]
    asked = keystrokes.requests(10_000)
    assert len(asked) == len(texts) >= 200 and len(session["files"]) >= 3
    for request, (text, caret) in zip(asked, texts, strict=True):
        before, after = request["input_prefix"] + request["prompt"], request["input_suffix"]
        assert text[:caret].endswith(before) and text[caret:].startswith(after)
        assert "\n" not in request["prompt"] and before.count("\n") <= 256 and after.count("\n") <= 64
