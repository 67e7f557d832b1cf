"""How sure a paired difference is: intervals by file for sums and shares, and what it would take to be sure.

Files, not tasks or tokens, are what was drawn at random, so whole files are resampled. The plain percentile bootstrap is
far too narrow for the handful of unequal files that a small repository holds out (in our A/A simulations its "95 %"
interval left out zero in one of four comparisons of three files, and one of seven of eight). So an interval is
estimate +- q * se with

- se: the cluster jackknife (CV3; MacKinnon, Nielsen & Webb 2023, doi:10.1002/jae.2944), which does not shrink where one
  large file carries the sum;
- q: the larger of the 95 % quantile of the wild bootstrap of |t| by file with the null imposed (Cameron, Gelbach & Miller
  2008, doi:10.1162/rest.90.3.414; Webb's six-point weights for few files) and Student's t with Kish's effective number of
  files less one as degrees of freedom.

Where no file differs at all there is no spread to estimate, and an interval from nothing to nothing would read as
certainty. It then is +- 3 / n for n files (Kish's effective number), by the rule of three (Hanley & Lippman-Hand 1983,
doi:10.1001/jama.1983.03330370053031): if more than 3 / n of all such files differed, one would have been among n in 95 of
100 draws. How much those would differ is not known; they count as differing wholly.

``python -m benchmarks.evidence calibration`` shows the coverage. Cost: milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_LEVEL = 0.95
_POWER = 0.8
_ROUNDS = 999
#: Bounds of what is reported: nothing improves by more than all of it, and beyond +1000 % nothing is told apart.
_LEAST, _MOST = -1.0, 10.0
_RULE_OF_THREE = 3.0


@dataclass(frozen=True)
class Change:
    """A paired change with its 95 % interval, the files it rests on, and its standard error."""

    change: float
    low: float
    high: float
    files: int
    error: float

    @property
    def spans_zero(self) -> bool:
        """Whether no difference at all is within the interval."""
        return self.low <= 0 <= self.high


def unseen_share(files: float) -> float:
    """The largest share of files that could differ, with 95 % confidence, where none of ``files`` did: the rule of three."""
    return min(1.0, _RULE_OF_THREE / files) if files > 0 else 1.0


def relative_change(first: Sequence[float], second: Sequence[float], *, seed: int) -> Change:
    """Change of the sum of ``second`` against that of ``first``, as a fraction.

    Args:
        first, second: loss of each file (nats) under either arm, in the same order; files without loss are left out.
        seed: of the bootstrap.
    """
    import numpy as np

    before, after = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    keep = before > 0
    before, after = before[keep], after[keep]
    return _ratio(after - before, before, seed=seed)


def share_change(
    first: Sequence[float], second: Sequence[float], files: Sequence[str], *, seed: int
) -> Change:
    """Change of the mean over tasks, in points (0.1 is ten of a hundred tasks).

    Args:
        first, second: score of each task, 0 to 1, under either arm, in the same order.
        files: the file of each task.
    """
    import numpy as np

    names = sorted(set(files))
    place = {name: at for at, name in enumerate(names)}
    difference, counts = np.zeros(len(names)), np.zeros(len(names))
    for before, after, name in zip(first, second, files, strict=True):
        difference[place[name]] += after - before
        counts[place[name]] += 1
    found = _ratio(difference, counts, seed=seed)
    return Change(found.change, max(-1.0, found.low), min(1.0, found.high), found.files, found.error)


def rate_change(
    first: tuple[Sequence[float], Sequence[str]], second: tuple[Sequence[float], Sequence[str]], *, seed: int
) -> Change:
    """Change of the mean over tasks where either side had tasks of its own, paired by file, in points.

    Each file that both sides had tasks in gives its difference of means, weighted by n1 n2 / (n1 + n2), as Mantel and Haenszel
    weigh differences of risks (Greenland & Robins 1985, doi:10.2307/2530643); files of one side alone say nothing.

    Args:
        first, second: score of each task, 0 to 1, and the file of each.
    """
    import numpy as np

    by_file: dict[str, tuple[list[float], list[float]]] = {}
    for side, (values, names) in enumerate((first, second)):
        for value, name in zip(values, names, strict=True):
            by_file.setdefault(name, ([], []))[side].append(value)
    both = [sides for _, sides in sorted(by_file.items()) if all(sides)]
    weight = np.array([len(before) * len(after) / (len(before) + len(after)) for before, after in both])
    means = np.array([np.mean(after) - np.mean(before) for before, after in both])
    found = _ratio(means * weight, weight, seed=seed)
    return Change(found.change, max(-1.0, found.low), min(1.0, found.high), found.files, found.error)


def _ratio(difference: np.ndarray, weight: np.ndarray, *, seed: int) -> Change:
    """Sum of ``difference`` over sum of ``weight``, both by file, with its interval."""
    import numpy as np

    files, total = len(weight), float(weight.sum())
    if files == 0 or total <= 0:
        return Change(0.0, _LEAST, _MOST, 0, math.inf)
    change = float(difference.sum()) / total
    if files == 1:
        return Change(change, _LEAST, _MOST, 1, math.inf)
    share = weight / total

    def errors(rest: np.ndarray) -> np.ndarray:
        """Jackknife standard errors of residuals, shape (..., files)."""
        left_out = rest / (1 - share)
        return np.asarray(np.sqrt((files - 1) / files * (left_out**2).sum(axis=-1)) / total)

    error = float(errors(difference - change * weight))
    effective = total**2 / float(weight @ weight)
    if not np.any(difference):
        none = unseen_share(effective)
        return Change(0.0, -none, none, files, 0.0)
    quantile = max(student_quantile(effective - 1), _wild_quantile(difference, weight, errors, seed))
    low, high = change - quantile * error, change + quantile * error
    return Change(change, max(_LEAST, low), min(_MOST, high), files, error)


def _wild_quantile(difference: np.ndarray, weight: np.ndarray, errors: object, seed: int) -> float:
    """The 95 % quantile of |t| when the files' differences keep their sizes and get random signs (and sizes)."""
    import numpy as np

    assert callable(errors)
    points = np.sqrt([0.5, 1.0, 1.5])
    points = np.concatenate([-points, points])
    drawn = np.random.default_rng(seed).choice(points, (_ROUNDS, len(difference)))
    worlds = difference * drawn  # (rounds, files)
    changes = worlds.sum(axis=1) / weight.sum()
    spread = errors(worlds - changes[:, None] * weight)
    t = np.abs(changes) / np.maximum(spread, 1e-300)
    return float(np.quantile(t, _LEVEL, method="higher"))


