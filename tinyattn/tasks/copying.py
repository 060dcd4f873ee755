"""Copying: letters, a mark, and the same letters again, each to be told when the one before it is read.

    tokens  c a b > c a
    labels  . . . c a b

A cache of all tokens solves it at any length; a state of fixed size holds only so many letters.

Source: Jelassi et al. 2024, "Repeat after me: Transformers are better than state space models at copying",
  https://arxiv.org/abs/2402.01032, section 4.1.
Differs: letters are uniform, and all texts are of one length.
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
      letters: To copy; an example has twice as many tokens (T).
    """

    vocab_size: int = 27
    letters: int = 16

    def __post_init__(self):
        super().__post_init__()
        self.at_least(vocab_size=3, letters=1)

    def draw(self, bits, n):
        text = integers(bits, (n, self.letters), 1, self.vocab_size)
        tokens = np.concatenate([text, np.zeros((n, 1), np.int32), text[:, :-1]], axis=1)
        return tokens, np.concatenate([np.full_like(text, UNLABELLED), text], axis=1)
