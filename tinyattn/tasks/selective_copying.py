"""Selective copying: letters among noise, and then marks, at each of which the next letter is to be told.

    tokens  . c . . a b . . > > >
    labels  . . . . . . . . c a b

What is to be kept depends on the token, so that a state whose rates do not depend on it must fail.

Source: Gu & Dao 2023, "Mamba", https://arxiv.org/abs/2312.00752, section 3.1 and appendix E.1 (there 16
  letters of a vocabulary of 16 among 4,096 tokens).
Differs: one mark, the same for all letters, stands where a letter is told.
"""

import dataclasses

import numpy as np

from tinyattn.tasks._generated import UNLABELLED, Drawn, distinct, integers, load

__all__ = ["Config", "load"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Drawn):
    """
    Attributes:
      vocab_size: Tokens: 0 is noise, 1 the mark, letters are 2 to vocab_size - 1.
      context: Tokens before the marks.
      letters: To copy, at any places of the context; an example has context + letters tokens (T).
    """

    vocab_size: int = 16
    context: int = 64
    letters: int = 8

    def __post_init__(self):
        super().__post_init__()
        self.at_least(vocab_size=4, letters=1, context=self.letters)

    def draw(self, bits, n):
        text = integers(bits, (n, self.letters), 2, self.vocab_size)
        places = np.sort(distinct(bits, n, np.ones(self.context), self.letters), axis=1)
        context = np.zeros((n, self.context), np.int32)
        np.put_along_axis(context, places, text, axis=1)
        labels = np.full_like(context, UNLABELLED)
        tokens = np.concatenate([context, np.ones_like(text)], axis=1)
        return tokens, np.concatenate([labels, text], axis=1)
