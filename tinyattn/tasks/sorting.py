"""Sorting: the label of place i is the i-th smallest of all tokens.

    tokens  3 1 2 1
    labels  1 1 2 3

All tokens must be seen, so it is for attention to both sides; a mechanism that sees a part sorts a part.

Source: Tay et al. 2020, "Sparse Sinkhorn attention", https://arxiv.org/abs/2002.11296, section 4.1.
Differs: an encoder tells all places at once, where the paper decodes one after the other.
"""

import dataclasses

import numpy as np

from tinyattn.tasks._generated import Drawn, integers, load

__all__ = ["Config", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawn):
    """
    Attributes:
      vocab_size: Tokens.
      length: Of an example (T).
    """

    vocab_size: int = 16
    length: int = 32

    def __post_init__(self):
        super().__post_init__()
        self.at_least(vocab_size=2, length=2)

    def draw(self, bits, n):
        tokens = integers(bits, (n, self.length), 0, self.vocab_size)
        return tokens, np.sort(tokens, axis=1)
