"""Lines that need another file of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.config import DataConfig
from mlx_gardener.dataset import asked_lines, cross_file_tasks, names_defined
from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.source import ChunkType, FileRecord, scan_repository
from mlx_gardener.source.records import ChunkRecord

USES = '''"""Uses HarborMaster in words."""

from harbor import (
    HarborMaster,
)


def collect_all(amount):
    # HarborMaster in a comment
    master = HarborMaster(amount, "HarborMaster")
    own = collect_all(3)
    total = master.size + generate(amount)
    return load_harbor(total)
'''
SCRIPT = """import { HarborMaster } from "./harbor";

const three = 3;
const text = "HarborMaster";
export function go(amount) {
  return new HarborMaster(amount);
}
"""


def record(path: str, *names: str) -> FileRecord:
    chunks = tuple(
        ChunkRecord(f"{path}{name}", ChunkType.FUNCTION, name, 0, 9, 1, 1, 1.0, 0.0) for name in names
    )
    return FileRecord(path, "python", 9, "", 0, chunks, ())


FILES = [
    record("harbor.py", "HarborMaster", "generate", "load_harbor"),
    record("uses.py", "collect_all"),
    record("other.py", "collect_all"),
]


def targets(excerpt: Excerpt, files: list[FileRecord] = FILES, count: int = 99) -> list[str]:
    found = cross_file_tasks([excerpt], count, names_defined(files), seed=0)
    for task in found:
        assert excerpt.text.startswith(task.prefix + task.target) and task.prefix.count("\n") == task.line - 1
    return [task.target.strip() for task in found]


def test_lines_are_asked_that_use_a_name_of_another_file() -> None:
    found = targets(Excerpt("uses.py", "python", USES))
    assert sorted(found) == ['master = HarborMaster(amount, "HarborMaster")', "return load_harbor(total)"]
    assert targets(Excerpt("go.js", "javascript", SCRIPT)) == ["return new HarborMaster(amount);"]
    assert targets(Excerpt("uses.py", "python", USES), count=1) == found[:1]


def test_a_carriage_return_alone_shifts_no_line() -> None:
    shifted = USES.replace("    own", '    text = "a\rb"\n    own')
    found = cross_file_tasks([Excerpt("uses.py", "python", shifted)], 99, names_defined(FILES), seed=0)
    assert sorted(task.target.strip() for task in found) == sorted(
        targets(Excerpt("uses.py", "python", USES))
    )


def test_names_of_the_file_itself_and_names_that_many_files_define_need_no_other() -> None:
    many = [*FILES, *(record(f"harbor{number}.py", "load_harbor") for number in range(3))]
    found = targets(Excerpt("harbor.py", "python", USES), many)
    assert found == [], "defined here, by half of the files, or by the place itself"


def test_names_that_anybody_may_write_are_not_the_repositorys_own() -> None:
    own = names_defined(
        [
            record(
                "a.py",
                "__init__",
                "name",
                "HarborMaster",
                "Harbor.load_all",
                "_close_harbor",
                "run_it",
                "Tok",
            )
        ]
        + [record(f"{at}.py", "setup_method") for at in range(4)]
    )
    assert set(own) == {"HarborMaster", "Harbor", "load_all", "_close_harbor", "run_it"}
    assert own["HarborMaster"] == {"a.py"}


def test_what_no_training_file_defines_can_be_known_by_no_arm() -> None:
    files = [*FILES, record("held_out.py", "load_harbor", "HarborPilot")]
    own = names_defined(files, FILES)
    assert set(own) == {"HarborMaster", "load_harbor", "collect_all"}
    assert own["load_harbor"] == {"harbor.py", "held_out.py"}
    assert set(names_defined(files)) == {*own, "HarborPilot"}


def test_what_a_file_imports_is_defined_elsewhere(tmp_path: Path) -> None:
    """An import's chunk bears the imported name; so did a loop's its variable's."""
    (tmp_path / "harbor.py").write_text(
        "class HarborMaster:\n    def weigh(self, ship):\n        return ship.size * 2\n"
    )
    for number in range(3):
        (tmp_path / f"use_{number}.py").write_text(
            "from typing import Optional\n\nfrom harbor import HarborMaster\n\n\n"
            f"def meet_ship_{number}(ship: Optional[str]):\n    master = HarborMaster()\n    return master.weigh(ship), {number}\n\n\n"
            f"for every_ship in range({number}):\n    print(meet_ship_{number}(every_ship), every_ship)\n"
        )
    files = scan_repository(tmp_path, DataConfig(), quality_threshold=0).files
    own = names_defined(files)
    assert set(own) == {"HarborMaster", *(f"meet_ship_{number}" for number in range(3))}
    assert own["HarborMaster"] == {"harbor.py"}
    text = (tmp_path / "use_0.py").read_text()
    assert targets(Excerpt("use_0.py", "python", text), files) == ["master = HarborMaster()"]


def test_a_language_without_a_grammar_has_none() -> None:
    assert targets(Excerpt("notes.lua", "lua", USES)) == []


@pytest.mark.parametrize(
    ("path", "language", "line", "is_asked"),
    [
        ("a.py", "python", "# a comment", False),
        ("a.ts", "typescript", "    // a comment", False),
        ("a.lua", "lua", "-- a comment", False),
        ("a.sql", "sql", "--- a comment", False),
        ("a.c", "c", "--count;", True),
        ("a.py", "python", "total = 1", True),
    ],
)
def test_comments_are_not_asked_for(path: str, language: str, line: str, is_asked: bool) -> None:
    excerpt = Excerpt(path, language, "a\nb\nc\n" + line + "\n")
    assert [asked.start_byte for asked in asked_lines(excerpt, {})] == [6] * is_asked
