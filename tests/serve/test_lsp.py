"""A language client drives the real command over standard input and output, as an editor does."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.evaluate.complete import complete
from mlx_gardener.evaluate.in_use import read_in_use
from mlx_gardener.evaluate.offers import offered_lines
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.serve.lsp import lines_of, place_of
from tests.support.lsp import asking, driven, opened, shown_by, written
from tests.support.requests import World

#: A form feed and U+2028 end no line here, and the face is two units of UTF-16, four of UTF-8.
BEFORE, AFTER = '# \U0001f600\f\u2028\r\nNAME = "\U0001f600"; value = sum(', ")\r\n\r\n\r\nprint(value)\r\n"
CARET = {"utf-16": 25, "utf-8": 27, "utf-32": 24}
TOKENS = 64


def offline(world: World, project: str, prefix: str, suffix: str, path: str) -> str:
    with attach_adapter(world[1], PeftManager(world[0]).load_adapter(project)):
        return complete(world[1], prefix, suffix, path=path, max_new_tokens=TOKENS)


@pytest.mark.parametrize("encoding", sorted(CARET))
def test_a_file_is_completed_by_the_project_it_lies_in_in_any_encoding_of_positions(
    world: World, encoding: str
) -> None:
    wanted = offline(world, "beta", BEFORE, AFTER, "tools/sums.py")
    assert wanted.strip()  # else there would be nothing to show

    async def work(client: LanguageClient) -> None:
        file = world[0].get_project("beta").path / "tools" / "sums.py"
        uri = opened(client, file, BEFORE + AFTER)
        assert await written(client, asking(uri, 1, CARET[encoding])) == wanted

    told = driven(world, work=work, encodings=[encoding])
    assert told.capabilities.position_encoding == encoding
    assert told.capabilities.inline_completion_provider
    sync = told.capabilities.text_document_sync
    assert isinstance(sync, types.TextDocumentSyncOptions)
    assert sync.open_close and sync.change == types.TextDocumentSyncKind.Incremental


def test_what_is_typed_counts_change_by_change_and_whole(world: World, address: str) -> None:
    """One process, by a server that runs: changes, what was chosen in a popup, what cannot be answered, what is taken back."""
    path = "tools/sums.py"
    typed = BEFORE.replace("sum(", "max(\r\n    1, ")
    wanted = [
        offline(world, "gamma", typed, AFTER, path),
        offline(world, "gamma", "import os\n\n\ndef ", "", path),
        offline(world, "gamma", "import os\n\n\nclass Lines:\n", "", path),
    ]
    messages: list[str] = []

    async def work(client: LanguageClient) -> None:
        @client.feature(types.WINDOW_SHOW_MESSAGE)
        def shown(params: types.ShowMessageParams) -> None:
            messages.append(params.message)

        file = world[0].get_project("gamma").path / path
        uri = opened(client, file, BEFORE + AFTER)
        name = types.VersionedTextDocumentIdentifier(2, uri)

        def changed(*changes: types.TextDocumentContentChangeEvent) -> None:
            client.text_document_did_change(types.DidChangeTextDocumentParams(name, list(changes)))

        def part(start: tuple[int, int], end: tuple[int, int], text: str) -> Any:
            place = types.Range(types.Position(*start), types.Position(*end))
            return types.TextDocumentContentChangePartial(place, text)

        changed(part((1, 21), (1, 25), "max("), part((1, 25), (1, 25), "\r\n    1, "))
        assert await written(client, asking(uri, 2, 7)) == wanted[0]
        changed(types.TextDocumentContentChangeWholeDocument("import os\n\n\ndef "))
        assert await written(client, asking(uri, 3, 4)) == wanted[1]
        # Taken back: answered as such, and the next one is answered.
        waiting = client.protocol.send_request_async("textDocument/inlineCompletion", asking(uri, 3, 4), "7")
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0.05)
        client.protocol.notify("$/cancelRequest", types.CancelParams("7"))
        with pytest.raises(JsonRpcException):
            await task
        place = types.Range(types.Position(3, 0), types.Position(3, 4))
        popup = types.SelectedCompletionInfo(place, "class Lines:\n")
        params = asking(uri, 3, 4, selected_completion_info=popup)
        assert await written(client, params) == "class Lines:\n" + wanted[2]
        client.text_document_did_close(types.DidCloseTextDocumentParams(types.TextDocumentIdentifier(uri)))
        assert await written(client, asking(uri, 0, 0)) == ""
        other = opened(client, world[0].home / "elsewhere.py", "import os\n")
        for _ in range(2):  # of four projects none is the active one
            assert await written(client, asking(other, 1, 0)) == ""

    driven(world, "--address", address, work=work)
    assert len(messages) == 1 and "activate" in messages[0]


def test_a_file_of_many_megabytes_is_completed_by_a_server_too(world: World, address: str) -> None:
    """No more of it is sent than a server takes in a request."""
    before = "".join(f"NAME_{number} = 'some text'\n" for number in range(120_000)) + "total = "
    after = "\n" + "# 漢\n" * 300_000
    wanted = offline(world, "gamma", before, after, "tools/long.py")

    async def work(client: LanguageClient) -> None:
        uri = opened(client, world[0].get_project("gamma").path / "tools" / "long.py", before + after)
        assert await written(client, asking(uri, 120_000, 8)) == (wanted if wanted.strip() else "")

    messages = shown_by(world, "--address", address, work=work)
    assert messages == []


def test_a_file_belongs_to_its_project_also_behind_a_link(world: World, tmp_path: Path) -> None:
    registry, root = world[0], world[0].get_project("beta").path
    (tmp_path / "link").symlink_to(root)
    for file in (root / "tools" / "new.py", tmp_path / "link" / "tools" / "new.py"):
        assert place_of(registry, (), str(file)) == ("beta", "tools/new.py")
    assert place_of(registry, ("alpha",), str(tmp_path / "link" / "a.py")) == (None, "a.py")
    assert place_of(registry, (), "Untitled-1") == (None, "Untitled-1")


def test_a_place_that_cannot_be_found_is_told_the_editors_user_once(world: World, tmp_path: Path) -> None:
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")

    async def work(client: LanguageClient) -> None:
        uri = opened(client, tmp_path / "loop.py", "import os\n")
        for _ in range(2):
            assert await written(client, asking(uri, 1, 0)) == ""

    (message,) = shown_by(world, "--address", "http://127.0.0.1:1", work=work)
    assert "leads back to itself" in message


def test_what_stays_is_counted_where_the_settings_ask_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_GARDENER_SERVE__EVIDENCE_IN_USE", "true")
    root, path = world[0].get_project("beta").path, "tools/counted.py"
    sides = [(f"{BEFORE[:end]}", BEFORE[end:] + AFTER) for end in range(len(BEFORE), 3, -5)]
    before, after = next(
        (left, right)
        for left, right in sides
        if offered_lines(left, offline(world, "beta", left, right, path), right, whole=False)
    )
    (root / "tools").mkdir(exist_ok=True)
    (root / path).write_text(before + after)

    async def work(client: LanguageClient) -> None:
        uri = opened(client, root / path, before + after)
        lines = lines_of(before)
        caret = len(lines[-1].encode("utf-16-le")) // 2
        assert await written(client, asking(uri, len(lines) - 1, caret))

    driven(world, work=work)
    (survival,) = read_in_use(world[0], "beta").survival
    assert (survival.offered.arm, survival.offered.offers) == ("adapter", 1)


def test_lines_end_where_the_protocol_says() -> None:
    assert lines_of("a\fb\u2028c\r\nd\re\n\nf") == ["a\fb\u2028c\r\n", "d\r", "e\n", "\n", "f"]
    assert lines_of("") == [""] and lines_of("a\n") == ["a\n", ""]


def test_a_project_that_is_not_there_is_named_before_anything_is_answered(home: Path) -> None:
    from mlx_gardener.errors import RegistryError
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.lsp import run_lsp
    from mlx_gardener.serve.mcp import run_mcp

    for run in (run_lsp, run_mcp):
        with pytest.raises(RegistryError, match="There is no project 'nosuch'"):
            run(ProjectRegistry(), ServeSettings(projects=("nosuch",)))


def test_without_pygls_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    from mlx_gardener.errors import ConfigError
    from mlx_gardener.serve import ServeSettings
    from mlx_gardener.serve.lsp import run_lsp

    monkeypatch.setitem(sys.modules, "lsprotocol", None)
    with pytest.raises(ConfigError, match=r"not installed.") as refused:
        run_lsp(ProjectRegistry(), ServeSettings(), "http://127.0.0.1:1")
    assert "pipx install --force '.[lsp]'" in refused.value.next_step
