"""Editors' settings are changed where they must be, and come back byte for byte."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gardener import editors
from mlx_gardener.editors import jsonc, plugins, vim
from mlx_gardener.editors.change import Change, _without_values
from mlx_gardener.editors.settings import request_of
from mlx_gardener.editors.vim import EditorError
from mlx_gardener.errors import ConfigError
from mlx_gardener.model import CodeTokenizer, load_base
from mlx_gardener.model.gguf import read_gguf
from mlx_gardener.model.tokens import load_tokenizer
from mlx_gardener.platform.editor_places import has_vscode_extension, settings_file
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report.recipe import about_version
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving
from tests.model.store_worlds import write_gguf
from tests.serve.conftest import make_projects
from tests.support.commands import gardener, gardener_here

ADDRESS = "http://127.0.0.1:8012"
ZED = """// Zed settings: all mine.
{
  // Fonts first.
  "buffer_font_size": 14, /* points */
  "edit_predictions": {
    "mode": "subtle", // only when I ask
    "provider": "zed"
  },
  "theme": "One Dark" // last one
  // the end
}
"""
VSCODE = '{\r\n\t"editor.tabSize": 4, // four\r\n\t"files.exclude": {"**/.git": true,},\r\n}\r\n'


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


def planned(editor: str, file: Path, tokenizer: CodeTokenizer, *, token: str | None = None) -> Change:
    home = Path(os.environ["MLX_GARDENER_HOME"])
    return editors.plan_change(
        editor, file, project="web", address=ADDRESS, token=token, tokenizer=tokenizer, home=home
    )


@pytest.mark.parametrize(
    ("editor", "before"),
    [
        ("zed", ZED),
        ("zed", "{}"),
        ("zed", ""),
        ("zed", "// only a comment\n"),
        ("zed", '{"a": 1}'),
        ("zed", '{\n    "a": {\n        "b": [1, 2]\n    },\n}\n'),
        ("zed", None),
        ("vscode", VSCODE),
        ("vscode", '{\n  "llama-vscode.endpoint": "http://other:1", // mine\n  "x": null\n}'),
        ("vscode", None),
        ("vim", None),
        ("neovim", '" my own line\nlet g:llama_config = {"show_info": 0}'),
    ],
)
def test_connecting_keeps_everything_else_and_undo_gives_the_same_bytes(
    editor: str, before: str | None, tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "deep" / "settings"
    if before is not None:
        file.parent.mkdir()
        file.write_bytes(before.encode())
        file.chmod(0o640)
    change = planned(editor, file, tokenizer)
    editors.apply(change, home)
    after = file.read_bytes().decode()
    for line in (before or "").splitlines():
        if "//" in line or "/*" in line or line.startswith('"'):
            comment = (
                line[line.index("//") :]
                if "//" in line and "http" not in line
                else line
                if line.startswith('" ')
                else ""
            )
            assert comment in after
    if editor in ("zed", "vscode"):
        wanted = jsonc.read(before or "")
        if editor == "zed":
            wanted.setdefault("edit_predictions", {}).update(
                provider="open_ai_compatible_api",
                open_ai_compatible_api={
                    "api_url": f"{ADDRESS}/v1/completions",
                    "model": "web",
                    "prompt_format": "qwen",
                    "max_output_tokens": 64,
                },
            )
        else:
            wanted["llama-vscode.endpoint"] = f"{ADDRESS}/projects/web"
        assert jsonc.read(after) == wanted and list(jsonc.read(after)) == list(wanted)
    else:
        assert f"'endpoint_fim': '{ADDRESS}/projects/web/infill'" in after
    assert "\r\n" not in after.replace("\r\n", "") and ("\r\n" in after) == ("\r\n" in (before or ""))
    if before is not None:
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert not planned(editor, file, tokenizer).changes
    assert editors.undo(editor, home) == (file, [])
    assert (file.read_bytes().decode() if file.exists() else None) == before
    with pytest.raises(ConfigError, match="not connected"):
        editors.undo(editor, home)


def test_zeds_settings_look_as_a_person_would_have_written_them(
    tmp_path: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(ZED)
    assert planned("zed", file, tokenizer).after == ZED.replace(
        '    "provider": "zed"\n',
        """    "provider": "open_ai_compatible_api",
    "open_ai_compatible_api": {
      "api_url": "http://127.0.0.1:8012/v1/completions",
      "model": "web",
      "prompt_format": "qwen",
      "max_output_tokens": 64
    }
