"""The index of a working tree holds what a scan keeps and nothing else, and follows the tree."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig, load_config
from mlx_gardener.retrieval import Index, Rules, read_index, refreshed, write_index
from mlx_gardener.retrieval import tree as tree_module
from mlx_gardener.runs.forecast import list_kept_lines
from mlx_gardener.source import scan_repository
from tests.support.indexes import equal

RULES = Rules.of(DataConfig(exclude=("left_out.py",)), 0.1)
#: A key in the form of a service's, which was never given out.
SECRET = "AKIA" + "Z7QX3KPLM2N4R6TW"


def lines_of(index: Index) -> list[tuple[str, int, int]]:
    return [(index.path_of(at), *index.lines[at].tolist()) for at in range(index.chunk_count)]


def settle() -> None:
    """What was written a moment ago is looked at again, as it may change within a tick of the file system's clock."""
    time.sleep(tree_module._TICK_NS / 1e9 + 0.02)


@pytest.fixture
def tree(repository: Path) -> Path:
    (repository / "settings.py").write_text(
        f'def connect(region):\n    return open_session(region)\n\n\naws_access_key_id = "{SECRET}"\n\n\n'
        "def close(session):\n    session.close_everything(now=True)\n"
    )
    (repository / "copy.py").write_text((repository / "settings.py").read_text())
    (repository / "left_out.py").write_text("def forgotten_function(value):\n    return value * 2\n")
    (repository / "binary.bin").write_bytes(b"\0\1\2" * 100)
    (repository / "package-lock.json").write_text('{"name": "locked"}\n')
    settle()
    return repository


def test_it_holds_exactly_what_a_scan_would_keep(tree: Path) -> None:
    def kept_by_scan(rules: Rules) -> set[tuple[str, int, int]]:
        scan = scan_repository(tree, rules.data(), quality_threshold=rules.quality)
        return {(file.path, chunk.start_line, chunk.end_line) for file in scan.files for chunk in file.chunks}

    strict = replace(RULES, quality=0.9)
    assert set(lines_of(refreshed(None, tree, strict))) == kept_by_scan(strict) < kept_by_scan(RULES)
    index, scan = (
        refreshed(None, tree, RULES),
        scan_repository(tree, RULES.data(), quality_threshold=RULES.quality),
    )
    assert set(lines_of(index)) == kept_by_scan(RULES) and index.chunk_count > 50
    config = load_config(
        environment={},
        overrides={"data.exclude": ["left_out.py"], "training_data_quality_threshold": RULES.quality},
    )
    for item in list_kept_lines(scan, config):  # what `scan --lines` shows
        found = [place for place in lines_of(index) if place[0] == item["path"]]
        assert any(item["start_line"] <= first and last <= item["end_line"] for _, first, last in found)


def test_no_secret_and_nothing_left_out_is_in_it(tree: Path) -> None:
    index = refreshed(None, tree, RULES)
    everything = index.texts.tobytes().decode()
    assert "open_session" in everything and "close_everything" in everything
    for gone in (SECRET, "forgotten_function", "locked"):
        assert gone not in everything
    assert everything.count("close_everything") == 1  # the copy is the same file again


def test_after_every_change_it_equals_one_made_anew(tree: Path) -> None:
    index = refreshed(None, tree, RULES)
    assert refreshed(index, tree, RULES) is index

    def change(what: str) -> None:
        if what == "edit":
            (tree / "core" / "ledger_1.py").write_text(
                "def brand_new_function(argument):\n    return argument\n"
            )
        elif what == "secret":
            text = (tree / "tools" / "basket_0.py").read_text()
            (tree / "tools" / "basket_0.py").write_text(f'key = "{SECRET}"\n{text}')
        elif what == "new":
            (tree / "another.py").write_text("def another_function(argument):\n    return argument + 1\n")
        elif what == "first double goes":
            (tree / "copy.py").unlink()
        elif what == "a double comes before":
            (tree / "a_copy.py").write_text((tree / "settings.py").read_text())
        elif what == "same size and time":
            file = tree / "another.py"
            before = file.stat()
            file.write_text(file.read_text().replace("+ 1", "- 7"))
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif what == "ignored":
            (tree / ".gitignore").write_text("another.py\n")

    for what in (
        "edit",
        "secret",
        "new",
        "first double goes",
        "a double comes before",
        "same size and time",
        "ignored",
    ):
        change(what)
        settle()
        after = refreshed(index, tree, RULES)
        assert after is not index, what
        assert equal(after, refreshed(None, tree, RULES)), what
        index = after
    assert SECRET not in index.texts.tobytes().decode()


