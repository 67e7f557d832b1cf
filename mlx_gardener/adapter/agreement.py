"""Whether an export says what its adapter says: logits on real text, before and after, in figures.

In: a base, with or without an adapter, and a few rows of the project's own source. Out: logits and an `Agreement`.
Cost: one forward pass of 512 tokens a model; layers are read from disk one after the other and given up after use, so
memory is the largest layer's, the head's and a few logits'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import AdapterError
from mlx_gardener.platform.files import is_directory
from mlx_gardener.platform.untrusted import read_text

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np

    from mlx_gardener.model import BaseModel, CodeTokenizer

#: What is compared: rows, tokens of each, and of these every so many-th position.
ROWS, WIDTH, EVERY = 4, 128, 8
#: The largest `Agreement.share` with which an export passes.
MOST_ERROR = 0.1
#: The same where weights are quantised anew: by power (squares), rounding is at most a quarter of the adapter's effect, so that four
#: fifths of all that the export changes in the base are the adapter's.
MOST_ROUNDING = 0.5
#: Of a repository's files so many are read for the rows, of at most so many bytes each.
_MAX_FILES, _MAX_FILE_BYTES = 40, 100_000


@dataclass(frozen=True)
class Agreement:
    """An export against its source, root mean squares over logits of real text.

    ``effect`` is what the adapter changes in the base; ``error`` how far the export is from base with adapter;
    ``kept`` the share of the effect that is in the export: what it changes in the base, projected on the effect (1 is all).
    """

    effect: float
    error: float
    kept: float

    @property
    def share(self) -> float:
        """Error as a share of the effect; for an adapter without any effect infinite, or 0 where there is no error either."""
        if self.effect:
            return self.error / self.effect
        return float("inf") if self.error else 0.0

    def sentence(self) -> str:
        """The figures for people."""
        return (
            f"Loaded back and compared on real text: the export changes the base as the adapter does to within "
            f"{self.share:.2%}, and keeps {self.kept:.1%} of its effect (logits: {self.effect:.4f} rms, off by {self.error:.2g})."
        )

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "effect_rms": self.effect,
            "error_rms": self.error,
            "error_share": self.share,
            "kept": self.kept,
        }


def compare_logits(base: np.ndarray, adapted: np.ndarray, exported: np.ndarray) -> Agreement:
    """The figures of three sets of logits, all (positions, vocabulary)."""
    import numpy as np

    effect, got = adapted - base, exported - base
    power = float((effect.astype(np.float64) ** 2).sum())
    kept = float((got.astype(np.float64) * effect).sum()) / power if power else 1.0
    return Agreement(_rms(effect), _rms(exported - adapted), kept)


def _rms(values: np.ndarray) -> float:
    import numpy as np

    return float(np.sqrt((values.astype(np.float64) ** 2).mean()))


def real_text_rows(root: Path, tokenizer: CodeTokenizer) -> np.ndarray:
    """Tokens of the repository at ``root``, or of this package where that has too few; int32 (ROWS, WIDTH)."""
    import numpy as np

    ids: list[int] = []
    for path in _source_files(root):
        try:
            ids += tokenizer.encode(read_text(path, max_bytes=_MAX_FILE_BYTES))
        except (OSError, ValueError):
            continue  # gone, or no text: another file will do
        if len(ids) >= ROWS * WIDTH:
            break
    while len(ids) < ROWS * WIDTH:
        ids += ids
    return np.array(ids[: ROWS * WIDTH], dtype=np.int32).reshape(ROWS, WIDTH)


def _source_files(root: Path) -> Iterator[Path]:
    from mlx_gardener.source.walk import list_files

    names = list_files(root)[: 50 * _MAX_FILES] if is_directory(root) else []
    inside = [root / name for name in names if Path(name).suffix in (".py", ".js", ".ts", ".rs", ".go", ".c")]
    found = [path for path in inside if path.is_file() and not path.is_symlink()]
    yield from [path for path in found if path.stat().st_size <= _MAX_FILE_BYTES][:_MAX_FILES]
    yield from sorted(Path(__file__).parent.glob("*.py"))


def spent_logits(base: BaseModel, tokens: np.ndarray) -> np.ndarray:
    """Logits at every ``EVERY``-th position, float32 (positions, vocabulary); the layers' weights are gone afterwards.

    Raises:
        AdapterError: the model uses a layer twice, so that its weights cannot be given up in between.
    """
    import mlx.core as mx
    import numpy as np

    with layers_given_up(base.model):
        logits = base.model(mx.array(tokens))[:, ::EVERY].astype(mx.float32)
        mx.eval(logits)
    return np.array(logits).reshape(-1, logits.shape[-1])


@contextmanager
def layers_given_up(model: nn.Module) -> Iterator[None]:
    """``model`` with layers that can be computed once: each lets its weights go, so that only one's are in memory."""
    from mlx_gardener.engine.call_graph import CannotSplit, layer_list

    try:
        layers, _ = layer_list(
            model
        )  # `model.layers` may be a copy: mlx-lm's qwen2 gives the part of a pipeline
    except CannotSplit as error:
        raise AdapterError(
            f"An export of this model cannot be checked layer by layer: {error}.",
            next_step="Export the form mlx, which is a copy.",
        ) from error
    kept = list(layers)
    layers[:] = [_Spent(layer) for layer in kept]
    try:
        yield
    finally:
        layers[:] = kept


class _Spent:
    """A layer that computes once and then lets its weights go; everything else is the layer's own."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._is_spent = layer, False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        import mlx.core as mx

        if self._is_spent:
            raise AdapterError(
                "This model uses a layer twice, so an export of it cannot be checked layer by layer.",
                next_step="Export the form mlx, which is a copy.",
            )
        result = self._layer(*arguments, **named)
        mx.eval(result)
        self._is_spent = True
        give_up(self._layer)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def give_up(module: nn.Module) -> None:
    """Let a module's weights go; it cannot compute any more."""
    import mlx.core as mx
    from mlx.utils import tree_map

    nothing: mx.array = mx.zeros((1,))
    module.update(tree_map(lambda value: nothing, module.parameters()))
    mx.clear_cache()
