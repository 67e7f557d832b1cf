"""Settings come from defaults, file, environment and flags, in that order, and bad ones are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_gardener.config import (
    RENAMED,
    RETIRED,
    EngineConfig,
    LoraConfig,
    ThrottlingConfig,
    TrainingConfig,
    as_of_today,
    as_recorded,
    known_keys,
    load_config,
    validate_config,
)
from mlx_gardener.errors import ConfigError

SETTINGS_PAGE = Path(__file__).parent.parent / "docs" / "settings.md"


def test_the_defaults_are_the_promised_ones() -> None:
    config = TrainingConfig()
    assert (config.min_training_chunks, config.max_training_chunks) == (50, 5000)
    assert config.training_data_quality_threshold == 0.5
    assert config.memory_limit_gb == 4.0 and config.memory_limit_bytes == 4 * 1024**3
    assert config.training_timeout_minutes == 30 and config.progress_update_interval == 5.0


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "garden.toml"
    file.write_text("seed = 1\nmodel = 'from-file'\n[lora]\nrank = 4\nscale = 3.0\n")
    environment = {"MLX_GARDENER_LORA__RANK": "8", "MLX_GARDENER_SEED": "2"}
    config = load_config(
        file, environment=environment, overrides={"seed": 3, "lora.dropout": 0.1, "model": None}
    )
    assert config.model == "from-file", "a flag that was not given changes nothing"
    assert config.lora.rank == 8 and config.lora.scale == 3.0 and config.lora.dropout == 0.1
    assert config.seed == 3


def test_the_environment_reads_lists_and_text() -> None:
    environment = {
        "MLX_GARDENER_DATA__SEQUENCE_LENGTHS": "[128, 256]",
        "MLX_GARDENER_MODEL": "Qwen/Qwen2.5-Coder-0.5B",
        "MLX_GARDENER_HOME": "/elsewhere",
        "PATH": "/bin",
    }
    config = load_config(environment=environment)
    assert config.data.sequence_lengths == (128, 256) and config.model == "Qwen/Qwen2.5-Coder-0.5B"


@pytest.mark.parametrize(
    ("file_text", "environment", "flags", "place"),
    [
        ("[lora]\nrnk = 4\n", {}, {}, "the file bad.toml"),
        ("", {"MLX_GARDENER_LORA__RNK": "4"}, {}, "the environment"),
        ("", {}, {"lora.rnk": 4}, "the flags"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_place_and_nearest(
    tmp_path: Path, file_text: str, environment: dict[str, str], flags: dict[str, object], place: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(file_text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, environment=environment, overrides=flags)
    assert "'lora.rnk'" in caught.value.message and place in caught.value.message
    assert "'lora.rank'" in caught.value.next_step
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lora.rank": 0}, "lora.rank"),
        ({"memory_limit_gb": -1}, "memory_limit_gb"),
        ({"memory_limit_gb": float("nan")}, "memory_limit_gb"),
        ({"optimizer.name": "magic"}, "optimizer.name"),
        ({"min_training_chunks": 10, "max_training_chunks": 5}, "must not exceed"),
        ({"data.sequence_lengths": [512, 128]}, "rising"),
        ({"lora": 3}, "lora"),
        ({"parallel.hosts": 3}, r"usable: parallel.hosts, in the given settings: "),
        (
            {"throttling.pause_on": "battery"},
            r'pause_on, in the given settings: should be a list, like \["battery"\] \(got',
        ),
        (
            {"data.sequence_lengths": 512},
            r"sequence_lengths, in the given settings: should be a list, like \[512\] \(got 512\)",
        ),
        (
            {"data.sequence_lengths": []},
            r"data.sequence_lengths, in the given settings: must name a length.* \(got \[\]\)",
        ),
        (
            {"data.sequence_lengths": [8]},
            r"data.sequence_lengths, in the given settings: must lie between .* \(got \[8\]\)",
        ),
        ({"lora.target_modules": []}, "lora.target_modules, in the given settings: must name a module"),
        (
            {"evaluation.arms": ["base"]},
            "evaluation.arms, in the given settings: must contain base and adapter, or nothing for no test",
        ),
        ({"parallel.hosts": ""}, "parallel.hosts, in the given settings: is empty"),
        (
            {"parallel.hosts": "here,,there"},
            "parallel.hosts, in the given settings: '' is no name or address",
        ),
    ],
)
def test_an_impossible_value_is_named(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(environment={}, overrides=flags)


def test_an_impossible_value_says_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[lora]\nrank = 0\n[optimizer]\nepochs = -1\n")
    variables = {"MLX_GARDENER_SEED": "-1", "MLX_GARDENER_OPTIMIZER__EPOCHS": "-2"}
    with pytest.raises(ConfigError) as raised:
        load_config(file, environment=variables, overrides={"evaluation.tasks": -3})
    for words in (
        "lora.rank, in the file my.toml: ",
        "seed, in MLX_GARDENER_SEED: ",
        "optimizer.epochs, in MLX_GARDENER_OPTIMIZER__EPOCHS: ",  # the last that said it
        "evaluation.tasks, in the flags: ",
    ):
        assert words in raised.value.message
    assert raised.value.next_step == "Correct them there."
    with pytest.raises(ConfigError, match="a file, the environment or a flag") as unknown:
        validate_config({"seed": -1})
    assert "seed: " in unknown.value.message


def test_a_file_may_begin_with_a_mark_and_have_keys_in_quotes(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_bytes(b'\xef\xbb\xbf"lora.rank" = 4\r\n[lora]\r\ndropout = 0.5\r\n')
    found = load_config(file, environment={}).lora
    assert (found.rank, found.dropout) == (4, 0.5)


def test_hosts_may_be_named_with_commas_between_them_wherever_they_are_set(tmp_path: Path) -> None:
    found = load_config(environment={"MLX_GARDENER_PARALLEL__HOSTS": "127.0.0.1, me@mini.local"})
    assert found.parallel.hosts == ("127.0.0.1", "me@mini.local")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(b"\xff\xfe = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_config(file, environment={})
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_config(tmp_path / "missing.toml", environment={})
    with pytest.raises(ConfigError, match=r"cannot be read \(\. is a directory\)"):
        load_config(".", environment={})


def test_a_configuration_cannot_be_changed_after_validation() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().lora.rank = 3  # type: ignore[misc]


def test_the_settings_page_lists_every_setting_with_its_default() -> None:
    page = SETTINGS_PAGE.read_text()
    rows = dict(re.findall(r"^\| `([a-z_.0-9]+)` \| `?([^|`]*?)`? \|", page, flags=re.MULTILINE))
    defaults = TrainingConfig().model_dump(mode="json")
    assert set(rows) == set(known_keys())
    for key, shown in rows.items():
        section, _, field = key.rpartition(".")
        value = defaults[section][field] if section else defaults[key]
        text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
        assert shown == text, key


def test_the_settings_page_lists_pins_apart_from_what_users_set() -> None:
    users, pins = SETTINGS_PAGE.read_text().split("## Gone")[0].split("## Pins")
    listed = re.compile(r"^\| `([a-z_.]+)`", flags=re.MULTILINE)
    assert len(listed.findall(users)) == 46, "a setting needs a user (docs/decisions.md)"
    engine = {f"engine.{name}" for name in EngineConfig.model_fields}
    assert engine - set(listed.findall(pins)) == {"engine.compute_dtype"}


def test_the_settings_page_lists_every_setting_that_is_gone() -> None:
    gone = SETTINGS_PAGE.read_text().split("## Gone")[1]
    assert set(re.findall(r"`([a-z_.0-9]+)`", gone)) == set(RETIRED)


def test_a_retired_setting_is_passed_over_and_said() -> None:
    with pytest.warns(
        FutureWarning, match=r"evaluation.scales in the flags has no effect: .*docs/decisions.md"
    ):
        config = load_config(environment={}, overrides={"evaluation.scales": [0.5, 1.0]})
    assert config == load_config(environment={})
    assert validate_config({"evaluation": {"scales": [1.0]}}) == validate_config({}), "as in older manifests"


@pytest.mark.parametrize(
    ("key", "value", "what_happens_now"),
    [
        ("engine.attention_block", 64, "which way attention takes is measured"),
        ("engine.verify_split", False, "is checked always"),
        ("engine.split", "never", "taken as one where that would not compute the same"),
        ("data.replay_share", 0.2, "half of the bytes"),
        ("evaluation.forgetting_limit", 0.5, "docs/evidence.md"),
        ("evaluation.memorisation_limit", 0.5, "docs/evidence.md"),
        ("evaluation.parse_ok_limit", 0.5, "docs/evidence.md"),
        ("evaluation.context_tokens", 100, "up to 384 tokens"),
        ("evaluation.least_tasks", 0, "evaluation.tasks alone"),
        ("evaluation.least_rows", 4, "evaluation.tasks alone"),
        ("evaluation.memorisation_places", 0, "evaluation.tasks alone"),
        ("evaluation.samples", 1, "the three that lost most"),
        ("parallel.connect_seconds", 5.0, "ranks three to connect"),
        ("checkpoints_kept", 9, "the two newest"),
        ("worker_restarts", 0, "at most three times"),
        ("data.max_line_length", 5000, "more than 1,000 characters"),
    ],
)
def test_a_setting_that_nobody_needs_any_more_is_passed_over_and_says_what_happens_now(
    key: str, value: object, what_happens_now: str
) -> None:
    with pytest.warns(FutureWarning, match=f"{key} in the flags has no effect: .*{what_happens_now}"):
        assert load_config(environment={}, overrides={key: value}) == load_config(environment={})
    section, _, name = key.rpartition(".")
    older = {section: {name: value}} if section else {name: value}
    assert validate_config(older) == validate_config({}), "as in older manifests"


def test_retired_settings_of_a_file_are_said_in_its_order_and_by_reason(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text(
        "checkpoints_kept = 3\n[evaluation]\nparse_ok_limit = 0.1\nforgetting_limit = 0.2\n[engine]\nlanes = 2\n"
    )
    with pytest.warns(FutureWarning) as said:
        load_config(file, environment={})
    lanes, checkpoints, limits = [str(item.message) for item in said]
    assert "called engine.cpu_streams now; the earlier name is understood until 0.3" in lanes
    assert checkpoints.startswith("checkpoints_kept in the file old.toml has no effect: ")
    assert checkpoints.endswith("Take it out.")
    assert limits.startswith(
        "evaluation.parse_ok_limit, evaluation.forgetting_limit in the file old.toml have no effect: "
    )
    assert limits.endswith("Take them out.")


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("data.row_widths", "data.sequence_lengths", [64, 128]),
        ("engine.lanes", "engine.cpu_streams", 3),
        ("engine.live_layers", "engine.kept_layers", 3),
        ("engine.rehearse", "engine.dry_run", False),
        ("engine.tail_slice_tokens", "engine.loss_slice_tokens", 3),
        ("engine.words_on_disk", "engine.vocabulary_on_disk", True),
        ("evaluation.next_line_tasks", "evaluation.tasks", 20),
        ("evaluation.fim_tasks", "evaluation.tasks", 0),
        ("neighbour.low_priority", "throttling.low_priority", False),
        ("parallel.hostfile", "parallel.hosts", "/home/me/hosts.json"),
    ],
)
def test_a_setting_by_its_earlier_name_is_understood_and_told_the_new_one(
    old: str, new: str, value: object, tmp_path: Path
) -> None:
    assert RENAMED[old] == new
    asked = load_config(environment={}, overrides={new: value})
    section, _, key = old.partition(".")
    (tmp_path / "settings.toml").write_text(f"[{section}]\n{key} = {json.dumps(value)}\n")
    variable = {f"MLX_GARDENER_{section}__{key}".upper(): json.dumps(value)}
    for arguments in (
        {"file": tmp_path / "settings.toml", "environment": {}},
        {"environment": variable},
        {"environment": {}, "overrides": {old: value}},
    ):
        with pytest.warns(FutureWarning, match=f"{old} in .* is called {new} now"):
            assert load_config(**arguments) == asked  # type: ignore[arg-type]
    assert validate_config({section: {key: value}}) == asked, "as in older registries and manifests"


def test_the_new_name_of_a_setting_wins_over_its_earlier_one() -> None:
    both = {"engine": {"cpu_streams": 2, "lanes": 5, "dry_run": False}, "seed": 4}
    retired = {"evaluation": {"scales": [1.0], "patience": 2}}
    assert as_of_today(both | retired) == {
        "engine": {"cpu_streams": 2, "dry_run": False},
        "seed": 4,
        "evaluation": {"patience": 2},
    }


def test_an_earlier_name_beside_the_new_one_is_said_to_be_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[evaluation]\ntasks = 2\nnext_line_tasks = 5\n")
    with pytest.warns(FutureWarning, match="until 0.3, but passed over where that is set too, as here"):
        assert load_config(file, environment={}).evaluation.tasks == 2


def test_what_pauses_a_training_is_a_set_in_any_order() -> None:
    asked = ThrottlingConfig(pause_on=("display", "battery", "display"))
    assert asked.pause_on == ("battery", "display")
    with pytest.raises(ConfigError, match=r"pause_on.1: .*'heat' or 'display'"):
        ThrottlingConfig(pause_on=("battery", "noise"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"throttling": {"pause_on_battery": True}}, ("memory-pressure", "battery")),
        ({"throttling": {"pause_on_memory_pressure": False}}, ()),
        ({"neighbour": {"pause_when_hot": True, "pause_on_battery": False}}, ("memory-pressure", "heat")),
        ({"throttling": {"pause_on_memory_pressure": 0, "pause_while_display_is_on": "yes"}}, ("display",)),
        ({"throttling": {"pause_on_battery": True, "pause_on": ["heat"]}}, ("heat",)),
    ],
)
def test_a_yes_or_no_to_a_pause_adds_to_the_list_or_takes_away(
    old: dict[str, dict[str, object]], expected: tuple[str, ...]
) -> None:
    assert validate_config(old).throttling.pause_on == expected, "as in older registries and manifests"
    with pytest.warns(FutureWarning, match=r'is "[a-z-]+" in the list throttling.pause_on now; .* until 0.3'):
        assert load_config(environment={}, overrides=old).throttling.pause_on == expected


def test_a_yes_or_no_to_a_pause_changes_the_list_of_the_layer_before(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[throttling]\npause_on = ['heat']\n")
    environment = {"MLX_GARDENER_THROTTLING__PAUSE_ON_BATTERY": "true"}
    with pytest.warns(FutureWarning):
        found = load_config(file, environment=environment, overrides={"throttling.pause_when_hot": False})
    assert found.throttling.pause_on == ("battery",)
    with pytest.raises(ConfigError, match=r"throttling.pause_on: .*'perhaps'"):
        validate_config({"throttling": {"pause_on_battery": "perhaps"}})


def test_of_two_earlier_names_of_one_setting_the_larger_value_counts() -> None:
    for spans, lines in ((4, 40), (40, 4)):
        recorded = {"evaluation": {"next_line_tasks": lines, "fim_tasks": spans, "least_tasks": 2}}
        assert as_of_today(recorded) == {"evaluation": {"tasks": 40}}
        assert as_of_today({"evaluation": {**recorded["evaluation"], "tasks": 8}}) == {
            "evaluation": {"tasks": 8}
        }
    with pytest.raises(ConfigError, match=r"evaluation.tasks: .*'many'"):
        validate_config({"evaluation": {"next_line_tasks": "many", "fim_tasks": 4}})


def test_what_a_training_recorded_says_what_was_done_before_there_was_a_setting() -> None:
    recorded = TrainingConfig().model_dump(mode="json")
    assert as_recorded(recorded) == recorded
    for name in ("split", "edit_share", "general_share"):
        del recorded["data"][name]
    found = as_recorded(recorded | {"checkpoints_kept": 3})
    assert found["data"]["split"] == "files" and found["data"]["edit_share"] == 0, "history was not read"
    assert found["data"]["general_share"] == 0 and "checkpoints_kept" not in found
    assert validate_config(found).data.edit_share == 0
    assert as_recorded({"seed": 1}) == {"seed": 1}, "nothing is said of what was not recorded"
    for hostfile, hosts in ((None, []), ("/home/me/hosts.json", "/home/me/hosts.json")):
        both = {"parallel": {"hosts": [], "hostfile": hostfile}}
        assert as_recorded(both)["parallel"] == recorded["parallel"] | {"hosts": hosts}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainingConfig(memory_limit=1), "did you mean 'memory_limit_gb'"),  # type: ignore[call-arg]
        (lambda: TrainingConfig(lora={"rnk": 1}), "did you mean 'lora.rank'"),  # type: ignore[arg-type]
        (lambda: LoraConfig(rnk=1), "did you mean 'rank'"),  # type: ignore[call-arg]
        (lambda: LoraConfig(rank=0), "rank: Input should be greater"),
        (lambda: TrainingConfig(memory_limit_gb=-1, lora={"rank": 0}), "memory_limit_gb: .*; lora.rank: "),  # type: ignore[arg-type]
        (lambda: TrainingConfig.model_validate({"seed": "seven"}), "seed: "),
    ],
)
def test_a_configuration_made_directly_raises_the_error_of_this_package(
    make: Callable[[], object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_sections_made_directly_are_what_they_were_given() -> None:
    config = TrainingConfig(lora=LoraConfig(rank=3), seed=5)
    assert (config.lora.rank, config.seed) == (3, 5) and config == TrainingConfig.model_validate(config)
    assert config.model_copy(update={"seed": 6}).seed == 6
