"""FILE:LINE is the line that editors show under this number."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import mlx_gardener
from mlx_gardener.api.next_edit import next_edit, what_lacks
from mlx_gardener.cli.complete import _read_place
from mlx_gardener.config import LoraConfig
from mlx_gardener.errors import DataError
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.indexed import index_place
from mlx_gardener.source.commits import FileChange
from tests.support.adapters import make_adapter
from tests.support.commands import gardener_here
from tests.support.histories import commit
from tests.support.retrieving import ASKED, World, evidence, infill, told


def test_form_feeds_and_other_separators_end_no_line(tmp_path: Path) -> None:
    lines = ["one = 1\n", "\x0c\n", "two = 'a\u2028b\x85c\x1c'\n", "three = 3\r\n", "four = 4\n"]
    (tmp_path / "a.py").write_bytes("".join(lines).encode())
    for number in range(1, 6):
        prefix, suffix, path = _read_place(f"a.py:{number}", tmp_path)
        read = [line.replace("\r\n", "\n") for line in lines]
        assert (prefix, suffix) == ("".join(read[: number - 1]), "".join(read[number:])), number
        assert path == "a.py"


def test_a_file_is_looked_for_here_and_in_the_repository_and_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, here = tmp_path / "repository", tmp_path / "repository" / "core"
    here.mkdir(parents=True)
    (here / "a.py").write_text("one = 1\n")
    monkeypatch.chdir(here)
    for place in ("a.py:1", "core/a.py:1", f"{here}/a.py:1"):
        assert _read_place(place, root)[2] == "core/a.py", place
    with pytest.raises(DataError, match=r"neither from here nor from '.*/repository'"):
        _read_place("b.py:1", root)
    with pytest.raises(DataError, match=r"No such file or directory\)"):
        _read_place(f"{here}/b.py:1", root)


@pytest.fixture
def world(home: Path, tmp_path: Path, tiny_model_dir: Path) -> World:
    made = World(tmp_path, tiny_model_dir)
    made.adapter(evidence())
    return made


def test_a_completion_has_code_of_the_repository_in_front_and_says_which(world: World) -> None:
    """The index is made where there is none, and follows the tree."""
    place = ("complete", "small", "core/ledger_1.py:9", "--max-tokens", "4", "--json")
    assert not index_place(world.registry, "small").exists()
    told = json.loads(gardener_here(*place).stdout)
    found = told["retrieval"]
    assert found["chunks"] and found["tokens"] == sum(chunk["tokens"] for chunk in found["chunks"])
    assert found["why"].startswith("-8.3% bits per byte") and index_place(world.registry, "small").exists()
    assert all(chunk["path"] != "core/ledger_1.py" for chunk in found["chunks"])
    off = json.loads(gardener_here(*place, "--retrieval", "off").stdout)
    assert off["retrieval"] == {"why": "serve.retrieval is off", "tokens": 0, "chunks": []}
    base = json.loads(gardener_here(*place, "--base").stdout)
    assert base["retrieval"]["why"] == "its evidence has no arm of the base with retrieval"
    assert json.loads(gardener_here(*place, "--base", "--retrieval", "on").stdout)["retrieval"]["chunks"]
    setting = world.tree.parent / "settings.toml"
    setting.write_text("[serve]\nretrieval = 'off'\n")
    assert not json.loads(gardener_here(*place, "--config", str(setting)).stdout)["retrieval"]["chunks"]
    assert gardener_here(*place, "--retrieval", "perhaps").returncode == 2


def test_python_completes_as_the_server_does(world: World) -> None:
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.server import serving

    found = mlx_gardener.complete("small", ASKED, "\n", path="core/new.py", max_tokens=4)
    with serving(world.registry, ServeSettings(port=0)) as address:
        answer = infill(address)
    assert answer.json()["content"] == found.text
    places = [f"{piece.path}:{piece.start_line}-{piece.end_line}" for piece in found.retrieved]
    assert places and told(answer).partition("; ")[2] == ", ".join(places)
    assert mlx_gardener.complete("small", ASKED, max_tokens=2).retrieved == (), (
        "nothing tells where it would end"
    )
    with pytest.raises(mlx_gardener.ConfigError, match="retrieval"):
        mlx_gardener.complete("small", ASKED, retrieval="perhaps")  # type: ignore[arg-type]


def test_python_looks_for_code_as_the_server_does_where_line_breaks_were_typed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_gardener.retrieval import Retriever
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.server import serving

    looked_by: list[str] = []
    find = Retriever.find

    def seen(self: Retriever, path: str, before: str, **more: Any) -> Any:
        looked_by.append(before)
        return find(self, path, before, **more)

    monkeypatch.setattr(Retriever, "find", seen)
    body: dict[str, Any] = {"prompt": "class Timber9:\n\n", "path": "core/new.py", "max_tokens": 2}
    found = mlx_gardener.complete("small", body["prompt"], path=body["path"], max_tokens=2)
    with serving(world.registry, ServeSettings(port=0)) as address:
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=300).json()
    assert answer["choices"][0]["text"] == found.text
    assert looked_by == [body["prompt"]] * 2


# Next edits.


@pytest.fixture
def edited(home: Path, tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A repository with a change that is not committed, and the project ``small`` of it."""
    root = tmp_path / "repository"
    text = "".join(f"value_{at} = {at}\n" for at in range(40))
    commit(root, {"a.py": text, "b.py": text})
    (root / "a.py").write_text(text.replace("value_8 = 8", "changed_8 = 8"))
    registry = ProjectRegistry()
    registry.register_project("small", root)
    registry.finish_training(
        registry.begin_training("small", {"model": str(tiny_model_dir)}).id,
        TrainingStatus.COMPLETED,
        "Done",
        {},
    )
    make_adapter(registry, "small", load_base(str(tiny_model_dir)), LoraConfig(rank=2), seed=1)
    return root


