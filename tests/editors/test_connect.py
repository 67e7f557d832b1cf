"""connect: what it shows, writes and proves of an editor's settings, also where it is refused or killed."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gardener import editors
from mlx_gardener.model import CodeTokenizer, load_base
from mlx_gardener.model.gguf import read_gguf
from mlx_gardener.model.tokens import load_tokenizer
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report.recipe import about_version
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.model.store_worlds import write_gguf
from tests.support.adapters import make_projects
from tests.support.commands import gardener, gardener_here
from tests.support.editors import ADDRESS, VSCODE, free_address, planned


@pytest.mark.parametrize("editor", ["zed", "zed-ollama", "vscode", "continue", "vim", "neovim-lsp"])
def test_the_command_shows_writes_proves_and_undoes(
    editor: str, trained: ProjectRegistry, tmp_path: Path
) -> None:
    file, address = (
        tmp_path / "settings",
        free_address(),
    )  # nothing listens: a server starts there for the proof
    before = "" if editor in ("continue", "vim", "neovim-lsp") else '{\n  // mine\n  "a": 1\n}\n'
    file.write_text(before)
    nowhere = tmp_path / "no-editors"
    nowhere.mkdir()
    for name in ("g++", "as", "ld"):  # which MLX compiles with where it has found them once in this process
        if (program := shutil.which(name)) is not None:
            (nowhere / name).symlink_to(program)
    done = gardener_here(
        "connect", editor, "--file", str(file), "--address", address, "--yes", PATH=str(nowhere)
    )
    assert done.returncode == 0, done.stderr
    assert (
        "+" in done.stdout
        and "alpha" in done.stdout
        and "A completion came back from alpha v1" in done.stdout
    )
    assert f"Asking a server started for this for a completion, as {editor} would" in done.stderr
    assert f"serve --port {address.rpartition(':')[2]}" in done.stdout
    assert ("not on the PATH" in done.stdout) == (editor == "vim")
    assert file.read_text() != before and address in file.read_text()
    undone = gardener_here("connect", editor, "--undo")
    assert undone.returncode == 0 and "as it was" in undone.stdout
    assert file.read_text() == before and not list((trained.home / "editors").iterdir())


@pytest.fixture
def unable(tmp_path: Path, home: Path, tiny_model_dir: Path) -> ProjectRegistry:
    """One project with an adapter on a base that has no markers to fill in the middle."""
    folder = tmp_path / "plain-model"
    shutil.copytree(tiny_model_dir, folder)
    file = folder / "tokenizer.json"
    file.write_text(re.sub(r"fim_(\w+)", r"other_\1", file.read_text()))
    assert load_tokenizer(folder).markers is None
    return make_projects(load_base(str(folder)), tmp_path / "code", str(folder), ["alpha"])


@pytest.mark.parametrize("editor", ["zed", "vscode", "vim", "neovim"])
def test_a_base_that_cannot_fill_in_is_refused_before_anything_is_shown_or_written(
    editor: str, unable: ProjectRegistry, tmp_path: Path
) -> None:
    file = tmp_path / "settings"
    done = gardener_here("connect", editor, "--file", str(file), "--address", free_address(), "--yes")
    assert done.returncode == 2 and not done.stdout and not file.exists()
    assert done.stderr.count("no fill-in-the-middle markers") == 1, done.stderr
    assert "--project alpha --fresh --model seedling" in done.stderr and "server" not in done.stderr
    told = about_version(unable, unable.get_adapter("alpha"))
    assert told.has_fim is False and told.model == str(tmp_path / "plain-model")


def test_advice_names_the_gguf_file_and_not_the_folder_that_was_made_of_it(
    tmp_path: Path, home: Path
) -> None:
    file = write_gguf(tmp_path / "models" / "coder.gguf")
    folder = str(read_gguf(file, home / "cache" / "bases"))
    registry = make_projects(load_base(folder), tmp_path / "code", folder, ["alpha"])
    assert about_version(registry, registry.get_adapter("alpha")).model == str(file)
    file.unlink()
    assert about_version(registry, registry.get_adapter("alpha")).model == folder


def test_the_command_writes_nothing_where_no_server_can_be(trained: ProjectRegistry, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        taken = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        for address, code, word in (
            ("http://nowhere.invalid:8012", 1, "No server answers"),
            ("http://127.0.0.1:99999", 2, "no address"),
            ("ftp://127.0.0.1:8012", 2, "no address"),
            ("file:///etc/passwd", 2, "no address"),
            ("x", 2, "no address"),
            ("", 2, "no address"),
            ("http://[", 2, "no address"),
            ("http://me:secret@127.0.0.1", 2, "no address"),
            ("http://127.0.0.1:8012/a b", 2, "no address"),
            (taken, 2, "cannot be listened on"),
        ):
            done = gardener_here("connect", "vscode", "--file", str(file), "--address", address, "--yes")
            assert done.returncode == code and word in done.stderr, done.stderr
            assert not file.exists() and (word != "no address" or not done.stdout)


def test_a_server_that_refuses_leaves_the_settings_alone(trained: ProjectRegistry, tmp_path: Path) -> None:
    file, token = tmp_path / "settings.json", "correct-horse-battery-staple"
    with serving(trained, ServeSettings(port=0, token=token)) as address:
        where = ("--file", str(file), "--address", address, "--yes")
        refused = gardener_here("connect", "vscode", *where)
        assert refused.returncode == 1 and "bearer token" in refused.stderr and not file.exists()
        assert gardener_here("connect", "vscode", *where, "--token", token).returncode == 0
    assert token in file.read_text()


@pytest.mark.parametrize("killed_at", range(1, 5))
def test_a_connection_that_is_killed_leaves_nothing_and_is_done_again(
    killed_at: int, tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    """Before and after the record's renaming, and before and after the settings'."""
    file = tmp_path / "own" / "settings.json"
    file.parent.mkdir()
    file.write_bytes(VSCODE.encode())
    change = planned("vscode", file, tokenizer)
    code = f"""
