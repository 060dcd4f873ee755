"""Parity: at each bit of a text, whether the ones so far are odd.

    tokens  0 1 1 0 1
    labels  0 1 0 0 1

One state of one bit solves it. Softmax attention of a fixed depth does not at all lengths, nor do linear
recurrences whose rates are all between 0 and 1.

Source: Grazzi et al. 2024, "Unlocking state-tracking in linear RNNs through negative eigenvalues",
  https://arxiv.org/abs/2411.12537, section 5.1; Hahn 2020, "Theoretical limitations of self-attention in
  neural sequence models", https://arxiv.org/abs/1906.06755, for attention.
Differs: each bit has a label; texts of training and test are of one length.
"""

import dataclasses

import numpy as np

from tinyattn.tasks._generated import Drawn, integers, load

__all__ = ["Config", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawn):
    """
    Attributes:
      length: Of an example (T).
    """

    length: int = 40
    vocab_size = 2  # of no use as a field

    def __post_init__(self):
        super().__post_init__()
        self.at_least(length=1)

    def draw(self, bits, n):
        tokens = integers(bits, (n, self.length), 0, 2)
        return tokens, np.cumsum(tokens, axis=1, dtype=np.int32) % 2
