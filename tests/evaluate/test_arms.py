"""Arms, guards and verdicts on a tiny real model: what is planted is found."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import mlx_gardener
from mlx_gardener.adapter import LoadedAdapter
from mlx_gardener.errors import TimeLimitError, TrainingCancelledError
from mlx_gardener.evaluate import Control, Evidence
from mlx_gardener.evaluate.rows import make_windows
from mlx_gardener.evaluate.work import decide_work
from mlx_gardener.model.lora import load_arrays
from mlx_gardener.report.arms_view import show_details
from mlx_gardener.training.checkpoint import list_checkpoints
from tests.support.evaluations import World
from tests.support.repositories import write_repository, write_tests


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> World:
    place = tmp_path_factory.mktemp("arms")
    repository = write_repository(place / "repository", modules=24)
    write_tests(repository)
    return World(str(tiny_model_dir), repository, place / "home")


class Limit:
    """Lets so many looks pass, then says that the time is over, or what it is told to."""

    def __init__(self, looks: int, error: Exception | None = None) -> None:
        self.left, self.error = looks, error or TimeLimitError("over")
        self.seen = 0

    def __call__(self) -> None:
        self.seen += 1
        if self.seen > self.left:
            raise self.error


@dataclass(frozen=True)
class Whole:
    """An evaluation of noise that nothing cut, with all arms: its evidence, how often it looked, and the progress that it told."""

    adapter: LoadedAdapter
    control: Control
    evidence: Evidence
    looks: int
    shares: list[float]

    @property
    def told(self) -> str:
        return told(self.evidence)


def told(found: Evidence) -> str:
    return json.dumps(found.to_json(with_source=True), sort_keys=True)


@pytest.fixture(scope="module")
def whole(world: World) -> Whole:
    adapter, control = world.random_adapter(0.05), Control("other/v1", world.random_adapter(0.5))
    limit, shares = Limit(10**9), list[float]()
    found = world.evidence(
        adapter,
        control=control,
        interrupt=limit,
        on_progress=lambda share, message: shares.append(share),
    )
    return Whole(adapter, control, found, limit.seen, shares)


def test_a_planted_useless_adapter_is_rejected(tmp_path: Path, tiny_model_dir: Path) -> None:
    """A random base cannot become worse, so what it learned of the repository is fused into it first."""
    repository = write_repository(tmp_path / "repository", modules=20, functions=3)
    settings = {"evaluation.arms": ["base", "adapter"], "data.test_fraction": 0.3}
    knowing = World(str(tiny_model_dir), repository, tmp_path / "home", **settings)
    knowing.learn(25, tmp_path / "run")
    found = knowing.evidence(knowing.random_adapter(0.5))
    assert found.metrics["bits_per_byte_change"] > 0.05
    assert found.verdict == "reject", found.reason


@pytest.mark.slow
def test_noise_on_the_embedded_model_is_rejected_and_forgets(tmp_path: Path) -> None:
    small = {
        "data.sequence_lengths": [256], "evaluation.arms": ["base", "adapter"], "evaluation.tasks": 0,
    }  # fmt: skip
    repository = write_repository(tmp_path / "repository", modules=9, functions=3)
    knowing = World("seedling", repository, tmp_path / "home", **small)
    noise = knowing.random_adapter(0.3)
    found = knowing.evidence(noise)
    assert found.metrics["bits_per_byte_change"] > 0
    assert found.verdict == "reject", found.reason
    forgetting = found.guards[0]
    assert not forgetting.passed and (forgetting.measured or 0) > 0.1, "it wrecks other code too"


def test_all_arms_are_measured_on_the_same_tasks_and_twice_the_same(world: World, whole: Whole) -> None:
    first = whole.evidence
    assert [arm.name for arm in first.arms] == ["base", "base_bm25", "adapter", "adapter_bm25", "control"]
    assert first.arms[-1].title == "adapter of other/v1"
    wanted = {
        "bits_per_byte",
        "next_line_exact",
        "next_line_similarity",
        "read_line_exact",
        "read_cross_file_exact",
        "cross_file_exact",
        "cross_file_similarity",
        "cross_file_f1",
        "assertion_exact",
        "assertion_similarity",
        "fim_exact",
        "fim_similarity",
        "fim_parse_ok",
        "stop_rate",
        "answers_exact",
        "answers_similarity",
        "answers_f1",
    }
    assert all(wanted <= set(arm.metrics) for arm in first.arms)
    base, retrieval = first.arms[0].metrics, first.arms[1].metrics
    assert base["bits_per_byte"] != retrieval["bits_per_byte"]
    pairs = {(found.arm, found.against) for found in first.comparisons if found.metric == "bits_per_byte"}
    assert {("adapter", "base"), ("base_bm25", "adapter"), ("adapter", "control")} <= pairs
    assert {guard.name for guard in first.guards} == {"forgetting", "memorisation", "parse_ok"}
    assert first.power is not None and first.power.files_seen == len(first.files)
    assert {sample.kind for sample in first.samples} <= {"next_line", "cross_file", "assertion", "fim"}
    assert first.work["cross_file_tasks"] == first.work["assertion_tasks"] == 3
    every = next(found for found in first.comparisons if found.metric == "answers_exact")
    assert first.answers_power is not None and first.answers_power.tasks == every.tasks <= 12
    assert (0 < first.answers_power.told <= 1 and "Its answers" in first.reason) or first.answers == "unclear"
    gains = [sample.gain for sample in first.samples]
    assert gains == sorted(gains, reverse=True)
    shares = list[float]()
    again = world.evidence(
        whole.adapter, control=whole.control, on_progress=lambda share, message: shares.append(share)
    )
    assert told(again) == whole.told, "the second one took all answers from the store"
    assert not shares, "what is known takes no time and foretells none"


@pytest.mark.parametrize(
    "more", [(), ("adapter_bm25",), ("base_bm25",), ("control",), ("adapter_bm25", "control")]
)
def test_any_arms_beside_base_and_adapter_can_be_chosen(
    world: World, whole: Whole, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Adapter + retrieval without base + retrieval ended in a traceback: a stage is named after its first arm."""
    evaluation = world.config.evaluation.model_copy(update={"arms": ("base", "adapter", *more)})
    monkeypatch.setattr(world, "config", world.config.model_copy(update={"evaluation": evaluation}))
    found = world.evidence(whole.adapter, control=whole.control if "control" in more else None)
    assert {arm.name for arm in found.arms} == {"base", "adapter", *more}
    known = {arm.name: arm.metrics["bits_per_byte"] for arm in whole.evidence.arms}
    assert all(arm.metrics["bits_per_byte"] == known[arm.name] for arm in found.arms)
    show_details(Console(file=(shown := StringIO())), found.to_json())
    assert found.reason and "bits per byte" in shown.getvalue()


