"""Interpolated modified Kneser-Ney smoothing of trigrams, what a word model has to beat.

Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling",
  https://doi.org/10.1006/csla.1999.0128, section 4.1.6 and equations 22 to 26.
Differs: a text is one stream without sentence starts. The unigrams are interpolated with the uniform
  distribution. Where a count of counts is 0, as in small texts, discounts are 0.5, 1 and 1.5.
"""

from typing import NamedTuple

import numpy as np

FALLBACK = (0.5, 1.0, 1.5)


class Order(NamedTuple):
    """Distributions of the next word after every context of one length, less their discounts.

    Attributes:
      keys: int64 [n], contexts with a next word, sorted.
      shares: float64 [n], (count - discount) / the context's count.
      contexts: int64 [m], sorted.
      left: float64 [m], the share that a context leaves to shorter ones.
    """

    keys: np.ndarray
    shares: np.ndarray
    contexts: np.ndarray
    left: np.ndarray


class Trigrams(NamedTuple):
    """A smoothed model of a stream over ids 0..vocab_size - 1.

    Attributes:
      orders: Of contexts of two words, one and none.
      vocab_size: V.
    """

    orders: tuple[Order, Order, Order]
    vocab_size: int

    def chances(self, before: np.ndarray, last: np.ndarray, word: np.ndarray) -> np.ndarray:
        """P(word | before, last), float64 [n]; -1 is a word that was never seen."""
        V = self.vocab_size + 1
        before, last, word = before + 1, last + 1, word + 1
        chance = np.full(len(word), 1.0 / self.vocab_size)
        contexts = (before * V + last, last, np.zeros_like(last))
        for order, context in zip(reversed(self.orders), reversed(contexts), strict=True):
            seen = _find(order.keys, order.shares, context * V + word, 0.0)
            chance = seen + _find(order.contexts, order.left, context, 1.0) * chance
        return chance


def fit(ids: np.ndarray, vocab_size: int) -> Trigrams:
    """Counts a stream of ids, [n].

    Args:
      ids: 0..vocab_size - 1.
      vocab_size: V.
    """
    V = vocab_size + 1  # 0 is a word that was never seen
    stream = ids.astype(np.int64) + 1
    triples, counts = np.unique(
        (stream[:-2] * V + stream[1:-1]) * V + stream[2:], return_counts=True
    )
    # Shorter ones count in how many contexts they stand, and not how often.
    pairs = np.unique(stream[:-1] * V + stream[1:])
    after_one, ones = np.unique(triples % (V * V), return_counts=True)
    after_none, nones = np.unique(pairs % V, return_counts=True)
    return Trigrams(
        (
            _order(triples, counts, V),
            _order(after_one, ones, V),
            _order(after_none, nones, V),
        ),
        vocab_size,
    )


def discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2 and D3+ of an order's counts, equation 26."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array(FALLBACK)
    Y = n1 / (n1 + 2 * n2)
    return np.array([1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3])


def _order(keys: np.ndarray, counts: np.ndarray, V: int) -> Order:
    less = discounts(counts)[np.minimum(counts, 3) - 1]
    contexts, place = np.unique(keys // V, return_inverse=True)
    totals = np.bincount(place, counts)
    left = np.bincount(place, less) / totals
    return Order(keys, (counts - less) / totals[place], contexts, left)


def _find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)


def loss(train: np.ndarray, contexts: np.ndarray, vocab_size: int) -> np.ndarray:
    """Of each word of another stream, in nats.

    Args:
      train: The stream that is counted, [n].
      contexts: [m, 3], two words and the next; -1 before a stream.
      vocab_size: V.
    """
    return -np.log(fit(train, vocab_size).chances(*contexts.astype(np.int64).T))
