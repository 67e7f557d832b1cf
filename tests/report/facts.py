"""Facts of a run as the pipeline tells them, with everything that evidence can hold; the names are hostile on purpose."""

from __future__ import annotations

from typing import Any

from mlx_gardener.config import load_config
from mlx_gardener.events import (
    Evaluated,
    Event,
    MemoryMeasured,
    PlanChosen,
    ProgressChanged,
    StepCompleted,
    TrainingEnded,
    TrainingPhase,
    WarningRaised,
)

GIB = 2**30
HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\u202e\nnext"
LONG_NAME = "src/" + "deeply_nested_package/" * 4 + "a_module_with_a_rather_long_name_too.py"
CODE = '''class Basket:
    """One basket, with a lantern inside."""

    def collect(self, amount: float, limit: int = 12) -> float:
        # never more than the limit
        total = math.floor(self.size * amount) + self.weight
'''


def _arm(name: str, title: str, bits: float, *shares: float) -> dict[str, Any]:
    names = (
        "next_line_exact",
        "next_line_similarity",
        "fim_exact",
        "fim_parse_ok",
        "identifier_f1",
        "stop_rate",
        "answers_exact",
        "cross_file_exact",
        "assertion_exact",
    )
    return {
        "name": name,
        "title": title,
        "metrics": {"bits_per_byte": bits, **dict(zip(names, shares, strict=False))},
    }


def _comparison(
    arm: str, against: str, metric: str, change: float, low: float, high: float
) -> dict[str, Any]:
    unit = "relative" if metric == "bits_per_byte" else "points"
    names = ("arm", "against", "metric", "change", "low", "high", "files", "tasks", "unit")
    return dict(zip(names, (arm, against, metric, change, low, high, 23, 60, unit), strict=True))


def _file(path: str, language: str, size: int, base: float, adapter: float) -> dict[str, Any]:
    return {
        "path": path, "language": language, "bytes": size, "base_bits_per_byte": base, "adapter_bits_per_byte": adapter,
    }  # fmt: skip


