"""What people read, word for word, against files that a person has read: ``texts/*.txt``.

``python -m tests.report.test_texts`` writes them anew; read what changed before it is committed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlx_gardener.adapter.versions import VersionFacts, VersionsDiff
from mlx_gardener.config import load_config
from mlx_gardener.evaluate.evidence import power_note
from mlx_gardener.events import PlanChosen, TimePlanned
from mlx_gardener.report.arms_view import show_details
from mlx_gardener.report.diff_view import show_diff
from mlx_gardener.report.evidence_view import show_evidence
from mlx_gardener.report.export_view import next_command
from mlx_gardener.report.live import LiveView
from mlx_gardener.report.recipe import About
from mlx_gardener.report.scan_view import show_scan
from mlx_gardener.source.records import Dropped, Scan
from tests.report.facts import GIB, HOSTILE, full_evidence

TEXTS = Path(__file__).parent / "texts"


def evidence(verdict: str, change: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """The full evidence, without what is hostile, with another verdict."""
    found = full_evidence()
    middle, low, high = change
    figures = {
        "bits_per_byte_change": middle,
        "bits_per_byte_change_low": low,
        "bits_per_byte_change_high": high,
    }
    found["metrics"] |= figures
    found["samples"] = [item for item in found["samples"] if item["path"] != HOSTILE]
    found["guards"] = [
        {"name": "forgetting", "passed": True, "measured": 0.026, "limit": 0.1,
         "reason": "on other projects' code it needs 2.6% more bits per byte (at most 10.0% more allowed)"},
        {"name": "memorisation", "passed": True, "measured": 0.0, "limit": 0.25,
         "reason": "it continues 0% of the places in training files word for word and 0% in held-out files (at most 25% more "
         "allowed)"},
        {"name": "parse_ok", "passed": True, "measured": -0.167, "limit": 0.05,
         "reason": "the share of filled spans that parse changed by -16.7 points (95 % interval -87.0 to +71.0; chance explains "
         "that as well)"},
    ]  # fmt: skip
    found["power"] = {
        "metric": "bits_per_byte",
        "effect": middle,
        "files_seen": 23,
        "files_needed": 9,
        "note": "",
    }
    found["comparisons"] = [
        {**item, "change": middle, "low": low, "high": high}
        if (item["arm"], item["against"], item["metric"]) == ("adapter", "base", "bits_per_byte") else item
        for item in found["comparisons"]
    ]  # fmt: skip
    return found | {"verdict": verdict} | more


def promoted() -> dict[str, Any]:
    return evidence("promote", (-0.198, -0.251, -0.103))


def answered(change: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """Another change of how many answers are exactly right, and nothing certain about the others."""
    found = evidence("promote", (-0.14, -0.168, -0.111), samples=[]) | more
    middle, low, high = change
    told = {
        "answers_exact": change,
        "answers_similarity": (-0.03, -0.09, 0.03),
        "answers_f1": (-0.05, -0.2, 0.1),
    }
    for item in found["comparisons"]:
        if item["metric"] in told and (item["arm"], item["against"]) == ("adapter", "base"):
            item["change"], item["low"], item["high"] = told[item["metric"]]
    state = "are worse" if high < 0 else "are not measurably better"
    found["reason"] = (
        "On 13 files that it never saw the adapter needs 14.0% fewer bits per byte than the base (95 % interval of the change "
        f"-16.8% to -11.1%). Its answers to 155 tasks {state}: exactly right {100 * middle:+.1f} points ({100 * low:+.1f} to "
        f"{100 * high:+.1f}), similarity -3.0 points (-9.0 to +3.0), the repository's names -5.0 points (-20.0 to +10.0)."
    )
    return found


def parted() -> dict[str, Any]:
    """Fewer bits per byte, and answers that cannot be told from the base's."""
    return answered((0.0, -0.04, 0.04))


def answers_worse() -> dict[str, Any]:
    """Fewer bits per byte, and answers that are worse."""
    return answered((-0.1, -0.14, -0.06), verdict="inconclusive")


