"""Is what is served what evidence measured? The same places, asked of a real server over HTTP and of the evaluation, answer by answer.

    python benchmarks/served_equals_measured.py PATH MODEL [--prompts 200] [--name smollm2]

A copy of the repository is prepared as a training does it, with held-out files. The evaluation answers next lines, lines that
need another file, assertions and spans of these, batched, with its index of the training part: base, base + retrieval, adapter,
adapter + retrieval. Then the held-out files are deleted, so that the served index holds the same, and a server is asked for every
place as an editor does: ``/v1/completions`` with the text up to the caret and the path, ``/infill`` for spans; the base is the
adapter at strength 0. The adapter is noise, large enough to change answers: whether both sides use it alike does not depend on
what it learned. Compared is what the evaluation looks at: the line, the value, or the whole filled span. Writes
``results/served_equals_measured_NAME.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx

import mlx_gardener  # noqa: F401  first: opens the fast BLAS
from mlx_gardener.adapter import LoadedAdapter, ManifestDetails, PeftManager, attach_adapter
from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.dataset import (
    PreparedData,
    TrainingDataPreparator,
    assertion_tasks,
    cross_file_tasks,
    fim_tasks,
    names_defined,
    next_line_tasks,
)
from mlx_gardener.engine import load_engine, prepare_model
from mlx_gardener.evaluate.complete import whole_characters
from mlx_gardener.evaluate.generate import Answer
from mlx_gardener.evaluate.measure import Bench, line_of, value_of
from mlx_gardener.evaluate.retrieval import Retriever, training_index
from mlx_gardener.evaluate.work import Work, decide_work
from mlx_gardener.model import BaseModel, load_tokenizer
from mlx_gardener.model.lora import AdapterSettings, attach_lora, detach_lora, lora_parameters
from mlx_gardener.platform.kept import KeptValues
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.indexed import index_rules, update_index
from mlx_gardener.serve import ServeSettings
from mlx_gardener.serve.server import serving

PROJECT = "measured"
#: The adapter's size, as a share of a weight that training would give it.
NOISE = 0.02
ARMS = ("base", "base_bm25", "adapter", "adapter_bm25")


def drawn(data: PreparedData, count: int, seed: int, *, can_fill: bool) -> dict[str, list[Any]]:
    """``count`` tasks, of each kind about as many as there are of the others; no spans where the base has no markers."""
    defined = names_defined(data.scan.files, data.split.train)
    kinds: dict[str, Callable[[int], list[Any]]] = {
        "assertions": lambda most: assertion_tasks(data.test_excerpts, most, seed=seed),
        "cross_file": lambda most: cross_file_tasks(data.test_excerpts, most, defined, seed=seed),
        "spans": lambda most: fim_tasks(data.test_excerpts, most, seed=seed),
        "lines": lambda most: next_line_tasks(data.test_excerpts, most, seed=seed),
    }
    if not can_fill:
        del kinds["spans"]
    found: dict[str, list[Any]] = {}
    for number, (kind, draw) in enumerate(kinds.items()):
        left = count - sum(map(len, found.values()))
        found[kind] = draw(left // (len(kinds) - number))
    return found


def noise(base: BaseModel, config: TrainingConfig) -> LoadedAdapter:
    """An adapter that learned nothing."""
    import mlx.core as mx

    targets = attach_lora(base.model, config.lora, seed=3)
    mx.random.seed(5)
    weights = {
        name: mx.random.normal(value.shape).astype(value.dtype) * NOISE
        for name, value in lora_parameters(base.model).items()
    }
    mx.eval(weights)
    detach_lora(base.model)
    return LoadedAdapter(weights, AdapterSettings.of(targets, config.lora), {}, Path("noise"))


def shown(kind: str, task: Any, text: str) -> str:
    """What the evaluation looks at of an answer."""
    answer = Answer(whole_characters(text), True, ())
    if kind == "spans":
        return answer.text
    return value_of(answer, task) if kind == "assertions" else line_of(answer)


def measured(
    bench: Bench, tasks: dict[str, list[Any]], work: Work, adapter: LoadedAdapter, retriever: Retriever
) -> dict[str, dict[str, list[str]]]:
    """Every arm's answers by kind, as the evaluation has them."""
    from contextlib import nullcontext

    found: dict[str, dict[str, list[str]]] = {}
    for arm in ARMS:
        asked = retriever if arm.endswith("_bm25") else None
        with attach_adapter(bench.base, adapter) if arm.startswith("adapter") else nullcontext():
            for kind, some in tasks.items():
                of = arm.partition("_")[0]
                answers = bench.task_answers(some, asked, work, of=of, tell=lambda share: None)
                found.setdefault(arm, {})[kind] = [
                    shown(kind, task, answer.text) for task, answer in zip(some, answers, strict=True)
                ]
    return found


def served(address: str, kind: str, task: Any, tokens: int, strength: float) -> tuple[str, bool]:
    """A server's answer, and whether it had retrieved code in front."""
    lora = [{"id": 0, "scale": strength}]
    if kind == "spans":
        sides = {"input_prefix": task.prefix, "input_suffix": task.suffix, "path": task.path}
        answer = httpx.post(
            f"{address}/infill", json={**sides, "n_predict": tokens, "lora": lora}, timeout=3600
        )
        text = answer.raise_for_status().json()["content"]
    else:
        body = {"prompt": task.prefix, "path": task.path, "max_tokens": tokens, "lora": lora}
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=3600)
        text = answer.raise_for_status().json()["choices"][0]["text"]
    return shown(kind, task, text), "chunk" in answer.headers["x-gardener-retrieval"]


