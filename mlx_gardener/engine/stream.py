"""Base weights that are read from disk whenever a segment needs them, so that a base larger than the budget trains.

Weights of safetensors files are lazy in MLX: an array is read when it is first needed. So a streamed layer always
holds lazy arrays; after use they are dropped and lazy ones put in their place. The next segment's are read on a
stream of their own while this one computes: at most two segments' weights are in memory. Reading costs a copy out of
the system's page cache when the file fits in it, else the disk's speed; a forward and a backward pass read all once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine.cpu_streams import cpu_stream

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


class StreamedWeights:
    """Reads the weights of some layers again and again.

    Args:
        path: the model's directory; its files are ``model*.safetensors``, one or many.
        model: without adapters; only its modules are remembered, so adapters may come and go later.
        layers: the model's layers, by their names (``model.layers.3``), that are streamed.
        dtype: what floating-point weights are computed in, scales of quantised ones too.
    """

    def __init__(self, path: Path, model: nn.Module, layers: dict[int, str], *, dtype: mx.Dtype) -> None:
        import mlx.core as mx

        self._files = sorted(path.glob("model*.safetensors"))
        self._model, self._dtype = model, dtype
        self._stream = cpu_stream("reading")
        modules = dict(model.named_modules())
        #: For each layer: (module, its attribute, the weight's name in the files).
        self._places: dict[int, list[tuple[Any, str, str]]] = {
            number: [
                (module, leaf, f"{path}.{leaf}")
                for path, module in modules.items()
                if path == name or path.startswith(f"{name}.")
                for leaf, value in module.items()
                if isinstance(value, mx.array)
            ]
            for number, name in layers.items()
        }
        #: Lazy arrays of the pass to come, taken one layer at a time.
        self._fresh: dict[int, list[mx.array]] = {}
        #: What each layer holds now, not read yet.
        self._unread: dict[int, list[mx.array]] = {}
        for number in self._places:
            self._lay_out(number)

    @property
    def layers(self) -> frozenset[int]:
        """Numbers of the layers that are streamed."""
        return frozenset(self._places)

    @contextmanager
    def in_memory(self, here: Collection[int], soon: Collection[int]) -> Iterator[None]:
        """While this lasts the layers ``here`` may be used; those of ``soon`` are being read."""
        import mlx.core as mx

        for number in sorted(self.layers.intersection(here)):
            mx.async_eval(self._unread[number])
        for number in sorted(self.layers.intersection(soon).difference(here)):
            mx.async_eval(self._unread[number])
        try:
            yield
        finally:
            for number in self.layers.intersection(here):
                self._lay_out(number)

    def _lay_out(self, number: int) -> None:
        """Drop a layer's weights and put lazy ones in their places."""
        import mlx.core as mx

        self._unread.pop(number, None)
        if number not in self._fresh:
            self._fresh = self._read_headers()
        arrays = self._fresh.pop(number)
        self._unread[number] = arrays
        for (module, leaf, _), array in zip(self._places[number], arrays, strict=True):
            floating = mx.issubdtype(array.dtype, mx.floating)
            module[leaf] = array.astype(self._dtype) if floating else array

    def _read_headers(self) -> dict[int, list[mx.array]]:
        """Lazy arrays of all streamed layers, by way of the model's own names; nothing but headers is read."""
        import mlx.core as mx

        weights: dict[str, mx.array] = {}
        for file in self._files:
            loaded = mx.load(str(file), stream=self._stream)
            weights.update(loaded)  # type: ignore[arg-type]
        if hasattr(self._model, "sanitize"):
            weights = self._model.sanitize(weights)
        return {number: [weights[name] for _, _, name in places] for number, places in self._places.items()}
