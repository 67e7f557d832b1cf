"""A rank other than 0: ``python -m mlx_gardener.runs.rank``, started by `mlx_gardener.runs.ranks`, or by `mlx.launch` as `train`.

In: from rank 0, over the group, the settings, the plan and the rows. Out: gradients of its share of every update. It
reads no repository, registry or checkpoint, and writes nothing, so that a host needs only this package and the base
model. `coordinate` is rank 0's side of the same talk. What both do after it is `training.loop`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.config import TrainingConfig, validate_config
from mlx_gardener.errors import GardenerError, OtherRankError, RankLostError
from mlx_gardener.platform.ending import end_at_once
from mlx_gardener.platform.lean_imports import import_lean
from mlx_gardener.platform.priority import lower_priority
from mlx_gardener.runs.ranks import BEAT_SECONDS, CONNECT_SECONDS

if TYPE_CHECKING:
    from mlx_gardener.dataset import PreparedData, RowSet
    from mlx_gardener.engine import Plan
    from mlx_gardener.model import BaseModel
    from mlx_gardener.training.parallel import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rows:
    """What rank 0 sent to train on."""

    train: RowSet
    validation: RowSet
    data_sha256: str
    continued_from: str | None


def coordinate(ranks: Ranks, config: TrainingConfig, model: str, plan: Plan) -> None:
    """Rank 0: tell the others what to do, so that they load the base while this one does.

    Raises:
        OtherRankError: one of them cannot.
        RankLostError: one of them is gone.
    """
    from mlx_gardener.platform.device import backend

    settings = config.model_dump(mode="json", exclude={"parallel"})
    orders = {"config": settings, "model": model, "plan": plan.to_json(), "backend": backend()}
    ranks.from_first(lambda: json.dumps(orders).encode())


def hand_out(ranks: Ranks, base: BaseModel, data: PreparedData) -> None:
    """Rank 0: see that all have the same base and versions, then send the rows.

    Raises:
        TrainingError: one has another base or version; says which.
        OtherRankError, RankLostError: as `coordinate`.
    """
    from mlx_gardener.training.parallel import pack_arrays

    if ranks.size == 1:
        return
    ranks.check_same(_facts(base))
    ranks.from_first(lambda: json.dumps([data.data_sha256, data.continued_from]).encode())
    ranks.from_first(lambda: pack_arrays(data.train.arrays()))
    ranks.from_first(lambda: pack_arrays(data.validation.arrays()))


def work(ranks: Ranks) -> None:
    """Any other rank: do what rank 0 says until the training has ended.

    Raises:
        OtherRankError: another rank had to stop; that is an end like any other.
        RankLostError: another rank is gone.
        GardenerError: this one had to stop, and has told the others why.
    """
    orders = json.loads(ranks.from_first(lambda: b""))
    try:
        config = validate_config(orders["config"])
        if config.throttling.low_priority:
            logger.info("priority: %s", lower_priority())
        _train(ranks, config, orders)
    except BaseException as error:
        ranks.leave(error)
        raise


def _train(ranks: Ranks, config: TrainingConfig, orders: dict[str, Any]) -> None:
    from safetensors.numpy import load

    from mlx_gardener.dataset.rows import RowSet
    from mlx_gardener.engine import Plan, load_engine, prepare_model
    from mlx_gardener.platform.device import backend
    from mlx_gardener.registry import default_home
    from mlx_gardener.training import train

    theirs = config.model_copy(update={"model": orders["model"]})  # chosen, where it was "auto"
    prepared = prepare_model(theirs, default_home() / "cache")
    # The same plan adds floats in the same order; other hardware needs one of its own.
    plan = Plan.from_json(orders["plan"]) if orders["backend"] == backend() else None
    plan = plan or prepared.plan(config)
    base, engine = load_engine(
        theirs.model, plan, config, facts=prepared.facts, backend=prepared.backend, warn=logger.warning
    )
    ranks.check_same(_facts(base))
    data_sha256, continued_from = json.loads(ranks.from_first(lambda: b""))
    rows = [RowSet.from_arrays(load(ranks.from_first(lambda: b""))) for _ in range(2)]
    with tempfile.TemporaryDirectory() as unused:
        train(
            base,
            _Rows(rows[0], rows[1], data_sha256, continued_from),
            config,
            engine,
            publish=lambda event: logger.info("%s", json.dumps(event.to_json(), ensure_ascii=True)),
            interrupt=lambda: None,
            checkpoint_dir=Path(unused),
            resume=False,
            ranks=ranks,
        )


def _facts(base: BaseModel) -> dict[str, str]:
    from mlx_gardener.platform.version import __version__

    return {
        "version of mlx_gardener": __version__,
        "version of mlx": version("mlx"),
        "version of mlx-lm": version("mlx-lm"),
        "base model": base.weights_sha256,
    }


def follow_launched(backend: str) -> None:
    """A rank that `mlx.launch` started: `work`, without a word where another rank's end is the reason of its own.

    Raises:
        GardenerError: as `work`, but for `OtherRankError`.
    """
    from mlx_gardener.training.parallel import Ranks

    try:
        work(Ranks.connect(backend, CONNECT_SECONDS))
    except OtherRankError as error:
        logger.info("%s", error)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point of a rank under a supervisor: exit code 0 when rank 0 or another ended the training, 1 else."""
    import_lean()
    orders = json.loads(sys.stdin.readline())
    rank = orders["environment"]["MLX_RANK"]
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s"
    )
    os.umask(0o077)
    os.environ.update(orders["environment"])
    try:
        from mlx_gardener.training.parallel import Ranks

        with tempfile.TemporaryDirectory() as scratch:
            for name, content in orders["files"].items():
                Path(scratch, name).write_text(content, encoding="utf-8")
                os.environ[name] = str(Path(scratch, name))
            _say("ready")
            if sys.stdin.readline().strip() != "go":
                return
            ranks = Ranks.connect(orders["backend"], CONNECT_SECONDS)
        _say("connected")
        threading.Thread(target=_beat, daemon=True).start()
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
        work(ranks)
    except OtherRankError as error:
        logger.info("%s", error)
    except GardenerError as error:
        logger.error("%s", error)
        _say(f"error {' '.join(error.in_terminal.split())}")
        end_at_once(os.EX_TEMPFAIL if isinstance(error, RankLostError) else 1)
    end_at_once(0)  # MLX's ring waits for ranks that are gone when it is taken down


def _beat() -> None:
    while True:
        _say("beat")
        time.sleep(BEAT_SECONDS)


def _end_with_supervisor() -> None:
    for _ in sys.stdin:
        pass
    logger.info("the supervisor is gone, or has ended the training")
    end_at_once(1)


if __name__ == "__main__":
    main()