def register(
    registry: ProjectRegistry, root: Path, base: BaseModel, adapter: LoadedAdapter, config: TrainingConfig, tokens: int
) -> None:  # fmt: skip
    """The adapter as a training would leave it, with evidence that says how much code was retrieved."""
    registry.register_project(PROJECT, root)
    training = registry.begin_training(PROJECT, {"model": config.model})
    registry.finish_training(training.id, TrainingStatus.COMPLETED, "Done", {})
    arms = [{"name": name, "metrics": {}} for name in ARMS]
    told = {"arms": arms, "comparisons": [], "work": {"context_tokens": tokens}}
    details = ManifestDetails(config.model_dump(mode="json"), {}, {}, told, {}, {})
    with PeftManager(registry).stage_adapter(
        PROJECT, adapter.weights, base=base, settings=adapter.settings
    ) as staged:
        staged.commit(details, model_card="", activate=True)


def measure(config: TrainingConfig, root: Path, home: Path, prompts: int) -> dict[str, Any]:
    """Differences between what is served and what is measured.

    Args:
        root: a copy of the repository, whose held-out files are deleted.
        home: of the registry and caches; ``MLX_GARDENER_HOME`` as well.
    """
    prepared = prepare_model(config, home / "cache")
    data = TrainingDataPreparator(
        config, tokenizer=load_tokenizer(prepared.path), cache_dir=home / "tokens"
    ).prepare(root)
    base, engine = load_engine(
        config.model, prepared.plan(config), config, facts=prepared.facts, backend=prepared.backend,
        warn=lambda message: print(message, file=sys.stderr), tell=lambda share, message: None,
    )  # fmt: skip
    # Time without end, as many tasks as are asked for: prompts as an evaluation has them that is not pressed.
    work = decide_work(
        config, training_tokens=10**9, windows=1, tasks=prompts, can_write=True, can_fill=True, other_kinds=2
    )
    tasks = drawn(data, prompts, config.seed, can_fill=base.tokenizer.markers is not None)
    retriever = Retriever(training_index(data), base.tokenizer, limit_tokens=work.context_tokens)
    adapter = noise(base, config)
    registry = ProjectRegistry()
    register(registry, root, base, adapter, config, work.context_tokens)
    began = time.monotonic()
    bench = Bench(base, engine, config, KeptValues(home / "answers"), lambda: None)
    wanted = measured(bench, tasks, work, PeftManager(registry).load_adapter(PROJECT), retriever)
    measured_seconds = time.monotonic() - began
    trained = {record.path for record in data.split.train}
    for record in data.scan.files:
        if record.path not in trained:
            (root / record.path).unlink()
    update_index(registry, PROJECT, index_rules(registry, PROJECT), processes=1)
    different, with_code = [], dict.fromkeys(ARMS, 0)
    began = time.monotonic()
    for wish in ("off", "on"):
        settings = ServeSettings(port=0, retrieval=wish, max_queued_seconds=3600.0)
        with serving(registry, settings) as address:
            for strength, model in ((0.0, "base"), (1.0, "adapter")):
                arm = f"{model}_bm25" if wish == "on" else model
                for kind, some in tasks.items():
                    for task, expected in zip(some, wanted[arm][kind], strict=True):
                        found, retrieved = served(address, kind, task, work.new_tokens, strength)
                        with_code[arm] += retrieved
                        if found != expected:
                            place = f"{task.path}:{task.line}"
                            different.append(
                                {
                                    "arm": arm,
                                    "kind": kind,
                                    "place": place,
                                    "measured": expected,
                                    "served": found,
                                }
                            )
    registry.close()
    flat = {arm: [text for texts in kinds.values() for text in texts] for arm, kinds in wanted.items()}
    return {
        "model": config.model if "/" not in config.model else Path(config.model).name,
        "prompts": {kind: len(some) for kind, some in tasks.items()},
        "prompt_tokens": list(work.prompt_tokens),
        "answers": sum(map(len, flat.values())),
        "with_retrieved_code": with_code,
        "answers_that_the_adapter_changes": sum(
            one != other for one, other in zip(flat["base"], flat["adapter"], strict=True)
        ),
        "different": len(different),
        "different_examples": different[:10],
        "measured_seconds": round(measured_seconds, 1),
        "served_seconds": round(time.monotonic() - began, 1),
    }


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("model")
@click.option("--prompts", default=200, show_default=True)
@click.option("--name", default="seedling", show_default=True)
def main(path: Path, model: str, prompts: int, name: str) -> None:
    """Compare, and write the result."""
    from machine import bar, describe, save

    machine = describe()
    with tempfile.TemporaryDirectory() as scratch:
        root, home = Path(scratch) / path.resolve().name, Path(scratch) / "home"
        shutil.copytree(path, root, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
        os.environ["MLX_GARDENER_HOME"] = str(home)
        config = load_config(overrides={"model": model, "data.split": "files"})
        found = measure(config, root, home, prompts)
    machine["load_after"] = [round(load, 2) for load in os.getloadavg()]
    bars = [
        bar(
            "answers that differ", "the evaluation's", "0", f"{found['different']} of {found['answers']}",
            found["different"] == 0,
        )
    ]  # fmt: skip
    print(json.dumps(found, indent=2))
    print("wrote", save(f"served_equals_measured_{name}", {"machine": machine, "bars": bars, **found}))


if __name__ == "__main__":
    main()
