"""What a worker does with what an earlier one left in the same run: checkpoints, a plan, half an adapter, a result.

A worker can die anywhere: while it trains, while an adapter is written, between its renaming and its registration, and
between that and the worker's last word. Whatever it was, the next worker ends with one adapter, registered once.
Cost: hashing the base's weights once more, where there is a checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_gardener.config import TrainingConfig
from mlx_gardener.errors import AdapterError, RegistryError
from mlx_gardener.events import TrainingPhase, WarningRaised
from mlx_gardener.platform.files import write_whole
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_json
from mlx_gardener.registry.remnants import clear_run
from mlx_gardener.runs.context import Run
from mlx_gardener.runs.job import Resume
from mlx_gardener.runs.result import RunResult

if TYPE_CHECKING:
    from mlx_gardener.dataset import PreparedData
    from mlx_gardener.engine import Plan
    from mlx_gardener.model import ModelChoice
    from mlx_gardener.training.checkpoint import Origin

RESULT_NAME = "result.json"


def look_for_checkpoints(run: Run, choice: ModelChoice, data: PreparedData) -> Origin | None:
    """What an earlier worker left to go on from; None where the training begins at step 0."""
    from mlx_gardener.model import resolve_model
    from mlx_gardener.model.load import weights_sha256
    from mlx_gardener.training.checkpoint import newest_origin, set_aside

    found = None if run.resume is Resume.NEVER else newest_origin(run.checkpoints)
    if found is None:
        return None
    step, origin = found
    same = (origin.data_sha256, origin.base_sha256) == (
        data.data_sha256,
        weights_sha256(resolve_model(choice)),
    )
    if run.resume is Resume.IF_SAME and not same:
        aside = set_aside(run.checkpoints)
        (run.directory / RESULT_NAME).unlink(missing_ok=True)
        run.publish(
            WarningRaised(
                f"The repository or the base model has changed since the checkpoint of step {step}, so the training "
                f"begins anew. The old checkpoints are in {aside.name}, in the run's directory."
            )
        )
        return None
    run.tell(TrainingPhase.STARTING_TRAINING, 0.0, f"Going on from the checkpoint of step {step}", step=step)
    return origin


def plan_of(earlier: Origin | None, config: TrainingConfig) -> Plan | None:
    """The plan of the run that is gone on with; None when there is none, or it is one for another budget or version."""
    from mlx_gardener.engine import Plan

    if earlier is None or earlier.plan.get("budget_bytes") != config.memory_limit_bytes:
        return None
    return Plan.from_json(earlier.plan)


def keep_result(run: Run, result: RunResult) -> None:
    """Write down what is about to be registered."""
    try:
        write_whole(run.directory / RESULT_NAME, json.dumps(result.to_json()))
    except OSError as error:
        raise AdapterError(
            f"The result of the run cannot be written ({error.strerror}).",
            next_step="Free disk space first.",
        ) from error


def _kept_result(run: Run) -> RunResult | None:
    """What `keep_result` wrote in this run, if it did."""
    if run.resume is Resume.NEVER:
        return None
    try:
        return RunResult.from_json(read_json(run.directory / RESULT_NAME, follow_links=False))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RegistryError) as error:
        why = "it is no result" if isinstance(error, RegistryError) else reason_of(error)
        run.publish(WarningRaised(f"The {RESULT_NAME} of an earlier worker is damaged ({why}); passed over."))
        return None


def already_registered(run: Run) -> RunResult | None:
    """The result of a worker that died after its adapter was registered and before it could say so."""
    from mlx_gardener.adapter.manifest import read_manifest

    result = _kept_result(run)
    if result is None:
        return None
    try:
        adapter = run.registry.get_adapter(run.project.name, result.adapter_version)
        manifest = read_manifest(adapter.directory)
    except (RegistryError, AdapterError):
        return None  # not registered, or since removed: the adapter is written again
    is_ours = manifest["training"] == result.training and manifest["metrics"] == result.metrics
    return replace(result, cancelled_late=False) if is_ours else None


def clear_away(run: Run) -> None:
    """Delete what earlier workers of this project left half written, and the adapter that one of this run did not register.

    What cannot be deleted is in nobody's way, and tried again by the next training, `registry gc` and `registry repair`.
    """
    try:
        clear_run(run.directory)
        run.registry.sweep(run.project.name)
        result = _kept_result(run)
        if result is not None:  # renamed into place, and not registered: `already_registered` says so
            known = {record.version for record in run.registry.list_adapters(run.project.name)}
            if result.adapter_version not in known:
                adapters = run.registry.project_directory(run.project.name) / "adapters"
                run.registry.discard(adapters / result.adapter_version)
    except (OSError, RegistryError) as error:
        run.publish(
            WarningRaised(
                f"What an earlier training left half written could not be deleted ({reason_of(error)})."
            )
        )
