"""Base models, tokenizers and LoRA layers: names, markers, damage, and that a base comes back bare."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_gardener.config import LoraConfig
from mlx_gardener.errors import ModelError
from mlx_gardener.evaluate.complete import rest_of
from mlx_gardener.model import choose_model, load_base, load_tokenizer, resolve_model
from mlx_gardener.model.lora import (
    attach_lora,
    detach_lora,
    effective_scale,
    lora_parameters,
    set_lora_parameters,
)
from tests.support.models import write_tiny_model


def test_a_hub_model_that_cannot_be_fetched_names_command_and_alternative() -> None:
    choice = choose_model("Qwen/Qwen2.5-Coder-0.5B")
    with pytest.raises(ModelError) as caught:
        resolve_model(choice)
    assert "hf download Qwen/Qwen2.5-Coder-0.5B" in caught.value.next_step
    assert "--model seedling" in caught.value.next_step


@pytest.mark.parametrize("name", ["nonsense", "/does/not/exist", "a/b/c"])
def test_a_name_that_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a directory nor a GGUF file nor a hub id"):
        choose_model(name)


@pytest.mark.parametrize("place", ["tiny", "seedling"])
def test_tokens_are_found_by_what_they_spell(place: str, tiny_tokenizer_dir: Path) -> None:
    directory = tiny_tokenizer_dir if place == "tiny" else resolve_model(choose_model("seedling"))
    tokenizer = load_tokenizer(directory)
    text = "def naïve(日本):\n    return '🌱' + name_of(x)\t\r\n\n"
    assert b"".join(map(tokenizer.spelling, tokenizer.encode(text))) == text.encode()
    spelled = [tokenizer.spelling(index) for index in range(tokenizer.vocab_size)]
    assert tokenizer.spelling(tokenizer.eos_id) == b""
    for wanted in ("\n", "    ", " re", "def", "ï", "):\n", "no such word", "no such word "):
        found = tokenizer.beginnings(wanted.encode())
        assert len(found) == len(set(found)) > 0
        # Every text that goes on with it begins with one of them,
        for more in ("turn", "= 1", "\n", " x", "()", "ed_by(", "ve", "日"):
            first = tokenizer.encode(wanted + more)[0]
            assert first in found or place == "tiny" or not wanted.isspace(), (wanted, more)
        # and they are those that spell it and more, but for its own first one and where blanks end.
        beyond = {at for at, own in enumerate(spelled) if own.startswith(wanted.encode())}
        assert beyond <= {*found}
        assert {*found} - beyond <= {tokenizer.encode(text)[0] for text in (wanted, wanted[:-1]) if text}
    assert tokenizer.beginnings(b"") == []


@pytest.mark.parametrize(
    ("text", "word"),
    [("self.config.na", "na"), ("x = ", " "), ("    ", "    "), ("return fir", " fir"), ("", "")],
)
def test_the_last_word_is_what_its_tokens_would_hold(text: str, word: str) -> None:
    tokenizer = load_tokenizer(resolve_model(choose_model("seedling")))
    found = tokenizer.last_word(text)
    assert text.endswith(found) and found.lstrip(".") == word
    # What stands before it is split as if nothing followed.
    before = text[: len(text) - len(found)]
    assert tokenizer.encode(text) == tokenizer.encode(before) + tokenizer.encode(found)


@pytest.mark.parametrize("form", ["gemma", "llama"])
def test_a_word_of_sentencepiece_has_the_blank_before_it(form: str, tmp_path: Path) -> None:
    """Its tokens hold the blank, whether the splitter is told so or not; its decoder may leave out the first one."""
    tokenizer = load_tokenizer(write_sentencepiece(tmp_path, form))
    for text, word in (
        ("    return fir", " fir"),
        ("return  fir", "  fir"),
        ("return ", " "),
        ("        ", "        "),
    ):
        assert tokenizer.last_word(text) == word
        first = tokenizer.encode(f"{word}st")[0]
        assert first in tokenizer.beginnings(word.encode()), (text, word)
    for begins, more in (("    ", "  return"), ("    ", "first"), (" fir", "st + 1"), (" x = 'é🌱", "'")):
        ids = tokenizer.encode(begins + more)
        assert b"".join(map(tokenizer.spelling, ids)).decode() == begins + more
        assert rest_of(tokenizer, ids, begins) == more
    assert rest_of(tokenizer, [], "  x") == ""


def write_sentencepiece(directory: Path, form: str) -> Path:
    """A tokenizer in the form that ones of SentencePiece are converted to."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+"), "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<eos>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["        return first + 1\n    return first\nx = 'first'\n"] * 9, trainer)
    plain: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if form == "gemma":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        plain.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(plain)
    parsed = json.loads(tokenizer.to_str())
    parsed["added_tokens"] = parsed["added_tokens"][:1]
    (directory / "tokenizer.json").write_text(json.dumps(parsed))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return directory


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_without_a_part_of_the_model_is_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, missing: str
) -> None:
    directory = write_tiny_model(tmp_path / "half", tiny_tokenizer_dir)
    (directory / missing).unlink()
    with pytest.raises(ModelError, match="half"):
        choose_model(str(directory))


