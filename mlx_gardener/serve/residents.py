"""What is in memory: bases, each once, and adapters as LoRA modules that can be put into their base and taken out.

A swap sets some dozens of attributes of the model to modules that hold A and B and share the base's linear module; no
base weight moves and nothing is read. When the budget is short, the base used longest ago goes with its adapters, then
adapters of the base in use. All of this belongs to the one thread that computes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_gardener.adapter import PeftManager, attach_adapter, check_base
from mlx_gardener.errors import AdapterError, MemoryBudgetError
from mlx_gardener.platform.sizes import GIB
from mlx_gardener.platform.untrusted import MAX_JSON_BYTES, read_bytes
from mlx_gardener.registry import AdapterRecord, ProjectRegistry
from mlx_gardener.serve.catalog import Target

if TYPE_CHECKING:
    from mlx_gardener.model import BaseModel

#: How much of a prompt's logits an adapter must move to count as one that does something (units of a logit).
_LEAST_CHANGE = 1e-6
#: Files beside a base's weights that decide its answers.
_DECIDING_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PROBE = "def main(arguments):\n    return "


@dataclass
class Resident:
    """An adapter in memory.

    ``places`` are (parent module, name, LoRA module), ``scales`` what each multiplies its product with; ``change`` is the
    largest difference it makes to a logit.
    """

    key: tuple[str, str, str]
    weights_sha256: str
    places: list[tuple[Any, str, Any]]
    scales: list[float]
    size_bytes: int
    change: float = 0.0


@dataclass
class LoadedBase:
    """A base in memory with the adapters that were put into it; ``current`` is the one that is in now.

    ``identity`` tells it from every other: the same weights with another tokenizer, config or template are another base.
    """

    base: BaseModel
    name: str
    identity: str
    size_bytes: int
    max_tokens: int
    adapters: OrderedDict[tuple[str, str, str], Resident] = field(default_factory=OrderedDict)
    current: Resident | None = None


class Residents:
    """Bases and adapters in memory, within a budget.

    Args:
        budget_bytes: for all of them together.
    """

    def __init__(self, registry: ProjectRegistry, budget_bytes: int) -> None:
        self._manager = PeftManager(registry)
        self._budget_bytes = budget_bytes
        self._bases: OrderedDict[str, LoadedBase] = OrderedDict()  # by name, least recently used first
        #: Times that another adapter was put in, and the seconds this took.
        self.swaps, self.swap_seconds = 0, 0.0

    @property
    def size_bytes(self) -> int:
        """What bases and adapters take."""
        return sum(
            loaded.size_bytes + sum(adapter.size_bytes for adapter in loaded.adapters.values())
            for loaded in {id(loaded): loaded for loaded in self._bases.values()}.values()
        )

    @property
    def base_count(self) -> int:
        """Bases in memory."""
        return len({id(loaded) for loaded in self._bases.values()})

    def enter(self, target: Target, strength: float = 1.0) -> tuple[LoadedBase, Resident | None]:
        """Make the model of ``target`` the one that computes: its base loaded, its adapter and no other in it.

        Args:
            strength: what the adapter's scale is multiplied by.

        Raises:
            AdapterError: the adapter's files are damaged, do not fit the base, or change nothing.
            MemoryBudgetError: the base does not fit the budget even alone.
            ModelError: the base cannot be loaded.
        """
        loaded = self._base(target.base)
        if target.record is None:
            self._place(loaded, None)
            return loaded, None
        key = _key(target.record)
        resident = loaded.adapters.get(key)
        if resident is None:
            resident = self._load(loaded, target)
            loaded.adapters[key] = resident
            self._make_room(0, keep=loaded, keep_adapter=key)
        loaded.adapters.move_to_end(key)
        self._place(loaded, resident)
        for (_, _, module), scale in zip(resident.places, resident.scales, strict=True):
            module.scale = scale * strength
        return loaded, resident

    def loaded(self) -> list[tuple[LoadedBase, Resident | None]]:
        """What is in memory now: adapters with their bases, and bases without any; to be read from any thread."""
        found: list[tuple[LoadedBase, Resident | None]] = []
        for base in {id(base): base for base in list(self._bases.values())}.values():
            found += [(base, resident) for resident in list(base.adapters.values())] or [(base, None)]
        return found

    def release(self, target: Target) -> None:
        """Let go of a target's adapter, and of its base where no adapter of others is in it."""
        import mlx.core as mx

        loaded = self._bases.get(target.base)
        if loaded is None:
            return
        resident = None if target.record is None else loaded.adapters.pop(_key(target.record), None)
        if resident is not None and resident is loaded.current:
            self._place(loaded, None)
        if not loaded.adapters:
            for name in [name for name, base in self._bases.items() if base is loaded]:
                del self._bases[name]
        mx.clear_cache()

    def leave(self) -> None:
        """Take out and forget all adapters: what an error left of them is not known. Bases were never changed."""
        for loaded in self._bases.values():
            for resident in loaded.adapters.values():
                for parent, name, module in resident.places:
                    _set(parent, name, module.linear)
            loaded.adapters.clear()
            loaded.current = None

    def _base(self, name: str) -> LoadedBase:
        from mlx_gardener.engine.facts import model_facts
        from mlx_gardener.model import load_base
        from mlx_gardener.model.choose import choose_model, resolve_model
        from mlx_gardener.platform.device import backend

        if name in self._bases:
            self._bases.move_to_end(name)
            return self._bases[name]
        facts = model_facts(resolve_model(choose_model(name)))
        size = 4 * facts.parameters if backend() == "cpu" else facts.stored_bytes
        if size > self._budget_bytes:
            raise MemoryBudgetError(
                f"The base {name!r} takes {_gigabytes(size)}, and the budget is {_gigabytes(self._budget_bytes)}.",
                next_step=f"Start again with `--budget {math.ceil(size * 125 / GIB) / 100:.2f}`.",
            )
        self._make_room(size)
        base = load_base(name)
        identity = base_identity(base)
        # The same files under another name are the same base.
        for loaded in self._bases.values():
            if loaded.identity == identity:
                self._bases[name] = loaded
                return loaded
        self._bases[name] = LoadedBase(base, name, identity, size, facts.max_tokens)
        return self._bases[name]

    def _load(self, loaded: LoadedBase, target: Target) -> Resident:
        assert target.record is not None
        record = target.record
        adapter = self._manager.load_adapter(record.project, record.version)
        check_base(loaded.base, adapter)
        self._place(loaded, None)
        before = _probe(loaded.base)
        with attach_adapter(loaded.base, adapter):
            after = _probe(loaded.base)
            places = _lora_places(loaded.base.model)
        change = float(abs(after - before).max())
        if not change > _LEAST_CHANGE:
            raise AdapterError(
                f"The adapter {record.project}/{record.version} changes nothing: its answers would be the base's.",
                next_step="Train again, or remove this version.",
            )
        return Resident(
            _key(record),
            adapter.manifest["files"]["mlx/adapters.safetensors"]["sha256"],
            places,
            [float(module.scale) for _, _, module in places],
            sum(value.nbytes for value in adapter.weights.values()),
            change,
        )

    def _place(self, loaded: LoadedBase, resident: Resident | None) -> None:
        """Take out the adapter that is in and put in another: references only."""
        if loaded.current is resident:
            return
        start = time.perf_counter()
        if loaded.current is not None:
            for parent, name, module in loaded.current.places:
                _set(parent, name, module.linear)
        if resident is not None:
            for parent, name, module in resident.places:
                _set(parent, name, module)
        loaded.current = resident
        self.swaps += 1
        self.swap_seconds += time.perf_counter() - start

    def _make_room(
        self,
        wanted_bytes: int,
        *,
        keep: LoadedBase | None = None,
        keep_adapter: tuple[str, str, str] | None = None,
    ) -> None:
        """Let go of what was used longest ago until ``wanted_bytes`` more fit: other bases, then adapters of this one."""
        import mlx.core as mx

        while self.size_bytes + wanted_bytes > self._budget_bytes:
            idle = [
                (loaded, key)
                for loaded in self._bases.values()
                for key, adapter in loaded.adapters.items()
                if adapter is not loaded.current and key != keep_adapter
            ]
            bases = [name for name, loaded in self._bases.items() if loaded is not keep]
            if bases:
                gone = self._bases[bases[0]]
                for name in [name for name, loaded in self._bases.items() if loaded is gone]:
                    del self._bases[name]
            elif idle:
                del idle[0][0].adapters[idle[0][1]]
            else:
                return
            mx.clear_cache()


