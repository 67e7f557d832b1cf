"""A project whose adapter's evidence speaks for retrieval, and what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from mlx_gardener.adapter import ManifestDetails
from mlx_gardener.config import LoraConfig
from mlx_gardener.evaluate.retrieval import Retriever
from mlx_gardener.model import BaseModel, load_base
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.indexed import index_rules, kept_index, update_index
from tests.support.adapters import make_adapter
from tests.support.repositories import write_repository

CONFIG = {"training_data_quality_threshold": 0.1, "data": {"exclude": ["web/"]}}
LIMIT = 300
ASKED = "class Timber9:\n    def compare_walnut_3(self, amount, limit=9):\n        "


def evidence(adapter: float = 1.2, both: float = 1.1) -> dict[str, Any]:
    arms = {"adapter": adapter, "adapter_bm25": both}
    told = [{"name": name, "metrics": {"bits_per_byte": value}} for name, value in arms.items()]
    return {
        "arms": told,
        "comparisons": [],
        "metrics": {},
        "files": [],
        "work": {"context_tokens": LIMIT},
    }


class World:
    """A project with an adapter whose evidence speaks for retrieval, or not."""

    def __init__(self, root: Path, model: Path) -> None:
        self.tree = write_repository(root / "code")
        self.registry = ProjectRegistry()
        self.registry.register_project("small", self.tree)
        training = self.registry.begin_training("small", {"model": str(model)})
        self.registry.finish_training(training.id, TrainingStatus.COMPLETED, "Done", {})
        self.base: BaseModel = load_base(str(model))

    def adapter(self, told: dict[str, Any], *, seed: int = 1) -> None:
        details = ManifestDetails(CONFIG, {}, {}, told, {}, {})
        make_adapter(self.registry, "small", self.base, LoraConfig(rank=4), seed=seed, details=details)

    def indexed(self) -> None:
        update_index(self.registry, "small", index_rules(self.registry, "small"))

    @property
    def retriever(self) -> Retriever:
        index = kept_index(self.registry, "small", index_rules(self.registry, "small"))
        assert index is not None
        return Retriever(index, self.base.tokenizer, limit_tokens=LIMIT)


def infill(address: str, prefix: str = ASKED, suffix: str = "\n", **more: Any) -> httpx.Response:
    body = {"input_prefix": prefix, "input_suffix": suffix, "path": "core/new.py", "n_predict": 4, **more}
    return httpx.post(f"{address}/infill", json=body, timeout=300)


def told(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-gardener-retrieval"]