def in_shards(directory: Path) -> list[str]:
    """Cut a model's weights into three shards with an index; their names."""
    weights = dict(mx.load(str(directory / "model.safetensors")).items())
    (directory / "model.safetensors").unlink()
    shards = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    shard_of = {name: shards[at % 3] for at, name in enumerate(sorted(weights))}
    for shard in shards:
        part = {name: value for name, value in weights.items() if shard_of[name] == shard}
        mx.save_safetensors(str(directory / shard), part, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return shards


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, tiny_tokenizer_dir: Path, index: bool) -> None:
    directory = write_tiny_model(tmp_path / "half", tiny_tokenizer_dir)
    shards = in_shards(directory)
    if not index:
        (directory / "model.safetensors.index.json").unlink()
    assert load_base(str(directory)).path == directory
    (directory / shards[1]).unlink()
    with pytest.raises(ModelError, match=f"half' has no {shards[1]}"):
        choose_model(str(directory))


def test_an_index_that_was_left_behind_hinders_nothing(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    directory = write_tiny_model(tmp_path / "again", tiny_tokenizer_dir)
    whole = (directory / "model.safetensors").read_bytes()
    for shard in in_shards(directory):
        (directory / shard).unlink()
    (directory / "model.safetensors").write_bytes(whole)
    assert load_base(str(directory)).path == directory


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_model_is_named(tmp_path: Path, tiny_tokenizer_dir: Path, broken: str) -> None:
    directory = write_tiny_model(tmp_path / "hurt", tiny_tokenizer_dir)
    (directory / broken).write_bytes(b'{"damaged')
    with pytest.raises(ModelError, match="hurt"):
        load_base(str(directory))


@pytest.mark.parametrize("pointer", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, tiny_tokenizer_dir: Path, pointer: str) -> None:
    directory = write_tiny_model(tmp_path / "hurt", tiny_tokenizer_dir)
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    (directory / pointer).write_text(text)
    with pytest.raises(ModelError, match=f"hurt.*{pointer} is a Git LFS pointer"):
        load_base(str(directory))


def test_an_unknown_architecture_is_named(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    directory = write_tiny_model(tmp_path / "odd", tiny_tokenizer_dir)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "from_the_future"}))
    with pytest.raises(ModelError, match="odd"):
        load_base(str(directory))


