"""Whole numbers of few values, as a file keeps them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights._theta import Fixed, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes(Fixed):
    """Whole numbers 0..base-1 as digits of bytes, as many to a byte as go in; never trained.

    Five of base 3 are in a byte, 1.6 bits each; of base 2, 4, 16 and 256 eight, four, two and one.

    Attributes:
      value: uint8, of the numbers in the order of their elements; the first of a byte is its lowest digit.
      base: How many numbers there are.
      shape: Of the numbers.
    """

    base: int = static()
    shape: tuple[int, ...] = static()

    @classmethod
    def pack(cls, numbers: np.ndarray, base: int) -> "Codes":
        powers = base ** np.arange(_digits(base))
        flat = np.asarray(numbers).reshape(-1)
        digits = np.pad(flat, (0, -flat.size % len(powers))).reshape(-1, len(powers))
        return cls((digits * powers).sum(1).astype(np.uint8), base, np.shape(numbers))

    def build(self, fold):
        """Their array, int32."""
        powers = self.base ** jnp.arange(_digits(self.base), dtype=jnp.int32)
        numbers = jnp.asarray(self.value, jnp.int32)[:, None] // powers % self.base
        return numbers.reshape(-1)[: math.prod(self.shape)].reshape(self.shape)

    def reference(self, fold):
        found = []
        for byte in np.asarray(self.value).tolist():
            for _ in range(_digits(self.base)):
                byte, digit = divmod(byte, self.base)
                found.append(digit)
        return np.array(found[: math.prod(self.shape)], np.int32).reshape(self.shape)


def _digits(base: int) -> int:
    """How many digits of this base go into a byte."""
    return max(n for n in range(1, 9) if base**n <= 256)
