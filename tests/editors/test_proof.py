"""That an editor gets a completion: what its plug-in sends, and what is said where it cannot."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from mlx_gardener.editors import vim
from mlx_gardener.editors.settings import request_of
from mlx_gardener.editors.vim import EditorError
from mlx_gardener.model import CodeTokenizer
from mlx_gardener.platform.editor_places import has_vscode_extension
from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener_here
from tests.support.editors import free_address


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