def _gigabytes(size: int) -> str:
    return f"{size / GIB:.2f} GB" if size >= GIB / 100 else "less than 0.01 GB"


def _key(record: AdapterRecord) -> tuple[str, str, str]:
    return record.project, record.version, record.manifest_sha256


def base_identity(base: BaseModel) -> str:
    """sha256 over all that decides what a base answers: weights, config, tokenizer and chat template."""
    digest = hashlib.sha256(f"{base.weights_sha256} {base.tokenizer.fingerprint}".encode())
    for name in _DECIDING_FILES:
        file = base.path / name
        content = read_bytes(file, max_bytes=MAX_JSON_BYTES) if file.is_file() else b""
        digest.update(f"\0{name}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _lora_places(model: Any) -> list[tuple[Any, str, Any]]:
    """Every LoRA module of a model with the module it hangs on and its name there."""
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

    places = []
    for path, module in model.named_modules():
        if isinstance(module, (LoRALinear, LoRASwitchLinear, DoRALinear)):
            above, _, name = path.rpartition(".")
            parent = model
            for part in above.split(".") if above else []:
                parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
            places.append((parent, name, module))
    return places


def _set(parent: Any, name: str, module: Any) -> None:
    if isinstance(parent, list):
        parent[int(name)] = module
    else:
        setattr(parent, name, module)


def _probe(base: BaseModel) -> Any:
    """Logits of the positions of a fixed text, (tokens, vocab), as they are now."""
    import mlx.core as mx
    import numpy as np

    logits = base.model(mx.array([base.tokenizer.encode(_PROBE)]))[0]
    return np.array(logits.astype(mx.float32))