def test_an_answer_that_does_not_end_is_no_edit_and_is_said(edited: Path) -> None:
    shown = gardener_here("complete", "small", "a.py:10", "--edit", "--max-tokens", "1")
    assert (shown.returncode, shown.stdout) == (0, "No edit: its answer did not end.\n")
    told = json.loads(
        gardener_here("complete", "small", "a.py:10", "--edit", "--max-tokens", "1", "--json").stdout
    )
    assert told["is_due"] is False and told["why_none"] == "its answer did not end" and told["diff"] == ""
    assert (told["path"], told["first_line"], told["version"]) == ("a.py", 1, "v1")
    assert told["before"] == told["after"] and "changed_8 = 8" in told["before"]
    base = json.loads(
        gardener_here(
            "complete", "small", "a.py:10", "--edit", "--base", "--max-tokens", "1", "--json"
        ).stdout
    )
    assert base["version"] is None


def test_a_written_window_is_shown_as_a_diff_of_the_file(
    edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model writes is planted: a random one writes no window."""
    asked: list[str] = []
    planted = {"text": ""}

    def written(base: BaseModel, prompt: list[int], **more: object) -> Iterator[tuple[int, None]]:
        asked.append(base.tokenizer.decode(prompt))
        return ((token, None) for token in base.tokenizer.encode(planted["text"]))

    monkeypatch.setattr(sys.modules["mlx_gardener.evaluate.complete"], "written_ids", written)
    text = (edited / "a.py").read_text()
    window = "".join(line + "\n" for line in text.split("\n")[:20])
    planted["text"] = window.replace("value_9 = 9", "changed_9 = 9")
    found = next_edit("small", "a.py", text, 10)
    assert found.diff.split("\n")[:3] == ["--- a/a.py", "+++ b/a.py", "@@ -7,7 +7,7 @@"]
    assert [row for row in found.diff.split("\n")[3:] if row[0] in "+-"] == ["-value_9 = 9", "+changed_9 = 9"]
    assert found.after == planted["text"].removesuffix("\n") and not found.why_none
    assert "a.py.diff\noriginal:\n" in asked[0] and asked[0].endswith("<|file_sep|>updated/a.py\n")
    assert "value_8 = 8" in asked[0].split("original/a.py")[1].split("current/a.py")[0]
    planted["text"] = window
    assert next_edit("small", "a.py", text, 10).diff == "", (
        "the window as it is, and a line break that the form adds"
    )


def test_no_edit_where_there_is_nothing_to_go_on_from_says_so_and_what_to_do(
    edited: Path, tmp_path: Path
) -> None:
    asked = ("complete", "small", "a.py:10", "--edit", "--max-tokens", "1")
    commit(edited, {"a.py": (edited / "a.py").read_text()})
    shown = gardener_here(*asked)
    first, second = shown.stdout.splitlines()
    assert first == "No edit: its answer did not end."
    assert "changed since" in second and "change something near the line" in second
    assert json.loads(gardener_here(*asked, "--json").stdout)["note"] == second

    (tmp_path / "plain").mkdir()
    nowhere = what_lacks(tmp_path / "plain", [], {}, "small")
    assert "no commit to tell changes by" in nowhere and "`git init`" in nowhere
    changes = [FileChange("a.py", "one\n", "two\n")]
    for edits, said in (
        ({"examples": 3}, ""),
        ({"why": "there is no history"}, "past edits (there is no history)"),
        (None, "past edits:"),
    ):
        told = what_lacks(edited, changes, {"data": {"summary": {"tokens": 9, "edits": edits}}}, "small")
        assert said in told and bool(told) == bool(said)
        assert not said or "`mlx-gardener train --fresh --project small`" in told
    assert what_lacks(edited, changes, {}, "small") == "", (
        "of the base alone, or an imported one, nothing is known"
    )


def test_what_edits_do_not_take_is_refused(edited: Path) -> None:
    for arguments in (
        ("--edit",),
        ("a.py:3", "--edit", "--no-suffix"),
        ("a.py:3", "--edit", "--retrieval", "on"),
    ):
        refused = gardener_here("complete", "small", *arguments)
        assert refused.returncode == 2 and "--edit" in refused.stderr, arguments
