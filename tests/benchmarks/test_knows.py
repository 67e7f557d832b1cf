"""The table over many repositories: what is compared with what, what counts as done, and that it goes on where it stopped."""

from __future__ import annotations

import json
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import knows, knows_tables, unseen
from tests.support.repositories import write_repository

MACHINE = {"chip": "M", "cores": 2, "memory_gib": 8, "mlx": "1", "backend": "cpu", "date": "2026-01-01"}
BASE = {"bits_per_byte": 1.5, "next_line_exact": 0.2, "cross_file_exact": 0.1, "assertion_exact": 0.1}


def entry(
    adapter: float, exact: float, *, forgets: bool = False, control: float = 1.6, assertions: int = 6
) -> dict[str, Any]:
    """What is kept of one repository."""
    arms = {
        "base": BASE,
        "base_bm25": {**BASE, "next_line_exact": 0.25},
        "adapter": {**BASE, "bits_per_byte": adapter},
        "adapter_bm25": {**BASE, "bits_per_byte": adapter - 0.1, "next_line_exact": exact},
        "control": {"bits_per_byte": control},
    }
    return {
        "files": 9,
        "train_bytes": 120_000,
        "retrieval": {"examples": 7, "context_tokens": 900},
        "updates": 20,
        "training_seconds": 90.0,
        "evidence": {
            "verdict": "promote",
            "arms": [{"name": name, "metrics": values} for name, values in arms.items()],
            "guards": [{"name": "forgetting", "passed": not forgets}],
            "groups": [
                {"kind": kind, "language": language, "tasks": tasks}
                for kind, language, tasks in (
                    ("next_line", "python", 15),
                    ("next_line", "toml", 5),
                    ("cross_file", "python", 20),
                    ("assertion", "python", assertions),
                )
            ],
        },
    }


def test_changes_are_paired_by_repository_and_their_mean_has_an_interval_over_them() -> None:
    found = {"a": entry(1.2, 0.4), "b": entry(1.35, 0.3), "c": entry(1.275, 0.35)}
    assert knows_tables.changes(found, "adapter", "base", "bits_per_byte") == pytest.approx(
        {"a": -0.2, "b": -0.1, "c": -0.15}
    )
    assert knows_tables.changes(found, "adapter_bm25", "base_bm25", "next_line_exact") == pytest.approx(
        {"a": 0.15, "b": 0.05, "c": 0.1}
    )
    mean = knows_tables.mean_change({"a": -0.2, "b": -0.1, "c": -0.15})
    assert mean["change"] == pytest.approx(-0.15) and mean["low"] < -0.2 < -0.1 < mean["high"]
    assert mean["repositories"] == 3
    same = knows_tables.mean_change(dict.fromkeys("abcdefgh", 0.1))
    assert same["low"] == pytest.approx(0.1) == pytest.approx(same["high"])


def test_a_repository_with_a_handful_of_tasks_counts_in_no_mean_of_their_kind() -> None:
    found = {"a": entry(1.2, 0.4), "b": entry(1.2, 0.4, assertions=1)}
    assert knows_tables.task_counts(found["b"]) == {"next_line": 20, "cross_file": 20, "assertion": 1}
    found["b"]["evidence"]["arms"][3]["metrics"]["assertion_exact"] = 1.0
    assert set(knows_tables.changes(found, "adapter_bm25", "base", "assertion_exact")) == {"a"}
    assert set(knows_tables.changes(found, "adapter_bm25", "base", "cross_file_exact")) == {"a", "b"}
    arms = knows_tables.means({"": found})[""]["arms"]
    assert arms["adapter_bm25"]["assertion_exact"] == pytest.approx(BASE["assertion_exact"])


