"""Statistics against SciPy, brute force, hand-computed values and simulation."""

import doctest
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from tinyattn import stats


def test_docstring_examples():
    assert doctest.testmod(stats).failed == 0


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_t_interval_is_scipys(confidence):
    values = np.random.default_rng(0).normal(3, 2, 7)
    mean, half_width = stats.t_interval(values, confidence)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high), rel=1e-12)


def test_t_interval_of_five_by_hand():
    # mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445
    mean, half_width = stats.t_interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)


@pytest.mark.parametrize("n", [3, 8])
def test_t_interval_covers_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(0, 1, (1500, n))
    intervals = np.array([stats.t_interval(sample) for sample in samples])
    covered = (np.abs(intervals[:, 0]) <= intervals[:, 1]).mean()
    assert covered == pytest.approx(0.95, abs=0.02)  # 3.5 standard errors of 1,500 trials


def test_one_run_has_no_spread():
    mean, half_width = stats.t_interval([0.97])
    assert mean == 0.97 and math.isnan(half_width)


def test_paired_uses_seeds_not_positions():
    a = {3: 0.9, 1: 0.5, 2: 0.7}
    b = pd.Series([0.4, 0.4, 0.4 - 1e-3], index=[1, 2, 3])
    mean, half_width, seeds, differences = stats.paired(a, b)
    assert seeds == (1, 2, 3)
    np.testing.assert_allclose(differences, [0.1, 0.3, 0.501])
    expected = scipy_stats.ttest_rel([0.5, 0.7, 0.9], [0.4, 0.4, 0.399]).confidence_interval()
    assert (mean - half_width, mean + half_width) == pytest.approx(tuple(expected))


def test_pairing_is_narrower_than_two_intervals_when_seeds_are_shared():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1, 5)
    a, b = (dict(enumerate(luck + rng.normal(0, 0.1, 5))) for _ in "ab")
    assert stats.paired(a, b).half_width < 0.3 * stats.t_interval(list(a.values()))[1]


def test_paired_refuses_other_seeds():
    with pytest.raises(ValueError, match=r"\[0\] only in a, \[5\] only in b"):
        stats.paired({0: 1.0, 1: 1.0}, {1: 1.0, 5: 1.0})
    with pytest.raises(ValueError, match="a has a seed twice"):
        stats.paired(pd.Series([1.0, 2.0], index=[0, 0]), {0: 1.0})


def brute_force(differences):
    sums = [
        abs(math.fsum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= sums[0] - 1e-12 for value in sums) / len(sums)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11])
def test_sign_flip_counts_what_brute_force_counts(n):
    rng = np.random.default_rng(n)
    for _ in range(5):
        differences = rng.normal(0.5, 1, n)
        assert stats.sign_flip(differences) == brute_force(differences)


def test_sign_flip_is_scipys_exhaustive_permutation_test():
    differences = np.random.default_rng(2).normal(0.4, 1, 9)
    zeros = np.zeros(9)
    result = scipy_stats.permutation_test(
        (differences, zeros),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert stats.sign_flip(differences) == pytest.approx(result.pvalue, rel=1e-12)


def test_sign_flip_counts_ties_in_spite_of_rounding():
    # Accuracies are multiples of 1/360, and many sums of them tie without being equal in float.
    rng = np.random.default_rng(1)
    for _ in range(20):
        counts = rng.integers(-4, 5, 8)
        assert stats.sign_flip(counts / 360 * 100) == brute_force(counts)


@pytest.mark.parametrize("n", [1, 5, 8, 16, 40])
def test_smallest_p_is_reached_when_all_signs_agree(n):
    assert stats.sign_flip(np.linspace(1, 2, n)) == stats.smallest_p(n)
    assert stats.sign_flip(-np.linspace(1, 2, n)) == stats.smallest_p(n)


def test_smallest_p_of_few_seeds():
    assert [stats.smallest_p(n) for n in (0, 1, 3, 5, 8)] == [1, 1, 0.25, 0.0625, 0.0078125]


def test_sign_flip_without_a_difference():
    assert stats.sign_flip([0.0, 0.0, 0.0]) == 1
    assert stats.sign_flip([1.0, -1.0]) == 1


def test_sign_flip_keeps_its_level():
    rng = np.random.default_rng(0)
    ps = np.array([stats.sign_flip(rng.normal(0, 1, 8)) for _ in range(3000)])
    # 12 of 256 choices of signs, six opposite pairs, have p <= 0.05.
    assert (ps <= 0.05).mean() == pytest.approx(12 / 256, abs=0.013)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.2 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.2.
    np.testing.assert_allclose(stats.holm([0.02, 0.2, 0.01, 0.03]), [0.06, 0.2, 0.04, 0.06])
    np.testing.assert_allclose(stats.holm([0.6, 0.7]), [1.0, 1.0])
    np.testing.assert_allclose(stats.holm([0.03, 0.03]), [0.06, 0.06])
    assert stats.holm([]).size == 0


def test_holm_lies_between_raw_and_bonferroni():
    p = np.random.default_rng(0).uniform(0, 1, 12) ** 3
    adjusted = stats.holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 12 * p)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_disagreement_is_mcnemars_exact_test():
    a = np.array([1] * 9 + [0] * 2 + [1] * 50 + [0] * 4, bool)
    b = np.array([0] * 9 + [1] * 2 + [1] * 50 + [0] * 4, bool)
    # Two-sided binomial tail: 2 (1 + 11 + 55) / 2^11.
    assert stats.disagreement(a, b) == (9, 2, pytest.approx(2 * 67 / 2048))
    assert stats.disagreement(b, a)[:2] == (2, 9)
    assert stats.disagreement(a, a) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.t_interval([]), "values is empty"),
        (lambda: stats.t_interval([1, math.nan]), r"finite, got \[1.0, nan\]"),
        (lambda: stats.t_interval([1, 2], 95), "confidence=95 must lie between 0 and 1"),
        (lambda: stats.sign_flip([]), "differences is empty"),
        (lambda: stats.sign_flip([math.inf]), "finite"),
        (lambda: stats.sign_flip(np.ones(41)), "41 differences are more than the 40"),
        (lambda: stats.holm([0.5, math.nan]), r"must lie in \[0, 1\]"),
        (lambda: stats.holm([1.5]), r"got \[1.5\]"),
        (lambda: stats.disagreement([True], [True, False]), "one test split"),
    ],
)
def test_what_has_no_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