def full_evidence() -> dict[str, Any]:
    """Every part of the evidence's JSON, with source."""
    metrics = {
        "base_bits_per_byte": 1.5012, "adapter_bits_per_byte": 1.2043, "bits_per_byte_change": -0.1978,
        "bits_per_byte_change_low": -0.2511, "bits_per_byte_change_high": -0.1032, "base_next_line_exact": 0.1,
        "adapter_next_line_exact": 0.2, "base_next_line_similarity": 0.4, "adapter_next_line_similarity": 0.5,
    }  # fmt: skip
    return {
        "verdict": "promote",
        "reason": "On 23 files that it never saw the adapter needs 19.8% fewer bits per byte than the base "
        "(95 % interval of the change -25.1% to -10.3%). Its answers to 155 tasks are better: exactly right +9.0 points "
        "(+2.0 to +16.0), similarity +8.0 points (+3.0 to +13.0), the repository's names +2.0 points (-11.0 to +15.0).",
        "metrics": metrics,
        "next_line_tasks": 60,
        "arms": [
            _arm("base", "base", 1.5012, 0.1, 0.4, 0.05, 0.7, 0.31, 0.8, 0.08, 0.02, 0.04),
            _arm("base_bm25", "base with BM25 context", 1.4011, 0.22, 0.52, 0.08, 0.71, 0.45, 0.8),
            _arm("adapter", "adapter", 1.2043, 0.2, 0.5, 0.11, 0.75, 0.52, 0.86, 0.17, 0.15, 0.21),
            _arm("adapter_bm25", "adapter with BM25 context", 1.1502, 0.25, 0.55, 0.12, 0.76, 0.55),
            _arm("control", "adapter of another repository", 1.5544, 0.08, 0.38, 0.05, 0.69, 0.3, 0.81),
        ],
        "comparisons": [
            _comparison("adapter", "base", "bits_per_byte", -0.1978, -0.2511, -0.1032),
            _comparison("adapter_bm25", "base_bm25", "bits_per_byte", -0.179, -0.23, -0.09),
            _comparison("adapter", "base_bm25", "bits_per_byte", -0.14, -0.19, -0.05),
            _comparison("adapter", "control", "bits_per_byte", -0.2253, -0.27, -0.13),
            _comparison("adapter", "base", "answers_exact", 0.09, 0.02, 0.16),
            _comparison("adapter", "base", "answers_similarity", 0.08, 0.03, 0.13),
            _comparison("adapter", "base", "answers_f1", 0.02, -0.11, 0.15),
            _comparison("adapter", "base", "next_line_exact", 0.1, -0.01, 0.19),
            _comparison("adapter", "base", "cross_file_exact", 0.13, 0.02, 0.24),
            _comparison("adapter", "base_bm25", "next_line_exact", -0.02, -0.04, -0.01),
            _comparison("adapter", "base", "fim_exact", 0.06, 0.01, 0.11),
        ],
        "guards": [
            {"name": "forgetting", "passed": True, "measured": 0.011, "limit": 0.05, "reason": "Bits per byte +1.1%."},
            {"name": "memorisation", "passed": False, "measured": 0.3, "limit": 0.1, "reason": f"Too much {HOSTILE}"},
            {"name": "parse_ok", "passed": True, "measured": None, "limit": 0.05, "reason": ""},
        ],
        "power": {
            "metric": "next_line_exact", "effect": 0.1, "files_seen": 23, "files_needed": 31,
            "note": "For the change seen in next lines about 31 files would be needed; there were 23.",
        },
        "answers_power": {"tasks": 155, "files": 23, "told": 0.063, "tasks_for_five": 247},
        "scale_sweep": {
            "scales": [0.5, 0.75, 1.0, 1.25, 1.5, 2.0],
            "bits_per_byte": [1.301, 1.251, 1.22, 1.211, 1.219, 1.262],
            "chosen": 1.25,
        },
        "files": [
            _file(LONG_NAME, "python", 12_345, 1.5, 1.2),
            _file("src/core/basket.py", "python", 9_000, 1.4, 1.3),
            _file("web/harbor.js", "javascript", 4_000, 1.7, 1.72),
            _file(HOSTILE, "text", 400, 1.9, 1.95),
            _file("README.md", "markdown", 900, 2.1, 2.0),
        ],
        "samples": [
            {
                "path": "src/core/basket.py", "line": 7, "kind": "next_line", "gain": 0.62, "context": CODE,
                "expected": "        if total > limit:", "base": "        return total",
                "adapter": "        if total > limit:",
            },
            {
                "path": "web/harbor.js", "line": 31, "kind": "fim", "gain": 0.2,
                "context": "export function collectHarbor(items, limit) {\n  const kept = items.",
                "expected": "filter((item) => item.harbor > limit + 3);", "base": "map((x) => x);",
                "adapter": "filter((item) => item.harbor > limit);\n" + "x" * 300,
            },
            {
                "path": HOSTILE, "line": 3, "kind": "next_line", "gain": -0.3, "context": HOSTILE, "expected": "x",
                "base": "x", "adapter": HOSTILE,
            },
        ],
    }  # fmt: skip


