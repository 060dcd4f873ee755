"""Statistics over seeds and over test examples: intervals, paired tests, Holm's correction.

Runs of one table share their seeds, and with a seed the data split, the order of the batches and
the initialisation, so rows are compared by their differences per seed. With a handful of seeds
the t interval keeps its level where a percentile bootstrap falls well short of it, and the exact
sign-flip test assumes only that a difference is as likely to be negative as positive.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd

MAX_FLIPS = 40
"""The most differences whose signs `sign_flip` enumerates (2^20 sums for each half of them)."""


class Paired(NamedTuple):
    """A difference paired by seed: its mean, the half-width of its interval, and its parts."""

    mean: float
    half_width: float
    seeds: tuple[int, ...]
    differences: np.ndarray


class Disagreement(NamedTuple):
    """Examples that exactly one of two classifiers gets right, and McNemar's exact p."""

    only_a: int
    only_b: int
    p: float


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Returns the mean and the half-width of its two-sided Student t interval.

    The half-width of a single value is NaN: one run says nothing about the spread.

    Raises:
        ValueError: no values, a value that is not finite, or a confidence outside (0, 1).

    >>> t_interval([1.0, 2.0, 3.0])[0]
    2.0
    """
    values = _finite(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"{confidence=} must lie between 0 and 1; 0.95 is usual")
    if values.size == 1:
        return float(values[0]), float("nan")
    quantile = stats.t.ppf((1 + confidence) / 2, df=values.size - 1)
    return float(values.mean()), float(quantile * stats.sem(values))


def paired(
    a: "Mapping[int, float] | pd.Series",
    b: "Mapping[int, float] | pd.Series",
    confidence: float = 0.95,
) -> Paired:
    """Returns the difference a - b paired by seed, with its t interval.

    Args:
        a: value by seed, a dict or a Series indexed by seed.
        b: the same seeds, in any order.
        confidence: level of the two-sided interval.

    Raises:
        ValueError: the seeds of a and b are not the same, or one of them occurs twice.
    """
    for name, values in (("a", a), ("b", b)):
        if len(set(values.keys())) != len(values):
            raise ValueError(f"{name} has a seed twice: {sorted(values.keys())}; keep one run each")
    only_a, only_b = (sorted(set(x.keys()) - set(y.keys())) for x, y in ((a, b), (b, a)))
    if only_a or only_b:
        raise ValueError(
            f"seeds differ: {only_a} only in a, {only_b} only in b; run the missing seeds, or "
            "restrict both to the seeds they share"
        )
    seeds = sorted(a.keys())
    differences = np.array([a[seed] - b[seed] for seed in seeds], dtype=float)
    return Paired(*t_interval(differences, confidence), tuple(seeds), differences)


def sign_flip(differences: Sequence[float]) -> float:
    """Returns the exact two-sided p of the sign-flip test on the mean of paired differences.

    It is the share of all 2^n choices of signs whose sum lies at least as far from zero as the
    observed one. They are counted from the 2^(n/2) sums of either half, so no sampling is needed.

    Raises:
        ValueError: no differences, one that is not finite, or more than `MAX_FLIPS`.

    >>> sign_flip([1.0, 2.0, 3.0])
    0.25
    """
    differences = _finite(differences, "differences")
    n = differences.size
    if n > MAX_FLIPS:
        raise ValueError(
            f"{n} differences are more than the {MAX_FLIPS} whose signs can be enumerated; at "
            "that size the t interval of `paired` serves as well"
        )
    # Equal sums may differ by rounding, and a tie counts as a sum that is as far out.
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    left, right = _sums(differences[: n // 2]), np.sort(_sums(differences[n // 2 :]))
    above = right.size - np.searchsorted(right, observed - left)
    # The signs come in opposite pairs, so as many sums lie below -observed as above it, and at
    # or below zero the two tails meet.
    return float(min(1.0, 2 * above.sum() / 2.0**n)) if observed > 0 else 1.0


def smallest_p(n: int) -> float:
    """Returns the smallest two-sided p that n sign-flipped pairs can reach, 2 / 2^n.

    >>> smallest_p(5)
    0.0625
    """
    return min(1.0, 2 / 2.0**n)


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Returns Holm's step-down adjusted p-values, in the order given.

    Rejecting where the adjusted value is below 0.05 keeps the chance of any false rejection
    among all of them below 0.05.

    Source: S. Holm, 1979, "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6(2).

    Raises:
        ValueError: a p-value outside [0, 1].

    >>> [round(float(p), 2) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    pvalues = np.asarray(pvalues, dtype=float)
    if not ((pvalues >= 0) & (pvalues <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {pvalues.tolist()}; leave out the rest")
    order = np.argsort(pvalues, kind="stable")
    factors = np.arange(pvalues.size, 0, -1)
    adjusted = np.empty_like(pvalues)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * pvalues[order]))
    return adjusted


def disagreement(a: Sequence[bool], b: Sequence[bool]) -> Disagreement:
    """Counts the test examples that only one of two runs gets right, with McNemar's exact p.

    Args:
        a: whether the first run is right, for each test example.
        b: whether the second run is right, for the same examples in the same order.

    Source: Q. McNemar, 1947, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12(2).
    Differs: the exact binomial tail, not the chi-square approximation.

    Raises:
        ValueError: the two do not cover the same number of examples.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(
            f"a covers {a.shape} examples and b {b.shape}; compare runs on one test split"
        )
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return Disagreement(0, 0, 1.0)
    return Disagreement(only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue))


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError(f"{name} is empty; give at least one number")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {values.tolist()}; leave out failed runs")
    return values


def _sums(differences: np.ndarray) -> np.ndarray:
    """Returns the sums under all 2^n choices of signs."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    return sums