def test_lines_that_were_read_have_bars_of_their_own_where_there_are_enough() -> None:
    found = {name: entry(1.2, 0.4) for name in "ab"}
    for lines, own in zip((500, 4), found.values(), strict=True):
        for arm, share in zip(own["evidence"]["arms"], (0.2, 0.22, 0.25, 0.29, 0.2), strict=True):
            arm["metrics"] |= {"read_line_exact": share, "read_cross_file_exact": share}
        own["evidence"]["groups"] += [
            {"kind": kind, "language": "python", "tasks": tasks}
            for kind, tasks in (("read_line", 500), ("read_cross_file", lines))
        ]
    assert knows_tables.task_counts(found["a"])["read_cross_file"] == 500
    mean = knows_tables.means({"": found})[""]
    rows = {(row["measure"], row["against"]): row for row in knows_tables.bars(mean, found)}
    assert rows["read_line_exact: adapter + retrieval", "base"]["met"], (
        "9 points, but 45 % of what the base has"
    )
    assert rows["read_line_exact: adapter + retrieval", "base + retrieval"]["met"]
    assert not rows["read_cross_file_exact: adapter + retrieval", "base"]["met"], (
        "9 points, 45 % of the base's"
    )
    crossing = [row for row in mean["changes"] if row["metric"] == "read_cross_file_exact"]
    assert crossing and {row["repositories"] for row in crossing} == {1}, "four lines say nothing"


def test_variants_are_compared_with_the_first_one_on_the_same_repositories() -> None:
    plain = {"a": entry(1.2, 0.3), "b": entry(1.3, 0.3), "c": entry(1.3, 0.3)}
    retrieval = {"a": entry(1.2, 0.4), "b": entry(1.3, 0.5)}
    mean = knows_tables.means({"share=0": plain, "share=0.3": retrieval})
    assert not mean["share=0"]["against_first"]
    beside = {(row["arm"], row["metric"]): row for row in mean["share=0.3"]["against_first"]}
    seen = beside["adapter_bm25", "next_line_exact"]
    assert seen["change"] == pytest.approx(0.15) and seen["repositories"] == 2
    assert beside["adapter", "bits_per_byte"]["change"] == 0
    assert mean["share=0"]["arms"]["adapter_bm25"]["next_line_exact"] == pytest.approx(0.3)


def test_a_bar_is_met_by_points_or_by_what_is_relative() -> None:
    def met(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
        rows = knows_tables.bars(knows_tables.means({"": found})[""], found)
        return {f"{row['measure']} / {row['against']}": row["met"] for row in rows}

    good = met({name: entry(1.2, 0.4) for name in "abcd"})
    assert good == {
        "next_line_exact: adapter + retrieval / base": True,
        "cross_file_exact: adapter + retrieval / base": False,
        "assertion_exact: adapter + retrieval / base": False,
        "next_line_exact: adapter + retrieval / base + retrieval": True,
        "bits per byte: adapter / base": True,
        "the control loses / adapter of another repository": True,
        "forgetting within its guard / base": True,
    }
    relative = met({name: entry(1.2, 0.29) for name in "abcd"})
    assert relative["next_line_exact: adapter + retrieval / base"], "9 points, but 45 % of what the base has"
    bad = met({"a": entry(1.2, 0.4), "b": entry(1.45, 0.2, forgets=True, control=1.4)})
    assert not any(bad[name] for name in bad if "exact" not in name)
    unmeasured = {"a": entry(1.2, 0.4), "b": entry(1.2, 0.4)}
    unmeasured["b"]["evidence"]["guards"] = []
    assert not met(unmeasured)["forgetting within its guard / base"], "one of two was not looked at"


def test_the_tables_name_every_repository_arm_and_setting() -> None:
    evidence = {"": {"a": entry(1.2, 0.4), "b": entry(1.3, 0.3)}}
    mean = knows_tables.means(evidence)
    text = knows_tables.markdown(
        {
            "name": "x",
            "model": "tiny",
            "machine": MACHINE,
            "settings": {"lora.rank": "8"},
            "tasks": 5,
            "means": mean,
            "bars": {"": knows_tables.bars(mean[""], evidence[""])},
            "evidence": evidence,
        }
    )
    assert "`lora.rank=8`" in text and "tiny" in text
    for name in ("a", "b", "**mean of 2**"):
        for arm in knows_tables.ARMS:
            assert f"| {name} | {arm} | " in text
    assert "| b | 9 | 120 | 20 | 1.5 | 7 | 0 | 0 | 0 | 20 | 20 | 6 | 0 | promote |" in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(widths)) <= 5, "every table is as wide as its head"
    some = {name: entry(1.2, 0.4) for name in ("a", "b")}
    some["b"]["evidence"]["arms"] = [
        arm for arm in some["b"]["evidence"]["arms"] if arm["name"] != "adapter_bm25"
    ]
    told = {"name": "x", "model": "tiny", "machine": MACHINE, "settings": {}, "tasks": 5, "bars": {"": []}}
    text = knows_tables.markdown({**told, "means": knows_tables.means({"": some}), "evidence": {"": some}})
    assert "**mean of 1** | adapter_bm25" in text and "**mean of 2** | adapter |" in text


