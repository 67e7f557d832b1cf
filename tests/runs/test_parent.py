"""What a dry run says of the version that a training would go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_gardener.registry import ProjectRegistry
from tests.support.commands import gardener_here, train_flags


def test_a_dry_run_says_what_it_would_go_on_from_and_counts_what_is_left(
    trained_home: Path, repository: Path, trained_model_dir: Path
) -> None:
    flags = train_flags(trained_model_dir)

    def foretold(*more: str, command: tuple[str, ...] = ("train", "--project", "small", "--dry-run")) -> Any:
        """(its JSON, its last words)."""
        told, shown = (
            gardener_here(*command, *flags, *more, *form, cwd=repository) for form in (("--json",), ())
        )
        assert told.returncode == shown.returncode == 0, told.stderr + shown.stderr
        return json.loads(told.stdout), " ".join(shown.stdout.split())

    told, shown = foretold()
    assert told["going_on"] == {"version": "v1", "updates_left": 0, "changed_files": 0, "share": 1.0}
    assert (
        "Neither files nor settings have changed since v1, so that nothing would be trained. With --fresh"
        in shown
    )
    told, shown = foretold("--fresh")
    whole = told["estimate"]
    assert told["going_on"] is None and "Training takes" in shown and "v1" not in shown
    assert foretold("--seed", "7")[0]["going_on"] is None

    # One that its time limit ended, two updates before its end.
    place = ProjectRegistry().get_adapter("small", "v1").directory / "manifest.json"
    manifest = json.loads(place.read_text())
    training = manifest["training"]
    training |= {"ended_by_time": True, "steps_per_epoch": training["steps"] + 2}
    place.write_text(json.dumps(manifest))
    flags += ("--set", "optimizer.epochs=1")
    told, shown = foretold()
    assert told["going_on"]["updates_left"] == 2 == told["estimate"]["updates"], told["going_on"]
    assert told["estimate"]["trained_tokens"] < whole["trained_tokens"]
    assert (
        "goes on from v1 with the 2 updates that its time limit left (--fresh begins anew). It takes" in shown
    )

    path = next(path for path, (_, part) in manifest["data"]["files"].items() if part == "train")
    (repository / path).write_text(
        (repository / path).read_text() + "\n\ndef added_later(a, b):\n    return a - b * 17\n"
    )
    planned = [
        foretold(),
        foretold(command=("plan", str(repository))),
    ]
    for told, shown in planned:
        assert told["going_on"]["changed_files"] == 1 and 0 < told["going_on"]["share"] < 0.6, told[
            "going_on"
        ]
        assert "goes on from v1 with 1 file that changed, and as much of what did not (--fresh" in shown, (
            shown
        )
