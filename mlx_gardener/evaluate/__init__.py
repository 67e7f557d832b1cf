"""Did it help? Base against adapter on the test part, measured on the adapter's files as written.

In: a base, an adapter read back from disk, the test rows. Out: `Evidence`. Cost: two forward passes over the test
part and two short generations per task.
"""

from mlx_gardener.evaluate.compare import compare
from mlx_gardener.evaluate.complete import complete
from mlx_gardener.evaluate.evidence import Evidence, Sample
from mlx_gardener.evaluate.metrics import bits_per_byte

__all__ = ["Evidence", "Sample", "bits_per_byte", "compare", "complete"]
