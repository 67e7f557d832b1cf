"""The seedling's model card and result file, written from what was measured and from the package list.

In: the score, the working directory's facts, the manifest. Out: ``README.md`` and ``score.json`` in the model directory
and one file under ``benchmarks/results``. No figure in the card is typed by hand.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seedling_corpus import Package, load_manifest
from seedling_model import write_json

_CARD = """# seedling

A small code model made for mlx_gardener, so that a LoRA can be trained on any machine without a model hub. It is a
standard Llama ({parameters:.1f} million parameters, {layers} layers of width {hidden}, tied embeddings, context
{context}) with a byte-level BPE tokenizer of {vocabulary} tokens. mlx-lm and Hugging Face transformers load the
directory as it is.

**It is a stand-in, not an assistant.** It knows the surface of code: names, indentation, common idioms. It does
not follow instructions and what it writes is often wrong. Where a real code model is within reach, use that.

## What it has seen

{tokens:.1f} million tokens (about {megabytes:.0f} MB of source) in {steps} updates of {batch} tokens, {minutes:.0f}
minutes of two CPU cores. Rows of 512 tokens first, 1024 and 2048 in the last {long_share:.0f} %. Half of the documents were
turned into fill-in-the-middle pieces (prefix, suffix, middle), three in ten carry a repository and path header:

    <|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>middle<|endoftext|>
    <|repo_name|>name
    <|file_sep|>path
    text<|endoftext|>

Share of the training text by language: {shares}.

## How good it is

Bits per byte on whole packages it never saw (lower is better), beside gzip -9 and xz -9e of each file on its own
(files of up to 24 KB).

{held_out_names}

| language | files | KB | seedling | gzip | xz |
|---|---:|---:|---:|---:|---:|
{rows}

How to read it: gzip and xz start each file from nothing, so they are a floor, not a rival; licence heads, which training
also holds word for word, make long-headed languages (Java above all) look easier than their code is. One to a few dozen
files per language: differences of a few hundredths mean nothing.

`score.json` beside this file holds the same figures; `scripts/train_seedling.py score` measures them again.

## Never trained on

{unseen}.

A file of any package whose path names one of them was left out, and so was one that shares 30 % of its long code lines
with the fetched ones ({compared}) or with a held-out package.

## Data and licences

The Python standard library and {count} packages, versions pinned in `scripts/seedling_corpus.toml`, all under permissive
licences as their packages state them. The model's weights are released under the licence of mlx_gardener.

{packages}

## Made with

`scripts/train_seedling.py fetch | tokenizer | train | export | score`. {made}
"""


def write_card(work: Path, target: Path, table: dict[str, Any], manifest: Path, result: Path) -> None:
    """Write the card, ``score.json`` beside it, and the result file with the machine it was measured on."""
    from safetensors import safe_open

    packages, unseen = load_manifest(manifest)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    position = json.loads((target / "training.json").read_text(encoding="utf-8"))
    stream = json.loads((work / "stream.json").read_text(encoding="utf-8"))
    with safe_open(str(target / "model.safetensors"), framework="numpy") as weights:
        names = list(weights.keys())
        parameters = 0
        for name in names:
            rows, *rest = weights.get_slice(name).get_shape()
            parameters += rows * (rest[0] if rest else 1)
    rows = [(name, line) for name, line in table["languages"].items()] + [("**all**", table["all"])]
    bytes_per_token = sum(line["bytes"] for line in table["languages"].values()) / sum(
        line["bytes"] / line["bytes_per_token"] for line in table["languages"].values()
    )
    held = sorted(package.name for package in packages if package.role == "heldout")
    trained = [package for package in packages if package.role == "train"]
    shares = sorted(stream["shares"].items(), key=lambda item: -item[1])
    card = _CARD.format(
        parameters=parameters / 1e6,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        context=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
        tokens=position["used_tokens"] / 1e6,
        megabytes=position["used_tokens"] * bytes_per_token / 1e6,
        steps=position["step"],
        batch=round(position["used_tokens"] / position["step"]),
        minutes=position["seconds"] / 60,
        long_share=15,
        shares=", ".join(f"{name} {100 * share:.1f} %" for name, share in shares if share >= 0.005),
        held_out_names="Held-out packages: " + ", ".join(held) + ".",
        rows="\n".join(
            f"| {name} | {line['files']} | {line['bytes'] / 1e3:.0f} | {line['bits_per_byte']:.3f} "
            f"| {line['gzip_bits_per_byte']:.3f} | {line['xz_bits_per_byte']:.3f} |"
            for name, line in rows
        ),
        unseen=", ".join(sorted(unseen)),
        compared=", ".join(sorted(package.name for package in packages if package.role == "unseen")),
        count=len(trained) - 1,
        packages=package_lines(trained),
        made=f"Measured {datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores.",
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    facts = {"training": position, "stream": stream, **table}
    write_json(target / "score.json", facts)
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, {"machine": machine(), "measured": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", **facts})


def package_lines(packages: list[Package]) -> str:
    """The packages by licence, one list item per licence."""
    licences: dict[str, list[str]] = {}
    for package in packages:
        licences.setdefault(package.licence, []).append(f"{package.name} {package.version}")
    return "\n".join(
        f"- {licence}: {', '.join(sorted(names))}" for licence, names in sorted(licences.items())
    )


def machine() -> dict[str, Any]:
    """The machine, in words that name no one."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "system": platform.system(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