def test_code_in_a_model_directory_is_not_run(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    directory = write_tiny_model(tmp_path / "evil", tiny_tokenizer_dir)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_file": "code.py"}))
    (directory / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="evil"):
        load_base(str(directory))
    assert not (tmp_path / "ran").exists()


def test_a_quantised_base_is_computed_in_float32_on_the_cpu(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_model

    dense = write_tiny_model(tmp_path / "dense", tiny_tokenizer_dir, hidden_size=64, intermediate_size=128)
    model, config = load_model(dense)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    save_model(quantised, model)
    (quantised / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (quantised / name).write_bytes((tiny_tokenizer_dir / name).read_bytes())
    base = load_base(str(quantised))
    assert base.dtype == mx.float32
    tokens = mx.array([[9, 8, 7, 6]])
    difference = mx.abs(base.model(tokens) - model(tokens).astype(mx.float32)).max().item()
    assert difference < 1e-2
    attach_lora(base.model, LoraConfig(rank=2), seed=0)
    assert lora_parameters(base.model)


def test_an_id_never_holds_a_path(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    assert base.id == tiny_model_dir.name and "/" not in base.id and len(base.weights_sha256) == 64


@pytest.mark.parametrize(
    ("markers", "order"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), "PSM"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "PSM"),
        (
            ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
            "PSM",
        ),
        (("[PREFIX]", "[SUFFIX]"), "SPM"),
    ],
)
def test_each_family_s_markers_are_found_by_id(
    tmp_path: Path, tiny_tokenizer_dir: Path, markers: tuple[str, ...], order: str
) -> None:
    tokenizer = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())
    names = ["<|endoftext|>", *markers]
    tokenizer["added_tokens"] = [
        {**tokenizer["added_tokens"][0], "id": 700 + at, "content": name, "special": at % 2 == 0}
        for at, name in enumerate(names)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = load_tokenizer(tmp_path)
    assert found.markers is not None and found.markers.order == order
    assert (found.markers.prefix, found.markers.suffix) == (701, 702)
    text = "".join(names) + " é\n"
    ids = found.encode(text)
    assert not {700, 701, 702, 703} & set(ids) and found.decode(ids) == text
    assert found.byte_lengths[ids].sum() == len(text.encode())
    prompt = found.markers.prompt([1, 2], [3])
    assert prompt.index(701) < prompt.index(702) if order == "PSM" else prompt.index(702) < prompt.index(701)
    for parts in (([1, 2], [3]), ([], [3]), ([1], []), ([], [])):
        assert found.markers.split(found.markers.prompt(*parts)) == parts
    for other in ([], [1, 2], [*prompt[:-1], 701], [1, *prompt], [*prompt, 702, 702]):
        assert found.markers.split(other) is None


def test_a_tokenizer_without_markers_says_so(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    tokenizer = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load_tokenizer(tmp_path).markers is None


def test_fresh_adapters_change_nothing_and_leave_no_trace(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    tokens = mx.array([[5, 6, 7]])
    before = base.model(tokens)
    for config in (LoraConfig(rank=4), LoraConfig(rank=4, use_dora=True)):
        targets = attach_lora(base.model, config, seed=1)
        assert mx.allclose(before, base.model(tokens), atol=1e-5)
        assert targets.parameters == sum(value.size for value in lora_parameters(base.model).values())
        detach_lora(base.model)
        assert mx.array_equal(before, base.model(tokens)) and not lora_parameters(base.model)


def test_settings_choose_modules_layers_and_scale(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    attach_lora(base.model, LoraConfig(rank=2, target_modules=("q_proj",), num_layers=1), seed=0)
    assert set(lora_parameters(base.model)) == {
        "model.layers.2.self_attn.q_proj.lora_a",
        "model.layers.2.self_attn.q_proj.lora_b",
    }
    detach_lora(base.model)
    assert effective_scale(LoraConfig(rank=16, scale=2.0)) == 2.0
    assert effective_scale(LoraConfig(rank=16, scale=2.0, use_rslora=True)) == 8.0
    with pytest.raises(ModelError, match="q_proj"):
        attach_lora(base.model, LoraConfig(target_modules=("no_such",)), seed=0)


def test_the_seed_decides_the_first_weights(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    drawn = []
    for seed in (1, 1, 2):
        attach_lora(base.model, LoraConfig(rank=2), seed=seed)
        drawn.append(lora_parameters(base.model)["model.layers.0.mlp.up_proj.lora_a"])
        detach_lora(base.model)
    assert mx.array_equal(drawn[0], drawn[1]) and not mx.array_equal(drawn[0], drawn[2])


def test_weights_of_another_shape_are_refused(tiny_model_dir: Path) -> None:
    base = load_base(str(tiny_model_dir))
    attach_lora(base.model, LoraConfig(rank=2), seed=1)
    weights = lora_parameters(base.model)
    weights["model.layers.0.mlp.up_proj.lora_a"] = mx.zeros((3, 3))
    with pytest.raises(ModelError, match="does not fit"):
        set_lora_parameters(base.model, weights)


def test_loading_takes_little_more_than_the_weights() -> None:
    """What is read to make a tensor used to lie on top of all others: half of a base stored as 16 bits."""
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    base = load_base("seedling")
    sizes = [value.nbytes for _, value in tree_flatten(base.model.parameters())]
    beyond = mx.get_peak_memory() - before - sum(sizes)
    assert beyond < max(sizes) / 2, f"{beyond / 2**20:.1f} MiB beyond the weights"
