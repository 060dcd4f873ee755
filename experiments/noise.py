"""A task of noise: sequences of random features and random labels, for timing alone."""

import dataclasses

import numpy as np

from tinyattn.tasks import Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      length: Tokens of an example (T); an example is an image of T x 1 pixels.
      channels: Features of a token.
      examples: In each split.
    """

    length: int = 64
    channels: int = 16
    examples: int = 128


def load(config: Config) -> Task:
    """Standard normal features and labels 0..9, the same for all splits."""
    rng = np.random.default_rng(0)
    shape = (config.examples, config.length, 1, config.channels)
    inputs = rng.standard_normal(shape, np.float32)
    split = Split(inputs, rng.integers(0, 10, config.examples, np.int32))
    return Task(split, split, split, 10, 0, augment=lambda rng, batch: batch)
