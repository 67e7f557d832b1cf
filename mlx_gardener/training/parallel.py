"""Ranks: the processes that train one adapter together, each on a share of every update's rows.

In: what one rank has, a sum or bytes. Out: the same on all ranks. Every exchange begins with a word from each rank on
whether it can go on, so that an error, a wish to cancel or a deadline on one rank ends all of them at the same place and
none waits for ever. Words and counts travel as bytes and are added in the order of ranks; gradients are added by MLX, which
gives every rank the same bits. One process alone is a group of size 1, for which all of this is free: there is one code
path. What a group costs is the adapter's size in float32 over the network once per update, and twice in memory for a moment.
"""

from __future__ import annotations

import errno
import json
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_gardener.engine import StepResult
from mlx_gardener.errors import GardenerError, OtherRankError, RankLostError, TrainingError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from mlx_gardener.dataset import Batch

#: Gradients are put together into messages of at most this size, and bytes are sent in such pieces.
_MESSAGE_BYTES = 16 * 1024**2
#: What a rank says in the first exchange, with 8 bytes before it.
_FIRST_BYTES = 256
#: Before the ring is asked again to find a rank that does not listen yet.
_PAUSE_SECONDS = 0.1


class Ranks:
    """One rank's view of its group; without a group, a group of one.

    Attributes:
        rank: this process's number, from 0; rank 0 owns registry, journal and checkpoints.
        size: the number of ranks.
    """

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()
        self._over = False

    @classmethod
    def connect(cls, backend: str, seconds: float) -> Ranks:
        """Join the group that the environment describes, as `mlx.launch` sets it up (``MLX_RANK``, ...).

        Args:
            backend: one of MLX's: ring, jaccl, nccl or mpi.
            seconds: MLX waits for the others without an end and lets no thread run meanwhile, so that after this many
                the system's alarm signal (SIGALRM) ends the process. Its ring gives up sooner, after half a minute,
                where the rank that is to listen has not begun, as on a busy machine: it is asked again.

        Raises:
            TrainingError: MLX was built without this backend, or the others cannot be reached.
        """
        import mlx.core as mx

        if not mx.distributed.is_available(backend):
            have = [name for name in ("ring", "jaccl", "nccl", "mpi") if mx.distributed.is_available(name)]
            raise TrainingError(
                f"MLX has no {backend} on this machine; it has {', '.join(have) or 'no backend at all'}.",
                next_step="Choose another one with --backend; ring works wherever TCP does.",
            )
        before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        until = time.monotonic() + seconds
        try:
            while True:
                began = time.monotonic()
                try:
                    return cls(mx.distributed.init(strict=True, backend=backend))
                except RuntimeError as error:
                    now = time.monotonic()
                    ends = (
                        now + _PAUSE_SECONDS + 1.2 * (now - began)
                    )  # of another try; the alarm would tell nothing
                    if f"error: {errno.ECONNREFUSED})" not in str(error) or ends > until:
                        raise
                    time.sleep(_PAUSE_SECONDS)
        except RuntimeError as error:
            raise TrainingError(
                f"The ranks could not be connected by {backend}: {error}.",
                next_step="Errors 98 and 111 mean a port that is taken or that nobody listens on: choose others with "
                "--set parallel.starting_port=N, and see that the hosts' addresses are right.",
            ) from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def share(self, batch: Batch) -> tuple[Batch, int]:
        """This rank's rows of ``batch``, and the number of the first of them; none where ranks outnumber rows."""
        if self.size == 1:
            return batch, 0
        rows = len(batch.tokens)
        here = slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)
        mask, row_bytes = batch.loss_mask[here], batch.row_bytes[here]
        own = replace(
            batch,
            tokens=batch.tokens[here],
            loss_mask=mask,
            document_ids=batch.document_ids[here],
            loss_tokens=int(mask.sum()),
            source_bytes=int(row_bytes.sum()),
            row_bytes=row_bytes,
            paths=batch.paths[here],
        )
        return own, here.start

    def sum_step(self, compute: Callable[[], StepResult]) -> StepResult:
        """``compute`` on every rank, added up.

        Raises:
            GardenerError: ``compute`` did, here.
            OtherRankError: it did on another rank.
            RankLostError: another rank is gone.
        """
        if self.size == 1:
            return compute()
        result = self._try(compute)
        told = self._gather(json.dumps([result.loss_sum, result.tokens]).encode())
        losses, tokens = zip(*(json.loads(one) for one in told), strict=True)
        return StepResult(sum(losses), sum(tokens), self._sum_arrays(result.gradients))

    def sum_numbers(self, compute: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
        """``compute`` on every rank, added up number by number; raises as `sum_step`."""
        if self.size == 1:
            return compute()
        told = self._gather(json.dumps(self._try(compute)).encode())
        return tuple(sum(column) for column in zip(*(json.loads(one) for one in told), strict=True))

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank; raises as `sum_step`."""
        return here if self.size == 1 else any(one == b"1" for one in self._gather(b"1" if here else b"0"))

    def differ(self, mine: bytes) -> bool:
        """Whether any rank has something else than rank 0; raises as `sum_step`."""
        return self.size > 1 and len(set(self._gather(mine))) > 1

    def from_first(self, make: Callable[[], bytes]) -> bytes:
        """What ``make`` gives on rank 0, on all ranks; raises as `sum_step`."""
        import mlx.core as mx
        import numpy as np

        if self.size == 1:
            return make()
        data = self._try(make) if self.rank == 0 else b""
        size = int(self._gather(str(len(data)).encode())[0])
        pieces = []
        for start in range(0, size, _MESSAGE_BYTES):
            length = min(_MESSAGE_BYTES, size - start)
            piece = np.zeros(-(-length // 4) * 4, dtype=np.uint8)
            if self.rank == 0:
                piece[:length] = np.frombuffer(data, np.uint8, length, start)
            summed = self._run(mx.distributed.all_sum, mx.array(piece.view(np.int32)))
            pieces.append(np.array(summed).view(np.uint8)[:length].tobytes())
        return b"".join(pieces)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """See that all ranks have the same facts as rank 0.

        Raises:
            TrainingError: one differs; says which rank, and in what.
        """
        if self.size == 1:
            return
        first, *others = [json.loads(one) for one in self._gather(json.dumps(dict(facts)).encode())]
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other.get(name) != value:
                    self._over = True
                    raise TrainingError(
                        f"Rank {rank} has another {name} than rank 0: {str(other.get(name))[:16]} instead of "
                        f"{value[:16]}.",
                        next_step="Give all hosts the same versions and the same base model, then train again.",
                    )

    def leave(self, error: BaseException | None) -> None:
        """Tell the others that this rank cannot go on, where they do not know it yet; they raise `OtherRankError`."""
        if self.size == 1 or self._over:
            return
        problem = error.in_terminal if isinstance(error, GardenerError) else "it ended"
        with suppress(OtherRankError, RankLostError):  # what was told comes back, or they are gone already
            self._gather(b"", problem=problem)

    def _try(self, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except GardenerError as error:
            self.leave(error)
            raise

    def _gather(self, message: bytes, *, problem: str = "") -> list[bytes]:
        """The messages of all ranks, by rank."""
        import numpy as np

        body = problem.encode()[:2000] if problem else message
        first = np.zeros(_FIRST_BYTES, dtype=np.uint8)
        first[:8] = np.array([1 if problem else 0, len(body)], dtype=np.int32).view(np.uint8)
        first[8 : 8 + len(body)] = np.frombuffer(body, np.uint8)[: _FIRST_BYTES - 8]
        rows = self._all_gather(first)
        heads = (
            rows[:, :8].copy().view(np.int32)
        )  # (ranks, 2): whether it has a problem, bytes of what it says
        if heads[:, 1].max() > _FIRST_BYTES - 8:  # rare: one exchange is what most words take
            rest = np.zeros(-(-int(heads[:, 1].max()) // 4) * 4, dtype=np.uint8)
            rest[: len(body)] = np.frombuffer(body, np.uint8)
            rows = np.concatenate([rows[:, :8], self._all_gather(rest)], axis=1)
        told = [rows[rank, 8 : 8 + heads[rank, 1]].tobytes() for rank in range(self.size)]
        for rank, has_problem in enumerate(heads[:, 0]):
            if has_problem:
                self._over = True
                raise OtherRankError(f"Rank {rank} had to stop: {told[rank].decode(errors='replace')}")
        return told

    def _all_gather(self, values: np.ndarray) -> np.ndarray:
        """Bytes (a multiple of 4) of every rank, (ranks, bytes)."""
        import mlx.core as mx
        import numpy as np

        gathered = self._run(mx.distributed.all_gather, mx.array(values.view(np.int32)))
        return np.array(gathered).view(np.uint8).reshape(self.size, len(values))

    def _sum_arrays(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """Each array summed over all ranks; small ones travel together."""
        import mlx.core as mx

        summed: dict[str, mx.array] = {}
        bucket: list[str] = []
        names = sorted(arrays)
        for at, name in enumerate(names):
            bucket.append(name)
            if at + 1 < len(names) and sum(arrays[one].nbytes for one in bucket) < _MESSAGE_BYTES:
                continue
            flat = mx.concatenate([arrays[one].reshape(-1) for one in bucket])
            total = self._run(mx.distributed.all_sum, flat)
            start = 0
            for one in bucket:
                summed[one] = total[start : start + arrays[one].size].reshape(arrays[one].shape)
                start += arrays[one].size
            mx.eval([summed[one] for one in bucket])
            bucket = []
        return {name: summed[name] for name in arrays}

    def _run(self, exchange: Callable[..., mx.array], values: mx.array) -> mx.array:
        import mlx.core as mx

        if self._over:
            raise RankLostError("The group of ranks has ended.")
        mx.eval(values)
        # NCCL works on the GPU's stream, all others on the CPU's.
        where: dict[str, Any] = {} if mx.cuda.is_available() else {"stream": mx.cpu}
        try:
            result = exchange(values, group=self._group, **where)
            mx.eval(result)
        except RuntimeError as error:
            self._over = True  # MLX would hang at a second try
            raise RankLostError(f"Another rank is gone ({error}).") from error
        return result


def pack_arrays(arrays: Mapping[str, mx.array | np.ndarray]) -> bytes:
    """Named arrays as bytes, to be sent; `safetensors.numpy.load` is the inverse."""
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.array(value) for name, value in arrays.items()})
