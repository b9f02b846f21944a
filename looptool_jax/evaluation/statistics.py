"""What a difference between runs says: intervals and tests over seeds and over held-out items, on numpy alone.

A result is an `Estimate`: a mean with its 95 % interval, a two-sided p-value, and the number of things it is over. What
cannot be known (a spread from one value) is None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EXACT = 20_000  # permutations up to which all are tried
TERMS = 300  # of the continued fraction, enough for thousands of degrees of freedom
DRAWS = 10_000  # of the bootstrap, and of permutations where not all are tried


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values, their standard deviation, the 95 % interval of the mean and, of a difference, its p."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def wilson(share: float, items: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `items` (Wilson, 1927): inside [0, 1], and of use for few items and for
    shares near 0 and 1."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    middle, scale = share + z * z / (2 * items), 1 + z * z / items
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and t-interval. `p`, that the mean is 0, is of use where the values are differences.

    With values that are all alike there is no spread to judge by: the interval and, unless all are 0, p are None.
    Raises ValueError where there are no values.
    """
    n = len(values)
    if not n:
        raise ValueError("no values to take a mean of")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(n, mean)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    if sd <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(n, mean, 0.0, p=None if abs(mean) > 1e-12 else 1.0)
    error = sd / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    return Estimate(n, mean, sd, mean - half, mean + half, t_two_sided(mean / error, n - 1))


def welch(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of `second` minus that of `first`, of unequal variances (Welch's t-test); `n` counts both together."""
    a, b = mean_over_seeds(first), mean_over_seeds(second)
    difference = b.mean - a.mean
    if a.sd is None or b.sd is None or a.sd + b.sd == 0:
        return Estimate(a.n + b.n, difference)
    parts = a.sd**2 / a.n, b.sd**2 / b.n
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.n - 1) + parts[1] ** 2 / (b.n - 1))
    half = t_quantile(0.975, freedom) * error
    p = t_two_sided(difference / error, freedom)
    return Estimate(a.n + b.n, difference, None, difference - half, difference + half, p)


def sign_flips(differences: Sequence[float] | Float[np.ndarray, " n"]) -> float:
    """p of the paired permutation test: how often a mean is as far from 0 when each difference may have either sign.

    Those of 0 have none; of right and wrong answers it is McNemar's exact test. All sign patterns where they are at
    most EXACT; else DRAWS of them, keyed by their number alone.
    """
    values = np.asarray(differences, float)
    values = values[abs(values) > 1e-12]
    n = len(values)
    if 2**n <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return _share_as_far(signs @ values, values.sum())
    generator = np.random.default_rng(n)
    sums = np.concatenate([generator.choice((1.0, -1.0), (DRAWS // 10, n)) @ values for _ in range(10)])
    return _share_as_far(sums, values.sum(), drawn=True)


def label_permutations(first: Sequence[float], second: Sequence[float]) -> float:
    """p of the permutation test of two groups: how often means are as far apart when values may be in either group."""
    values = np.asarray([*first, *second], float)
    n, m = len(first), len(second)
    total = values.sum()

    def difference(chosen: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
        return (total - chosen) / m - chosen / n

    seen = float(difference(np.array(values[:n].sum())))
    if math.comb(n + m, n) <= EXACT:
        sums = np.array([values[list(chosen)].sum() for chosen in itertools.combinations(range(n + m), n)])
        return _share_as_far(difference(sums), seen)
    generator = np.random.default_rng((n, m))
    sums = np.array([generator.permutation(values)[:n].sum() for _ in range(DRAWS)])
    return _share_as_far(difference(sums), seen, drawn=True)


def paired_answers(before: Mapping[str, bool], after: Mapping[str, bool]) -> Estimate:
    """Difference in accuracy over the same items, by their ids: after minus before, with p of `sign_flips`.

    The interval is that of Agresti and Min (2005): the normal one with half an item more in each of the four cells
    (right or wrong, before or after). It holds where few items differ; without them it is too narrow there.
    Raises ValueError where the two are not over the same items.
    """
    if before.keys() != after.keys() or not before:
        raise ValueError("the two results are over different items and cannot be paired")
    changes = np.array([float(after[id_]) - float(before[id_]) for id_ in before])
    n = len(changes)
    middle = changes.sum() / (n + 2)
    error = math.sqrt(((changes**2).sum() + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    low, high = middle - 1.96 * error, middle + 1.96 * error
    return Estimate(n, float(changes.mean()), None, float(max(-1.0, low)), float(min(1.0, high)), sign_flips(changes))


def paired_bootstrap(differences: Float[np.ndarray, " items"], key: int = 0) -> Estimate:
    """Mean of per-item differences, with the percentile interval of DRAWS resamples of the items.

    p: of `sign_flips`. Resamples would give too small ones where few items differ: 4 changes for the better among 200
    items 0.02, though 4 coins fall alike once in 8 times.
    """
    values = np.asarray(differences, float)
    n = len(values)
    if not n:
        raise ValueError("no items to compare")
    generator = np.random.default_rng(key)
    means = np.concatenate([
        values[generator.integers(0, n, (DRAWS // 10, n))].mean(1) for _ in range(10)
    ])  # fmt: skip
    low, high = np.quantile(means, (0.025, 0.975))
    sd = float(values.std(ddof=1)) if n > 1 else None
    return Estimate(n, float(values.mean()), sd, float(low), float(high), sign_flips(values))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for how many there are (Holm's step-down); None stays None and counts for nothing."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


def t_two_sided(t: float, freedom: float) -> float:
    """Probability that Student's t is as far from 0, with so many degrees of freedom."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(share: float, freedom: float) -> float:
    """Where Student's t has `share` (above 0.5) of its probability below."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) / 2 > 1 - share:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) / 2 > 1 - share else (low, middle)
    return (low + high) / 2


def _share_as_far(statistics: np.ndarray, seen: float, drawn: bool = False) -> float:
    """The pattern that was seen is one of all; beside drawn ones it is counted too."""
    as_far = int((abs(statistics) >= abs(seen) - 1e-9).sum())
    return (as_far + drawn) / (len(statistics) + drawn)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by its continued fraction (DLMF 8.17.22), from its far end."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly its mirror image is quick
        return 1 - _incomplete_beta(1 - x, b, a)
    value = 1.0
    for m in range(TERMS, -1, -1):
        if m < TERMS:
            value = 1 + (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2)) / value
        value = 1 - (a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)) / value
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * value)
