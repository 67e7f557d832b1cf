"""A project's adapter over time: stale, trained on from, compared, rolled back, and without a path that it knew."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_gardener.adapter import PeftManager
from mlx_gardener.adapter.manifest import read_manifest
from mlx_gardener.adapter.versions import diff_versions, roll_back
from mlx_gardener.cli.lifecycle import _told
from mlx_gardener.config import load_config
from mlx_gardener.dataset import Earlier, Split
from mlx_gardener.dataset.changes import continue_split, known_files
from mlx_gardener.errors import DataError, GardenerError, RegistryError
from mlx_gardener.lifecycle.forgetting import (
    Forgotten,
    Knowing,
    Recall,
    clean_path,
    find_path,
    forget,
    versions_that_know,
)
from mlx_gardener.lifecycle.staleness import look_at
from mlx_gardener.platform.files import make_private, write_whole
from mlx_gardener.registry import ProjectRegistry, TrainingStatus
from mlx_gardener.runs.manager import TrainingPipeline
from mlx_gardener.runs.parent import exclude_pattern
from mlx_gardener.source.filters import drop_by_path
from mlx_gardener.source.records import ChunkRecord, ChunkType, FileRecord
from tests.registry.worlds import install_adapter
from tests.support.commands import gardener_here, train_flags
from tests.support.trainings import tiny_settings

pytestmark = pytest.mark.usefixtures("known_home")  # what machine and base are like is measured elsewhere


def record(path: str, sha: str = "a", cluster: int | None = None, size: int = 100) -> FileRecord:
    chunk = ChunkRecord(path, ChunkType.BLOCK, path, 0, size, 1, 5, 1.0, 0.0)
    return FileRecord(
        path, "python", size, sha * 64, hash(path) if cluster is None else cluster, (chunk,), ()
    )


def manifest_of(registry: ProjectRegistry, version: str) -> dict[str, Any]:
    return read_manifest(registry.get_adapter("small", version).directory)


def commit(repository: Path, message: str) -> None:
    settings = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    for command in (("add", "-A"), (*settings, "commit", "-qm", message)):
        subprocess.run(("git", "-C", str(repository), *command), check=True, capture_output=True)


def test_what_was_learned_from_never_becomes_a_test_and_the_old_is_replayed() -> None:
    before = Split((record("a"), record("b"), record("c"), record("d")), (record("v"),), (record("t"),))
    earlier = Earlier("v1", {path: (entry[0], entry[1]) for path, entry in known_files(before, None).items()})
    now = Split(  # a fresh split would test on "a", and learn from "t" and from a near duplicate of "v"
        (record("t"), record("b"), record("c", "x"), record("twin", cluster=5)),
        (record("v", cluster=5),),
        (record("a"), record("new")),
    )
    found = continue_split(now, earlier, replay_share=0.5, seed=0)
    assert [item.path for item in found.whole.test] == ["new", "t"]
    assert [item.path for item in found.whole.validation] == ["twin", "v"]
    assert [item.path for item in found.whole.train] == ["a", "b", "c"]
    assert "c" in [item.path for item in found.split.train] and len(found.split.train) == 2
    assert found.changed_files == 1 and found.replayed_files == 1
    none = continue_split(now, earlier, replay_share=0.0, seed=0)
    assert [item.path for item in none.split.train] == ["c"]
    known = known_files(found.whole, earlier)
    assert known["d"][1] == "gone" and known["a"][1] == "train", "what is gone is still known"
    again = Earlier("v2", {path: (entry[0], entry[1]) for path, entry in known.items()})
    back = continue_split(Split((), (record("v"),), (record("d"),)), again, replay_share=0.5, seed=0)
    assert [item.path for item in back.whole.train] == ["d"], "and comes back as a training file"


def test_a_pattern_excludes_its_path_and_nothing_else() -> None:
    for path in ("src/a.py", "a b/[x]*.py", "#odd!", "lib"):
        config = load_config(environment={}, overrides={"data.exclude": [exclude_pattern(path)]}).data
        assert drop_by_path(path, config) == "excluded"
        assert drop_by_path(f"other/{path}", config) != "excluded"
    assert drop_by_path(
        "lib/inner.py", load_config(environment={}, overrides={"data.exclude": ["/lib"]}).data
    )
    for wrong in ("../x", "/etc/passwd", "."):
        with pytest.raises(DataError):
            clean_path(Path("/repo"), wrong)


@pytest.mark.usefixtures("known_home")
def test_a_project_goes_on_from_what_changed_and_back(git_repository: Path, tiny_model_dir: Path) -> None:
    registry = ProjectRegistry()
    registry.register_project("small", git_repository)

    def train() -> None:
        pipeline = TrainingPipeline(tiny_settings(tiny_model_dir), registry=registry)
        pipeline.start_training("small")
        assert pipeline.wait_for_training_completion("small", timeout=600).phase == "completed"

    train()
    first = manifest_of(registry, "v1")
    assert first["training"]["parent"] is None and first["config"]["continue_from"] == "never"
    trained = sorted(path for path, (_, part) in first["data"]["files"].items() if part == "train")
    unmoved = look_at(registry, "small", tiny_settings(tiny_model_dir))
    assert unmoved is not None and (unmoved.commits_since, unmoved.stale_share) == (0, 0.0)

    changed = git_repository / trained[0]
    changed.write_text(
        changed.read_text() + "\n\ndef added_later(alpha, beta):\n    return alpha * beta - 17\n"
    )
    (git_repository / trained[1]).unlink()
    commit(git_repository, "Second")
    stale = look_at(registry, "small", tiny_settings(tiny_model_dir), measure=True)
    assert stale is not None and stale.commits_since == 1
    assert stale.changed_files == [trained[0]] and stale.gone_files == [trained[1]]
    assert stale.new_code is not None and 0 < stale.new_code["adapter"] < 20

    train()
    second = manifest_of(registry, "v2")
    assert second["training"]["parent"] == "v1" and second["config"]["continue_from"] == "auto:v1"
    assert second["data"]["summary"]["continued_from"]["changed_files"] == 1
    assert second["data"]["files"][trained[1]][1] == "gone"
    start, best = second["training"]["validation"][0]["loss"], first["training"]["validation"]
    assert start == pytest.approx(min(item["loss"] for item in best), rel=0.05), "it begins where v1 ended"

    found = diff_versions(registry, "small", "v1", "v2")
    assert found.settings["continue_from"] == ["never", "auto:v1"]
    assert found.metrics["adapter_bits_per_byte"][0] == first["metrics"]["adapter_bits_per_byte"]
    sizes = [abs(item["second"] - item["first"]) for item in found.files]
    assert sizes == sorted(sizes, reverse=True) and found.comparable


def test_two_versions_are_compared_by_their_newest_evaluations(trained_home: Path) -> None:
    registry = ProjectRegistry(trained_home)
    first = registry.get_adapter("small", "v1")
    install_adapter(registry, "small", "v2")
    evidence = read_manifest(first.directory)["evidence"]
    evidence["metrics"] = {**evidence["metrics"], "adapter_bits_per_byte": 0.1234}
    make_private(first.directory / "evaluations")
    write_whole(
        first.directory / "evaluations" / "2031-01-01T10-20-30Z.json", json.dumps({"evidence": evidence})
    )
    found = diff_versions(registry, "small", "v1", "v2")
    assert found.metrics["adapter_bits_per_byte"][0] == found.first.metrics["adapter_bits_per_byte"] == 0.1234
    assert found.first.evaluated_at is not None and found.second.evaluated_at is None
    again = "Measured again by `mlx-gardener eval` on 2031-01-01 10:20 UTC."
    shown = " ".join(gardener_here("diff", "small", "v1", "v2").stdout.split())
    assert "0.1234 bits per byte" in shown and shown.count(again) == 1, shown


def test_a_forgotten_path_stays_out_and_what_knows_it_goes(
    trained_home: Path, trained_model_dir: Path
) -> None:
    registry = ProjectRegistry(trained_home)
    pipeline = TrainingPipeline(tiny_settings(trained_model_dir), registry=registry)
    path = next(
        path for path, (_, part) in manifest_of(registry, "v1")["data"]["files"].items() if part == "train"
    )
    imported = install_adapter(registry, "small", "v7")  # knows what it knows
    registry.activate_adapter("small", "v1")
    done = forget(
        pipeline,
        "small",
        path,
        purge=True,
        run=lambda: pipeline.wait_for_training_completion("small", timeout=600) and None,
    )
    assert (done.before, done.after) == ("v1", "v8") and done.knowing == done.purged == ("v1",)
    assert done.cannot_be_known == ("v7",) and imported.directory.exists()
    assert done.recall is not None and [item.who for item in done.recall] == ["base", "v1", "v8"]
    assert done.shown == (path,) and done.not_shown == {}
    assert path not in manifest_of(registry, "v8")["data"]["files"]
    assert [item.version for item in PeftManager(registry).list_adapters("small")] == ["v7", "v8"]
    assert registry.check() == []
    assert not any((registry.home / "cache" / name).exists() for name in ("tokens", "answers"))
    assert registry.remember_path("small", path) and not registry.remember_path("small", path)


def test_the_commands_say_it(repository: Path, trained_model_dir: Path) -> None:
    flags = train_flags(trained_model_dir)
    nothing = gardener_here("train", str(repository), "--project", "small", "--continue", *flags)
    assert (
        nothing.returncode == 1 and "No training file has changed since v1" in nothing.stderr + nothing.stdout
    )
    assert gardener_here("train", str(repository), "--continue", "--fresh").returncode == 2
    shown = json.loads(gardener_here("status", "small", "--json").stdout)
    assert shown["adapter"]["version"] == "v1" and shown["adapter"]["stale_share"] == 0
    assert "Since v1 was trained, no file has changed." in gardener_here("status", "small").stdout
    assert gardener_here("status", "--measure").returncode == 2
    assert "was active before v1" in gardener_here("rollback", "small").stderr
    typo = gardener_here("forget", "small", "README.mdx", "--yes")
    assert typo.returncode == 1 and "Did you mean README.md" in typo.stderr
    assert gardener_here("show", "small", "--json").stdout.count('"version"') == 1, "nothing was trained"
    same = json.loads(gardener_here("diff", "small", "v1", "v1", "--json").stdout)
    assert same["comparable"] and same["settings"] == {}
    assert "it is the same version" in gardener_here("diff", "small", "v1", "v1").stdout
    assert gardener_here("forget", "small", "../outside", "--yes").returncode == 1
    assert gardener_here("forget", "small", "README.md", "--undo").returncode == 1
    ProjectRegistry().forget_path("small", "core")
    for command in (
        ("scan", str(repository), "--json"),
        ("train", str(repository), "--dry-run", "--json", *flags),
    ):
        told = json.loads(gardener_here(*command).stdout)
        found = told.get("scan", told)
        assert found["dropped"]["excluded"]["count"] > 0, f"{command[0]} leaves out what is to be forgotten"


@pytest.mark.slow
def test_a_memorised_file_is_gone_after_forgetting(repository: Path) -> None:
    """On the embedded model: what v1 repeats word for word, v2 does not."""
    lines = [f"    {word}_{at} = {at * 7919 % 1013}  # {word} of the vault" for at, word in enumerate(
        ("amber", "cobalt", "crimson", "indigo", "ochre", "saffron", "teal", "umber") * 8)]  # fmt: skip
    vaults = [repository / f"vault_{number}.py" for number in range(1)]
    for vault in vaults:
        vault.write_text("class Vault:\n" + "\n".join(lines) + "\n")
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    settings = tiny_settings(
        Path("seedling"),
        **{"optimizer.max_steps": 150, "optimizer.epochs": 100, "optimizer.learning_rate": 5e-3, "evaluation.patience": 1000,
           "lora.rank": 32, "data.sequence_lengths": [256, 512], "optimizer.tokens_per_update": 2048},
    )  # fmt: skip
    pipeline = TrainingPipeline(settings, registry=registry)
    pipeline.start_training("small")
    pipeline.wait_for_training_completion("small", timeout=1800)
    parts = manifest_of(registry, "v1")["data"]["files"]
    assert parts["vault_0.py"][1] == "train"
    registry.activate_adapter("small", "v1")
    done = forget(
        pipeline,
        "small",
        "vault_0.py",
        run=lambda: pipeline.wait_for_training_completion("small", timeout=1800) and None,
    )
    assert done.recall is not None
    _, before, after = done.recall
    print(done.recall)
    assert before.bits_per_byte < 0.7 * after.bits_per_byte
    assert before.verbatim > after.verbatim and done.is_gone


@pytest.fixture
def three_versions(repository: Path) -> ProjectRegistry:
    """v1 has learned from core, v2 from docs and core/late.py, which is no more; what v3 has is not known."""
    registry = ProjectRegistry()
    registry.register_project("small", repository)
    known = {
        "v1": {"core/a.py": ["0", "train"], "core/t.py": ["0", "test"]},
        "v2": {"docs/b.md": ["0", "validation"], "core/late.py": ["0", "gone"]},
        "v3": None,
    }
    for version, files in known.items():
        install_adapter(registry, "small", version, learned_from=files)
    return registry


def test_going_back_goes_to_what_was_active_before_and_again_one_further(
    three_versions: ProjectRegistry,
) -> None:
    registry = three_versions
    for version in ("v2", "v2", "v1", "v3"):
        registry.activate_adapter("small", version)
    assert registry.versions_before("small") == ["v1", "v2"]
    steps = [roll_back(registry, "small") for _ in range(2)]
    assert [(was.version, now.version) for was, now in steps] == [("v3", "v1"), ("v1", "v2")]
    registry.activate_adapter("small", "v3")
    registry.remove_adapter("small", "v2", delete_files=True)  # it cannot be gone back to any more
    assert roll_back(registry, "small")[1].version == "v1"
    with pytest.raises(RegistryError, match="No version of 'small' was active before v1"):
        roll_back(registry, "small")
    assert registry.check() == []


def test_a_version_that_never_was_active_is_not_gone_back_to(three_versions: ProjectRegistry) -> None:
    install_adapter(three_versions, "small", "v4", activate=False)
    install_adapter(three_versions, "small", "v5")
    assert roll_back(three_versions, "small")[1].version == "v3"
    assert roll_back(three_versions, "small", to="v4")[1].version == "v4"
    assert roll_back(three_versions, "small")[1].version == "v3"


def test_a_damaged_version_can_be_gone_back_from(three_versions: ProjectRegistry) -> None:
    (three_versions.get_adapter("small").directory / "manifest.json").write_text("{")
    was, now = roll_back(three_versions, "small")
    assert (was.version, now.version) == ("v3", "v2") and "manifest" in str(was.reason)


def test_only_a_path_that_something_has_is_forgotten(three_versions: ProjectRegistry) -> None:
    root = three_versions.get_project("small").path
    there = sorted(path for path in root.rglob("*.py"))[0]
    ignored = root / "ignored.log"
    ignored.touch()
    for good in (there, there.parent, ignored):
        name = good.relative_to(root).as_posix()
        assert find_path(three_versions, "small", str(good)) == name
    for of_a_version in ("core/late.py", "core", "docs/b.md"):
        assert find_path(three_versions, "small", of_a_version) == of_a_version
    for typo, near in (("core/lat.py", "core/late.py"), ("late.py", "core/late.py"), ("zzz/qqq", "root")):
        with pytest.raises(DataError, match="has") as error:
            find_path(three_versions, "small", typo)
        assert near in error.value.next_step
    assert three_versions.forgotten_paths("small") == []


def test_forgetting_records_nothing_where_it_is_refused(
    three_versions: ProjectRegistry, tiny_model_dir: Path
) -> None:
    root = three_versions.get_project("small").path
    training = three_versions.begin_training("small", {})

    def refused(word: str) -> None:
        with pytest.raises(GardenerError, match=word):
            forget(
                TrainingPipeline(tiny_settings(tiny_model_dir), registry=three_versions),
                "small",
                "core/late.py",
                run=lambda: None,
            )
        assert three_versions.forgotten_paths("small") == []

    refused("already being trained")
    three_versions.finish_training(training.id, TrainingStatus.CANCELLED, "", {})
    root.rename(root.with_name("elsewhere"))
    refused("does not exist")
    said = gardener_here("forget", "small", "core/late.py", "--yes")
    assert said.returncode == 1 and "does not exist" in said.stderr
    three_versions.forget_path("small", "core/late.py")
    with pytest.raises(GardenerError):
        forget(
            TrainingPipeline(tiny_settings(tiny_model_dir), registry=three_versions),
            "small",
            "core/late.py",
            run=lambda: None,
        )
    assert three_versions.forgotten_paths("small") == ["core/late.py"], "what was left out before still is"


def test_the_summary_says_what_was_and_was_not_shown() -> None:
    recall = (Recall("base", 4.0, 0.0), Recall("v1", 1.0, 0.75), Recall("v2", 3.9, 0.0))
    done = Forgotten(
        "core", "v1", "v2", recall, True, ("v1",), (), ("v7",), ("core/a.py",), {"core/b.bin": "it is empty"}
    )
    assert list(_told(done, purge=False)) == [
        "  base: 4.0000 bits per byte on it, 0% of places verbatim",
        "  v1: 1.0000 bits per byte on it, 75% of places verbatim",
        "  v2: 3.9000 bits per byte on it, 0% of places verbatim",
        "It is gone: over 1 file of it, v2 goes on verbatim no more often than the base, or half as often as before.",
        "Not measured: core/b.bin: it is empty.",
        "These versions have learned from it, and are kept without --purge: v1.",
        "Whether these versions have learned from it cannot be known, and they are kept: v7.",
    ]
    unseen = replace(done, recall=None, is_gone=None, knowing=(), cannot_be_known=(), not_shown={})
    assert list(_told(unseen, purge=True)) == [
        "It was not shown that it is gone: nothing of it is in the repository that could be measured.",
        "Deleted: earlier runs, cached tokens and answers.",
        "No version before had learned from it.",
    ]
    assert any("It is NOT gone" in said for said in _told(replace(done, is_gone=False), purge=True))


def test_what_cannot_be_known_is_named_apart(three_versions: ProjectRegistry) -> None:
    assert versions_that_know(three_versions, "small", "core") == Knowing(("v1", "v2"), ("v3",))
    assert versions_that_know(three_versions, "small", "core/t.py") == Knowing((), ("v3",))
    (three_versions.get_adapter("small", "v1").directory / "manifest.json").write_text("{")
    assert versions_that_know(three_versions, "small", "core") == Knowing(("v2",), ("v1", "v3"))