import os, pathlib, pickle, signal, sys
from mlx_gardener import editors
calls, real = 0, pathlib.Path.replace

def replace(*arguments):
    global calls
    calls += 1
    if calls * 2 - 1 == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    done = real(*arguments)
    if calls * 2 == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

pathlib.Path.replace = replace
editors.apply(pickle.loads({pickle.dumps(change)!r}), pathlib.Path({str(home)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (file.read_bytes() == VSCODE.encode()) == (killed_at < 4)
    for left in (*file.parent.iterdir(), *(home / "editors").iterdir()):
        os.utime(left, (0, 0))  # an empty directory may be one that is just being begun
    again = planned("vscode", file, tokenizer)
    assert [path.name for path in file.parent.iterdir()] == ["settings.json"]
    assert again.changes == (killed_at < 4)
    editors.apply(again, home)
    assert [path.name for path in (home / "editors").iterdir()] == ["vscode.json"]
    assert ADDRESS in file.read_text()
    assert editors.undo("vscode", home) == (file, [])
    assert file.read_bytes() == VSCODE.encode() and not list((home / "editors").iterdir())


def test_a_connection_that_was_never_written_is_undone(
    tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(VSCODE.encode())
    editors.apply(planned("vscode", file, tokenizer), home)
    file.write_bytes(VSCODE.encode())
    assert editors.undo("vscode", home) == (file, [])
    assert file.read_bytes() == VSCODE.encode()


@pytest.mark.parametrize("editor", ["vscode", "vim"])
def test_connecting_again_without_a_token_takes_the_old_one_out(
    editor: str, tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "settings"
    before = '{\n  "a": 1\n}\n' if editor == "vscode" else "set number\n"
    file.write_text(before)
    editors.apply(planned(editor, file, tokenizer, token="correct-horse-battery"), home)
    assert "correct-horse" in file.read_text()
    editors.apply(planned(editor, file, tokenizer), home)
    assert "correct-horse" not in file.read_text() and "projects/web" in file.read_text()
    editors.undo(editor, home)
    assert file.read_text() == before


def test_what_no_program_may_write_is_shown_and_proved(trained: ProjectRegistry, tmp_path: Path) -> None:
    address = free_address()
    with serving(trained, ServeSettings(port=int(address.rpartition(":")[2]))):
        for editor in ("twinny", "minuet"):
            done = gardener_here("connect", editor, "--address", address)
            assert done.returncode == 0, done.stderr
            assert "alpha" in done.stdout and address.rpartition(":")[2] in done.stdout
            assert "A completion came back from alpha v1" in done.stdout
            told = json.loads(gardener_here("connect", editor, "--address", address, "--json").stdout)
            assert told["by_hand"] and told["file"] is None and told["changed"] is False
    assert not (trained.home / "editors").exists()


def test_where_no_project_is_meant_the_command_says_which_there_are(
    tiny_model_dir: Path, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    done = gardener_here("connect", "zed", "--file", str(file))
    assert done.returncode == 1 and "No project has an adapter yet" in done.stderr
    assert "mlx-gardener train PATH" in done.stderr and "Send `model`" not in done.stderr
    make_projects(load_base(str(tiny_model_dir)), tmp_path / "code", str(tiny_model_dir), ["alpha", "beta"])
    done = gardener_here("connect", "zed", "--file", str(file))
    assert done.returncode == 1 and "Name one: alpha, beta." in done.stderr
    assert not file.exists()


def test_the_command_writes_nothing_without_a_yes(trained: ProjectRegistry, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    done = gardener("connect", "vscode", "--file", str(file))  # standard input is empty: no answer
    assert done.returncode == 2 and "llama-vscode.endpoint" in done.stdout and not file.exists()


def test_connecting_as_json_says_the_same_in_one_document(trained: ProjectRegistry, tmp_path: Path) -> None:
    file, address = tmp_path / "settings.json", free_address()
    where = ("connect", "vscode", "--file", str(file), "--address", address, "--json")
    asked = gardener(*where)
    assert asked.returncode == 2 and "--yes" in json.loads(asked.stdout)["error"]["message"]
    assert not file.exists()
    done = gardener(*where, "--yes")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and address in file.read_text()
    assert (told["project"], told["version"], told["changed"]) == ("alpha", "v1", True)
    assert told["address"] == address and len(told["adapter_sha256"]) == 64
    assert any("mlx-gardener serve --port" in sentence for sentence in told["left_to_do"])
    undone = json.loads(gardener("connect", "vscode", "--undo", "--json").stdout)
    assert undone == {"editor": "vscode", "file": str(file), "left": []} and not file.exists()