def few_files() -> dict[str, Any]:
    """Two files, of which a rule of thumb says that they are enough; as it was written before answers were told together."""
    found = evidence(
        "inconclusive", (-0.05, -0.87, 0.71),
        reason="On 2 files that it never saw the adapter needs 5.0% fewer bits per byte than the base (95 % interval of the "
        "change -87.0% to +71.0%): chance explains that as well.",
        power={"metric": "bits_per_byte", "effect": -0.05, "files_seen": 2, "files_needed": 2, "note": ""},
    )  # fmt: skip
    del found["answers_power"]
    old = [item for item in found["comparisons"] if not item["metric"].startswith("answers")]
    return found | {"comparisons": old}


def lost() -> dict[str, Any]:
    return evidence(
        "reject", (0.06, 0.02, 0.1),
        reason="On 23 files that it never saw the adapter needs 6.0% more bits per byte than the base (95 % interval of the "
        "change +2.0% to +10.0%).",
    )  # fmt: skip


def by_heart() -> dict[str, Any]:
    """Far better, but for a guard."""
    found = evidence("reject", (-0.198, -0.251, -0.103))
    told = "it continues 60% of the places in training files word for word and 5% in held-out files (at most 25% more allowed)"
    found["guards"][1] |= {"passed": False, "measured": 0.55, "reason": told}
    return found | {"reason": f"{found['reason'][:-1]}, but {told}."}


def nothing() -> dict[str, Any]:
    """No update was kept: the adapter is the base."""
    found = evidence(
        "inconclusive", (0.0, -0.13043, 0.13043), comparisons=[], samples=[],
        reason="On 23 files that it never saw the adapter needs exactly as many bits per byte as the base (of all such files fewer "
        "than 13% differ, with 95 % confidence).",
        power={"metric": "bits_per_byte", "effect": 0.0, "files_seen": 23, "files_needed": None, "note": ""},
    )  # fmt: skip
    found["metrics"]["adapter_bits_per_byte"] = found["metrics"]["base_bits_per_byte"]
    found["arms"] = [found["arms"][0], {**found["arms"][0], "name": "adapter"}]
    same = "the share of filled spans that parse did not change (95 % interval -13.0 to +13.0)"
    found["files"] = [
        {**file, "adapter_bits_per_byte": file["base_bits_per_byte"]} for file in found["files"]
    ]
    found["guards"] = [{**found["guards"][2], "measured": 0.0, "reason": same}]
    return found


def unmeasured() -> dict[str, Any]:
    return {
        "verdict": "unmeasured",
        "reason": "It was not measured on files that it never saw.",
        "metrics": {}, "files": [], "samples": [], "arms": [], "comparisons": [], "guards": [], "power": None,
        "notes": ["The time was over before anything was measured."],
    }  # fmt: skip


def cut() -> dict[str, Any]:
    """The time limit left the arms with retrieval and the control unmeasured."""
    found = promoted()
    found["arms"] = [arm for arm in found["arms"] if arm["name"] in ("base", "adapter")]
    found["comparisons"] = [
        item for item in found["comparisons"] if (item["arm"], item["against"]) == ("adapter", "base")
    ]
    note = "Not measured, as the time was over: forgetting and memorisation, bits per byte with retrieval."
    return found | {"guards": found["guards"][2:], "notes": [note], "samples": []}


def retrieval_wins() -> dict[str, Any]:
    found = promoted()
    for item in found["comparisons"]:
        if (item["arm"], item["against"], item["metric"]) == ("adapter", "base_bm25", "bits_per_byte"):
            item |= {"change": 0.14, "low": 0.05, "high": 0.19}
    unsure = {"arm": "adapter_bm25", "against": "adapter", "change": -0.04, "low": -0.12, "high": 0.03}
    found["comparisons"].append({**item, **unsure, "metric": "bits_per_byte"})
    return found | {"samples": []}


TIME_PLAN = {
    "limit_seconds": 1800.0, "used_seconds": 70.2, "training_seconds": 1325.0, "evidence_seconds": 390.0, "updates": 120,
    "all_updates": 512, "steps_per_epoch": 171, "validations": 4, "validation_tokens": 4000,
    "pace": {"update_seconds": 10.2, "forward_tokens_per_second": 250.0, "source": "as the last updates took"},
}  # fmt: skip
CUT_TRAINING = {
    "steps": 120,
    "stopped_because": "the time limit, after 120 of 512 updates",
    "time_plan": TIME_PLAN,
}
EVIDENCE = {
    "promoted": promoted, "parted": parted, "answers_worse": answers_worse, "few_files": few_files, "lost": lost,
    "by_heart": by_heart, "unmeasured": unmeasured, "cut": cut, "retrieval_wins": retrieval_wins, "nothing": nothing,
}  # fmt: skip


