"""scan, plan, projects, show, activate, remove, export, complete and doctor, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlx_gardener
from mlx_gardener.cli import cli, doctor
from mlx_gardener.errors import GardenerError
from mlx_gardener.platform import blas, device
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.report.time_view import time_text
from tests.support.commands import gardener, gardener_here, train_flags
from tests.support.models import write_tiny_model

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere


def test_scan_shows_what_would_be_trained_on(repository: Path, tiny_model_dir: Path) -> None:
    (repository / "keys.py").write_text(
        "def connect():\n    key = 'AKIA" + "IOSFODNN7QWERTYU'\n    return key\n"
    )
    done = gardener_here("scan", str(repository), "--model", str(tiny_model_dir))
    assert done.returncode == 0, done.stderr
    for words in ("Kept", "python", "javascript", "keys.py:2", "tokens", "minute", "peak about"):
        assert words in done.stdout
    assert "AKIA" + "IOSFODNN7" not in done.stdout


@pytest.mark.usefixtures("known_home")
def test_a_retired_setting_is_a_sentence_and_no_line_of_our_code(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text("checkpoints_kept = 3\n")
    done = gardener("plan", "--model", "seedling", "--config", str(tmp_path / "old.toml"), "--budget", "0.01")
    assert done.stderr.startswith("Warning: checkpoints_kept in the file old.toml has no effect: ")
    assert "FutureWarning" not in done.stderr and "load_config" not in done.stderr


def test_scan_as_json_is_one_document(repository: Path, tiny_model_dir: Path) -> None:
    done = gardener_here("scan", str(repository), "--model", str(tiny_model_dir), "--json")
    found = json.loads(done.stdout)
    assert found["files_kept"] >= 12 and found["languages"]["python"]["chunks"] > 0
    assert found["estimate"]["tokens"] > 0 and str(repository.parent) not in done.stdout


def break_shard(model: Path) -> str:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    return "no model-00002-of-00002.safetensors"


def break_type(model: Path) -> str:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "from_the_future"}))
    return "from_the_future not supported"


def break_weights(model: Path) -> str:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    return "cannot be loaded"


def break_size(model: Path) -> str:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    return "cannot be loaded"


def refused(words: str, *command: str) -> None:
    """The command ends with an error that says so; in this process, which has read mlx-lm once already."""
    with pytest.raises(GardenerError, match=words):
        cli(command, standalone_mode=False)


@pytest.mark.parametrize("breaking", [break_shard, break_type, break_weights, break_size])
def test_looking_first_refuses_the_models_that_training_refuses(
    repository: Path, tmp_path: Path, tiny_tokenizer_dir: Path, breaking: Callable[[Path], str]
) -> None:
    model = write_tiny_model(tmp_path / "odd", tiny_tokenizer_dir)
    words, flags = breaking(model), train_flags(model)
    refused(words, "plan", *flags)
    refused(words, "scan", str(repository), *flags)
    refused(words, "train", str(repository), "--dry-run", *flags)
    if breaking in (break_shard, break_size):
        done = gardener_here("train", str(repository), *flags)
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert "reading the repository" not in done.stdout.lower()


def test_looking_first_refuses_the_repositories_that_training_refuses(
    repository: Path, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = tmp_path / "alike"
    alike.mkdir()
    (alike / "one.py").write_text((repository / "core" / "ledger_1.py").read_text())
    few = train_flags(tiny_model_dir, min_training_chunks=5000)
    for root, flags, words in ((repository, few, "5000 are needed"),
                               (alike, train_flags(tiny_model_dir), "Only 1 independent files")):  # fmt: skip
        refused(words, "plan", str(root), *flags)
        refused(words, "train", str(root), "--dry-run", *flags)
        assert "Kept" not in capsys.readouterr().out
        refused(words, "scan", str(root), *flags)
        assert "Kept" in capsys.readouterr().out, "a scan says what was dropped all the same"
    assert cli(["scan", str(repository), "--json", *few], standalone_mode=False) == 1
    told, said = capsys.readouterr()
    shown = json.loads(told)
    assert shown["files_kept"] >= 12 and "5000 are needed" in shown["error"]["message"]
    assert shown["error"]["message"] in said


def test_adapters_that_have_no_place_are_refused_before_anything_is_read(
    repository: Path, tiny_model_dir: Path
) -> None:
    flags = train_flags(tiny_model_dir, **{"lora.target_modules": '["nothing"]'})
    refused("No linear module", "plan", *flags)
    refused("No linear module", "scan", str(repository), *flags)
    refused("No linear module", "train", str(repository), "--dry-run", *flags)
    flags = train_flags(tiny_model_dir, **{"lora.num_layers": 99})
    refused("lora.num_layers is 99, but the model has", "plan", *flags)
    refused("lora.num_layers is 99, but the model has", "train", str(repository), "--dry-run", *flags)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("[{", "is not one of"),
        ("[]", "at least two hosts"),
        ('[{"ips": []}]', "ssh is missing"),
    ],
)
def test_hosts_that_cannot_be_are_refused_before_anything_is_written(
    content: str | None, words: str, repository: Path, tiny_model_dir: Path, home: Path
) -> None:
    file = repository.with_name("hosts.json")
    if content is not None:
        file.write_text(content)
    flags = train_flags(tiny_model_dir, **{"parallel.hosts": str(file)})
    refused(words, "plan", *flags)
    refused(words, "plan", str(repository), *flags)
    refused(words, "train", str(repository), "--dry-run", *flags)
    refused(words, "train", str(repository), *flags)
    refused(words, "train", str(repository), "--queue", *flags)
    with pytest.raises(GardenerError, match=words):
        mlx_gardener.plan(model=str(tiny_model_dir), **{"parallel.hosts": str(file)})
    assert not ProjectRegistry().list_projects()


def test_scan_lists_the_lines_that_would_be_learned(repository: Path, tiny_model_dir: Path) -> None:
    (repository / "keys.py").write_text(
        "def area(width, height):\n    return width * height\n\n\n"
        "def connect():\n    key = 'AKIA" + "IOSFODNN7QWERTYU'\n    return key\n"
    )
    command = [
        "scan",
        str(repository),
        "--model",
        str(tiny_model_dir),
        "--set",
        "training_data_quality_threshold=0.1",
    ]
    shown = gardener_here(*command, "--lines")
    assert shown.returncode == 0, shown.stderr
    assert "  keys.py:1-2\n" in shown.stdout and "keys.py:5" not in shown.stdout.partition("Lines kept:")[2]
    kept = json.loads(gardener_here(*command, "--json").stdout)["kept_lines"]
    assert {"path": "keys.py", "start_line": 1, "end_line": 2} in kept
    assert [place for place in kept if place["path"] == "keys.py"][1:] == []
    assert "Lines kept:" not in gardener_here(*command).stdout


def test_what_max_training_chunks_leaves_out_is_said_and_not_listed(
    repository: Path, tiny_model_dir: Path
) -> None:
    command = ["scan", str(repository), "--model", str(tiny_model_dir)]
    few = ("--set", "max_training_chunks=20", "--set", "min_training_chunks=5")
    whole = json.loads(gardener_here(*command, "--json").stdout)
    shown = gardener_here(*command, *few, "--lines")
    assert shown.returncode == 0, shown.stderr
    said = " ".join(shown.stdout.split())
    assert (
        f"A training uses the best 20 of these {whole['chunks_kept']} chunks (max_training_chunks)." in said
    )
    assert f"over max_training_chunks {whole['chunks_kept'] - 20} chunks" in said
    told = json.loads(gardener_here(*command, *few, "--json").stdout)
    assert told["estimate"]["chunks_used"] == 20 and len(told["kept_lines"]) <= 20
    lines = sum(place["end_line"] - place["start_line"] + 1 for place in whole["kept_lines"])
    assert sum(place["end_line"] - place["start_line"] + 1 for place in told["kept_lines"]) < lines
    assert "max_training_chunks" not in gardener_here(*command).stdout
    planned = gardener_here("plan", *command[1:], *few).stdout
    assert f"the best 20 of {whole['chunks_kept']} chunks (max_training_chunks)" in " ".join(planned.split())


def test_scan_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = gardener_here("scan", str(tmp_path / "empty"))
    assert done.returncode == 1 and "holds no files" in done.stderr


def test_plan_explains_the_budget_and_refuses_what_does_not_fit(tiny_model_dir: Path) -> None:
    done = gardener_here("plan", "--model", "seedling", "--budget", "4")
    assert done.returncode == 0 and "base weights" in done.stdout and "Predicted peak" in done.stdout
    found = json.loads(gardener_here("plan", "--model", str(tiny_model_dir), "--json").stdout)
    assert found["predicted_peak_bytes"] == sum(found["predicted_parts"].values())
    refused = gardener_here("plan", "--model", "seedling", "--budget", "0.01")
    assert refused.returncode == 1 and "--budget" in refused.stderr


def test_plan_of_a_repository_says_how_long_it_takes_as_it_is_set(
    repository: Path, tiny_model_dir: Path
) -> None:
    command = ["plan", str(repository), "--model", str(tiny_model_dir)]
    shown = gardener_here(*command, "--set", "engine.micro_batch_rows=3")
    assert shown.returncode == 0, shown.stderr
    assert "3 rows of 512 tokens" in shown.stdout and " for 3 passes (" in shown.stdout
    assert "fit into the limit" not in shown.stdout
    assert " ".join(shown.stdout.split()).count("tokens/s (") == 1, "once, with the time that follows from it"
    set_too = gardener_here(
        "plan", "--json", "--set", f"model={tiny_model_dir}", "--set", "memory_limit_gb=3"
    )
    assert json.loads(set_too.stdout)["model"] == str(tiny_model_dir)
    assert json.loads(set_too.stdout)["budget_bytes"] == 3 * 2**30
    long = gardener_here(
        *command, "--set", "training_timeout_minutes=0.0001", "--set", "optimizer.epochs=100"
    )
    assert "the time limit of 0.0001 minutes (--timeout) allows 1 of these" in " ".join(long.stdout.split())
    twice, short = (
        json.loads(gardener_here(*command, "--json", "--set", setting).stdout)["estimate"]
        for setting in ("optimizer.epochs=2", "optimizer.max_steps=1")
    )
    assert twice["trained_tokens"] > twice["tokens"] > 0
    assert short["trained_tokens"] == 2048 < twice["trained_tokens"]


def test_what_a_time_limit_allows_is_said_in_updates_and_epochs() -> None:
    estimate = {
        "minutes": 22, "trained_tokens": 131_072, "tokens_per_second": 99.0, "speed_from": "estimated", "epochs": 0.474,
        "epochs_in_limit": 0.072, "updates": 64, "updates_in_limit": 9, "limit_minutes": 5.0, "is_tested": True,
    }  # fmt: skip
    assert time_text(estimate) == (
        "about 22 minutes for 47 % of a pass (130,000 tokens) at 99 tokens/s (estimated); the time limit of 5 minutes "
        "(--timeout) allows 9 of these 64 updates, 7.2 % of a pass, and then the test of the adapter"
    )
    whole = {**estimate, "epochs_in_limit": 0.474, "updates_in_limit": 64}
    assert "limit" not in time_text(whole)
    assert time_text(estimate | {"is_tested": False}).endswith(" of a pass")


def test_doctor_looks_at_everything() -> None:
    done = gardener("doctor", "--json")  # with --measure: tests/engine/test_machine.py
    findings = {item["name"]: item for item in json.loads(done.stdout)["findings"]}
    assert set(findings) == {"machine", "matrix speed", "compiler", "memory", "power", "models", "registry"}
    assert "GFLOP/s" in findings["matrix speed"]["seen"]
    assert done.returncode == (0 if all(item["ok"] for item in findings.values()) else 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can be without a fast BLAS")
def test_doctor_says_what_to_do_about_a_slow_blas() -> None:
    done = gardener("doctor", MLX_GARDENER_BLAS="none")
    assert "matrix speed" in done.stdout
    if "FIX  matrix speed" in done.stdout:
        assert "pip install mkl" in done.stdout and done.returncode == 1


def test_a_busy_machine_with_a_fast_blas_is_not_told_to_install_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SLOW_GFLOPS", 1e9)  # no machine is as fast
    found = next(item for item in doctor.examine() if item.name == "matrix speed")
    opened = blas.state().path is not None
    assert found.ok == (opened or device.backend() != "cpu") and ("busy" in found.seen) == opened


def test_a_trained_project_is_listed_used_exported_and_removed(
    trained_home: Path, repository: Path, tmp_path: Path
) -> None:
    assert "small" in gardener_here("projects").stdout and "v1" in gardener_here("show", "small").stdout
    listed = json.loads(gardener_here("show", "small", "--json").stdout)
    assert listed["adapters"][0]["metrics"]["base_bits_per_byte"] > 0
    assert gardener_here("activate", "small", "v1").returncode == 0
    assert json.loads(gardener_here("projects", "--json").stdout)["projects"][0]["active"] is True

    file = next(repository.rglob("*.py"))
    place = f"{file.relative_to(repository)}:9"
    with_adapter = gardener_here("complete", "small", place, "--max-tokens", "4")
    assert with_adapter.returncode == 0, with_adapter.stderr
    told = json.loads(gardener_here("complete", "small", place, "--max-tokens", "4", "--json").stdout)
    assert told["text"] + "\n" == with_adapter.stdout and told["version"] == "v1"
    assert gardener_here("complete", "small", place, "--base", "--max-tokens", "4").returncode == 0
    piped = subprocess.run(
        [sys.executable, "-m", "mlx_gardener", "complete", "small", "--max-tokens", "4"],
        input="def collect(", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    for wrong in ("nowhere.py:3", "README.md:9999"):
        assert gardener_here("complete", "small", wrong).returncode == 1
    assert gardener_here("complete", "small", "no-line").returncode == 2

    target = tmp_path / "out"
    exported = gardener_here("export", "small", str(target), "--form", "peft")
    assert exported.returncode == 0
    last = exported.stdout.splitlines()[-1]
    assert last.startswith("Next, in Python: PeftModel.from_pretrained(") and str(target) in last
    assert (target / "adapter_model.safetensors").exists()
    assert gardener_here("export", "small", str(target)).returncode == 1

    assert gardener_here("remove", "small", "v9", "--yes").returncode == 1
    assert gardener_here("remove", "small", "v1", "--yes").returncode == 0
    assert "no adapter" in gardener_here("complete", "small", place).stderr
    assert gardener_here("remove", "small", "--yes").returncode == 0
    assert gardener_here("show", "small").returncode == 1


def test_an_export_needs_a_place_but_for_lm_studio_s() -> None:
    done = gardener_here("export", "web", "--form", "gguf")
    assert done.returncode == 2 and "Missing argument 'DESTINATION'" in done.stderr
    done = gardener_here("export", "web", "--form", "lmstudio")
    assert done.returncode == 1 and "no project" in done.stderr.lower()