""",
    )


def test_undo_after_later_edits_takes_out_only_its_own(
    tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(ZED)
    editors.apply(planned("zed", file, tokenizer), home)
    edited = (
        file.read_text()
        .replace('"One Dark"', '"Ayu"')
        .replace('"max_output_tokens": 64', '"max_output_tokens": 99')
    )
    file.write_text(edited)
    _, left = editors.undo("zed", home)
    assert left == ["edit_predictions.open_ai_compatible_api.max_output_tokens"]
    wanted = jsonc.read(ZED) | {"theme": "Ayu"}
    wanted["edit_predictions"]["open_ai_compatible_api"] = {"max_output_tokens": 99}
    assert jsonc.read(file.read_text()) == wanted
    for comment in ("// Fonts first.", "/* points */", "// only when I ask", "// last one", "// the end"):
        assert comment in file.read_text()


def test_undo_in_vim_leaves_others_lines_and_refuses_edited_ones(
    tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "mlx.vim"
    editors.apply(planned("vim", file, tokenizer), home)
    block = file.read_text()
    file.write_text("set number\n" + block.replace("127.0.0.1", "10.0.0.1") + "set ruler\n")
    with pytest.raises(ConfigError, match="edited since"):
        editors.undo("vim", home)
    file.write_text("set number\n" + block + "set ruler\n")
    editors.undo("vim", home)
    assert file.read_text() == "set number\nset ruler\n"


def test_a_file_that_is_edited_between_showing_and_writing_is_not_written(
    tmp_path: Path, home: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "settings.json"
    file.write_text("{}")
    change = planned("zed", file, tokenizer)
    file.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="meanwhile"):
        editors.apply(change, home)
    assert file.read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"a": }', '{"a": f()}', "{...b}", '{"edit_predictions": 3}', "1; {}"]
)
def test_settings_that_are_not_json_are_left_alone(
    text: str, tmp_path: Path, tokenizer: CodeTokenizer
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(ConfigError):
        planned("zed", file, tokenizer)
    assert file.read_text() == text


def test_a_linked_settings_file_stays_a_link(tmp_path: Path, home: Path, tokenizer: CodeTokenizer) -> None:
    real, link = tmp_path / "dotfiles.json", tmp_path / "settings.json"
    real.write_text('{\n  "a": 1\n}\n')
    link.symlink_to(real)
    editors.apply(planned("vscode", link, tokenizer, token="correct-horse-battery"), home)
    assert (
        link.is_symlink() and jsonc.read(real.read_text())["llama-vscode.api_key"] == "correct-horse-battery"
    )
    editors.undo("vscode", home)
    assert link.is_symlink() and real.read_text() == '{\n  "a": 1\n}\n'
    assert not (home / "editors" / "vscode.json").exists()


_names = st.text('ab"\\é \n', min_size=1, max_size=3)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(_names, _values, max_size=4), st.sampled_from([None, 2, "\t"]), _names, _values)
def test_putting_and_dropping_change_one_value(
    settings: dict[str, object], indent: int | str | None, key: str, value: object
) -> None:
    text = json.dumps(settings, indent=indent, ensure_ascii=False)
    after = jsonc.put(text, (key,), value)
    assert jsonc.read(after) == {**settings, key: value}
    without = {name: value for name, value in settings.items() if name != key}
    assert jsonc.read(jsonc.drop(after, (key,))) == without


def test_a_null_that_was_there_comes_back(tmp_path: Path) -> None:
    """Found by the fuzzer: it was taken for nothing, and its key went with it."""
    before = '{"a": null, "b": 1}'
    after = jsonc.put(before, ("a",), {"url": "u"})
    assert _without_values(after, before, [[["a"], {"url": "u"}]]) == (before, [])


def test_lines_may_end_in_two_ways() -> None:
    """Found by the fuzzer: the end of the line before was cut by one byte too many, through a letter."""
    text = "{ // \r\n // \u00e9\n}"
    after = jsonc.put(text, ("a",), 1)
    assert jsonc.read(after) == {"a": 1} and "\u00e9" in after and jsonc.read(jsonc.drop(after, ("a",))) == {}


def test_places_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert settings_file("vscode") == tmp_path / ".config/Code/User/settings.json"
    assert settings_file("neovim") == tmp_path / ".config/nvim/plugin/mlx_gardener.vim"
    monkeypatch.setattr("sys.platform", "darwin")
    assert settings_file("zed") == tmp_path / ".config/zed/settings.json"
    assert settings_file("vscode") == tmp_path / "Library/Application Support/Code/User/settings.json"


@pytest.fixture
def trained(tmp_path: Path, home: Path, tiny_model_dir: Path) -> Iterator[ProjectRegistry]:
    """One project with an adapter on the tiny model."""
    yield make_projects(load_base(str(tiny_model_dir)), tmp_path / "code", str(tiny_model_dir), ["alpha"])


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


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
    nowhere = str(tmp_path / "no-programs")
    done = gardener_here("connect", editor, "--file", str(file), "--address", address, "--yes", PATH=nowhere)
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


@pytest.mark.parametrize(
    ("editor", "recorded"),
    [
        ("zed", "zed"),
        ("zed-ollama", "zed_ollama"),
        ("vscode", "llama_vscode"),
        ("continue", "continue_ollama"),
        ("twinny", "twinny_ollama"),
        ("vim", "llama_vim"),
        ("neovim", "llama_vim"),
        ("minuet", "minuet"),
    ],
)
def test_proofs_send_what_the_newest_releases_send(
    editor: str, recorded: str, tokenizer: CodeTokenizer
) -> None:
    place = Path(__file__).parents[1] / "serve" / "requests" / f"{recorded}.json"
    wanted = json.loads(place.read_text())
    _, body = request_of(editor, "web", tokenizer)
    assert set(body) == set(wanted)
    own = {"input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "n_indent", "model", "stop"}
    own |= {"suffix"}
    if (
        "options" in body
    ):  # the tokens that may be written, and the base's own markers, are not the recorded ones'
        own |= {"options"}
        assert set(body["options"]) == set(wanted["options"])
        assert body["options"]["temperature"] == wanted["options"]["temperature"]
    assert {name: body[name] for name in set(body) - own} == {name: wanted[name] for name in set(body) - own}


#: Stands in for Vim or Neovim: says what the environment tells it to say.
EDITOR = """#!{python}
import json, os
task = os.environ["MLX_GARDENER_VIM_TASK"]
with open(os.environ["MLX_GARDENER_VIM_RESULT"], "w") as result:
    json.dump(json.loads(os.environ["SAYS"])[task], result)