def student_quantile(freedom: float, level: float = _LEVEL) -> float:
    """q with P(|t| < q) = ``level`` for Student's t; ``freedom`` need not be whole, less than 1 counts as 1.

    With t = sqrt(freedom) tan(a), P(|t| < q) is the share of the integral of cos(a)^(freedom - 1) up to a.
    """
    import numpy as np

    freedom = max(1.0, freedom)
    angles = np.linspace(0, math.pi / 2, 8_001)
    # In logarithms, since cos^n underflows; the last angle's cosine is not exactly zero.
    density = np.exp((freedom - 1) * np.log(np.maximum(np.cos(angles), 1e-300)))
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = float(np.interp(level, area / area[-1], angles))
    return math.sqrt(freedom) * math.tan(angle)


def tasks_needed(difference: float, differing: float) -> int:
    """Paired tasks at which a difference of shares is told from none with 80 % power.

    (z(97.5 %) sqrt(d) + z(80 %) sqrt(d - difference^2))^2 / difference^2, with d the share of tasks that one side gets right
    and the other does not (Connor 1987, doi:10.2307/2531961). It is at least the difference, which needs the fewest.

    Args:
        difference: of the shares, 0.05 for five points.
        differing: d.
    """
    normal = NormalDist()
    differing = max(difference, differing)
    spread = normal.inv_cdf((1 + _LEVEL) / 2) * math.sqrt(differing)
    spread += normal.inv_cdf(_POWER) * math.sqrt(differing - difference**2)
    return math.ceil((spread / difference) ** 2)


#: Tasks of each kind of a thorough evaluation: five points are told where 15 of 100 answers differ.
THOROUGH_TASKS = tasks_needed(0.05, 0.15)


def smallest_told(found: Change, tasks: int) -> float:
    """The smallest difference of shares that tasks and files like these tell from none with 80 % power, at most 1.

    Where no answer differed at all, fewer than 3 in ``tasks`` do (the rule of three, 95 %).
    """
    normal = NormalDist()
    least = math.sqrt(3) / max(1, tasks)
    error = max(least, found.error)
    half = max((found.high - found.low) / 2, normal.inv_cdf((1 + _LEVEL) / 2) * least)
    return min(1.0, half + normal.inv_cdf(_POWER) * error)


def files_needed(found: Change) -> int | None:
    """Files like these at which an effect like this one is told from none with 80 % power; None where none was seen.

    (z(97.5 %) + z(80 %))^2 times the variance of one file over the effect squared (Lehr's rule for paired data).
    """
    if found.change == 0 or not math.isfinite(found.error):
        return None
    normal = NormalDist()
    z = normal.inv_cdf((1 + _LEVEL) / 2) + normal.inv_cdf(_POWER)
    return max(2, math.ceil(found.files * (z * found.error / found.change) ** 2))
