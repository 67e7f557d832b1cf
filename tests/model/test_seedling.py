"""The embedded model keeps its promises, and the script that grows it does what its documentation says."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

import mlx_gardener
from tests.support.models import SPECIAL_TOKENS

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SEEDLING = Path(mlx_gardener.__file__).parent / "model" / "seedling"
TINY = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script and its modules, importable for one test."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_seedling

    return train_seedling


@pytest.fixture(scope="module")
def toy_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a toy corpus and its token stream, made by the script's own steps."""
    work = tmp_path_factory.mktemp("toy")
    corpus = work / "corpus"
    corpus.mkdir()
    with (corpus / "train.jsonl").open("w", encoding="utf-8") as out:
        for number in range(60):
            text = "".join(
                f"def area_{number}_{line}(width, height):\n    return width * height + {line}\n\n"
                for line in range(12)
            )
            document = {"repo": "toy", "path": f"toy/m{number}.py", "language": "python", "text": text}
            out.write(json.dumps(document) + "\n")
    (work / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import train_seedling

        result = CliRunner().invoke(
            train_seedling.main,
            ["--work", str(work), "tokenizer", "--tokens", "60000", "--vocabulary", "400"],
            catch_exceptions=False,
        )
    assert result.exit_code == 0, result.output
    return work


@pytest.fixture
def toy(tmp_path: Path, toy_made: Path) -> Path:
    """One that the test may change."""
    return Path(shutil.copytree(toy_made, tmp_path / "toy"))


def test_the_seedling_is_a_standard_llama_that_mlx_lm_loads() -> None:
    import mlx.core as mx
    from mlx_lm import load

    config = json.loads((SEEDLING / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    model, tokenizer = load(str(SEEDLING))
    model.set_dtype(mx.float32)
    logits = model(mx.array([tokenizer.encode("def main():\n    return 0\n")]))
    assert logits.shape[-1] == config["vocab_size"]
    assert bool(mx.all(mx.isfinite(logits)).item())


def test_the_seedling_fits_in_the_package() -> None:
    assert sum(path.stat().st_size for path in SEEDLING.rglob("*") if path.is_file()) <= 16_000_000


def test_every_marker_is_one_id_and_text_comes_back_unchanged() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SEEDLING / "tokenizer.json"))
    assert [tokenizer.encode(marker).ids for marker in SPECIAL_TOKENS] == [[number] for number in range(7)]
    for text in (
        "def f(x):\n\tif x:\n        return 42  # done\n",
        "naïve = '日本 🌱'\r\n",
        "\x00\x7f  \n\n\n",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("2048").ids) == 4, "digits are single tokens"


def test_markers_written_in_source_stay_text(script: ModuleType) -> None:
    from seedling_tokens import text_encoder

    encoder = text_encoder(SEEDLING / "tokenizer.json")
    ids = encoder.encode("stop = '<|endoftext|>' + '<|fim_prefix|>'", add_special_tokens=False).ids
    assert min(ids) >= len(SPECIAL_TOKENS)


def test_the_recorded_score_is_the_score_of_the_shipped_file(script: ModuleType) -> None:
    from seedling_model import PROBE, bits_per_byte, open_model

    recorded = json.loads((SEEDLING / "score.json").read_text(encoding="utf-8"))
    probe = PROBE.read_text(encoding="utf-8")
    measured = bits_per_byte(*open_model(SEEDLING), probe)
    assert measured == pytest.approx(recorded["probe_bits_per_byte"], abs=2e-3)
    assert measured < 8 * len(gzip.compress(probe.encode(), 9)) / len(probe.encode())


def test_the_seedling_beats_gzip_and_xz_on_packages_it_never_saw() -> None:
    score = json.loads((SEEDLING / "score.json").read_text(encoding="utf-8"))
    assert score["all"]["bits_per_byte"] < score["all"]["gzip_bits_per_byte"]
    assert score["all"]["bits_per_byte"] < score["all"]["xz_bits_per_byte"]
    card = (SEEDLING / "README.md").read_text(encoding="utf-8")
    assert f"{score['all']['bits_per_byte']:.3f}" in card, "the card shows the recorded figure"


@pytest.mark.parametrize(
    "name", ["click", "flask", "requests", "rich", "attrs", "mlx", "mlx-lm", "mlx-gardener"]
)
def test_projects_that_must_stay_unseen_are_in_no_training_list(script: ModuleType, name: str) -> None:
    from seedling_corpus import load_manifest

    packages, unseen = load_manifest(SCRIPTS / "seedling_corpus.toml")
    assert name.replace("-", "_") in unseen
    assert name not in {package.name for package in packages if package.role != "unseen"}
    held_out = {package.name for package in packages if package.role == "heldout"}
    assert held_out and not held_out & {package.name for package in packages if package.role == "train"}
    assert all(package.version and package.licence for package in packages)


def test_a_manifest_that_trains_on_an_unseen_project_is_refused(script: ModuleType, tmp_path: Path) -> None:
    from seedling_corpus import load_manifest

    manifest = tmp_path / "corpus.toml"
    manifest.write_text(
        '[unseen]\nnames = ["click"]\n[unseen.pip]\n[heldout.pip]\n[train.pip]\nclick = ["8.0", "BSD-3-Clause"]\n',
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="click must stay unseen"):
        load_manifest(manifest)


def test_vendored_and_renamed_copies_are_left_out(script: ModuleType, tmp_path: Path) -> None:
    from seedling_corpus import Package, documents, is_copy, long_lines

    source = "".join(
        f"def compute_value_{i}(first_argument, second_argument):\n    pass\n" for i in range(20)
    )
    for path in (
        "pip/_vendor/thing/api.py",
        "tool/requests/api.py",
        "tool/_click/core.py",
        "tool/rich-13.9/table.py",
        "tool/attr.py",
        "tool/mlx_vlm/model.py",
        "tool/own.py",
    ):
        file = tmp_path / "package" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    unseen = frozenset({"requests", "click", "rich", "attr", "mlx"})
    package = Package("pip", "tool", "1", "MIT", "train", 1_000_000)
    kept = [document.path for document in documents(package, tmp_path / "package", unseen)]
    assert kept == ["tool/own.py"]

    renamed = "# a new head\n" + source.replace("compute_value_3", "other_name")
    assert is_copy(renamed, long_lines(source))
    assert not is_copy(
        "".join(f"value_{i} = some_function_name(argument_{i})\n" for i in range(9)), long_lines(source)
    )


def test_generated_minified_and_data_files_are_left_out(script: ModuleType) -> None:
    from seedling_corpus import keep_text, language_of

    code = "def add(first, second):\n    return first + second\n\n" * 10
    assert keep_text(code)
    assert not keep_text("# Code generated by protoc. DO NOT EDIT.\n" + code)
    assert not keep_text(code + "x = '" + "a" * 500 + "'\n")
    assert not keep_text("0x00, 0x01, 0x02, 0x03,\n" * 50)
    assert language_of("jquery.min.js") is None and language_of("a/b.rs") == "rust"


def test_a_training_that_was_interrupted_ends_like_one_that_was_not(script: ModuleType, toy: Path) -> None:
    import seedling_training as training
    from seedling_mlx import MlxTrainer

    plan = training.Plan(
        batch_tokens=512, width=64, warmup_steps=4, total_tokens=8_000, long_width=128, longest_width=256
    )

    class Interrupted(MlxTrainer):
        left = 9

        def step(self, tokens: np.ndarray, rate: float) -> float:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().step(tokens, rate)

    whole, parts = toy / "whole", toy / "parts"
    for work in (whole, parts):
        work.mkdir()
        (work / "stream.bin").write_bytes((toy / "stream.bin").read_bytes())
    first = training.train(MlxTrainer(TINY, 3), plan, whole, 5, lambda line: None)
    half = training.train(Interrupted(TINY, 3), plan, parts, 5, lambda line: None)
    assert half.step == 9 and half.used_tokens < plan.total_tokens
    second = training.train(MlxTrainer(TINY, 99), plan, parts, 5, lambda line: None)

    assert (first.step, first.used_tokens) == (second.step, second.used_tokens)
    with np.load(whole / "state" / "weights.npz") as one, np.load(parts / "state" / "weights.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_script_trains_goes_on_and_exports(script: ModuleType, toy: Path) -> None:
    from mlx_lm import load

    run = [
        "--work",
        str(toy),
        "train",
        "--backend",
        "mlx",
        "--config",
        str(toy / "tiny.json"),
        "--batch-tokens",
        "2048",
    ]
    for total in (12288, 40960):
        result = CliRunner().invoke(script.main, [*run, "--total-tokens", str(total)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (toy / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    assert log[-1]["width"] == 2048, "the last rows have the full context"
    target = toy / "model"
    result = CliRunner().invoke(
        script.main,
        ["--work", str(toy), "export", "--target", str(target), "--config", str(toy / "tiny.json")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    model, tokenizer = load(str(target))
    assert tokenizer.encode("<|file_sep|>") == [6]
    assert model.args.hidden_size == 32


def test_steps_run_out_of_order_say_which_is_missing(script: ModuleType, tmp_path: Path) -> None:
    result = CliRunner().invoke(script.main, ["--work", str(tmp_path / "empty"), "train"])
    assert result.exit_code != 0 and "run the tokenizer step first" in result.output


@pytest.mark.torch
def test_both_backends_compute_the_same_loss(script: ModuleType, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_unflatten
    from seedling_mlx import MlxTrainer
    from seedling_torch import TorchTrainer

    rows = np.random.default_rng(0).integers(0, 400, (2, 65))
    ours, theirs = MlxTrainer(TINY, 0), TorchTrainer(TINY, 1)
    ours.model.update(tree_unflatten([(name, mx.array(value)) for name, value in theirs.weights().items()]))
    tokens = mx.array(rows)
    loss = nn.losses.cross_entropy(ours.model(tokens[:, :-1]), tokens[:, 1:], reduction="mean").item()
    with torch.no_grad():
        expected = float(theirs.model(torch.from_numpy(rows)))
    assert loss == pytest.approx(expected, abs=1e-5)


def test_the_script_asks_for_pytorch_by_name(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, toy: Path
) -> None:
    monkeypatch.setitem(sys.modules, "seedling_torch", None)
    result = CliRunner().invoke(script.main, ["--work", str(toy), "train", "--backend", "torch"])
    assert result.exit_code != 0 and "pip install torch" in result.output
