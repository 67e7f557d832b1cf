"""The report and the model card: the whole story of a run on one page, which nothing in it can steer or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlx_gardener.config import TrainingConfig, load_config
from mlx_gardener.report.advice import next_steps
from mlx_gardener.report.html import render_report_html
from mlx_gardener.report.model_card import render_model_card
from mlx_gardener.report.recipe import About, all_settings, train_command
from mlx_gardener.report.story import (
    best_and_worst,
    changes,
    directory_gains,
    guards,
    kept,
    kept_step,
    language_gains,
    remarks,
)
from tests.report.facts import EVENTS, EVIDENCE, METRICS, full_events, full_evidence, full_facts

SUMMARY = {
    "chunks_kept": 10, "files_kept": 3, "train_loss_tokens": 1000, "padding_fraction": 0.01, "test_bytes": 99,
    "languages": {"python": {"files": 3, "chunks": 10, "bytes": 999}}, "dropped": {"binary": {"unit": "files", "count": 2}},
}  # fmt: skip
FACTS = {
    "project": "demo",
    "version": "v1",
    "base_model": "seedling",
    "config": TrainingConfig().model_dump(mode="json"),
    "data": {"data_sha256": "ab" * 32, "commit": None, "file_list_sha256": "", "summary": SUMMARY},
    "metrics": METRICS,
    "evidence": EVIDENCE,
    "training": {
        "steps": 20, "total_steps": 20, "best_step": 20, "stopped_because": "all updates done",
        "train_losses": [3.0, 2.0], "validation": [{"step": 0, "loss": 3.0}, {"step": 2, "loss": 2.5}],
    },
    "plan": {},
}  # fmt: skip


def test_an_earlier_interval_from_nothing_to_nothing_is_shown_as_far_as_it_goes() -> None:
    same = {
        "arm": "adapter",
        "against": "base",
        "metric": "next_line_exact",
        "change": 0.0,
        "low": 0.0,
        "high": 0.0,
    }
    (found,) = changes({"comparisons": [{**same, "files": 12, "tasks": 40, "unit": "points"}]})
    assert found.interval == "-25.0 to +25.0" and found.better is None


class _Checker(HTMLParser):
    """Counts open tags and collects what a page would fetch or run."""

    VOID = ("meta", "br", "line", "polyline", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.foreign.append(tag)
        self.foreign += [
            f"{name}={value}"
            for name, value in attrs
            if (name in ("src", "href", "srcset") and not (value or "").startswith("#"))
            or name.startswith("on")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # closed where it opens

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_whole_page_that_runs_and_fetches_nothing() -> None:
    page = render_report_html(FACTS, events=EVENTS)
    checker = _Checker()
    checker.feed(page)
    assert checker.open == [] and checker.foreign == []
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 3, "intervals, loss and memory"
    assert "color-scheme: light dark" in page and 'name="viewport"' in page


def test_the_whole_story_is_told_and_nothing_of_it_can_steer_or_run() -> None:
    page = render_report_html(full_facts(), events=full_events())
    checker = _Checker()
    checker.feed(page)
    assert checker.open == [] and checker.foreign == []
    assert (
        page.startswith("<!doctype html>")
        and "<script" not in page
        and "\x1b" not in page
        and "\u202e" not in page
    )
    for told in (
        "It helped.", "adapter + retrieval", "1.1502", "✗ failed", "Retrieval alone did better in &#34;next line exactly right&#34;",
        "about 31 like these are needed", "1.25 was chosen", "planned peak", "hidden states kept for the way back",
        "AWS Access Key", "settings.py:3", "Where the adapter gained most", "Where it lost most", "By language", "By directory",
        "--set lora.rank=8", "--seed 3", "ab" * 32, "12" * 32, "mlx 0.32.4", "6 of 24 layers are read from disk",
    ):  # fmt: skip
        assert told in page, told
    first_screen = ("It helped.", "how well a model predicts code", "What to do now", "<nav", "<h2")
    assert sorted(first_screen, key=page.index) == list(first_screen), (
        "the verdict comes first, in plain words"
    )
    assert '<span class="y-k">class</span>' in page, "code has syntax colour"
    assert page.count("<title>") > 6 and page.count("<caption>") > 6 and "<th scope=" in page


def test_every_part_that_is_missing_is_left_out() -> None:
    for part in ("arms", "comparisons", "guards", "power", "answers_power", "scale_sweep", "samples"):
        facts = full_facts()
        del facts["evidence"][part]
        told = "It helped." if part != "comparisons" else "its answers were not compared."
        assert told in render_report_html(facts, events=[]), part
    for part in ("power", "scale_sweep"):
        facts = full_facts()
        facts["evidence"][part] = None
        assert "It helped." in render_report_html(facts, events=full_events()), part
    facts = full_facts()
    for part in ("scan", "base", "versions", "plan"):
        del facts[part]
    page = render_report_html(facts, events=[])
    assert "AWS Access Key" not in page and "left of the budget" not in page and "17 chunks" in page


def test_gains_are_weighted_by_bytes_and_grouped_where_paths_differ() -> None:
    evidence = {
        "files": [
            {"path": "a/b/c/x.py", "language": "python", "bytes": 300, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": 0.5},
            {"path": "a/b/c/y.py", "language": "python", "bytes": 100, "base_bits_per_byte": 1.0, "adapter_bits_per_byte": 1.5},
            {"path": "a/b/d/z.go", "language": "go", "bytes": 50, "base_bits_per_byte": 2.0, "adapter_bits_per_byte": 2.0},
        ]
    }  # fmt: skip
    python, go = language_gains(evidence)
    assert (python.name, python.files, python.base, python.adapter) == ("python", 2, 1.0, 0.75)
    assert python.change == pytest.approx(-0.25) and go.change == 0.0
    assert [gain.name for gain in directory_gains(evidence)] == ["a/b/c/", "a/b/d/"]
    many = [
        {"path": f"d{n}/x", "bytes": 10, "base_bits_per_byte": 1, "adapter_bits_per_byte": 1}
        for n in range(40)
    ]
    found = directory_gains({"files": many})
    assert found[-1].name == "others" and sum(gain.files for gain in found) == 40


def test_best_and_worst_are_what_gained_and_lost_most() -> None:
    samples = [{"path": "x", "gain": gain} for gain in (0.1, -0.5, 0.9, 0.0, 0.004, -0.001, -0.1)]
    (best, gained), (worst, lost) = best_and_worst({"samples": samples})
    assert (best, [item["gain"] for item in gained]) == ("Where the adapter gained most", [0.9, 0.1])
    assert (worst, [item["gain"] for item in lost]) == ("Where it lost most", [-0.5, -0.1])


def test_a_losing_comparison_is_said_whichever_side_is_named_first() -> None:
    def said(arm: str, against: str, low: float, high: float) -> list[str]:
        item = {"arm": arm, "against": against, "metric": "bits_per_byte", "change": (low + high) / 2}
        return remarks({"comparisons": [{**item, "low": low, "high": high, "unit": "relative"}]})

    assert said("adapter", "base_bm25", 0.01, 0.1) and said("base_bm25", "adapter", -0.1, -0.01)
    assert not said("adapter", "base_bm25", -0.1, -0.01) and not said("base_bm25", "adapter", 0.01, 0.1)
    assert said("adapter", "control", -0.1, 0.1) and said("control", "adapter", -0.1, 0.1)
    assert not said("adapter", "control", -0.2, -0.1) and not said("control", "adapter", 0.1, 0.2)


def test_more_answers_are_advised_only_where_answers_were_asked() -> None:
    read = {"arm": "adapter", "against": "base", "metric": "read_line_exact", "files": 9, "tasks": 300}
    found = {**EVIDENCE, "comparisons": [{**read, "change": 0.0, "low": -0.1, "high": 0.1}]}
    for tasks in (0, 10):
        steps = next_steps({**found, "next_line_tasks": tasks}, About("web"))
        thorough = [step for step in steps if "mlx-gardener eval web --thorough" in step.commands]
        assert len(thorough) == (tasks > 0)


def test_retrieval_is_advised_once_and_only_where_the_server_has_it_not_on_already() -> None:
    def advised(bits: tuple[float, float], answers: tuple[float, float], *against_base: float) -> list[str]:
        def compared(arm: str, other: str, metric: str, low: float, high: float) -> dict[str, object]:
            ends = {"change": (low + high) / 2, "low": low, "high": high}
            return {"arm": arm, "against": other, "metric": metric, "files": 9, "tasks": 9, **ends}

        comparisons = [
            compared("adapter_bm25", "adapter", "bits_per_byte", *bits),
            compared("adapter_bm25", "adapter", "answers_exact", *answers),
            compared("adapter", "base", "answers_exact", -0.1, 0.1),
        ]
        if against_base:
            comparisons.append(compared("base_bm25", "adapter", "bits_per_byte", *against_base))
        arms = [{"name": name, "metrics": {"bits_per_byte": 1.2}} for name in ("adapter", "adapter_bm25")]
        found = {**EVIDENCE, "arms": arms, "comparisons": comparisons}
        steps = next_steps(found, About("web"))
        return [step.text for step in steps if "mlx-gardener serve --retrieval on" in step.commands]

    unsure, fewer, more = (-0.1, 0.1), (-0.2, -0.05), (0.05, 0.2)
    (told,) = advised(unsure, unsure)
    assert told.startswith("For better answers put related code in front")
    (told,) = advised(unsure, unsure, *fewer)
    assert told.startswith("Retrieval alone did better than the adapter, so use both")
    assert advised(fewer, unsure) == advised(fewer, unsure, *fewer) == [], "`auto` has it on"
    assert advised(unsure, fewer) == advised(more, unsure) == advised(more, unsure, *fewer) == [], "it lost"


def test_the_command_names_what_is_not_the_default_and_no_place_of_this_machine() -> None:
    overrides = {"model": "/home/someone/models/tiny", "data.exclude": ["a b/*"], "memory_limit_gb": 2}
    config = load_config(environment={}, overrides=overrides).model_dump(mode="json")
    command = train_command(config, "tiny", "web")
    assert (
        command
        == "mlx-gardener train . --project web --model tiny --budget 2.0 --set 'data.exclude=[\"a b/*\"]'"
    )
    assert "/home" not in str(all_settings(config, "tiny"))


def test_the_model_card_says_what_it_is_and_how_to_load_it() -> None:
    card = render_model_card(FACTS)
    assert card.startswith("---\nbase_model: seedling") and "--adapter-path mlx" in card
    assert "1.5000 | 1.2000" in card
    assert "**It predicts your code better; its answers were not compared.**" in card
    assert "alert(1)" not in card, "no source text and no file names in the card"
    full = render_model_card({**FACTS, "evidence": full_evidence()})
    assert (
        "| on code it never saw | base | base + retrieval | adapter | adapter + retrieval | control |\n|---|"
        in full
    )
    assert "- adapter against control, bits per byte: -22.5% (95 % interval -27.0% to -13.0%)." in full
    assert (
        "A guard failed, `report.html` says why: Training files are not known by heart" in full
        and "not forgotten" not in full
    )
    assert "owned" not in full


def test_a_result_displays_itself_in_a_notebook() -> None:
    from mlx_gardener.api import TrainingResult

    html = TrainingResult("<b>", "v1", Path("x"), METRICS, EVIDENCE, FACTS["training"])._repr_html_()  # type: ignore[arg-type]
    assert "<svg" in html and "&lt;b&gt;" in html and "1.2000" in html


def test_the_first_screen_says_what_it_means_and_what_to_do() -> None:
    for verdict, told in (
        ("promote", "mlx-gardener complete demo src/core/basket.py:7"),
        ("inconclusive", "--fresh --epochs 6 --timeout 0"),
        ("reject", "mlx-gardener show demo"),
        ("unmeasured", "mlx-gardener eval demo"),
    ):
        facts = full_facts()
        facts["evidence"] |= {"verdict": verdict, "guards": []}
        if verdict == "inconclusive":
            facts["evidence"]["metrics"]["bits_per_byte_change_high"] = 0.1
        page = render_report_html(facts, events=[])
        first = page[page.index("<main>") : page.index("<nav")]
        assert "What to do now" in first and told in first, verdict


def test_the_words_of_the_evidence_are_explained() -> None:
    page = render_report_html(full_facts(), events=[])
    terms = re.findall(r"<dt>(.*?)</dt>", page)
    for word in ("bits per byte", "retrieval (BM25)", "control", "F1", "base", "adapter"):
        assert word in terms


def test_the_times_and_what_was_cut_off_are_on_the_page() -> None:
    facts = full_facts()
    facts["evidence"]["notes"] = ["Not measured, as the time was over: spans."]
    facts["training"] |= {
        "stopped_because": "the time limit, after 120 of 512 updates",
        "time_plan": {
            "limit_seconds": 1800.0, "used_seconds": 70.0, "training_seconds": 1325.0, "evidence_seconds": 390.0,
            "updates": 120, "all_updates": 512, "steps_per_epoch": 171, "validations": 4, "validation_tokens": 4000,
            "pace": {"update_seconds": 10.2, "forward_tokens_per_second": 250.0, "source": "as the last updates took"},
        },
    }  # fmt: skip
    page = render_report_html(facts, events=[])
    for told in (
        "as the time was over: spans", "22 min 05 s for training", "120 of 512 updates fit", "--timeout 0", "eval demo",
    ):  # fmt: skip
        assert told in page, told


def test_what_chance_may_explain_gets_no_tick() -> None:
    fell = {"name": "parse_ok", "passed": True, "measured": -0.167, "limit": 0.05, "reason": "it fell"}
    states = [
        guard.state
        for guard in guards(
            {
                "guards": [
                    fell,
                    {**fell, "measured": None},
                    {**fell, "measured": 0.1},
                    {**fell, "passed": False},
                ]
            }
        )
    ]
    assert states == ["unclear", "unclear", "passed", "failed"]
    assert guards({"guards": [fell]})[0].reason == "It fell."
    for change, low, state in (
        (0.0, -1.0, "unclear"),
        (0.05, -0.06, "unclear"),
        (0.0, 0.0, "passed"),
        (0.1, -0.04, "passed"),
    ):
        interval = {
            "metric": "fim_parse_ok", "arm": "adapter", "against": "base", "change": change, "low": low, "high": 1.0,
        }  # fmt: skip
        shown = guards({"guards": [{**fell, "measured": change}], "comparisons": [interval]})
        assert shown[0].state == state, interval


def test_the_page_says_which_state_of_the_training_is_the_adapter() -> None:
    """As `Standing.adapter` decides: the best that was validated, or the last where time ran out before it could be."""
    points = [{"step": step, "loss": 2.0, "bits_per_byte": 1.0} for step in (0, 4, 8)]
    for steps, best, validated, at, told in (
        (8, 8, 3, 8, "after update 8, where the validation part went best."),
        (3, 0, 1, 3, "after update 3, the last one: the time was over before it could be validated"),
        (6, 4, 2, 6, "after update 6, the last one: the time was over"),
        (11, 4, 3, 4, "after update 4, where the validation part went best; what came after update 8 was not validated"),
        (8, 0, 3, 0, "as it was before the first: it changes nothing"),
    ):  # fmt: skip
        training = {"steps": steps, "best_step": best, "validation": points[:validated]}
        assert kept_step(training) == at and told in kept(training)
    facts = full_facts()
    facts["training"] |= {"steps": 3, "best_step": 0, "validation": points[:1]}
    assert "after update 3, the last one" in render_report_html(facts, events=[])
    assert "after update 3, the last one" in render_model_card(facts)


def test_the_place_to_complete_is_in_a_file_of_the_main_language_beyond_its_imports() -> None:
    held_out = {".coveragerc": 400, "docs/long.md": 90_000, "app/__init__.py": 30, "app/server.py": 9_000}
    files = {f"app/part{number}.py": ["ab", "train"] for number in range(9)}
    about = About("web", files=files | {path: ["cd", "test"] for path in held_out})
    evidence = {
        **EVIDENCE,
        "samples": [],
        "files": [{"path": path, "bytes": size} for path, size in held_out.items()],
    }

    def command(found: dict[str, object]) -> str:
        return next(step.commands[0] for step in next_steps(found, about) if "complete" in step.commands[0])

    assert command(evidence) == "mlx-gardener complete web app/server.py:90"
    assert command({**evidence, "files": []}) == "mlx-gardener complete web app/server.py:2"