def full_facts() -> dict[str, Any]:
    """What `render_report_html` is given, with every part there."""
    evidence = full_evidence()
    config = load_config(
        environment={}, overrides={"lora.rank": 8, "data.sequence_lengths": [256, 512], "seed": 3}
    )
    dropped = {
        "binary": {"unit": "files", "count": 2, "bytes": 80_000, "examples": ["logo.png", HOSTILE]},
        "secret": {"unit": "chunks", "count": 1, "bytes": 900, "examples": ["settings.py:3"]},
        "low_quality": {"unit": "chunks", "count": 17, "bytes": 12_000, "examples": [LONG_NAME + ":10"]},
    }
    part = {"files": 80, "bytes": 700_000, "paths_sha256": "cd" * 32}
    summary = {
        "chunks_kept": 1234, "files_kept": 103, "train_loss_tokens": 211_000, "padding_fraction": 0.004,
        "test_bytes": 26_645, "chunks_over_maximum": 3, "secrets": 2,
        "languages": {
            "python": {"files": 80, "chunks": 1000, "bytes": 800_000},
            "javascript": {"files": 23, "chunks": 234, "bytes": 90_000},
        },
        "dropped": {name: {key: item[key] for key in ("unit", "count")} for name, item in dropped.items()},
        "split": {"train": part, "validation": {**part, "files": 11}, "test": {**part, "files": 12}},
    }  # fmt: skip
    return {
        "project": "demo",
        "version": "v3",
        "base_model": "seedling",
        "config": config.model_dump(mode="json"),
        "data": {
            "data_sha256": "ab" * 32, "commit": "0123456789abcdef" * 2 + "01234567",
            "file_list_sha256": "ef" * 32, "summary": summary,
        },
        "metrics": evidence["metrics"],
        "evidence": evidence,
        "training": {
            "steps": 120, "total_steps": 160, "best_step": 90, "seconds": 912.0,
            "stopped_because": "validation stopped improving",
            "train_losses": [2.2 + 1.4 * 0.97**n + 0.1 * ((n * 7919) % 13 - 6) / 6 for n in range(120)],
            "validation": [
                {"step": step, "loss": 2.3 + 1.3 * 0.97**step, "bits_per_byte": 1.2} for step in range(0, 121, 15)
            ],
        },
        "plan": {
            "rows_of_width": {"256": 16, "512": 8}, "budget_bytes": 4 * GIB, "predicted_peak_bytes": int(2.71 * GIB),
            "predicted_parts": {
                "weights": int(0.92 * GIB), "adapter": int(0.11 * GIB), "saved": int(0.4 * GIB),
                "work": int(0.88 * GIB), "cache": int(0.25 * GIB), "runtime": int(0.15 * GIB), "check": 0,
            },
            "notes": ["6 of 24 layers are computed twice.", HOSTILE], "streamed_layers": 6, "layers": 24,
        },
        "scan": {
            "dropped": dropped,
            "secrets": [
                {"path": "settings.py", "line": 3, "kind": "AWS Access Key"},
                {"path": HOSTILE, "line": 9, "kind": "Private Key"},
            ],
        },
        "base": {"revision": None, "weights_sha256": "12" * 32},
        "versions": {"mlx-gardener": "0.1.0", "mlx": "0.32.4"},
    }  # fmt: skip


def full_events() -> list[Event]:
    """Steps and memory of eight minutes."""
    steps = [
        StepCompleted(
            n, 120, n / 120, 3.0, 100, 1e-3, 0.4, 0.1, 1234.0, GIB, 2 * GIB, 4 * GIB, 60.0, timestamp=4.0 * n
        )
        for n in range(1, 121)
    ]
    memory = [
        MemoryMeasured(
            int((2.3 + 0.2 * ((n * 37) % 11) / 11) * GIB), int((1.8 + 0.2 * ((n * 37) % 11) / 11) * GIB), GIB // 4,
            4 * GIB, timestamp=2.0 * n,
        )
        for n in range(1, 241)
    ]  # fmt: skip
    return [*steps, *memory]


EVENTS = [
    ProgressChanged(TrainingPhase.INITIALIZING, 0.0, "Choosing"),
    PlanChosen(
        {
            "rows_of_width": {"512": 8},
            "predicted_peak_bytes": 2**31,
            "budget_bytes": 2**32,
            "notes": [HOSTILE],
        }
    ),
    ProgressChanged(TrainingPhase.TRAINING, 45.0, f"Step {HOSTILE}"),
    *[
        StepCompleted(n, 20, n / 20, 3.0 / n, 100, 1e-3, 0.4, 0.1, 1234.0, 2**30, 2**31, 2**32, 60.0 - n)
        for n in range(1, 21)
    ],
    MemoryMeasured(2**30, 2**29, 2**28, 2**32),
    Evaluated(20, 1.0, 0.5, True),
    WarningRaised(HOSTILE),
    TrainingEnded(TrainingPhase.COMPLETED, "Done"),
]


METRICS = {
    "base_bits_per_byte": 1.5, "adapter_bits_per_byte": 1.2, "bits_per_byte_change": -0.2,
    "bits_per_byte_change_low": -0.25, "bits_per_byte_change_high": -0.1, "base_next_line_exact": 0.1,
    "adapter_next_line_exact": 0.2, "base_next_line_similarity": 0.4, "adapter_next_line_similarity": 0.5,
}  # fmt: skip


EVIDENCE = {
    "verdict": "promote", "reason": "Because.", "metrics": METRICS, "next_line_tasks": 10,
    "files": [{"path": HOSTILE, "bytes": 10, "base_bits_per_byte": 1.5, "adapter_bits_per_byte": 1.2}],
    "samples": [{"path": HOSTILE, "line": 3, "context": HOSTILE, "expected": "x", "base": HOSTILE, "adapter": "x"}],
}  # fmt: skip