def printed(show: Any) -> str:
    """What ``show`` prints on a console of 80 columns, without spaces at the ends of lines."""
    console = Console(file=io.StringIO(), width=80, markup=False, highlight=False)
    show(console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.split("\n"))


def about(**more: Any) -> About:
    """A run with settings of its own, of a base out of the package index."""
    settings = {"optimizer.max_steps": 512, "data.sequence_lengths": [512], "training_timeout_minutes": 5}
    config = load_config(environment={}, overrides=settings | {"continue_from": "never"})
    files = {"src/web/app.py": ["ab", "train"], "src/web/route.py": ["cd", "test"]}
    return About("web", "index:SmolLM2", config.model_dump(mode="json"), files=files, **more)


def evidence_text(name: str, **more: Any) -> str:
    training = CUT_TRAINING if name in ("unmeasured", "cut") else None
    return printed(
        lambda console: show_evidence(console, EVIDENCE[name](), about=about(**more), training=training)
    )


def test_no_editor_is_named_where_the_base_cannot_fill_in() -> None:
    """The reason is said once, with a training that makes an adapter that can."""
    told = evidence_text("promoted", has_fim=False)
    assert "connect" not in told and "vscode" not in told
    assert told.count("fill-in-the-middle markers") == 1
    assert "--fresh --model seedling" in told and "mlx-gardener complete web" in told
    assert "mlx-gardener connect zed --project web" in evidence_text("promoted", has_fim=True)


@pytest.mark.parametrize("name", ["cut", "unmeasured", "nothing", "lost", "few_files"])
def test_another_training_has_the_settings_of_this_one_and_works_from_anywhere(name: str) -> None:
    commands = [line.strip() for line in evidence_text(name).splitlines() if "mlx-gardener train" in line]
    assert commands
    for command in commands:
        assert command.startswith("mlx-gardener train --project web "), command
        assert ("--model index:SmolLM2" in command) != ("--model auto" in command)
        assert "--set 'data.sequence_lengths=[512]'" in command
        assert "continue_from" not in command and "training_timeout" not in command
        assert ("optimizer.max_steps=512" in command) != ("--epochs" in command), "an end that epochs put off"


@pytest.mark.parametrize("name", EVIDENCE)
def test_no_text_shows_a_placeholder_for_what_is_known(name: str) -> None:
    told = evidence_text(name)
    assert "PROJECT" not in told and "FILE:LINE" not in told and "PATH" not in told


def test_a_version_beside_itself_is_said_to_be_the_same() -> None:
    facts = VersionFacts("v1", "promote", "It needs fewer.", {"adapter_bits_per_byte": 1.2}, None, None, "")
    found = VersionsDiff(facts, facts, {"adapter_bits_per_byte": [1.2, 1.2]}, [], {}, False, None)
    told = printed(lambda console: show_diff(console, found))
    assert "the same version" in told and told.count("It needs fewer.") == 1 and "change" not in told


def details_text() -> str:
    work = {
        "rows": 29,
        "read_lines": 1_412,
        "next_line_tasks": 1,
        "cross_file_tasks": 9,
        "fim_tasks": 12,
        "reason": "at most 20% of the work of training on 531 tokens",
    }
    return printed(lambda console: show_details(console, promoted() | {"work": work}))


def scan_text() -> str:
    scan = Scan(
        root=Path("/somewhere/web"), commit=None, file_list_sha256="", files=[], files_seen=1, bytes_seen=812,
        chunks_found=1, chunks_kept=1, dropped={"lock_file": Dropped("files", 1, 300, ["uv.lock"])},
        languages={"python": {"files": 1, "chunks": 1, "bytes": 512}}, secrets=[], exact_duplicates=1,
        near_duplicate_clusters=2, parse_errors=0, seconds=0.1, notes=[],
    )  # fmt: skip
    return printed(lambda console: show_scan(console, scan))


