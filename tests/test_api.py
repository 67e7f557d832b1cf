"""Python's surface as a user meets it: errors by class, results that go on, and no leftovers of what failed at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mlx_gardener
from mlx_gardener import ProjectRegistry, TrainingPhase, TrainingPipeline, TrainingStatus
from mlx_gardener.errors import ConfigError, GardenerError
from mlx_gardener.platform.home import default_home
from mlx_gardener.registry.names import INDEX_NAME, what_is_kept
from tests.support.trainings import WAIT, tiny_settings


@pytest.fixture
def lonely(tmp_path: Path) -> Path:
    """A repository with far too little code to train on."""
    root = tmp_path / "lonely"
    root.mkdir()
    (root / "one.py").write_text("def alone(value):\n    return value + 1\n")
    return root


@pytest.mark.usefixtures("known_home")
def test_a_budget_that_is_too_small_is_a_memory_budget_error_with_the_least_that_does(
    tiny_model_dir: Path, repository: Path
) -> None:
    with pytest.raises(mlx_gardener.MemoryBudgetError) as caught:
        mlx_gardener.train(
            repository, config=tiny_settings(tiny_model_dir, memory_limit_gb=0.01), show_progress=False
        )
    assert 0.01 * 2**30 < caught.value.least_bytes < 2**40
    assert "memory_limit_gb=0." in str(caught.value) and "--" not in str(caught.value)
    assert "--budget" in caught.value.next_step  # what the command line shows
    with pytest.raises(mlx_gardener.MemoryBudgetError):
        mlx_gardener.plan(config=tiny_settings(tiny_model_dir, memory_limit_gb=0.01))


def test_too_little_code_is_a_data_error_and_leaves_no_failed_project(
    tiny_model_dir: Path, lonely: Path
) -> None:
    config = tiny_settings(tiny_model_dir, min_training_chunks=50)
    ended: list[mlx_gardener.TrainingEnded] = []

    def keep(event: mlx_gardener.Event) -> None:
        if isinstance(event, mlx_gardener.TrainingEnded):
            ended.append(event)

    with pytest.raises(mlx_gardener.DataError, match="min_training_chunks"):
        mlx_gardener.train(lonely, config=config, on_event=keep)
    assert ended[0].result["error"]["class"] == "DataError" and ended[0].phase is TrainingPhase.FAILED
    assert "50" in ended[0].message and "min_training_chunks" in ended[0].message
    assert ProjectRegistry().get_project("lonely").status is TrainingStatus.NOT_STARTED
    assert ProjectRegistry().list_projects()[0].status is TrainingStatus.NOT_STARTED
    refusal = mlx_gardener.scan(lonely, config=config).refusal
    assert isinstance(refusal, mlx_gardener.DataError)


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(mlx_gardener.ModelError, match="nowhere"):
        mlx_gardener.train(repository, model=str(tmp_path / "nowhere"), show_progress=False)


@pytest.mark.parametrize("name", ["nowhere", "file.py"])
def test_a_path_that_is_no_directory_is_refused_before_anything_is_registered(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file.py").write_text("x = 1\n")
    for function in (mlx_gardener.train, mlx_gardener.scan, mlx_gardener.plan):
        with pytest.raises(mlx_gardener.DataError, match=name):
            function(tmp_path / name, model="seedling")
    assert ProjectRegistry().list_projects() == []


def test_a_repository_that_went_away_is_refused_before_a_training_begins(
    tiny_model_dir: Path, repository: Path, tmp_path: Path
) -> None:
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir))
    pipeline.registry.register_project("small", repository)
    repository.rename(tmp_path / "elsewhere")
    with pytest.raises(mlx_gardener.DataError, match="does not exist"):
        pipeline.start_training("small")
    assert pipeline.registry.latest_training("small") is None


@pytest.mark.usefixtures("known_home")
def test_a_result_completes_is_evaluated_and_exported_and_a_failed_try_takes_nothing_away(
    tiny_model_dir: Path, repository: Path, tmp_path: Path
) -> None:
    config = tiny_settings(tiny_model_dir)
    result = mlx_gardener.train(repository, config=config, show_progress=False)
    code = (repository / "tools" / "basket_0.py").read_text()
    written = result.complete(code[:200], code[260:], path="tools/basket_0.py", max_tokens=12)
    assert written.text and str(written) == written.text
    assert (default_home() / "projects" / "repository" / INDEX_NAME).exists(), "made by the training"
    assert result.complete(code[:200], path="tools/basket_0.py", max_tokens=2, retrieval="on").retrieved
    assert (written.project, written.version) == ("repository", "v1")
    place = {"path": "tools/basket_0.py", "max_tokens": 12, "version": "v1"}
    alone = mlx_gardener.complete("repository", code[:200], code[260:], with_adapter=False, **place)
    assert alone.version is None and alone.text != written.text
    assert mlx_gardener.complete("repository", code[:200], code[260:], **place) == written
    with pytest.raises(mlx_gardener.ConfigError, match="max_tokens"):
        result.complete("x", max_tokens=0)
    exported = result.export(tmp_path / "peft", "peft")
    assert (exported.directory / "adapter_model.safetensors").exists()
    again = result.evaluate(tasks=2, arms=["base", "adapter"])
    assert again.version == "v1" and again.file.is_file()
    assert again.evidence.to_json()["verdict"] in ("promote", "inconclusive", "reject")

    registry = ProjectRegistry()
    registry.activate_adapter("repository", "v1")  # whatever a few updates of a random model are judged to be
    with pytest.raises(mlx_gardener.MemoryBudgetError):
        mlx_gardener.train(
            repository,
            config=tiny_settings(tiny_model_dir, memory_limit_gb=0.01),
            fresh=True,
            show_progress=False,
        )
    assert registry.get_project("repository").status is TrainingStatus.COMPLETED
    latest = registry.latest_training("repository")
    assert latest is not None and latest.status is TrainingStatus.FAILED
    registry.activate_adapter("repository", None)
    assert registry.get_project("repository").status is TrainingStatus.COMPLETED  # it left nothing behind


def test_a_training_that_dies_without_a_reason_leaves_its_project_failed(repository: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    record = registry.begin_training("small", {})
    registry.finish_training(record.id, TrainingStatus.FAILED, "It is gone.", {})
    assert registry.get_project("small").status is TrainingStatus.FAILED
    error = registry.get_training(record.id).error
    assert type(error) is mlx_gardener.TrainingError and error.message == "It is gone."


@pytest.mark.usefixtures("known_home")
def test_what_is_kept_of_a_cancelled_training_is_said_only_where_it_is(
    tiny_model_dir: Path, repository: Path
) -> None:
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir))
    pipeline.registry.register_project("small", repository)
    pipeline.start_training("small")
    pipeline.cancel_training("small")  # long before its first update
    end = pipeline.wait_for_training_completion("small", timeout=WAIT)
    record = pipeline.registry.latest_training("small")
    assert record is not None and end.phase is TrainingPhase.CANCELLED, end.message
    assert "is kept" not in end.message and "no checkpoint yet" in end.message
    assert isinstance(pipeline.get_training_error("small"), mlx_gardener.TrainingCancelledError)
    (record.run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    assert what_is_kept(record.run_dir).endswith("`mlx-gardener train --resume --project small`.")


def test_the_shared_pipeline_takes_a_configuration_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gardener import api

    monkeypatch.setattr(api, "_pipeline", None)
    config = mlx_gardener.load_config(overrides={"model": "seedling", "lora.rank": 3})
    pipeline = mlx_gardener.get_training_pipeline(config)
    assert pipeline.config.lora.rank == 3
    assert mlx_gardener.get_training_pipeline() is pipeline and pipeline.config.lora.rank == 3
    other = config.model_copy(update={"seed": 7})
    assert mlx_gardener.get_training_pipeline(other) is pipeline and pipeline.config.seed == 7


def test_scan_and_plan_tell_what_the_commands_tell(tiny_model_dir: Path, repository: Path) -> None:
    config = tiny_settings(tiny_model_dir)
    found = mlx_gardener.scan(repository, config=config)
    assert found.refusal is None and found.scan.chunks_kept == found.to_json()["chunks_kept"] > 5
    planned = mlx_gardener.plan(repository, config=config)
    assert planned.estimate is not None and planned.estimate["tokens"] == found.estimate["tokens"]
    assert planned.plan.predicted_peak_bytes == found.estimate["peak_bytes"]
    assert mlx_gardener.plan(config=config).estimate is None
    assert not ProjectRegistry().exists  # nothing was written


def test_type_checkers_see_the_annotations() -> None:
    from importlib.resources import files

    assert files("mlx_gardener").joinpath("py.typed").is_file()


def test_every_public_name_is_seen_by_type_checkers_too() -> None:
    source = (Path(mlx_gardener.__file__)).read_text()
    for name in set(mlx_gardener.__all__) - {"__version__"}:
        assert getattr(mlx_gardener, name) is not None
        assert f"import {name} as {name}\n" in source


def test_all_events_errors_and_statuses_that_reach_users_are_exported() -> None:
    from mlx_gardener import events

    assert {cls.__name__ for cls in events.Event.__subclasses__()} <= set(mlx_gardener.__all__)
    for name in ("TrainingStatus", "TrainingTimeoutError", "ProgressCallback", "EventCallback"):
        assert name in mlx_gardener.__all__


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: mlx_gardener.load_config(overrides=[1]), "overrides"),
        (lambda: mlx_gardener.load_config(overrides={1: 2}), "overrides"),
        (lambda: mlx_gardener.load_config(5), "file"),
        (lambda: mlx_gardener.scan(5), "path"),
        (lambda: mlx_gardener.scan(".", config="x"), "config"),
        (lambda: mlx_gardener.plan(config={}), "config"),
        (lambda: mlx_gardener.models(".", 5), "places"),
        (lambda: mlx_gardener.complete(5, "x"), "project"),
        (lambda: mlx_gardener.complete("small", b"x"), "prefix"),
        (lambda: mlx_gardener.complete("small", "x", max_tokens="4"), "max_tokens"),
        (lambda: mlx_gardener.evaluate_adapter("small", tasks=True), "tasks"),
        (lambda: mlx_gardener.evaluate_adapter("small", arms="base"), "arms"),
        (lambda: mlx_gardener.evaluate_adapter("small", on_progress=5), "on_progress"),
        (lambda: mlx_gardener.export("small", 5), "destination"),
        (lambda: mlx_gardener.train(".", project=5), "project"),
        (lambda: mlx_gardener.train(".", on_event=5), "on_event"),
        (lambda: mlx_gardener.get_training_pipeline(5), "config"),
        (lambda: mlx_gardener.start_project_training(5), "project_name"),
        (lambda: mlx_gardener.ProjectRegistry(5), "home"),
        (lambda: mlx_gardener.ProjectRegistry().register_project(5, "."), "name"),
    ],
)
def test_an_argument_of_another_type_is_named_before_anything_is_done(
    call: Callable[[], object], name: str, home: Path
) -> None:
    with pytest.raises(TypeError, match=rf"{name} is to be "):
        call()
    assert not home.exists()


@pytest.mark.parametrize("place", ["a\0b", ""])
def test_a_place_that_no_file_can_have_is_named(place: str) -> None:
    for call in (
        mlx_gardener.train,
        mlx_gardener.scan,
        mlx_gardener.plan,
        mlx_gardener.models,
        mlx_gardener.load_config,
        mlx_gardener.ProjectRegistry,
        lambda path: mlx_gardener.export("small", path),
        lambda path: mlx_gardener.ProjectRegistry().register_project("small", path),
    ):
        with pytest.raises(ConfigError, match=r"holds a NUL|is empty"):
            call(place)


def test_a_name_with_a_nul_is_an_error_everywhere_else(tmp_path: Path) -> None:
    for call in (
        lambda: mlx_gardener.plan(model="a\0b"),
        lambda: mlx_gardener.CodePreprocessor().preprocess_file("a\0b"),
        lambda: mlx_gardener.ProjectRegistry().backup(tmp_path / "a\0b"),
        lambda: mlx_gardener.ProjectRegistry().get_project("a\0b"),
    ):
        with pytest.raises(GardenerError):
            call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mlx_gardener.TrainingConfig(1), r"TrainingConfig takes its settings by name.*TrainingConfig\(model="),
        (lambda: mlx_gardener.LoraConfig(8), r"LoraConfig\(rank="),
        (lambda: mlx_gardener.TrainingConfig(model=""), "model: "),
        (lambda: mlx_gardener.evaluate_adapter("small", tasks=-1), "tasks is -1"),
    ],
)  # fmt: skip
def test_an_impossible_value_of_the_right_type_is_a_config_error(
    call: Callable[[], object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        call()