"""
LOOKS = {"version": "0.10.4", "number": 901, "extendnew": 1, "plugin": ""}
WROTE = {
    "endpoint": "http://127.0.0.1:8012/projects/alpha/infill",
    "complaints": [],
    "answers": [],
    "error": "",
}


@pytest.mark.parametrize(
    ("says", "plugin", "word"),
    [
        (
            {"look": {**LOOKS, "version": "0.7.2", "extendnew": 0}},
            "endpoint_fim",
            "Neovim 0.7.2 cannot run llama.vim",
        ),
        ({"look": LOOKS}, None, "not installed in Neovim"),
        ({"look": LOOKS}, "endpoint", "knows no endpoint_fim"),
        (
            {"look": LOOKS, "complete": {**WROTE, "endpoint": "http://other"}},
            "endpoint_fim",
            "asks http://other",
        ),
        (
            {"look": LOOKS, "complete": {**WROTE, "complaints": ["llama.vim: model is deprecated"]}},
            "endpoint_fim",
            "complains: llama.vim: model is deprecated",
        ),
        ({"look": LOOKS, "complete": {**WROTE, "error": "E117"}}, "endpoint_fim", "got no completion: E117"),
        ({"look": LOOKS, "complete": {**WROTE, "answers": ['{"content": "a + b"}']}}, "endpoint_fim", None),
    ],
)
def test_an_editor_or_plugin_that_cannot_is_no_success(
    says: dict[str, object],
    plugin: str | None,
    word: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.setenv("SAYS", json.dumps(says))
    program = tmp_path / "programs" / "nvim"
    program.parent.mkdir()
    program.write_text(EDITOR.format(python=sys.executable))
    program.chmod(0o755)
    if plugin is not None:
        place = tmp_path / "data" / "nvim" / "lazy" / "llama.vim" / "autoload" / "llama.vim"
        place.parent.mkdir(parents=True)
        place.write_text(f"let s:default_config = {{'{plugin}': ''}}\n")

    def connecting() -> str:
        state = vim.look("neovim")
        assert state is not None and not state.loaded
        return vim.complete("neovim", state, tmp_path / "mlx.vim", str(WROTE["endpoint"]))

    if word is None:
        assert connecting() == "a + b"
    else:
        with pytest.raises(EditorError, match=re.escape(word)):
            connecting()


#: As much of llama.vim as a proof needs: it renames the old key and complains, and asks with curl in a job.
PLUGIN = r"""
let s:config = get(g:, 'llama_config', {})
if has_key(s:config, 'endpoint')
    let s:config['endpoint_fim'] = remove(s:config, 'endpoint')
    echomsg 'llama.vim: endpoint is deprecated, use endpoint_fim instead'
