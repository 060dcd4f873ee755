"""Induction: a mark stands once in a random text, and again at its end; what followed it is to be told.

    tokens  b d > a c b d a >
    labels  . . . . . . . . a

Two layers of attention solve it at any length, one to see the token before and one to find the mark.

Source: Gu & Dao 2023, "Mamba", https://arxiv.org/abs/2312.00752, section 4.1.2 (vocabulary 16, 256 tokens),
  after Olsson et al. 2022, "In-context learning and induction heads", https://arxiv.org/abs/2209.11895.
"""

import dataclasses

import numpy as np

from tinyattn.tasks._generated import UNLABELLED, Drawn, integers, load

__all__ = ["Config", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawn):
    """
    Attributes:
      vocab_size: Tokens: 0 is the mark, letters are 1 to vocab_size - 1.
      length: Of an example (T).
    """

    vocab_size: int = 16
    length: int = 64

    def __post_init__(self):
        super().__post_init__()
        self.at_least(vocab_size=3, length=3)

    def draw(self, bits, n):
        tokens = integers(bits, (n, self.length), 1, self.vocab_size)
        places = integers(bits, (n, 1), 0, self.length - 2)
        np.put_along_axis(tokens, places, 0, axis=1)
        tokens[:, -1] = 0
        labels = np.full_like(tokens, UNLABELLED)
        labels[:, -1] = np.take_along_axis(tokens, places + 1, axis=1)[:, 0]
        return tokens, labels
