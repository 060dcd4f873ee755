"""Nodes: what stands in theta where params have an array, and the kinds that are its leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tinyattn.weights import _philox

MOVED = "moved"


def static(**options):
    """A field of a node that is no part of its arrays."""
    return dataclasses.field(metadata={"static": True}, **options)


class Node:
    """Stands in theta where params have an array; a subclass is a frozen dataclass and a pytree.

    Its fields are arrays (trained), other nodes, None, tuples of those, or `static`. A scheme's nodes are
    made by its `init`, and know what they stand for.

    Attributes:
      estimated: Whether the gradient of what is in it follows a rule that the node's docstring states, and
        is not the derivative of what it builds.
    """

    estimated = False

    def build(self, fold: Callable[[Any], jax.Array]) -> jax.Array:
        """The array of params; `fold` gives the array of a field. Differentiable and jittable."""
        raise TypeError(f"{type(self).__name__} stands for no array by itself")

    def reference(self, fold: Callable[[Any], np.ndarray]) -> np.ndarray:
        """The same as `build`, slow and obvious, in NumPy."""
        return np.asarray(self.build(fold))

    def factored(self, fold: Callable, resolve: Callable):
        """An `affine.Factored` whose training costs less than that of the array, or None.

        Args:
          fold: Gives the array of a field.
          resolve: Gives the node or array that a field is or is an alias of.
        """
        return None

    def compact(self, fold: Callable[[Any], np.ndarray]) -> Any:
        """What a file keeps of it, an array or node that builds the same; fields are compact already."""
        return self

    def removed(self, fold: Callable[[Any], np.ndarray]) -> np.ndarray | None:
        """Its array without the rows or columns that it prunes whole; None if it prunes none so."""
        return None

    def penalty(self):
        """What it adds to the loss in training."""
        return 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed(Node):
    """An array that is stored and never trained; of bools, a bit each."""

    value: jax.Array

    def build(self, fold):
        return self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moved(Fixed):
    """An array that is stored, and that a training pass moves by itself, as a running average of it.

    A Linen module declares it as a parameter, `self.param(name, lambda rng: Moved(array))`, and in training
    puts the next value, the same on all devices, at the same place of the collection `MOVED`. Weight
    schemes do not see it.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scratch(Node):
    """An array that only training needs, never trained and never stored: `update` fills it."""

    value: jax.Array

    def build(self, fold):
        return self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seeded(Node):
    """An array that is regenerated and never stored.

    Attributes:
      value: The array; None when stripped for storage.
      seed: uint32 [2].
      scale: float32 [], of the draw.
      checksum: uint32 [], CRC-32 of the array's bytes.
      shape: Of the array.
      draw: Which of `_philox.DRAWS`: uniform numbers within +-scale, a mask, or slots.
    """

    value: jax.Array | None
    seed: jax.Array
    scale: jax.Array
    checksum: jax.Array
    shape: tuple[int, ...] = static()
    draw: str = static(default="uniform")

    def build(self, fold):
        return self.value

    @classmethod
    def make(cls, rng: jax.Array, shape: tuple[int, ...], scale: float, draw="uniform") -> "Seeded":
        """Picks a seed by a raw or typed key and generates the array on the host."""
        if jax.numpy.issubdtype(rng.dtype, jax.dtypes.prng_key):
            rng = jax.random.key_data(rng)
        seed, scale = np.asarray(rng, np.uint32)[-2:], np.float32(scale)
        array = _philox.DRAWS[draw](seed, shape, scale)
        return cls(array, seed, scale, np.uint32(_philox.checksum(array)), tuple(shape), draw)

    def stripped(self) -> "Seeded":
        return dataclasses.replace(self, value=None)

    def regenerated(self) -> "Seeded":
        """With its array.

        Raises:
          ValueError: The array has another checksum than the one that was stored.
        """
        draw = _philox.DRAWS[self.draw]
        array = draw(np.asarray(self.seed), self.shape, np.asarray(self.scale))
        found = _philox.checksum(array)
        if found != int(self.checksum):
            raise ValueError(
                f"the array of shape {self.shape} regenerated from seed {list(map(int, self.seed))}"
                f" has checksum {found:#010x}, but {int(self.checksum):#010x} was stored: the seed"
                f" or the checksum is damaged, load another copy"
            )
        return dataclasses.replace(self, value=array)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alias(Node):
    """Stands where a leaf, or a whole node, is shared: the same as what is at `owner`."""

    owner: str = static()


def is_kind(x: Any) -> bool:
    """Whether x is a leaf of theta that is not a plain array."""
    return isinstance(x, Fixed | Scratch | Seeded | Alias)


def is_node(x: Any) -> bool:
    return isinstance(x, Node)


def value(leaf: Any) -> jax.Array:
    """The array of a leaf."""
    return leaf.value if isinstance(leaf, Fixed | Scratch | Seeded) else leaf