endif
let g:llama_config = extendnew({'endpoint_fim': 'http://127.0.0.1:8012/infill'}, s:config, 'force')
let g:cache_data = {}
function! llama#init()
endfunction
function! llama#fim(x, y, is_auto, prev, use_cache) abort
    let l:lines = getline(1, '$')
    let l:body = json_encode({'input_prefix': l:lines[0] .. "\n", 'prompt': l:lines[1], 'input_suffix': l:lines[4]})
    let l:asked = ['curl', '--silent', '--url', g:llama_config.endpoint_fim, '--header', 'Content-Type: application/json',
        \ '--data', l:body]
    if has('nvim')
        call jobstart(l:asked, {'on_stdout': {id, data, event -> s:keep(join(data, "\n"))}, 'stdout_buffered': v:true})
    else
        call job_start(l:asked, {'out_cb': {channel, data -> s:keep(data)}})
    endif
endfunction
function! s:keep(raw) abort
    if !empty(a:raw)
        let g:cache_data['one'] = a:raw
    endif
endfunction
"""


@pytest.mark.parametrize("editor", ["vim", "neovim"])
def test_the_editor_itself_gets_a_completion_where_it_is_there(
    editor: str, trained: ProjectRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    root = (
        tmp_path
        / (".vim" if editor == "vim" else ".local/share/nvim/site")
        / "pack"
        / "x"
        / "start"
        / "llama.vim"
    )
    for name, text in (("autoload", PLUGIN), ("plugin", "call llama#init()\n")):
        (root / name).mkdir(parents=True)
        (root / name / "llama.vim").write_text(text)
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    try:
        if vim.look(editor) is None:
            pytest.skip(f"{editor} is not here")
    except EditorError as error:
        pytest.skip(str(error))  # older than llama.vim needs
    address = free_address()
    done = gardener_here("connect", editor, "--address", address, "--yes")
    assert done.returncode == 0, done.stderr
    assert "asked for by llama.vim" in done.stdout
    rival = tmp_path / (".vimrc" if editor == "vim" else ".config/nvim/init.vim")
    rival.write_text("let g:llama_config = {'endpoint': 'http://127.0.0.1:9/infill'}\n")
    again = gardener_here("connect", editor, "--address", address, "--yes")
    assert again.returncode == 0, again.stderr  # an old key beside ours neither wins nor is complained about


def test_a_missing_extension_of_vs_code_is_named(
    trained: ProjectRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    extensions = tmp_path / ".vscode" / "extensions"
    assert has_vscode_extension("ggml-org.llama-vscode") is None
    (extensions / "other.extension-1.0").mkdir(parents=True)
    done = gardener_here("connect", "vscode", "--address", free_address(), "--yes")
    assert done.returncode == 0 and "--install-extension ggml-org.llama-vscode" in done.stdout
    (extensions / "ggml-org.llama-vscode-0.0.40").mkdir()
    assert has_vscode_extension("ggml-org.llama-vscode") is True


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


def test_files_of_their_own_say_it_in_their_own_language() -> None:
    block = plugins.continue_block('it\'s "mine"', ADDRESS, "secret-token-of-16")
    assert f'    apiBase: "{ADDRESS}"' in block and 'model: "it\'s \\"mine\\""' in block
    assert 'Authorization: "Bearer secret-token-of-16"' in block
    lua = plugins.neovim_lsp_block("it's", ADDRESS, None)
    assert "'lsp', 'it\\'s', '--address'" in lua and "cmd_env" not in lua


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