def test_a_variant_names_a_project_and_settings_are_pairs() -> None:
    assert knows.slug("data.retrieval_share=0.3") == "retrieval_share-0.3"
    assert knows.slug("lora.rank=8,optimizer.epochs=2") == "rank-8-epochs-2"
    assert knows.slug("") == "plain"
    found = CliRunner().invoke(knows.main, ["--name", "x", "--repositories", "no-such-place"])
    assert found.exit_code == 2 and "neither in unseen.toml nor a directory" in found.output


def test_what_is_listed_is_younger_than_the_bases_and_free() -> None:
    listed = unseen.packages()
    assert len(listed) == len(tomllib.loads(unseen.LIST.read_text())["package"]) >= 9
    for package in listed.values():
        assert date.fromisoformat(package.first_release) > date(2024, 9, 30)
        assert package.licence in ("MIT", "Apache-2.0", "BSD-3-Clause")


def test_what_was_measured_elsewhere_is_added_where_it_was_asked_the_same(tmp_path: Path) -> None:
    def write(name: str, tasks: int, found: dict[str, Any]) -> str:
        place = tmp_path / name
        place.mkdir()
        knows.report("tiny", "some/seedling", tasks, {"a": "1"}, MACHINE, {"": found}, place)
        return str(place / "knows_tiny.json")

    one = write("one", 2, {"a": entry(1.2, 0.4), "b": entry(1.35, 0.3)})
    two, other = (
        write("two", 2, {"b": entry(1.1, 0.5), "c": entry(1.3, 0.3)}),
        write("other", 3, {"a": entry(1.2, 0.4)}),
    )
    flags = ["--name", "all", "--tasks", "2", "--set", "a=1", "--work", str(tmp_path / "work")]
    flags += ["--results", str(tmp_path), "--add", one, "--add"]
    done = CliRunner().invoke(knows.main, [*flags, two], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (entries,) = json.loads((tmp_path / "knows_all.json").read_text())["evidence"].values()
    assert entries == {"a": entry(1.2, 0.4), "b": entry(1.1, 0.5), "c": entry(1.3, 0.3)}
    assert "**mean of 3**" in done.output
    refused = CliRunner().invoke(knows.main, [*flags, other])
    assert refused.exit_code == 2 and "has other tasks: 3, not 2" in " ".join(refused.output.split())


@pytest.mark.slow
def test_two_repositories_are_trained_measured_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [write_repository(tmp_path / name, modules=6, functions=3) for name in ("one", "two")]
    flags = ["--repositories", ",".join(map(str, places)), "--tasks", "2"]
    for setting in (
        "optimizer.max_steps=1", "optimizer.tokens_per_update=256", "data.sequence_lengths=[256]", "min_training_chunks=5",
        "training_data_quality_threshold=0.1", "evaluation.tasks=2", "evaluation.max_new_tokens=8",
    ):  # fmt: skip
        flags += ["--set", setting]
    flags += ["--variant", "data.retrieval_share=0", "--variant", "data.retrieval_share=0.5"]
    results = tmp_path / "results"
    results.mkdir()
    where = ["--name", "tiny", "--work", str(tmp_path / "work"), "--results", str(results)]
    done = CliRunner().invoke(knows.main, [*flags, *where], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((results / "knows_tiny.json").read_text())
    assert {name for entries in found["evidence"].values() for name in entries} == {"one", "two"}
    assert found["evidence"]["data.retrieval_share=0.5"]["one"]["retrieval"]["examples"] > 0
    assert {
        arm["name"] for arm in found["evidence"]["data.retrieval_share=0"]["two"]["evidence"]["arms"]
    } == set(knows_tables.ARMS)

    def never(*_: str, **__: Path) -> None:
        raise AssertionError("what is done is done again")

    monkeypatch.setattr(knows, "gardener", never)
    assert CliRunner().invoke(knows.main, [*flags, *where], catch_exceptions=False).exit_code == 0
    other = CliRunner().invoke(knows.main, [*flags, *where, "--tasks", "3"])
    assert other.exit_code == 2 and "begun with other settings" in other.output
