"""What is measured of versions, on changed files and on a forgotten path: by the engine, within the budget of the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from mlx_gardener.adapter import PeftManager, attach_adapter
from mlx_gardener.adapter.base import load_adapter_engine
from mlx_gardener.config import LoraConfig, TrainingConfig
from mlx_gardener.engine import Engine
from mlx_gardener.errors import MemoryBudgetError
from mlx_gardener.evaluate.complete import build_prompt
from mlx_gardener.evaluate.metrics import bits_per_byte
from mlx_gardener.lifecycle import forgetting
from mlx_gardener.lifecycle.forgetting import SHOWN_TOKENS, VERBATIM_TOKENS, verbatim_rate
from mlx_gardener.lifecycle.staleness import bits_per_byte_of
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.runs.manager import TrainingPipeline
from tests.registry.worlds import install_adapter
from tests.support.adapters import project_with
from tests.support.trainings import tiny_settings

pytestmark = pytest.mark.usefixtures("known_home")
TEXTS = {
    "src/long.py": "".join(f"def value_{at}(first):\n    return first * {at}\n\n" for at in range(60)),
    "src/short.py": "VALUE = 3\n",
    "src/empty.py": "",
}


@pytest.fixture
def manager(tiny_model_dir: Path, repository: Path) -> PeftManager:
    return project_with(load_base(str(tiny_model_dir)), repository, LoraConfig(rank=4), size=0.2)


def loaded(manager: PeftManager, config: TrainingConfig) -> tuple[BaseModel, Engine]:
    registry = manager.registry
    return load_adapter_engine(registry, registry.get_adapter("web"), manager.load_adapter("web"), config)


def by_full_logits(base: BaseModel, width: int) -> float:
    """Bits per byte by the model's own call, window after window."""
    loss = 0.0
    for path, text in TEXTS.items():
        opening, ids = build_prompt(base.tokenizer, "", None, path), base.tokenizer.encode(text)
        step = width - len(opening)
        for at in range(0, len(ids), step):
            window = [*opening, *ids[at : at + step]]
            logits = base.model(mx.array([window[:-1]]))[0, len(opening) - 1 :].astype(mx.float32)
            own = mx.take_along_axis(logits, mx.array(window[len(opening) :])[:, None], axis=-1)[:, 0]
            loss += float(np.array(mx.logsumexp(logits, axis=-1) - own).sum())
    return bits_per_byte(loss, sum(len(text.encode()) for text in TEXTS.values()))


def test_the_engine_gives_the_bits_per_byte_that_full_logits_give(
    manager: PeftManager, tiny_model_dir: Path
) -> None:
    base, engine = loaded(manager, tiny_settings(tiny_model_dir))
    plain = by_full_logits(base, 128)
    assert bits_per_byte_of(base, engine, TEXTS, (64, 128)) == pytest.approx(plain, rel=1e-5)
    with attach_adapter(base, manager.load_adapter("web")):
        adapted = by_full_logits(base, 128)
        assert bits_per_byte_of(base, engine, TEXTS, (64, 128)) == pytest.approx(adapted, rel=1e-5)
    assert adapted != pytest.approx(plain, rel=1e-3)


def test_places_that_go_on_verbatim_are_those_of_greedy_writing(
    manager: PeftManager, tiny_model_dir: Path
) -> None:
    """A file that is what the base writes itself goes on verbatim; one that is not does not."""
    base, engine = loaded(manager, tiny_settings(tiny_model_dir))
    opening = build_prompt(base.tokenizer, "", None, "own.py")
    ids = base.tokenizer.encode(TEXTS["src/long.py"])[:SHOWN_TOKENS]
    written = generate_step(mx.array(opening + ids), base.model, max_tokens=VERBATIM_TOKENS)
    text = base.tokenizer.decode(ids + [int(token) for token, _ in written])
    same = base.tokenizer.encode(text) == ids + base.tokenizer.encode(text)[SHOWN_TOKENS:]
    assert same and 0 < verbatim_rate(base, engine, {"own.py": text + "\n"}) <= 1
    assert verbatim_rate(base, engine, {"src/long.py": TEXTS["src/long.py"]}) == 0
    assert verbatim_rate(base, engine, {"src/empty.py": ""}) == 0


def test_base_and_version_are_measured_within_the_budget(manager: PeftManager, tiny_model_dir: Path) -> None:
    settings = tiny_settings(tiny_model_dir)
    recall, others = forgetting._recall(manager.registry, "web", ["v1"], TEXTS, settings)
    assert [item.who for item in recall] == ["base", "v1"] and others == {}
    assert recall[0].bits_per_byte != recall[1].bits_per_byte
    with pytest.raises(MemoryBudgetError):
        loaded(manager, settings.model_copy(update={"memory_limit_gb": 0.05}))


def test_nothing_is_written_with_weights_that_are_read_from_disk(
    manager: PeftManager, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token reads them all, and then they would stay in memory: hours, or the budget passed."""
    settings = tiny_settings(tiny_model_dir)
    streaming = settings.model_copy(
        update={"engine": settings.engine.model_copy(update={"streamed_layers": 2})}
    )
    monkeypatch.setattr("mlx_gardener.adapter.base.validate_config", lambda told: streaming)
    monkeypatch.setattr(forgetting, "verbatim_rate", None)
    recall, _ = forgetting._recall(manager.registry, "web", ["v1"], TEXTS, settings)
    assert [item.verbatim for item in recall] == [None, None] and recall[0].bits_per_byte > 0
    assert forgetting._is_gone(recall, None, "v1") is None


def test_a_version_is_measured_as_it_was_trained_whatever_was_trained_last(
    manager: PeftManager, tiny_model_dir: Path
) -> None:
    settings = tiny_settings(tiny_model_dir)
    adapter, record = manager.load_adapter("web"), manager.registry.get_adapter("web")
    adapter = replace(adapter, manifest={**adapter.manifest, "config": settings.model_dump(mode="json")})
    last = settings.model_copy(
        update={"data": settings.data.model_copy(update={"sequence_lengths": (64, 2**20)})}
    )
    _, engine = load_adapter_engine(manager.registry, record, adapter, last)
    assert sorted(engine.plan.rows_of_width) == list(settings.data.sequence_lengths)


def test_what_knows_a_forgotten_path_is_active_no_more_also_where_nothing_can_be_measured(
    repository: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    path = next(file.relative_to(repository).as_posix() for file in sorted(repository.rglob("*.py")))
    install_adapter(registry, "small", "v1", learned_from={path: ["0", "train"]})
    install_adapter(registry, "small", "v2", learned_from={}, activate=False)

    def too_large(*_: object) -> None:
        raise MemoryBudgetError("It does not fit.", next_step="", least_bytes=1)

    monkeypatch.setattr(forgetting, "_recall", too_large)
    monkeypatch.setattr(
        forgetting, "completed_training", lambda *_: SimpleNamespace(result={"adapter_version": "v2"})
    )
    pipeline = TrainingPipeline(tiny_settings(tiny_model_dir), registry=registry)
    monkeypatch.setattr(pipeline, "start_training", lambda *_, **__: None)
    with pytest.raises(MemoryBudgetError):
        forgetting.forget(pipeline, "small", path, run=lambda: None)
    assert registry.get_project("small").active_adapter is None
