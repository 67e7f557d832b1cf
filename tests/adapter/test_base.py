"""An adapter finds its base wherever a command is given, and whichever of its project's versions it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_gardener.adapter import base_name
from mlx_gardener.adapter.base import model_place, point_base
from mlx_gardener.config import LoraConfig
from mlx_gardener.errors import AdapterError, ModelError
from mlx_gardener.events import StepCompleted
from mlx_gardener.model import load_base
from mlx_gardener.model.choose import choose_model
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.manager import TrainingPipeline
from mlx_gardener.serve.catalog import Catalog
from tests.support.adapters import make_adapter
from tests.support.commands import gardener_here, train_flags
from tests.support.models import write_tiny_model
from tests.support.trainings import endless, tiny_settings

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere

LORA = LoraConfig(rank=2)
QUICK = {"evaluation.arms": [], "evaluation.tasks": 0, "optimizer.max_steps": 1}


@pytest.fixture
def registry(repository: Path) -> ProjectRegistry:
    opened = ProjectRegistry()
    opened.register_project("web", repository)
    return opened


def test_versions_on_models_of_one_name_each_find_their_own(
    registry: ProjectRegistry, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    places = [
        write_tiny_model(tmp_path / where / "model", tiny_tokenizer_dir, hidden_size=size)
        for where, size in (("a", 32), ("b", 48))
    ]
    records = [
        make_adapter(registry, "web", load_base(str(place)), LORA, seed=number)
        for number, place in enumerate(places)
    ]
    assert [base_name(registry, record) for record in records] == [str(place) for place in places]
    targets = {target.id: target.base for target in Catalog(registry).targets()}
    assert (targets["web@v1"], targets["web@v2"], targets["web"]) == (str(places[0]), *[str(places[1])] * 2)


def test_the_same_weights_in_two_directories_stay_two_bases(
    registry: ProjectRegistry, tmp_path: Path, tiny_model_dir: Path
) -> None:
    one, two = (Path(shutil.copytree(tiny_model_dir, tmp_path / name)) for name in ("one", "two"))
    (two / "chat_template.jinja").write_text("another")
    first, second = (
        make_adapter(registry, "web", load_base(str(place)), LORA, seed=number)
        for number, place in enumerate((one, two))
    )
    assert [base_name(registry, record) for record in (first, second)] == [str(one), str(two)]
    one.rename(tmp_path / "renamed")
    third = make_adapter(registry, "web", load_base(str(tmp_path / "renamed")), LORA, seed=2)
    places = [base_name(registry, record) for record in (first, second, third)]
    assert places == [str(tmp_path / name) for name in ("renamed", "two", "renamed")]
    moved = two.rename(tmp_path / "moved")
    assert len(point_base(registry, str(moved))) == 3
    assert {base_name(registry, record) for record in (first, second, third)} == {str(moved)}


def test_places_that_were_kept_by_name_are_still_found(
    registry: ProjectRegistry, tmp_path: Path, tiny_model_dir: Path
) -> None:
    record = make_adapter(registry, "web", load_base(str(tiny_model_dir)), LORA, seed=1)
    with registry._database.write() as connection:  # as versions before this one left it
        connection.execute("UPDATE local_models SET id = ?", (record.base_model,))
    assert base_name(registry, record) == str(tiny_model_dir)
    moved = Path(shutil.copytree(tiny_model_dir, tmp_path / "moved"))
    assert point_base(registry, str(moved)) == [record] and base_name(registry, record) == str(moved)


@pytest.mark.usefixtures("known_home")
def test_a_base_that_moved_is_found_by_its_weights_alone(
    registry: ProjectRegistry, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    old = write_tiny_model(tmp_path / "old", tiny_tokenizer_dir)
    record = make_adapter(registry, "web", load_base(str(old)), LORA, seed=1)
    pipeline = TrainingPipeline(endless(old), registry=registry)
    pipeline.start_training("web")
    next(event for event in pipeline.follow("web") if isinstance(event, StepCompleted))
    pipeline.cancel_training("web")
    pipeline.wait_for_training_completion("web", timeout=600)
    new, newest = tmp_path / "elsewhere" / "renamed", tmp_path / "newest"
    new.parent.mkdir()
    old.rename(new)
    assert base_name(registry, record) == str(old)
    with pytest.raises(ModelError, match=r"old' .*no such directory.*registry base"):
        choose_model(base_name(registry, record))
    other = write_tiny_model(old, tiny_tokenizer_dir, hidden_size=32)  # the same name, and another model
    with pytest.raises(AdapterError, match=r"No adapter here was trained on the weights.*adapters here: old"):
        point_base(registry, str(other))
    shutil.rmtree(old)
    assert point_base(registry, str(new)) == [record] and base_name(registry, record) == str(new)
    new.rename(newest)
    point_base(registry, str(newest))
    assert base_name(registry, record) == str(newest)
    assert [model_place(registry, str(place)) for place in (old, new, newest)] == [str(newest)] * 3
    unfinished = registry.latest_training("web")
    assert unfinished is not None and unfinished.config["model"] == str(old)
    assert TrainingPipeline(endless(newest), registry=registry).unfinished_training("web") == unfinished
    # What `--resume`, `forget` and the queue start again has the settings of back then.
    pipeline.resume_training("web")
    resumed = registry.latest_training("web")
    assert resumed is not None and resumed.config["model"] == str(newest)
    next(event for event in pipeline.follow("web") if isinstance(event, StepCompleted))
    pipeline.cancel_training("web")
    pipeline.wait_for_training_completion("web", timeout=600)
    assert model_place(registry, "seedling") == "seedling" and model_place(registry, "a/b") == "a/b"


def test_settings_name_a_directory_as_it_was_meant_where_they_were_made(
    registry: ProjectRegistry, tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_tiny_model(tmp_path / "models" / "small", tiny_tokenizer_dir)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("models/small", "./models/small", "~/models/small"):
        pipeline = TrainingPipeline(tiny_settings(Path(named)), registry=registry)
        assert pipeline.config.model == str(place)
        assert load_base(named).id == "small"
    for named in ("auto", "seedling", "some/model"):
        assert TrainingPipeline(tiny_settings(Path(named)), registry=registry).config.model == named


@pytest.mark.usefixtures("known_home")
def test_every_command_finds_base_and_repository_after_both_have_moved(
    git_repository: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    (tmp_path / "models").mkdir()
    old = write_tiny_model(tmp_path / "models" / "base", tiny_tokenizer_dir)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    train = ("train", str(git_repository), "--project", "web")
    done = gardener_here(*train, *train_flags(Path("models/base"), **QUICK), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    registry = ProjectRegistry()
    # Another version on another base: v1 is an older one now, and the last training's model is not its base.
    other = write_tiny_model(tmp_path / "other" / "base", tiny_tokenizer_dir, hidden_size=32)
    make_adapter(registry, "web", load_base(str(other)), LORA, seed=1, activate=False)
    manifest = json.loads((registry.get_adapter("web", "v1").directory / "manifest.json").read_text())
    assert manifest["evidence"]["verdict"] == "unmeasured"
    evaluate = ("eval", "web", "--adapter", "v1", "--tasks", "0", "--json")
    first = gardener_here(*evaluate, cwd=elsewhere)
    assert first.returncode == 0, first.stderr
    measured = [arm["name"] for arm in json.loads(first.stdout)["arms"]]
    assert measured == ["base", "base_bm25", "adapter", "adapter_bm25"], (
        "a training without a test leaves all to eval"
    )

    new = elsewhere / "moved"
    old.rename(new)
    gone = gardener_here(*evaluate, cwd=elsewhere)
    assert gone.returncode == 1 and str(old) in gone.stderr and "registry base" in gone.stderr
    pointed = gardener_here("registry", "base", str(new))
    assert pointed.returncode == 0 and "is the base of web/v1." in pointed.stdout, pointed.stderr
    again = gardener_here(*evaluate, cwd=elsewhere)
    assert again.returncode == 0 and json.loads(again.stdout) == json.loads(first.stdout)

    file = next(git_repository.rglob("*.py"))
    file.write_text(file.read_text() + "\n\ndef added_later(alpha):\n    return alpha - 17\n")
    for command in (
        ("complete", "web", f"{file.relative_to(git_repository)}:9", "--max-tokens", "2"),
        ("export", "web", str(tmp_path / "fused"), "--form", "fused"),
    ):
        done = gardener_here(*command, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
    stale = json.loads(gardener_here("status", "web", "--measure", "--json", cwd=elsewhere).stdout)
    assert stale["adapter"]["new_code"]["adapter"] > 0

    here = git_repository.rename(elsewhere / "repository")
    gone = gardener_here(*evaluate, cwd=elsewhere)
    assert gone.returncode == 1 and f"is not at '{git_repository}' any more" in gone.stderr
    assert "--project web" in gone.stderr
    moved = gardener_here("train", str(here), "--project", "web", *train_flags(new, **QUICK), "--json")
    assert moved.returncode == 0 and f"moved here from {git_repository}" in moved.stderr, moved.stderr
    assert json.loads(moved.stdout.splitlines()[-1])["result"]["adapter_version"] == "v3"
    assert ProjectRegistry().get_project("web").path == here
