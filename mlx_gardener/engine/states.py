"""Hidden states between layers, from the forward pass to the backward pass: in memory, or in a file.

A layer that is computed again needs what it was given. For long rows of deep models this is most of a step's memory (64 layers
of 5,120 floats for each of 2,048 positions are 2.5 GiB), and it is read once, much later. In a file it costs a copy to the
system's page cache and one back. Bits come back as they were: rounding to bfloat16 would halve them, and move gradients by
more than the float tolerance within which plans agree. The file has no name, so nothing is left of it whatever happens.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from mlx_gardener.engine.call_graph import Key
from mlx_gardener.errors import TrainingError
from mlx_gardener.platform.files import make_private
from mlx_gardener.platform.reasons import reason_of

if TYPE_CHECKING:
    import mlx.core as mx


def room_for_states(directory: Path | None) -> int:
    """Free bytes on the disk that hidden states would be written to, where `States` is given this directory."""
    place = directory or Path(tempfile.gettempdir())
    while not place.exists() and place != place.parent:
        place = place.parent  # it is made when something is written
    return shutil.disk_usage(place).free


class States:
    """Arrays that calls of layers made, by their keys.

    Args:
        on_disk: whether `put_away` moves them to a file.
        directory: on which disk; the system's for temporary files where None.
    """

    def __init__(self, *, on_disk: bool = False, directory: Path | None = None) -> None:
        self._here: dict[Key, mx.array] = {}
        self._on_disk, self._directory = on_disk, directory
        self._file: IO[bytes] | None = None
        self._places: dict[Key, tuple[int, tuple[int, ...], mx.Dtype]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.drop_all()

    def __setitem__(self, key: Key, array: mx.array) -> None:
        self._here[key] = array

    def __getitem__(self, key: Key) -> mx.array:
        """The array; read anew every time where it is on disk."""
        return self._here[key] if key in self._here else self._read(key)

    def drop(self, key: Key) -> None:
        """It is not needed any more."""
        self._here.pop(key, None)
        self._places.pop(key, None)

    def drop_all(self) -> None:
        """None of them is; the file goes as well."""
        self._here.clear()
        self._places.clear()
        if self._file is not None:
            with suppress(
                OSError
            ):  # what a full disk did not take is written once more; `put_away` told of it
                self._file.close()
            self._file = None

    def put_away(self, key: Key) -> None:
        """Move an array that was computed to the file, where there is one.

        Raises:
            TrainingError: it cannot be written.
        """
        import mlx.core as mx
        import numpy as np

        if not self._on_disk:
            return
        array = self._here.pop(key)
        written = np.asarray(mx.view(mx.contiguous(array.reshape(-1)), mx.uint8))
        try:
            if self._file is None:
                if self._directory is not None:
                    make_private(self._directory)
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by drop_all
            self._file.seek(self._end)
            self._file.write(written.data)
            self._file.flush()
        except OSError as error:
            place = self._directory or tempfile.gettempdir()
            raise TrainingError(
                f"Hidden states of a step cannot be written to {place} ({reason_of(error)}).",
                next_step="Free some space on that disk, narrow data.sequence_lengths, or allow a larger --budget.",
            ) from error
        self._places[key] = self._end, array.shape, array.dtype
        self._end += written.nbytes

    def _read(self, key: Key) -> mx.array:
        import mlx.core as mx
        import numpy as np

        assert self._file is not None
        start, shape, dtype = self._places[key]
        self._file.seek(start)
        read = np.fromfile(self._file, dtype=np.uint8, count=math.prod(shape) * dtype.size)
        return mx.view(mx.array(read), dtype).reshape(shape)
