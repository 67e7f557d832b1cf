"""What a worker is told, in a file that it reads when it starts: one training of one project. Cost: one small file.

Whoever asks for a training writes ``job.json`` in the run's directory, the supervisor writes it again for every further
worker, and the worker reads it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlx_gardener.errors import TrainingError
from mlx_gardener.platform.files import write_whole
from mlx_gardener.platform.reasons import reason_of
from mlx_gardener.platform.untrusted import read_json

JOB_NAME = "job.json"
LOG_NAME = "worker.log"
#: With this a worker or another rank ends whose group is gone; it could go on (EX_TEMPFAIL of sysexits.h).
LOST_EXIT_CODE = os.EX_TEMPFAIL


class Resume(StrEnum):
    """What a run does with the checkpoints it finds in its directory."""

    NEVER = "never"
    #: Go on from them where base and data are the same, else begin anew.
    IF_SAME = "if_same"
    #: Go on from them; other base or data is an error.
    ALWAYS = "always"


@dataclass(frozen=True)
class Job:
    """What a worker is told: one training of one project.

    ``journal_offset`` is the bytes of the journal that belong to earlier trainings in the same directory;
    ``seconds_used`` what earlier workers took of the time limit; ``smaller_plan`` that the last one ran out of memory.
    """

    training_id: str
    project: str
    config: dict[str, Any]
    resume: Resume
    journal_offset: int
    seconds_used: float = 0.0
    smaller_plan: bool = False

    def write(self, run_dir: Path) -> None:
        """Write the job beside the run's other files, whole or not at all."""
        write_whole(run_dir / JOB_NAME, json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, run_dir: Path) -> Job:
        """The job of a run.

        Raises:
            TrainingError: there is none, or it is damaged.
        """
        try:
            values = read_json(run_dir / JOB_NAME, follow_links=False)
            return cls(**{**values, "resume": Resume(values["resume"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TrainingError(
                f"The run in {run_dir.name} has no readable {JOB_NAME} ({reason_of(error)}).",
                next_step="Start the training again.",
            ) from error
