"""What clients of Ollama's API are told of a base: its size, its context, the form of its prompts, and a name that editors know.

In: what `model.load_base` takes. Out: a `BaseCard`, or None where the base is not here; nothing is fetched for it. Cost: config,
headers and tokenizer are read once for each base, some tenths of a second; the tokenizer is not kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlx_gardener.adapter.modelfile import prompt_template
from mlx_gardener.dataset.edit_forms import edit_form
from mlx_gardener.engine.facts import ModelFacts, model_facts
from mlx_gardener.errors import ModelError
from mlx_gardener.model import load_tokenizer
from mlx_gardener.model.choose import choose_model, read_model_config

#: Ollama's name of the family whose prompts have this marker before a FIM span; editors choose a prompt's form by it.
_FAMILIES = {
    "<|fim_prefix|>": "qwen2.5-coder",
    "<fim_prefix>": "starcoder",
    "<｜fim▁begin｜>": "deepseek-coder",  # noqa: RUF001  full-width bars, as spelled
    "[PREFIX]": "codestral",
    "<PRE>": "codellama",
}
#: Families of Ollama's library whose models are called FAMILY-SIZE outside of it, too.
_OUTSIDE = (
    "qwen2.5-coder",
    "codeqwen",
    "deepseek-coder",
    "starcoder2",
    "starcoder",
    "codegemma",
    "codellama",
)
#: Names by which Zed knows a form of next edits (crates/edit_prediction/src/fim.rs, infer_prompt_format).
_EDIT_NAMES = {"sweep": ("sweep-next-edit",), "zeta2": ("zeta2", "zeta2.1")}
#: All families that a name may begin with.
FAMILIES = {*_OUTSIDE, *_FAMILIES.values(), *(name for names in _EDIT_NAMES.values() for name in names)}
_LIBRARY = re.compile(rf"({'|'.join(map(re.escape, _OUTSIDE))})[-:](\d+(?:\.\d+)?b)\b")
_FLOATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class BaseCard:
    """Of a base: its architecture, sizes, and how it is asked.

    Attributes:
        template: the Go template by which Ollama would form its prompts; names ``.Suffix`` where it has FIM markers.
        family: the family of Ollama's library with the same markers; None without any.
        edit_names: under which editors send it next-edit prompts; none where its markers allow no form of them.
        quantization: ``4-bit`` or the type of its floats, "" where that is not known.
    """

    architecture: str
    facts: ModelFacts
    template: str
    family: str | None
    quantization: str
    edit_names: tuple[str, ...] = ()

    @property
    def has_fim(self) -> bool:
        """Whether it has fill-in-the-middle markers."""
        return ".Suffix" in self.template

    @property
    def parameter_size(self) -> str:
        """The number of parameters as Ollama writes it: 1.5B, 494.03M."""
        count = self.facts.parameters
        if count >= 1e9:
            return f"{count / 1e9:.1f}B"
        return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.2f}K"


def base_card(base: str) -> BaseCard | None:
    """The card of a base; None where it is not here or cannot be read."""
    try:
        path = choose_model(base).path
        return None if path is None else _card(path, _changed(path))
    except ModelError:
        return None


def library_name(base_id: str) -> str | None:
    """How Ollama's library calls a model (``qwen2.5-coder:1.5b``), by how it is called outside; None for what is not there."""
    found = _LIBRARY.search(base_id.lower().replace("_", "-"))
    return f"{found[1]}:{found[2]}" if found is not None else None


def _changed(path: Path) -> tuple[int, ...]:
    """When what is read was changed last."""
    files = (path / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json"))
    return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)


@lru_cache(maxsize=64)
def _card(path: Path, changed: tuple[int, ...]) -> BaseCard:
    config, facts, tokenizer = read_model_config(path), model_facts(path), load_tokenizer(path)
    architecture = str(config["model_type"])
    family = None
    if tokenizer.markers is not None:
        family = _FAMILIES.get(tokenizer.decode([tokenizer.markers.prefix]).strip("▁ "))
        if family == "qwen2.5-coder" and architecture.startswith("gemma"):
            family = "codegemma"
    floats = _FLOATS.get(str(config.get("torch_dtype") or config.get("dtype")), "")
    return BaseCard(
        architecture,
        facts,
        prompt_template(tokenizer),
        family,
        floats if facts.quantized_bits is None else f"{facts.quantized_bits}-bit",
        _EDIT_NAMES.get(edit_form(tokenizer) or "", ()),
    )
