"""An adapter of a tiny model that is measured against its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_gardener.adapter import LoadedAdapter, attach_adapter
from mlx_gardener.config import TrainingConfig
from mlx_gardener.dataset import PreparedData, TrainingDataPreparator
from mlx_gardener.engine import Engine, make_plan, model_facts, prepare_engine
from mlx_gardener.engine.speed import TWO_CORES
from mlx_gardener.evaluate import Evidence, compare
from mlx_gardener.events import EventBus
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.model.lora import AdapterSettings, attach_lora, detach_lora, lora_parameters
from mlx_gardener.training import train
from tests.support.trainings import tiny_settings


class World:
    """A repository's data, a base and an engine, and what can be done with them."""

    def __init__(self, model: str, root: Path, home: Path, **more: object) -> None:
        self.config: TrainingConfig = tiny_settings(
            Path(model), **{"evaluation.tasks": 3, "engine.dry_run": False, **more}
        )
        self.home = home
        self.base: BaseModel = load_base(model)
        self.data: PreparedData = TrainingDataPreparator(
            self.config, tokenizer=self.base.tokenizer, cache_dir=home / "tokens"
        ).prepare(root)
        facts, backend = model_facts(self.base.path), TWO_CORES  # no answer depends on speeds
        plan = make_plan(facts, self.config, self.config.memory_limit_bytes, backend)
        self.engine: Engine = prepare_engine(
            self.base, plan, self.config, facts=facts, backend=backend, warn=print
        )

    def random_adapter(self, size: float) -> LoadedAdapter:
        """An adapter that learned nothing: noise of this size in both of its factors."""
        targets = attach_lora(self.base.model, self.config.lora, seed=3)
        mx.random.seed(5)
        weights = {
            name: mx.random.normal(value.shape) * size
            for name, value in lora_parameters(self.base.model).items()
        }
        mx.eval(weights)
        detach_lora(self.base.model)
        return LoadedAdapter(weights, AdapterSettings.of(targets, self.config.lora), {}, Path("noise"))

    def trained(self, data: PreparedData, steps: int, directory: Path) -> LoadedAdapter:
        """An adapter trained on ``data`` for so many updates."""
        optimizer = self.config.optimizer.model_copy(update={"max_steps": steps, "epochs": 100.0})
        evaluation = self.config.evaluation.model_copy(update={"patience": 1000, "per_epoch": 1})
        outcome = train(
            self.base,
            data,
            self.config.model_copy(update={"optimizer": optimizer, "evaluation": evaluation}),
            self.engine,
            publish=EventBus().publish,
            interrupt=lambda: None,
            checkpoint_dir=directory,
            resume=False,
        )
        return LoadedAdapter(outcome.weights, outcome.settings, {}, directory)

    def learn(self, steps: int, directory: Path) -> None:
        """Make the base one that knows the repository, by an adapter that is fused into it."""
        with attach_adapter(self.base, self.trained(self.data, steps, directory)):
            fused = [
                (name, module.fuse())
                for name, module in self.base.model.named_modules()
                if hasattr(module, "fuse")
            ]
        self.base.model.update_modules(tree_unflatten(fused))

    def evidence(self, adapter: LoadedAdapter, **more: Any) -> Evidence:
        options: dict[str, Any] = {"training_tokens": 2000, "on_progress": lambda share, message: None}
        return compare(
            self.base, adapter, self.data, self.config, self.engine,
            **{"cache_dir": self.home / "answers", "interrupt": lambda: None, **options, **more},
        )  # fmt: skip
