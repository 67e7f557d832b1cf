"""The benchmark that owners of a Mac run: it works here, keeps its time, and says what it could not measure."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from tests.support.models import write_tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Benchmark = Callable[[str], ModuleType]

#: Two samples as `powermetrics --samplers cpu_power --sample-rate 1000` prints them on an M-series Mac.
POWERMETRICS = """\
Machine model: Mac16,10
*** Sampled system activity (Sat Nov 14 10:02:11 2026 +0100) (1003.72ms elapsed) ***

**** Processor usage ****
CPU Power: 1240 mW
GPU Power: 11020 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 12260 mW

*** Sampled system activity (Sat Nov 14 10:02:12 2026 +0100) (998.20ms elapsed) ***

CPU Power: 1100 mW
Combined Power (CPU + GPU + ANE): 10000 mW
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return __import__(name)

    return load


@pytest.fixture
def few_documents(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of a few modules' code: all sides train as they do on more."""
    monkeypatch.setattr(benchmark("own_code"), "ROOT", BENCHMARKS.parent / "mlx_gardener" / "events")
    monkeypatch.setattr(benchmark("m4_throughput"), "DOCUMENTS", 8)


@pytest.mark.usefixtures("few_documents")
@pytest.mark.parametrize("model", ["tiny", pytest.param("seedling", marks=pytest.mark.slow)])
def test_all_sides_are_measured_and_written(
    benchmark: Benchmark, tmp_path: Path, tiny_tokenizer_dir: Path, model: str
) -> None:
    command = benchmark("m4_throughput").main
    if model == "tiny":
        write_tiny_model(tmp_path / model, tiny_tokenizer_dir)
    named = model if model == "seedling" else str(tmp_path / model)
    place = tmp_path / "written"
    options = ("--model", named, "--rounds", "1", "--minutes", "4", "--width", "128", "--budget", "0.5")
    found = CliRunner().invoke(command, [*options, "--output", str(place)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    result = json.loads(next(place.glob("*.json")).read_text(encoding="utf-8"))
    assert [row["side"] for row in result["summary"]] == [
        "mlx_gardener",
        "mlx_lm",
        "mlx_lm --grad-checkpoint",
    ]
    for row in result["summary"]:
        assert row["failed"] is None and row["loss_tokens_per_second"]["median"] > 0
        assert row["peak_footprint_bytes"] > 50 * 2**20
    ours, plain, checked = (cell["loss_tokens_per_pass"] for cell in result["cells"])
    assert ours == plain == checked, "the sides must train the same tokens"
    assert result["machine"]["chip"] and result["energy"]["source"]
    page = next(place.glob("*.md")).read_text(encoding="utf-8")
    assert page.count(f"| {model} |") == 3
    ElementTree.parse(next(place.glob("*.svg")))
    written = "".join(file.read_text(encoding="utf-8") for file in place.iterdir())
    assert str(Path.home()) + "/" not in written and str(tmp_path) not in written


@pytest.mark.usefixtures("few_documents")
def test_no_time_is_no_result_but_is_said(benchmark: Benchmark, tmp_path: Path) -> None:
    command = benchmark("m4_throughput").main
    found = CliRunner().invoke(
        command, ["--model", "seedling", "--minutes", "0.1", "--output", str(tmp_path)]
    )
    assert found.exit_code == 0, found.output
    result = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert result["skipped"] and not result["cells"]
    assert "Not measured" in next(tmp_path.glob("*.md")).read_text(encoding="utf-8")


def side(tmp_path: Path, code: str) -> list[str]:
    script = tmp_path / "side.py"
    script.write_text(code, encoding="utf-8")
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    ("code", "words", "out_of_memory"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by the system", True),
        ("raise RuntimeError('[malloc] Unable to allocate 9 bytes')", "Unable to allocate", True),
        ("raise SystemExit('no such model')", "no such model", False),
        ("""print('{"refused": "needs 2.1 GB"}')""", "needs 2.1 GB", False),
    ],
)
def test_a_side_that_fails_is_a_result(
    benchmark: Benchmark, tmp_path: Path, code: str, words: str, out_of_memory: bool
) -> None:
    report = benchmark("sides_in_time").run_side(side(tmp_path, code), limit=30, on_step=print)
    assert words in report["failed"]
    assert bool(report.get("out_of_memory")) is out_of_memory


def test_a_side_that_takes_too_long_is_ended(benchmark: Benchmark, tmp_path: Path) -> None:
    run_side, heard = benchmark("sides_in_time").run_side, []
    code = (
        "import sys, time; print('step 1: 0.1 s', file=sys.stderr, flush=True); time.sleep(60); print('{}')"
    )
    report = run_side(side(tmp_path, code), limit=3.0, on_step=heard.append)
    assert "without a result" in report["failed"] and heard == ["step 1: 0.1 s"]
    report = run_side(side(tmp_path, code), limit=0.5, on_step=heard.append, cut_short=True)
    assert report["unfinished"] and "failed" not in report


def test_errors_are_shown_without_the_owner_s_directories(benchmark: Benchmark) -> None:
    shown = benchmark("sides_in_time").shown_error(
        f"{Path.home()}/models/qwen/model.safetensors is not there\x1b[31m"
    )
    assert shown.startswith("model.safetensors is not there") and "\x1b" not in shown


def test_what_a_larger_model_takes_follows_from_a_smaller_one(benchmark: Benchmark) -> None:
    plan = benchmark("sides_in_time").TimePlan(end=time.monotonic() + 100)
    plan.learn(("small", "mlx_lm"), {"wall_seconds": 12.0, "seconds": [2.0, 2.0]})
    assert plan.expected_least("large", ["mlx_lm"], {"small": 10, "large": 30}) == pytest.approx(8 + 3 * 2)


def test_powermetrics_text_becomes_joules(benchmark: Benchmark) -> None:
    joules = list(benchmark("energy").powermetrics_joules(POWERMETRICS.splitlines()))
    assert joules == pytest.approx([12.260 * 1.00372, 10.0 * 0.9982])


def test_a_powermetrics_that_runs_is_read_and_ended(benchmark: Benchmark, tmp_path: Path) -> None:
    code = f"import time; print({POWERMETRICS!r}, flush=True); time.sleep(60)"
    energy = benchmark("energy").start_powermetrics(tuple(side(tmp_path, code)))
    until = time.monotonic() + 60
    while len(energy.samples) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    energy.stop()
    assert not energy.unavailable and energy.samples[-1][1] == pytest.approx(22.288, abs=0.01)


def test_rapl_counters_are_read_and_may_start_again_at_zero(benchmark: Benchmark, tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (
        ("name", "package-0\n"),
        ("energy_uj", "9000000\n"),
        ("max_energy_range_uj", "10000000\n"),
    ):
        (zone / name).write_text(text, encoding="ascii")
    energy = benchmark("energy").start_rapl(tmp_path)
    (zone / "energy_uj").write_text("2000000\n", encoding="ascii")
    energy.stop()
    assert energy.samples[-1][1] == pytest.approx(3.0)


def test_a_machine_without_a_meter_says_so(benchmark: Benchmark, tmp_path: Path) -> None:
    energy = benchmark("energy").start_rapl(tmp_path)
    assert "no RAPL counters" in energy.unavailable and energy.between(0, 1) is None


def test_gpu_cores_of_a_mac_are_found(benchmark: Benchmark) -> None:
    text = "Graphics/Displays:\n\n    Apple M4:\n\n      Chipset Model: Apple M4\n      Total Number of Cores: 10\n"
    facts: Any = benchmark("m4_machine")
    assert facts.gpu_cores(text) == 10 and facts.gpu_cores("") is None


def test_only_whole_passes_count(benchmark: Benchmark) -> None:
    report = benchmark("m4_report")
    made = {"first_steps": 1, "steps_per_pass": 2, "positions_per_pass": 100, "loss_tokens_per_pass": 50}
    seconds, positions = [9.0, 8.0, 8.0, 1.0, 1.0, 7.0], [10, 50, 50, 50, 50, 50]
    assert report.counted_steps(made | {"seconds": seconds}) == slice(3, 5)
    speed = report.loss_tokens_per_second(made | {"seconds": seconds, "positions": positions})
    assert speed == pytest.approx(25.0)
