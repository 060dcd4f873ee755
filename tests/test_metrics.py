"""Metrics against numbers worked out by hand, and trigrams against fractions."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from tinyattn.tasks import _kneser, _metrics

NONE = -100


def test_accuracy_recall_and_f1_by_hand():
    labels, predicted = np.array([0, 0, 1, 2, NONE]), np.array([0, 1, 1, 1, 1])
    assert _metrics.accuracy(labels, predicted) == 2 / 4
    # Class 0: precision 1, recall 1/2, F1 2/3; class 1: 1/3 and 1, F1 1/2; class 2: 0.
    assert _metrics.macro_f1(labels, predicted) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert _metrics.recall(labels, predicted, 0) == 1 / 2
    assert np.isnan(_metrics.recall(labels, predicted, 7))
    # Class 1 of two: precision 1/3, recall 1.
    assert _metrics.f1(np.array([0, 0, 1, NONE]), np.array([1, 1, 1, 0])) == pytest.approx(1 / 2)


def test_spans_by_hand():
    names = ("O", "B-a", "I-a", "B-b", "I-b")
    labels = np.array([[1, 2, 0, 3, NONE], [NONE, 1, 1, 0, 0]])
    predicted = np.array([[1, 2, 0, 1, 4], [3, 1, 2, 0, 4]])
    # True: a(0-1), b(3); a(1), a(2). Found: a(0-1), a(3); a(1-2), b(4). One of four is right.
    found = _metrics.spans(names, labels, predicted)
    assert found == {"span_precision": 0.25, "span_recall": 0.25, "span_f1": 0.25}
    nothing = _metrics.spans(names, labels, np.zeros_like(labels))
    assert nothing == {"span_precision": 0.0, "span_recall": 0.0, "span_f1": 0.0}


def test_perplexity_by_hand():
    found = _metrics.perplexity(np.log(np.array([2.0, 8.0], np.float32)))
    assert found["perplexity"] == pytest.approx(4.0) and found["bits"] == pytest.approx(2.0)


STREAM = [0, 1, 2, 0, 1, 3, 0, 1, 2, 2]
V = 5  # 4 is never seen


def chance(before, last, word):
    """By the equations with plain counts; discounts of small texts, 1/2, 1 and 3/2."""
    triples = list(zip(STREAM, STREAM[1:], STREAM[2:], strict=False))
    pairs = list(itertools.pairwise(STREAM))
    counts = [
        {x: triples.count(x) for x in triples},
        {x: len({t[0] for t in triples if t[1:] == x}) for x in {t[1:] for t in triples}},
        {(w,): len({p[0] for p in pairs if p[1] == w}) for w in {p[1] for p in pairs}},
    ]
    found = Fraction(1, V)
    for count, context in zip(reversed(counts), [(), (last,), (before, last)], strict=True):
        after = {x: n for x, n in count.items() if x[:-1] == context}
        if not after:
            continue
        less = {x: Fraction(min(n, 3), 2) for x, n in after.items()}
        total, own = sum(after.values()), (*context, word)
        found = (
            Fraction(sum(less.values()), total) * found
            + (after.get(own, 0) - less.get(own, Fraction(0))) / total
        )
    return found


def test_trigrams_by_hand():
    made = _kneser.fit(np.array(STREAM), V)

    def ours(*context):
        return made.chances(*np.array([context]).T)[0]

    # All contexts, those never seen and the start among them.
    for context in itertools.product(range(-1, V), repeat=2):
        found = [ours(*context, word) for word in range(V)]
        np.testing.assert_allclose(
            found, [float(chance(*context, w)) for w in range(V)], atol=1e-12
        )
        assert sum(found) == pytest.approx(1.0) and min(found) > 0
    # By hand: unigrams have pairs 01 12 20 13 30 22, so 0: 2, 1: 1, 2: 2, 3: 1 of 6 contexts.
    left = Fraction(1) * 2 + Fraction(1, 2) * 2
    assert chance(4, 4, 4) == left / 6 / V == Fraction(1, 10)
    assert ours(4, 4, 4) == pytest.approx(0.1) and ours(4, 4, 0) == pytest.approx(0.1 + 1 / 6)


def test_discounts_by_hand():
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    # Y = 8 / 16; 1 - 2Y 4/8, 2 - 3Y 2/4, 3 - 4Y 1/2.
    np.testing.assert_allclose(_kneser.discounts(counts), [0.5, 1.25, 2.0])
    np.testing.assert_array_equal(_kneser.discounts(counts[:-4]), _kneser.FALLBACK)


def test_a_longer_text_is_a_distribution_too():
    stream = np.random.default_rng(0).zipf(1.6, 4000) % 30
    made = _kneser.fit(stream, 30)
    for context in ((1, 2), (29, 29), (-1, 3), (2, 0)):
        tried = np.array([(*context, word) for word in range(30)])
        assert made.chances(*tried.T).sum() == pytest.approx(1.0)
    losses = _kneser.loss(stream, np.stack([stream[:-2], stream[1:-1], stream[2:]], 1), 30)
    assert losses.mean() < np.log(30) and np.isfinite(losses).all()
