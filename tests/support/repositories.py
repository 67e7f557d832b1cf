"""Small repositories of regular, learnable code; in one the files need each other."""

from __future__ import annotations

from pathlib import Path

NOUNS = ("anchor", "beacon", "cutter", "dinghy", "estuary", "fender", "galley", "halyard", "jetty", "keel")


def write_repository(root: Path, *, modules: int = 12, functions: int = 6) -> Path:
    """A small Python and JavaScript repository with regular, learnable code; every file differs."""
    nouns = (
        "basket",
        "ledger",
        "harbor",
        "lantern",
        "meadow",
        "quarry",
        "sparrow",
        "timber",
        "violet",
        "walnut",
    )
    verbs = ("collect", "measure", "arrange", "compare", "restore", "publish", "inspect", "combine")
    for index in range(modules):
        noun, other = nouns[index % len(nouns)], nouns[(index * 3 + 1) % len(nouns)]
        lines = [f'"""Everything about the {noun} number {index} and its {other}."""', "", "import math", ""]
        lines += [f"class {noun.title()}{index}:", f'    """One {noun}, with a {other} inside."""', ""]
        lines += [
            "    def __init__(self, size, weight):",
            "        self.size = size",
            "        self.weight = weight",
            "",
        ]
        for place in range(functions):
            verb = verbs[(index + place) % len(verbs)]
            lines += [
                f"    def {verb}_{other}_{place}(self, amount, limit={index + place}):",
                f'        """{verb.title()} the {other} of this {noun} up to a limit."""',
                "        total = math.floor(self.size * amount) + self.weight",
                f"        if total > limit + {place * 7 + index}:",
                f"            return self.{verbs[(place + 1) % len(verbs)]}_{noun}(total - limit)",
                f"        return total * {index * 3 + place} % (limit + 1)",
                "",
            ]
        directory = root / ("core" if index % 2 else "tools")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{noun}_{index}.py").write_text("\n".join(lines) + "\n")
    web = root / "web"
    web.mkdir(parents=True, exist_ok=True)
    for index in range(max(1, modules // 4)):
        noun = nouns[(index * 2 + 1) % len(nouns)]
        text = "".join(
            f"export function {verb}{noun.title()}{index}(items, limit) {{\n"
            f"  const kept = items.filter((item) => item.{noun} > limit + {at});\n"
            f"  return kept.map((item) => item.{verb}(limit * {at + index}));\n}}\n\n"
            for at, verb in enumerate(verbs)
        )
        (web / f"{noun}{index}.js").write_text(text)
    (root / "README.md").write_text(
        "# A small repository\n\nIt exists so that something can be learned from it.\n"
    )
    return root


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
