"""Files that clients name in full are known by their paths from the repository's root, as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.evaluate.complete import CaretPrompt
from mlx_gardener.model import load_base
from mlx_gardener.registry import AdapterRecord, ProjectRegistry
from mlx_gardener.serve.bodies import CompletionBody, InfillBody, parse
from mlx_gardener.serve.catalog import Target
from mlx_gardener.serve.generation import Limits
from mlx_gardener.serve.indexes import Indexes, Lookup
from mlx_gardener.serve.metrics import Metrics
from mlx_gardener.serve.ollama_bodies import GenerateBody
from mlx_gardener.serve.prompts import completion_prompts, infill_prompt
from mlx_gardener.serve.repository_paths import path_from_root

PREFIX, SUFFIX = "import math\n\nvalue = ", "\nprint(value)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a blank in its path, and a link to it beside it."""
    root = tmp_path.resolve() / "my code"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("x = 1\n")
    (root.parent / "link").symlink_to(root)
    (root / "alias").symlink_to(root / "src")
    return root


def test_a_file_inside_is_named_from_the_root_and_anything_else_as_it_was_sent(root: Path) -> None:
    around = root.parent
    for sent in (
        f"{root}/src/a.py", f"{root}//src/./b/../a.py", f"{around}/link/src/a.py", f"{around}/elsewhere/../my code/src/a.py",
        f"file://{around}/my%20code/src/a%2Epy", f"file://localhost{around}/link/src/a.py", f"{root}/alias/a.py",
    ):  # fmt: skip
        assert path_from_root(root, sent) == "src/a.py", sent
    assert path_from_root(root, f"file://{around}/my%20code/new%20%231.py") == "new #1.py", "never saved"
    assert path_from_root(root, f"file://{around}/my%20code/is it?#1.py") == "is it?#1.py", (
        "as nobody should send it"
    )
    (root / "loop").symlink_to(root / "loop")
    for sent in (
        "", "src/a.py", "../a.py", "a%20b.py", str(root), f"file://{root}", f"{root}-2/a.py", f"{root}/../a.py", "/etc/hosts",
        "file:///etc/hosts", "file://[", "untitled:Untitled-1", "/a\0b", "/\ud83d", "~/a.py",
    ):  # fmt: skip
        assert path_from_root(root, sent) == sent, sent
    assert path_from_root(root, f"{around}/link/loop") == f"{around}/link/loop"


class _Noting(Lookup):
    """Finds nothing, and keeps the path that it was to find for."""

    asked_for: str = ""

    def in_front(self, tokenizer: Any, path: str, *rest: Any, **more: Any) -> list[int]:
        self.asked_for = path
        return list(more.get("sent", ()))


def test_header_query_and_place_have_the_path_that_the_repository_has(home: Path, root: Path) -> None:
    base, registry, metrics = load_base("seedling"), ProjectRegistry(), Metrics()
    registry.register_project("mine", root)
    record = AdapterRecord("mine", "v1", root, "seedling", {}, "", True, 0.0)

    def asked(kind: Any, prompts_of: Any, path: str, **more: Any) -> list[CaretPrompt]:
        body = parse(kind, {"path": path, **more})[0]
        body = body.infill() if isinstance(body, GenerateBody) else body
        lookup = _Noting(
            Indexes(registry, "off", metrics), metrics, Target("mine", "seedling", "seedling", record)
        )
        found: list[CaretPrompt] = prompts_of(body, base, 2048, Limits(8), lookup)
        assert lookup.place is not None and lookup.asked_for == lookup.place.path
        assert lookup.asked_for == ("src/a.py" if "a.py" in path else path)
        return found

    full, address = f"{root}/src/a.py", f"file://{root.parent}/my%20code/src/a.py"
    sides = {"input_prefix": PREFIX, "input_suffix": SUFFIX}
    for kind, prompts_of, more in (
        (CompletionBody, completion_prompts, {"prompt": PREFIX}),
        (CompletionBody, completion_prompts, {"prompt": PREFIX, "suffix": SUFFIX}),
        (InfillBody, infill_prompt, sides),
        (GenerateBody, infill_prompt, {"prompt": PREFIX, "suffix": SUFFIX}),
    ):
        wanted = asked(kind, prompts_of, "src/a.py", **more)
        assert asked(kind, prompts_of, full, **more) == asked(kind, prompts_of, address, **more) == wanted
        assert asked(kind, prompts_of, "/elsewhere/b.py", **more) != wanted

    def with_extra(name: str) -> list[CaretPrompt]:
        extra = [{"filename": name, "text": "y = 2\n"}]
        return asked(InfillBody, infill_prompt, "src/a.py", **sides, input_extra=extra)

    assert with_extra(f"{root}/src/b.py") == with_extra(f"file://{root}/src/b.py") == with_extra("src/b.py")
    assert with_extra("/elsewhere/b.py") != with_extra("src/b.py")


def test_a_base_alone_has_no_repository(home: Path) -> None:
    metrics = Metrics()
    lookup = Lookup(
        Indexes(ProjectRegistry(), "off", metrics), metrics, Target("seedling", "seedling", "seedling", None)
    )
    assert lookup.path_from_root("/etc/hosts") == "/etc/hosts"
