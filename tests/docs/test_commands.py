"""Every command in README and docs is run, in the order in which a reader meets it, in a small world of its own.

What takes minutes by its nature (the two set-up scripts, benchmarks, the fuzzer) is not run to its end here: its script
must be there and know every option that the page gives it; tests of their own run short versions.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mlx_gardener.cli import cli
from tests.docs.commands import PAGES, ROOT, Line, quoted, shown
from tests.support.reader import World

#: Processes of their own, as a reader's are: where a shell, what they are given, or that they go on, makes a difference.
OWN_PROCESS = re.compile(r"[|&;<>$`~*]|mlx-gardener (connect|doctor|lsp|mcp|train)\b|^(?!mlx-gardener )")
#: Commands that do the same on whichever page they stand; the world begins with the training.
ONCE = re.compile(r"mlx-gardener (connect|doctor|models|serve|ui)\b|mlx-gardener train \.(\s*#|$)")
#: What would be the same with less of it.
FEWER = ("--tasks 20", "--tasks 2")
_CODE = re.compile(r"`([^`\n]+)`")
LONG_TRAINING = "mlx-gardener train . --fresh --detach --epochs 100 --max-steps 5000"


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, trained_cache: Path
) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("reader"), tiny_tokenizer_dir, trained_cache)
    found.run("mlx-gardener train .")
    found.tried.add(("mlx-gardener", "train", "."))
    yield found
    found.wait_for_trainings()


def is_long(line: Line) -> bool:
    """Whether a command takes minutes, or installs packages, by its nature."""
    return bool(
        re.match(
            r"(bash )?(\./)?scripts/|python (benchmarks|scripts|examples)/|python -m tests|\.ci/run",
            line.text,
        )
    )


def is_ours(line: Line) -> bool:
    return line.text.startswith(("mlx-gardener", "eval ", "cd ", "export ")) or "| mlx-gardener" in line.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_can_be_typed(page: Path, world: World) -> None:
    lines = shown(page)
    others = [str(line) for line in lines if not is_long(line) and not is_ours(line)]
    assert not others, (
        f"nothing here runs these; name a command of ours, or run them by a test of their own: {others}"
    )
    for line in lines:
        if ONCE.match(line.text) and tuple(line.words) in world.tried:
            continue
        world.tried.add(tuple(line.words))
        if is_long(line):
            assert_known(line)
        elif "doctor --measure" in line.text:
            assert_parses(line)  # it is run in tests/engine/test_machine.py
        elif re.search(r"mlx-gardener (serve|ui)\b", line.text):
            world.run_until_it_serves(line.text)
        else:
            if "mlx-gardener cancel" in line.text:  # there has to be something to cancel
                world.run(LONG_TRAINING)
            if OWN_PROCESS.search(line.text.partition("#")[0]):
                world.run(line.text)
            else:
                world.run_here(line.text.replace(*FEWER))
            if re.search(r"--(detach|queue)", line.text):
                world.wait_for_trainings()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_in_passing_is_there(page: Path) -> None:
    for line in quoted(page):
        if is_long(line):
            assert_known(line)
        else:
            assert_parses(line)


#: Options of other programs, which pages name beside them.
OTHERS = {
    "--adapter-path": "mlx-lm", "--grad-checkpoint": "mlx_lm.lora", "--lora": "llama", "--max-lora-rank": "vLLM",
}  # fmt: skip


def options_of(command: click.Command, context: click.Context) -> set[str]:
    """All options of a command and of those below it."""
    found = {name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)}
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found |= options_of(below, context)
    return found


def options_that_are_not_there(text: str) -> list[str]:
    """Options that a page names, in running text, of which neither we nor a program that it names know anything."""
    modules = re.findall(r"-m benchmarks\.(\w+)", text)
    scripts = [
        (ROOT / name).read_text()
        for name in {
            *re.findall(r"\b(?:scripts|benchmarks)/[\w.]+", text),
            *(f"benchmarks/{name}.py" for name in modules),
        }
        if (ROOT / name).is_file()
    ]
    known = options_of(cli, click.Context(cli)) | {"--debug"}
    named = [name for code in _CODE.findall(text) for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)]
    return [
        name
        for name in named
        if name not in known
        and not (name in OTHERS and OTHERS[name] in text)
        and not any(name in script or f"{name[2:].replace('-', '_')}:" in script for script in scripts)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_is_there(page: Path) -> None:
    assert not options_that_are_not_there(page.read_text())


def test_an_option_that_is_not_there_is_found() -> None:
    assert options_that_are_not_there("`train --fresh` and `--fresher`, `--lora`") == ["--fresher", "--lora"]


def assert_known(line: Line) -> None:
    """The script is there, and its text or its --help knows every option it is given."""
    words = [word for word in line.words if word not in ("python", "bash", "-m")]
    script = ROOT / (words[0].replace(".", "/") + ".py" if words[0].startswith("tests.") else words[0])
    assert script.is_file(), f"{line}: there is no {words[0]}"
    text = script.read_text()
    for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        spelled = option[2:].replace("-", "_")
        assert option in text or f"{spelled}:" in text, f"{line}: {words[0]} does not know {option}"


def assert_parses(line: Line) -> None:
    """The command and its options exist; what stands for a value (PROJECT, FILE, ...) is taken as one."""
    words = [word.strip("[]") for word in line.words[1:] if word not in ("...", "…", "|")]
    command: click.Command = cli
    context = click.Context(cli, info_name="mlx-gardener")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: there is no command {words[0]!r}"
        command, words = found, words[1:]
    known = {
        name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)
    }
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known | {"--debug"}, f"{line}: there is no option {word!r}"


def test_a_command_that_is_not_there_is_found() -> None:
    with pytest.raises(AssertionError, match="no command 'prune'"):
        assert_parses(Line("page", "mlx-gardener prune --all"))
    with pytest.raises(AssertionError, match="no option '--budgets'"):
        assert_parses(Line("page", "mlx-gardener plan --budgets 3"))
    with pytest.raises(AssertionError, match="does not know --fastest"):
        assert_known(Line("page", "python benchmarks/run.py --fastest"))
    assert shlex.split("a  # b", comments=True) == ["a"]
