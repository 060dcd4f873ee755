"""Multi-query associative recall: pairs of a key and a value, then keys whose values are asked for.

    tokens  k1 v1 k2 v2  .  .  k2  .  .  .  k1  .
    labels   .  .  .  .  .  .  v2  .  .  .  v1  .

The keys of an example differ, and so do its values. Each key is asked for once, 2 (r - 1) tokens behind
the pairs: ranks r are drawn without replacement, with weights r^(power_a - 1), so that few come late.
A label stands at its query, as the token that would follow; nothing else is labelled.

Source: Arora et al. 2023, "Zoology: Measuring and improving recall in efficient language models",
  https://arxiv.org/abs/2312.04927, on multi-query associative recall; the authors' code,
  https://github.com/HazyResearch/zoology, zoology/data/multiquery_ar.py, for the vocabulary, the weights of
  the ranks and what fills the rest.
Differs: the pairs come once, and the vocabulary may be smaller than the length. Random numbers are the raw
  bits of a counter-based generator, of which every split has its own stream.
"""

import dataclasses

import numpy as np

from tinyattn.tasks._generated import UNLABELLED, Drawn, distinct, load

__all__ = ["Config", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawn):
    """
    Attributes:
      vocab_size: Tokens: 0 fills, keys are 1 to vocab_size // 2 - 1 and values the rest.
      length: Of an example (T), even.
      pairs: Keys of an example, each with its value; at most a quarter of the length.
      power_a: Of the weights of ranks; 1 is a uniform choice, less favours queries soon after the pairs.
      random_non_queries: Whether the rest is any token of the vocabulary, keys among them, or else 0.
    """

    vocab_size: int = 8192
    length: int = 64
    pairs: int = 4
    power_a: float = 0.01
    random_non_queries: bool = True
    train_examples: int = 100_000
    validation_examples: int = 3_000
    test_examples: int = 3_000

    def __post_init__(self):
        super().__post_init__()
        if self.pairs < 1 or self.length % 2 or 4 * self.pairs > self.length:
            raise ValueError(
                f"length={self.length} must be even and at least four times pairs={self.pairs},"
                f" which must be positive: two tokens a pair and two a query"
            )
        if self.vocab_size // 2 - 1 < self.pairs:
            raise ValueError(
                f"vocab_size={self.vocab_size} has {max(self.vocab_size // 2 - 1, 0)} keys for"
                f" pairs={self.pairs}; give at least {2 * self.pairs + 2}"
            )
        if self.power_a <= 0:
            raise ValueError(
                f"power_a={self.power_a} must be positive; 1 is a uniform choice of ranks"
            )

    def draw(self, bits, n):
        T, P, V = self.length, self.pairs, self.vocab_size
        keys = 1 + distinct(bits, n, np.ones(V // 2 - 1), P)
        values = V // 2 + distinct(bits, n, np.ones(V - V // 2), P)
        # Two tokens a place: a query, and where its answer would stand.
        weights = np.arange(1, T // 2 - P + 1) ** (self.power_a - 1)
        queries = 2 * P + 2 * distinct(bits, n, weights, P)

        tokens = np.zeros((n, T), np.int32)
        if self.random_non_queries:
            tokens[:] = bits.random_raw((n, T)) % np.uint64(V)
        tokens[:, 0 : 2 * P : 2], tokens[:, 1 : 2 * P : 2] = keys, values
        np.put_along_axis(tokens, queries, keys, axis=1)
        labels = np.full((n, T), UNLABELLED, np.int32)
        np.put_along_axis(labels, queries, values, axis=1)
        return tokens, labels
