"""What to type after an export, so that the program it was made for loads it."""

from __future__ import annotations

import shlex
from pathlib import Path

from mlx_gardener.platform.files import expanded


def next_command(form: str, directory: Path, *, project: str, base: str) -> str:
    """The command, or for PEFT the Python expression, that loads an export; a name in capitals is of a file that is still to be made.

    Args:
        form: of `adapter.exports.FORMS`.
        directory: that it was written to.
        project: names Ollama's model.
        base: the base model's id or directory.
    """
    from mlx_gardener.model.choose import SEEDLING, seedling_path

    base = str(seedling_path()) if base == SEEDLING else base
    file = _gguf_of(base)
    known = "BASE.gguf" if file is None else shlex.quote(str(file))
    hint = "" if file is not None else "  # BASE.gguf: --form gguf-base writes it"
    place, model = shlex.quote(str(directory)), shlex.quote(base)
    prompt = '--prompt "def "'
    return {
        "mlx": f"mlx_lm.generate --model {model} --adapter-path {place} {prompt}",
        "peft": f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{directory}")',
        "fused": f"mlx_lm.generate --model {place} {prompt}",
        "gguf": f"llama-cli -m {known} --lora {place}/adapter.gguf{hint}",
        "gguf-fused": f"llama-cli -m {place}/model.gguf",
        "gguf-base": f"llama-cli -m {place}/model.gguf --lora ADAPTER.gguf  # ADAPTER.gguf: --form gguf writes it",
        "modelfile": f"cd {place} && ollama create {shlex.quote(project.lower())} -f Modelfile",
        "ollama": f"cd {place} && ollama create {shlex.quote(project.lower())} -f Modelfile",
        "lmstudio": "lms ls  # LM Studio lists it",
    }[form]


def _gguf_of(base: str) -> Path | None:
    """The GGUF file of a base that came from one, as far as it is still there."""
    from mlx_gardener.model.gguf import is_gguf, source_files

    place = expanded(base)
    files = (place,) if is_gguf(place) else source_files(place)
    return None if files is None else files[0]
