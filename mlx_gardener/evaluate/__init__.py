"""Did it help? Five arms on the test part, with guards, measured on the adapter's files as written.

In: a base, an adapter read back from disk, the prepared data. Out: `Evidence`. Cost: about a fifth of what the training
took (`evaluation.time_share`), or a floor of forty rows and a dozen tasks of each kind.
"""

from mlx_gardener.evaluate.compare import Control, compare
from mlx_gardener.evaluate.complete import complete
from mlx_gardener.evaluate.evidence import Evidence, Sample
from mlx_gardener.evaluate.metrics import bits_per_byte

__all__ = [
    "Control",
    "Evidence",
    "Sample",
    "bits_per_byte",
    "compare",
    "complete",
]