def test_only_files_that_changed_are_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    examine = tree_module.examine_file
    monkeypatch.setattr(
        tree_module,
        "examine_file",
        lambda root, path, *more: (read.append(path), examine(root, path, *more))[1],
    )
    index = refreshed(None, tree, RULES)
    assert len(read) == len(index.paths)
    read.clear()
    (tree / "README.md").write_text("# Other words\n\nThat nobody wrote here before, in no file at all.\n")
    settle()
    index = refreshed(index, tree, RULES)
    assert read == ["README.md"]
    read.clear()
    assert refreshed(index, tree, RULES) is index and not read


def test_git_attributes_that_come_later_count(git_repository: Path) -> None:
    settle()
    index = refreshed(None, git_repository, RULES)
    assert any(path.startswith("web/") for path, _, _ in lines_of(index))
    (git_repository / ".gitattributes").write_text("web/** linguist-vendored\n")
    settle()
    without = refreshed(index, git_repository, RULES)
    assert not any(path.startswith("web/") for path, _, _ in lines_of(without))
    (git_repository / ".gitattributes").unlink()
    assert equal(refreshed(without, git_repository, RULES), index)


def test_many_files_are_read_by_other_processes_to_the_same_index(tree: Path) -> None:
    assert equal(refreshed(None, tree, RULES, processes=2), refreshed(None, tree, RULES, processes=1))


def test_what_is_kept_on_disk_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    index, place = refreshed(None, tree, RULES), tmp_path / "kept.safetensors"
    os.umask(0o022)
    write_index(place, index, RULES)
    assert place.stat().st_mode & 0o777 == 0o600 and [path.name for path in tmp_path.glob(".kept*")] == []
    found, rules = read_index(place)
    assert rules == RULES and equal(found, index)
    assert found.search(["brand", "session"], 3) == index.search(["brand", "session"], 3) != []
    assert refreshed(found, tree, rules) is found
    empty = refreshed(None, tmp_path / "repository" / "web", Rules.of(DataConfig(include=("nothing",)), 0.5))
    write_index(place, empty, RULES)
    assert equal(read_index(place)[0], empty) and empty.search(["a"], 3) == []


def test_the_rules_of_an_index_from_when_the_longest_line_was_a_setting_are_read() -> None:
    assert Rules.from_json(RULES.to_json() | {"max_line_length": 1000}) == RULES
    with pytest.raises(ValueError, match="longest line"):
        Rules.from_json(RULES.to_json() | {"max_line_length": 500})


@pytest.mark.parametrize("damage", ["a bit", "its end", "all of it", "a pipe"])
def test_a_damaged_file_is_no_index(tree: Path, tmp_path: Path, damage: str) -> None:
    place = tmp_path / "kept.safetensors"
    write_index(place, refreshed(None, tree, RULES), RULES)
    data = bytearray(place.read_bytes())
    if damage == "a bit":
        data[-100] ^= 1
    elif damage == "its end":
        del data[-100:]
    elif damage == "all of it":
        data = bytearray(b"no index")
    place.unlink()
    if damage == "a pipe":
        os.mkfifo(place)
    else:
        place.write_bytes(data)
    with pytest.raises(ValueError):
        read_index(place)
