"""Adapters for other programs: written beside their place, loaded back, compared with the source, and only then there.

In: a registered adapter and a form. Out: a new directory with the form and a card that says what it is. What does not
agree with its source is refused with the figure, and nothing is left. Cost: a few forward passes of 512 tokens, and for
fused forms a copy of the base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter.agreement import (
    MOST_ERROR,
    MOST_ROUNDING,
    Agreement,
    compare_logits,
    real_text_rows,
    spent_logits,
)
from mlx_gardener.adapter.base import base_name, load_adapter_base
from mlx_gardener.adapter.card import render_export_card
from mlx_gardener.adapter.forms import from_peft, has_peft_form
from mlx_gardener.adapter.fused import has_usual_names, stored_type, write_fused
from mlx_gardener.adapter.gguf_files import (
    ADAPTER_NAME,
    MODEL_NAME,
    read_gguf_adapter,
    write_gguf_adapter,
)
from mlx_gardener.adapter.gguf_merged import check_quantisation, write_merged
from mlx_gardener.adapter.loaded import attach_adapter, load_registered
from mlx_gardener.adapter.manifest import LoadedAdapter
from mlx_gardener.adapter.modelfile import (
    check_ollama,
    create_in_ollama,
    ollama_base,
    render_adapter_modelfile,
    render_modelfile,
)
from mlx_gardener.adapter.moved import moved_to
from mlx_gardener.errors import AdapterError, ModelError
from mlx_gardener.model.gguf import read_gguf, source_sha256
from mlx_gardener.platform.beside import staged_beside
from mlx_gardener.platform.store_places import lm_studio_models
from mlx_gardener.registry import ProjectRegistry

if TYPE_CHECKING:
    import numpy as np

#: What each form is, for --help and cards.
FORMS = {
    "mlx": "the adapter for mlx-lm (--adapter-path)",
    "peft": "the adapter for Hugging Face PEFT",
    "fused": "a model directory with the adapter merged in, for mlx-lm and Transformers",
    "gguf": "the adapter for llama.cpp (--lora)",
    "gguf-fused": "the merged model for llama.cpp",
    "gguf-base": "the base alone for llama.cpp, to put the adapter on",
    "modelfile": "the merged model with a Modelfile for `ollama create`",
    "ollama": "the adapter with a Modelfile that puts it on the base as Ollama has it",
    "lmstudio": "the merged model where LM Studio looks for models",
}
_COPIES = ("mlx", "peft")
_MODELS = ("fused", "gguf-fused", "gguf-base", "modelfile", "lmstudio")
_ADAPTERS = ("gguf", "ollama")
#: Of LM Studio's two levels of directories, the first: whose models they are.
_PUBLISHER = "mlx-gardener"


@dataclass(frozen=True)
class Export:
    """What was written, and how it was found to agree; None where the base was not there to compare logits."""

    directory: Path
    form: str
    agreement: Agreement | None
    notes: tuple[str, ...]


def export_adapter(
    registry: ProjectRegistry,
    project: str,
    version: str | None,
    form: str,
    destination: Path | None,
    *,
    base: str | None = None,
    bits: int | None = None,
    dtype: str = "auto",
    quantise: str | None = None,
    create: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Export:
    """Write one form of an adapter to a new directory, whole or not at all; what a killed one left beside goes first.

    Args:
        form: one of `FORMS`.
        destination: a directory that does not exist yet; of the form ``lmstudio`` where LM Studio finds it when None.
        base: the base model's directory or id, where it is not where it was; or another form of it (`moved_to`).
        bits: 4 or 8 quantises what ``fused`` writes, where the adapter's effect survives it.
        dtype: floats of a merged model: ``auto`` (the base's own), ``float32``, ``bfloat16`` or ``float16``.
        quantise: one of `gguf_merged.QUANTISATIONS` for merged GGUF models, where the adapter's effect survives it.
        create: let Ollama take the forms ``ollama`` and ``modelfile`` under this name.
        tell: told what is being done.

    Raises:
        AdapterError: the form is unknown or cannot hold this adapter, the export does not agree with its source, or the
            destination exists or cannot be written.
        ModelError: the form needs the base, which is not there.
        RegistryError: there is no such project or version.
    """
    if form not in FORMS:
        raise AdapterError(f"There is no form {form!r}.", next_step=f"Forms are: {', '.join(FORMS)}.")
    if bits is not None and (form != "fused" or bits not in (4, 8)):
        raise AdapterError("Only the form fused is quantised, to 4 or 8 bits.", next_step="Leave --bits out.")
    if dtype != "auto" and form not in _MODELS:
        raise AdapterError(f"The form {form} holds the adapter as it is.", next_step="Leave --dtype out.")
    if quantise is not None and (form not in _MODELS or form == "fused"):
        raise AdapterError(
            f"The form {form} is no GGUF model, which is what is quantised so.",
            next_step="Take the form gguf-fused, lmstudio or modelfile; the form fused has bits of its own.",
        )
    if quantise is not None:
        check_quantisation(quantise)
    if create is not None:
        if form not in ("ollama", "modelfile"):
            raise AdapterError(f"The form {form} has no Modelfile.", next_step="Take ollama or modelfile.")
        check_ollama()
    record = registry.get_adapter(project, version)
    destination = destination or _place(form, "-".join(filter(None, (project, record.version, quantise))))
    adapter = load_registered(registry, project, record.version)
    moved = None if base is None else moved_to(adapter, base_name(registry, record), base)
    adapter = adapter if moved is None else moved.adapter
    if destination.exists():
        raise AdapterError(f"{str(destination)!r} exists already.", next_step="Name a new directory.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with staged_beside(destination, mode=0o777) as staged:
            work = _Work(
                adapter, form, base or base_name(registry, record), base is not None, bits, dtype, quantise, staged,
                registry.get_project(project).path, tell or (lambda text: None),
            )  # fmt: skip
            work.notes += [moved.sentence] if moved else []
            agreement = work.write_and_compare()
            (staged / "README.md").write_text(_card(adapter, form, agreement, work), encoding="utf-8")
            staged.rename(destination)
    except OSError as error:
        raise AdapterError(
            f"{str(destination)!r} cannot be written ({error.strerror or error}).",
            next_step="Name another directory, or free disk space.",
        ) from error
    if create is not None:
        work.tell("Giving it to Ollama")
        create_in_ollama(destination, create)
        work.notes.append(f"Ollama has it as {create}.")
    return Export(destination, form, agreement, tuple(work.notes))


def _place(form: str, name: str) -> Path:
    """Where a form is written that has a place of its own.

    Raises:
        AdapterError: it has none, or LM Studio is not on this machine.
    """
    if form != "lmstudio":
        raise AdapterError(f"The form {form} has no place of its own.", next_step="Name a new directory.")
    models = lm_studio_models()
    if models is None:
        raise AdapterError(
            "LM Studio's folder of models is not on this machine.",
            next_step="Start LM Studio once, or name a new directory two levels below its folder: PUBLISHER/NAME.",
        )
    return models / _PUBLISHER / name


@dataclass
class _Work:
    """One export under way."""

    adapter: LoadedAdapter
    form: str
    base: str
    base_was_named: bool
    bits: int | None
    dtype: str
    quantise: str | None
    staged: Path
    repository: Path
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def write_and_compare(self) -> Agreement | None:
        """Write the form and compare it; the figures.

        Raises:
            AdapterError: as `export_adapter`.
        """
        if self.form in _COPIES:
            return self._copy()
        return self._gguf_adapter() if self.form in _ADAPTERS else self._model()

    def _copy(self) -> Agreement | None:
        adapter, source = self.adapter, self.adapter.directory / self.form
        if not source.is_dir():
            why = (
                ""
                if has_peft_form(adapter.weights)
                else ": PEFT has no place for adapters of stacked experts"
            )
            raise AdapterError(
                f"The adapter {adapter.directory.name!r} has no form {self.form!r}{why}.",
                next_step="Export the form mlx, or fused.",
            )
        for name in (name for name in adapter.manifest["files"] if name.startswith(f"{self.form}/")):
            copy = self.staged / name.removeprefix(f"{self.form}/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter.directory / name, copy)  # what was verified, with the user's umask
        return self._compare_adapter(*self._read_copy())

    def _read_copy(self) -> tuple[dict[str, Any], float]:
        """Weights by mlx-lm's names and scale, from the files that were just written."""
        from mlx_gardener.model.lora import load_arrays
        from mlx_gardener.platform.untrusted import read_json

        config = read_json(self.staged / "adapter_config.json")
        if self.form == "mlx":
            return load_arrays(self.staged / "adapters.safetensors"), config["lora_parameters"]["scale"]
        weights = from_peft(load_arrays(self.staged / "adapter_model.safetensors"))
        return weights, config["lora_alpha"] / config["r"]

    def _gguf_adapter(self) -> Agreement | None:
        import mlx.core as mx

        from mlx_gardener.model import choose_model, resolve_model
        from mlx_gardener.model.choose import read_model_config

        place = resolve_model(choose_model(self.base))
        config: dict[str, Any] = dict(read_model_config(place))
        file, settings = self.staged / ADAPTER_NAME, self.adapter.settings
        name = f"{self.adapter.manifest['project']} {self.adapter.manifest['version']}"
        write_gguf_adapter(
            file, self.adapter.weights, settings, config, name=name, base=self.adapter.manifest["base"]["id"],
            base_sha256=source_sha256(place),
        )  # fmt: skip
        if self.form == "ollama":
            text = render_adapter_modelfile(ollama_base(place), ADAPTER_NAME)
            (self.staged / "Modelfile").write_text(text, encoding="utf-8")
        weights, alpha = read_gguf_adapter(file, config)
        read = {name: mx.array(value) for name, value in weights.items()}
        return self._compare_adapter(read, alpha / settings.rank)

    def _compare_adapter(self, weights: dict[str, Any], scale: float) -> Agreement | None:
        """The adapter that was read back against the source, on the base where it is there."""
        import mlx.core as mx

        mine = self.adapter.weights
        if set(weights) != set(mine) or not all(
            mx.allclose(weights[name], value, rtol=1e-6, atol=0).item() for name, value in mine.items()
        ):
            raise AdapterError(f"The {self.form} form that was written does not hold the adapter's weights.")
        settings = self.adapter.settings
        again = replace(self.adapter, weights=weights, settings=replace(settings, scale=scale))
        try:
            tokens, plain, adapted = self._source_logits()
        except ModelError as error:
            if self.base_was_named:
                raise
            self.notes.append(
                f"Weights and scale are the source's; logits were not compared, as the base is not here ({error.message})"
            )
            if abs(scale / settings.scale - 1) > 1e-6:
                raise AdapterError(f"The {self.form} form that was written has another scale.") from error
            return None
        return self._agreed(compare_logits(plain, adapted, self._logits(again, tokens)), 1e-3)

    def _model(self) -> Agreement | None:
        from mlx_gardener.model import load_lazy_base

        with_adapter = self.form != "gguf-base"
        self.tell("Measuring the adapter on real text")
        base = load_adapter_base(self.base, self.adapter, lazy=True)
        kind = _float_type(base.path) if self.dtype == "auto" else self.dtype
        tokens, plain, adapted = self._source_logits()
        self.tell("Merging layer by layer" if with_adapter else "Copying the base")
        merged = self.staged if self.form == "fused" else self.staged / "merged"
        merged.mkdir(exist_ok=True)
        if with_adapter:
            with attach_adapter(base, self.adapter):
                write_fused(base, merged, dtype=kind, bits=self.bits)
        else:
            write_fused(base, merged, dtype=kind)
        if not has_usual_names(base.path, merged):
            self.notes.append("Its tensors bear mlx-lm's names: mlx-lm loads it, Transformers does not.")
        self.tell("Comparing what was written")
        fused = load_lazy_base(str(merged))
        got = spent_logits(fused, tokens)
        if not with_adapter:
            got = got + (adapted - plain)  # as if the adapter were put on it
        reached = self._agreed(
            compare_logits(plain, adapted, got), MOST_ROUNDING if self.bits else MOST_ERROR
        )
        if self.form == "fused":
            return reached
        self.tell("Writing the GGUF file")
        file = self._gguf_model(merged, base.path, fused)
        if self.quantise is None and source_sha256(base.path) is None:
            return reached  # every tensor was compared bit for bit
        self.tell("Reading it back")
        folder = read_gguf(file, self.staged / "read")
        again = load_lazy_base(str(folder))
        got = spent_logits(again, tokens)
        shutil.rmtree(folder.parent)
        if not with_adapter:
            got = got + (adapted - plain)
        return self._agreed(
            compare_logits(plain, adapted, got), MOST_ROUNDING if self.quantise else MOST_ERROR
        )

    def _gguf_model(self, merged: Path, source: Path, fused: Any) -> Path:
        """Write the GGUF model of what was merged, which is gone afterwards; the file."""
        name = f"{self.adapter.manifest['project']} {self.adapter.manifest['version']}"
        target = self.staged / MODEL_NAME
        if self.form == "lmstudio":  # which shows the file's name
            target = (
                self.staged / f"{'-'.join([*name.split(), *([self.quantise] if self.quantise else [])])}.gguf"
            )
        if self.form == "gguf-base":
            name = self.adapter.manifest["base"]["id"]
        write_merged(merged, source, fused.tokenizer, target, name=name, quantise=self.quantise)
        if self.form == "modelfile":
            context = int(fused.config.get("max_position_embeddings", 2048))
            (self.staged / "Modelfile").write_text(
                render_modelfile(fused.tokenizer, MODEL_NAME, context_tokens=context), encoding="utf-8"
            )
        return target

    def _source_logits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of real text, and the logits of the base without and with the adapter."""
        base = load_adapter_base(self.base, self.adapter, lazy=True)
        tokens = real_text_rows(self.repository, base.tokenizer)
        return tokens, spent_logits(base, tokens), self._logits(self.adapter, tokens)

    def _logits(self, adapter: LoadedAdapter, tokens: np.ndarray) -> np.ndarray:
        base = load_adapter_base(self.base, self.adapter, lazy=True)
        with attach_adapter(base, adapter):
            return spent_logits(base, tokens)

    def _agreed(self, found: Agreement, most: float) -> Agreement:
        if found.share <= most:
            return found
        if most == MOST_ROUNDING and self.quantise is not None:
            hint = "Export without --quantise, or with --quantise q8_0."
        elif self.bits is not None:
            hint = "Export without --bits, or with --bits 8." if self.bits == 4 else "Export without --bits."
        else:
            hint = "Export with --dtype float32, or the adapter itself (mlx, peft, gguf)."
        raise AdapterError(
            f"The {self.form} form does not say what the adapter says. {found.sentence()} At most {most:.1%} is let pass.",
            next_step=hint,
        )


def _float_type(path: Path) -> str:
    """The floats of a base: float16 of one that was read from a quantised GGUF file, whose scales may be float32."""
    from mlx_gardener.model.choose import read_model_config

    is_packed = source_sha256(path) is not None and "quantization" in read_model_config(path)
    return "float16" if is_packed else stored_type(path)


def _card(adapter: LoadedAdapter, form: str, agreement: Agreement | None, work: _Work) -> str:
    """What goes along with an export: what it is, of what, how good, how it was compared, how to load it."""
    manifest = adapter.manifest
    return render_export_card(
        {
            "form": form,
            "what": FORMS[form],
            "project": manifest["project"],
            "version": manifest["version"],
            "base": manifest["base"],
            "commit": manifest["data"].get("commit"),
            "evidence": manifest.get("evidence") or {},
            "rank": adapter.settings.rank,
            "quantised": f"{work.bits} bits" if work.bits else work.quantise,
            "agreement": None if agreement is None else agreement.sentence(),
            "notes": work.notes,
        }
    )