def plan_text() -> str:
    """The plan, the same after the dry run, and the times: with a limit that cuts, one that does not, and none."""
    plan = {"rows_of_width": {"512": 2}, "predicted_peak_bytes": int(0.43 * GIB), "budget_bytes": 4 * GIB,
            "notes": ["no layer is recomputed"]}  # fmt: skip
    whole = TIME_PLAN | {
        "updates": 128,
        "all_updates": 128,
        "training_seconds": 90.0,
        "evidence_seconds": 1600.0,
    }

    def show(console: Console) -> None:
        with LiveView(console, project="web") as view:
            view(PlanChosen(plan))
            view(PlanChosen(plan | {"predicted_peak_bytes": GIB // 2}))
            view(TimePlanned(TIME_PLAN))
            view(TimePlanned(whole))
            view(TimePlanned(whole | {"limit_seconds": None, "evidence_seconds": None}))

    return printed(show)


def imported_diff() -> str:
    """v2 was imported: it has neither evidence nor settings but its rank."""
    settings: dict[str, list[Any]] = {f"setting.{number}": [number, None] for number in range(62)}
    found = VersionsDiff(
        VersionFacts("v1", "promote", "On 23 files that it never saw it needs fewer.", {"adapter_bits_per_byte": 1.2}, None, None, ""),
        VersionFacts("v2", None, None, {}, None, None, ""),
        {"adapter_bits_per_byte": [1.2, None]}, [], settings | {"lora.rank": [16, 8]}, False,
        "There is nothing to compare: v2 was never measured on unseen files.",
    )  # fmt: skip
    return printed(lambda console: show_diff(console, found))


def test_settings_that_only_one_version_has_are_no_others() -> None:
    facts = [VersionFacts(name, None, None, {}, None, None, "") for name in ("v1", "v2")]
    found = VersionsDiff(*facts, {}, [], {f"setting.{at}": [at, None] for at in range(9)}, False, None)
    told = printed(lambda console: show_diff(console, found)).replace("\n", " ")
    assert " 9 settings cannot be compared" in told and "differ" not in told


def trained_diff() -> str:
    facts = [
        VersionFacts(name, "promote", "It needs fewer.", {"adapter_bits_per_byte": bits}, None, None, "")
        for name, bits in (("v1", 1.2), ("v2", 1.1))
    ]
    files = [{"path": f"src/{number}.py", "first": 1.5 - number / 100, "second": 1.2} for number in range(11)]
    found = VersionsDiff(
        *facts,
        {"adapter_bits_per_byte": [1.2, 1.1], "adapter_next_line_similarity": [0.15, 0.2177], "adapter_fim_exact": [0.0, 0.0],
         "base_bits_per_byte": [1.3, 1.3], "bits_per_byte_change": [-0.1, -0.2], "bits_per_byte_change_low": [-0.2, -0.3],
         "bits_per_byte_change_high": [-0.05, -0.1]},
        files,
        {"lora.rank": [16, 8], "optimizer.max_steps": [None, 100]}, True, None,
    )  # fmt: skip
    return printed(lambda console: show_diff(console, found))


def export_text() -> str:
    forms = ("mlx", "peft", "fused", "gguf", "gguf-fused", "gguf-base", "modelfile", "ollama", "lmstudio")
    return "".join(
        f"{form}: {next_command(form, Path('/some where/out'), project='Web', base='Qwen/Qwen2.5-Coder-0.5B')}\n"
        for form in forms
    )


MADE = {
    **{name: lambda name=name: evidence_text(name) for name in EVIDENCE},
    "no_markers": lambda: evidence_text("promoted", has_fim=False),
    "details": details_text, "scan": scan_text, "plan": plan_text, "diff_imported": imported_diff,
    "diff_trained": trained_diff, "export": export_text,
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_the_text_is_the_one_that_was_read(name: str) -> None:
    assert MADE[name]() == (TEXTS / f"{name}.txt").read_text(encoding="utf-8")


def test_no_verdict_contradicts_what_stands_below_it() -> None:
    """Too few files are never called enough, and no tick stands beside a fall that chance alone may explain."""
    for name in EVIDENCE:
        text = evidence_text(name)
        if "No clear difference" in text:
            assert "are enough" not in text
        for line in text.splitlines():
            assert not (line.startswith("✓ passed") and "-16.7" in line)
    for seen in (1, 2, 16):
        assert "enough" not in power_note(seen, 1, told_apart=False)


if __name__ == "__main__":
    TEXTS.mkdir(exist_ok=True)
    for made_name, make in MADE.items():
        (TEXTS / f"{made_name}.txt").write_text(make(), encoding="utf-8")
