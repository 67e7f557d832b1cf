"""Repositories whose files need each other."""

from __future__ import annotations

from pathlib import Path

NOUNS = ("anchor", "beacon", "cutter", "dinghy", "estuary", "fender", "galley", "halyard", "jetty", "keel")


def write_linked_repository(root: Path) -> Path:
    """Modules that define functions, and modules that call those of others."""
    (root / "ports").mkdir(parents=True)
    for number, noun in enumerate(NOUNS):
        other = NOUNS[(number + 3) % len(NOUNS)]
        (root / "ports" / f"{noun}.py").write_text(
            f'"""All about the {noun}."""\n\n\n'
            f"def weigh_{noun}(cargo, tide):\n    lifted = cargo * {number + 2} + tide\n    return lifted - {number}\n\n\n"
            f"def paint_{noun}(colour):\n    layers = [colour] * {number + 1}\n    return layers\n"
        )
        (root / "ports" / f"use_{noun}.py").write_text(
            f"from ports.{other} import paint_{other}, weigh_{other}\n\n\n"
            f"def visit_{noun}(ships):\n    total = {number}\n    for ship in ships:\n"
            f"        total += weigh_{other}(ship.cargo, ship.tide)\n        ship.skin = paint_{other}(ship.colour)\n"
            f"    return total\n\n\ndef leave_{noun}(ships):\n    return [ship for ship in ships if ship.gone > {number}]\n"
        )
    return root


def write_tests(repository: Path) -> None:
    """Tests of the repository's classes: their lines need other files, and they have assertions to complete."""
    for number, file in enumerate(sorted(repository.rglob("*_*.py"))):
        noun, _, at = file.stem.partition("_")
        lines = [f'"""Tests of the {noun} number {at}: they measure it."""', "", "import math", ""]
        for size in range(2, 7):
            lines += [
                f"def test_{noun}_of_size_{size}_{number}():",
                f"    made = {noun.title()}{at}({size}, {number + size})",
                f"    assert made.size == {size} and made.weight > 0",
                f"    assert made.weight == {number + size}.0 + math.floor({number})",
                "",
            ]
        tests = repository / "tests"
        tests.mkdir(exist_ok=True)
        (tests / f"test_{noun}_{at}.py").write_text("\n".join(lines) + "\n")