def test_without_a_control_its_arm_is_absent(world: World) -> None:
    found = world.evidence(world.random_adapter(0.05), notes=["No control: there is none."])
    assert "control" not in {arm.name for arm in found.arms} and "No control: there is none." in found.notes


def test_no_source_leaves_with_the_manifest(world: World) -> None:
    found = world.evidence(world.random_adapter(0.05))
    told = found.to_json()
    assert all("context" not in sample and "expected" not in sample for sample in told["samples"])


def test_test_files_named_among_the_trained_ones_fail_the_guard(world: World) -> None:
    path = world.data.split.test[0].path
    found = world.evidence(world.random_adapter(0.05), trained_on_test=[path])
    assert found.verdict == "reject" and path in found.reason and "were trained on" in found.reason


@pytest.mark.slow
def test_an_adapter_trained_on_the_test_files_gives_itself_away(tmp_path: Path) -> None:
    """On real code and the embedded model, without any record of what was trained on: it gains where it must not."""
    small = {
        "data.sequence_lengths": [256], "evaluation.arms": ["base", "adapter"], "evaluation.tasks": 4,
        "optimizer.learning_rate": 3e-3,
        "optimizer.tokens_per_update": 1024, "lora.rank": 16,
    }  # fmt: skip
    source = Path(mlx_gardener.__file__).parent / "source"
    repository = shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__"))
    world = World("seedling", repository, tmp_path / "home", **small)
    found = {}
    for part in ("train", "test"):
        data = replace(world.data, train=getattr(world.data, part))
        world.trained(data, 40, tmp_path / part)
        last = load_arrays(list_checkpoints(tmp_path / part)[-1] / "weights.safetensors")
        adapter = replace(world.random_adapter(0.01), weights=last)
        evidence = world.evidence(adapter)
        print(part, evidence.metrics, evidence.guards)
        found[part] = next(guard for guard in evidence.guards if guard.name == "memorisation")
    assert found["train"].passed, found["train"].reason
    assert not found["test"].passed and "as if it had been trained on the test" in found["test"].reason


