"""What is learned: one task a file, each data in memory with its splits.

A task is a module, here or in a fork's own package, that exposes

- `Config`: a frozen keyword-only dataclass that validates itself;
- `load(config) -> Task`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tinyattn import registry


class Split(NamedTuple):
    """Examples side by side.

    Attributes:
      inputs: [n, ...]; images [n, height, width, channels] in float32, or tokens [n, T] in int32.
      labels: int32 [n], or [n, T] with one for each token; negative where nothing is to be predicted.
      key_valid: bool [n, T], False where `inputs` is padding; None where nothing is.
      token_types: int32 [n, T], such as 0 for the first text of a pair and 1 for the second; None is 0.
      segment_ids: int32 [n, T], which text of several packed into a row a token belongs to; None is one.
      prefix: int32 [n, P], what a decoder reads, token for token before its label; None without one.
    """

    inputs: np.ndarray
    labels: np.ndarray
    key_valid: np.ndarray | None = None
    token_types: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    prefix: np.ndarray | None = None

    @property
    def given(self) -> dict[str, np.ndarray]:
        """What a model is called with, by name: all that there is but the labels."""
        fields = self._asdict()
        return {name: x for name, x in fields.items() if name != "labels" and x is not None}


class Task(NamedTuple):
    """A task in memory.

    Attributes:
      train, validation, test: Disjoint splits.
      num_classes: Labels are 0..num_classes - 1.
      vocab_size: Number of token ids; 0 for images.
      augment: (rng, inputs [B, ...]) -> inputs, jittable, applied to training batches alone.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    vocab_size: int
    augment: Callable[[jax.Array, jax.Array], jax.Array]


def names() -> tuple[str, ...]:
    """The tasks of this package."""
    return registry.names(__name__)


def spec(name: str, **fields: Any) -> registry.Spec:
    """A config section for a task: `spec("digits", shift=1)`."""
    return registry.spec(__name__, name, **fields)


def load(section: Mapping[str, Any]) -> Task:
    """Loads the task that a section describes."""
    module, config = registry.build(__name__, section)
    return module.load(config)
