"""Editors' settings are changed where they must be, and come back byte for byte."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gardener import editors
from mlx_gardener.editors import jsonc, plugins
from mlx_gardener.editors.change import _without_values
from mlx_gardener.errors import ConfigError
from mlx_gardener.model import CodeTokenizer
from mlx_gardener.platform.editor_places import settings_file
from tests.support.editors import ADDRESS, VSCODE, planned

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


def test_files_of_their_own_say_it_in_their_own_language() -> None:
    block = plugins.continue_block('it\'s "mine"', ADDRESS, "secret-token-of-16")
    assert f'    apiBase: "{ADDRESS}"' in block and 'model: "it\'s \\"mine\\""' in block
    assert 'Authorization: "Bearer secret-token-of-16"' in block
    lua = plugins.neovim_lsp_block("it's", ADDRESS, None)
    assert "'lsp', 'it\\'s', '--address'" in lua and "cmd_env" not in lua