def test_an_evaluation_that_is_cut_says_what_is_missing_and_goes_on_where_it_stopped(
    world: World, whole: Whole
) -> None:
    """Both take nothing from the store of the whole one: the same comes out of the same work done again."""
    expected = whole.evidence
    assert whole.shares == sorted(whole.shares) and whole.shares[-1] == 1.0

    def evidence(limit: Limit) -> Evidence:
        return world.evidence(
            whole.adapter, control=whole.control, interrupt=limit, cache_dir=world.home / "cut"
        )

    found = evidence(Limit(whole.looks // 2))
    assert found.verdict == expected.verdict and found.comparisons[0] == expected.comparisons[0]
    assert "Not measured, as the time was over" in found.notes[-1] and "retrieval" in found.notes[-1]
    assert len(found.comparisons) < len(expected.comparisons)
    again = evidence(rest := Limit(10**9))
    assert told(again) == whole.told and rest.seen < whole.looks


def test_one_that_is_cut_at_once_is_unmeasured(world: World) -> None:
    cancelled = Limit(0, TrainingCancelledError("stop"))
    found = world.evidence(world.random_adapter(0.06), interrupt=cancelled, cache_dir=world.home / "at once")
    assert found.verdict == "unmeasured" and not found.metrics and "cancelled" in found.notes[-1]
    assert found.reason == "It was not measured on files that it never saw."
    assert found.to_json()["verdict"] == "unmeasured"


def test_the_work_fits_into_the_time_that_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = list[float]()

    def in_ten_minutes() -> Evidence:
        return world.evidence(
            world.random_adapter(0.05), training_tokens=10**6, seconds=600.0, forward_tokens_per_second=20.0,
            on_progress=lambda share, message: shares.append(share),
        )  # fmt: skip

    excerpts, width = world.data.test_excerpts, world.config.data.sequence_lengths[-1]
    windows = len(make_windows(excerpts, world.base.tokenizer, width))
    roomy = decide_work(world.config, training_tokens=10**6, windows=windows, tasks=None, can_write=True)
    used = in_ten_minutes()  # of a base that is much faster than was foretold
    assert shares == sorted(shares) and 0.7 < shares[-1] <= 1.0, "nothing that was shown is taken back"
    monkeypatch.setattr(
        sys.modules["mlx_gardener.evaluate.compare"], "room_for_more", lambda took, left_seconds: 0.0
    )
    tight = in_ten_minutes()
    # What time is left is used for more of the same, with the same work in every arm.
    assert used.work["rows"] > tight.work["rows"]
    assert used.work["row_tokens"] == tight.work["row_tokens"] and not any(
        "Not measured" in note for note in used.notes
    )
    assert {len(arm.metrics) for arm in used.arms} == {len(used.arms[0].metrics)}
    assert tight.work["rows"] < roomy.rows and tight.work["guard_share"] < 1
    assert "fit into the time" in tight.work["reason"] and tight.metrics
