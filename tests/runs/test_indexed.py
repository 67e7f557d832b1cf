"""A project's index: made by its training, by the rules of the version that answers, and made anew where it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlx_gardener
from mlx_gardener.events import Event, WarningRaised
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.indexed import (
    index_as_it_is,
    index_place,
    index_rules,
    kept_index,
    update_index,
)
from tests.support.retrieving import CONFIG, World, evidence
from tests.support.trainings import tiny_settings


@pytest.fixture
def world(home: Path, tmp_path: Path, tiny_model_dir: Path) -> World:
    return World(tmp_path, tiny_model_dir)


def test_what_may_be_retrieved_is_what_the_active_versions_training_reads(world: World) -> None:
    registry = world.registry
    assert index_rules(registry, "small").exclude == () and index_rules(registry, "small").quality == 0.5
    world.adapter(evidence())
    assert index_rules(registry, "small").exclude == ("web/",)
    assert index_rules(registry, "small").quality == CONFIG["training_data_quality_threshold"]
    registry.forget_path("small", "core/ledger_1.py")
    rules = index_rules(registry, "small")
    assert rules.exclude == ("web/", "/core/ledger_1.py")
    index = update_index(registry, "small", rules)
    found = {index.path_of(at) for at in range(index.chunk_count)}
    assert "core/lantern_3.py" in found and "core/ledger_1.py" not in found
    assert not any(path.startswith("web/") for path in found)


def test_an_index_of_other_rules_or_a_damaged_one_is_not_used(world: World) -> None:
    registry = world.registry
    before = index_rules(registry, "small")
    update_index(registry, "small", before)
    assert kept_index(registry, "small", before) is not None
    world.adapter(evidence())
    after = index_rules(registry, "small")
    assert kept_index(registry, "small", after) is None
    update_index(registry, "small", after)
    place = index_place(registry, "small")
    place.write_bytes(place.read_bytes()[:-1])
    assert kept_index(registry, "small", after) is None
    found, why = index_as_it_is(registry, "small")
    assert found is not None and why == "" and kept_index(registry, "small", after) is not None


def test_what_is_to_be_forgotten_while_an_index_is_made_is_not_kept_with_it(world: World) -> None:
    rules = index_rules(world.registry, "small")
    update_index(
        world.registry,
        "small",
        rules,
        interrupt=lambda: world.registry.forget_path("small", "core/ledger_1.py"),
    )
    assert not index_place(world.registry, "small").exists()


def test_the_index_of_a_project_that_is_removed_meanwhile_is_not_written(world: World) -> None:
    rules, removed = index_rules(world.registry, "small"), list[bool]()

    def remove() -> None:
        if not removed:
            removed.append(True)
            world.registry.remove_project("small")

    with pytest.raises(mlx_gardener.RegistryError):
        update_index(world.registry, "small", rules, interrupt=remove)
    assert not world.registry.project_directory("small").exists()


def test_a_repository_that_goes_while_it_is_read_leaves_the_kept_index_as_it_is(world: World) -> None:
    rules = index_rules(world.registry, "small")
    index = update_index(world.registry, "small", rules)
    for path in world.tree.rglob("*.py"):
        path.write_text(path.read_text() + "\n\ndef added(value):\n    return value\n")

    def go() -> None:
        if world.tree.exists():
            world.tree.rename(world.tree.with_name("elsewhere"))

    with pytest.raises(mlx_gardener.DataError, match="does not exist"):
        update_index(world.registry, "small", rules, interrupt=go, processes=1)
    kept = kept_index(world.registry, "small", rules)
    assert kept is not None and kept.paths == index.paths


def test_without_the_repository_the_kept_index_serves_and_without_both_it_is_said_why(world: World) -> None:
    index, _ = index_as_it_is(world.registry, "small")
    world.tree.rename(world.tree.with_name("elsewhere"))
    kept, why = index_as_it_is(world.registry, "small")
    assert index is not None and kept is not None and kept.paths == index.paths and why == ""
    index_place(world.registry, "small").unlink()
    nothing, why = index_as_it_is(world.registry, "small")
    assert nothing is None and "cannot be indexed" in why and "does not exist" in why


@pytest.mark.usefixtures("known_home")
def test_a_training_whose_index_cannot_be_kept_says_so_and_goes_on(
    tiny_model_dir: Path, repository: Path
) -> None:
    registry = ProjectRegistry()
    registry.register_project("repository", repository)
    place = index_place(registry, "repository")
    place.mkdir(parents=True)
    (place / "in the way").touch()
    seen: list[Event] = []
    result = mlx_gardener.train(
        repository, config=tiny_settings(tiny_model_dir), on_event=seen.append, show_progress=False
    )
    assert result.adapter_version == "v1"
    said = [event.message for event in seen if isinstance(event, WarningRaised)]
    assert any("index for retrieval could not be kept (" in message for message in said), said
