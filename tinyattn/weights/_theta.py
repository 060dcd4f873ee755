"""The leaves of theta: trainable, fixed, seeded, or an alias of another leaf.

A plain array is trainable. The other kinds are pytree nodes, so theta says by itself what is trained,
what is stored and what is regenerated, and passes through jit, vmap and checkpoints as any tree does.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from tinyattn import registry
from tinyattn.weights import _philox


def _static():
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """An array that is stored and never trained."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seeded:
    """An array that is regenerated and never stored: uniform numbers within +-scale.

    Attributes:
      value: The array; None when stripped for storage.
      seed: uint32 [2].
      scale: float32 [].
      checksum: uint32 [], CRC-32 of the array's bytes.
      shape: Of the array.
    """

    value: jax.Array | None
    seed: jax.Array
    scale: jax.Array
    checksum: jax.Array
    shape: tuple[int, ...] = _static()

    @classmethod
    def draw(cls, rng: jax.Array, shape: tuple[int, ...], scale: float) -> "Seeded":
        """Picks a seed by a raw key and generates the array on the host."""
        seed, scale = np.asarray(rng, np.uint32), np.float32(scale)
        array = _philox.uniform(seed, shape, scale)
        return cls(array, seed, scale, np.uint32(_philox.checksum(array)), tuple(shape))

    def stored(self) -> tuple[jax.Array, ...]:
        """What a file has to keep."""
        return self.seed, self.scale, self.checksum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alias:
    """Stands where a leaf is shared: the same array as the leaf at `owner`."""

    owner: str = _static()


def is_kind(x: Any) -> bool:
    """Whether x is a leaf of theta that is not a plain array."""
    return isinstance(x, Fixed | Seeded | Alias)


def value(leaf: Any) -> jax.Array:
    """The array of a leaf."""
    return leaf.value if isinstance(leaf, Fixed | Seeded) else leaf


def leaves(theta: Any) -> dict[str, Any]:
    """Path to leaf, such as `block_0/attention/query/kernel`, in the tree's order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(theta, is_leaf=is_kind)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in flat}


def replace_leaves(theta: Any, new: dict[str, Any]) -> Any:
    """Theta with the leaves at these paths replaced."""
    paths = leaves(theta)
    treedef = jax.tree.structure(theta, is_leaf=is_kind)
    return jax.tree.unflatten(treedef, [new.get(path, leaf) for path, leaf in paths.items()])


def matching(pattern: str, theta: Any) -> list[str]:
    """Paths in which the regular expression is found.

    Raises:
      ValueError: It is no regular expression, or is found in no path; the message lists the nearest.
    """
    paths = list(leaves(theta))
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    if not found:
        raise ValueError(f"no leaf matches {pattern!r}; {registry.nearest(pattern, paths)}")
    return found


def partition(theta: Any) -> tuple[Any, Any]:
    """(what the optimiser sees, all the rest): two trees with None where the other has a leaf."""
    trainable = jax.tree.map(lambda x: None if is_kind(x) else x, theta, is_leaf=is_kind)
    rest = jax.tree.map(lambda x: x if is_kind(x) else None, theta, is_leaf=is_kind)
    return trainable, rest


def combine(trainable: Any, rest: Any) -> Any:
    """Undoes `partition`."""

    def pick(a, b):
        return b if a is None else a

    return jax.tree.map(pick, trainable, rest, is_leaf=lambda x: x is None or is_kind(x))


def strip(theta: Any) -> Any:
    """Theta as a file keeps it: seeded arrays dropped, their seeds kept."""

    def drop(leaf):
        return dataclasses.replace(leaf, value=None) if isinstance(leaf, Seeded) else leaf

    return jax.tree.map(drop, theta, is_leaf=is_kind)


def regenerate(theta: Any) -> Any:
    """Undoes `strip`.

    Raises:
      ValueError: A regenerated array has another checksum than the one that was stored.
    """

    def draw(leaf):
        if not isinstance(leaf, Seeded):
            return leaf
        array = _philox.uniform(np.asarray(leaf.seed), leaf.shape, np.asarray(leaf.scale))
        found = _philox.checksum(array)
        if found != int(leaf.checksum):
            raise ValueError(
                f"the array of shape {leaf.shape} regenerated from seed {list(map(int, leaf.seed))}"
                f" has checksum {found:#010x}, but {int(leaf.checksum):#010x} was stored: the seed"
                f" or the checksum is damaged, load another copy"
            )
        return dataclasses.replace(leaf, value=array)

    return jax.tree.map(draw, theta, is_leaf=is_kind)


class Sizes(NamedTuple):
    """What a theta holds.

    Attributes:
      params: Distinct numbers that the model is built from, regenerated ones included.
      trainable: Those that the optimiser moves.
      bytes: What a file has to keep: arrays that are stored, and seeds.
    """

    params: int
    trainable: int
    bytes: int


def sizes(theta: Any) -> Sizes:
    """Counts a theta of arrays or of `jax.ShapeDtypeStruct`s; a shared leaf counts once."""
    params = trainable = stored = 0
    for leaf in leaves(theta).values():
        if isinstance(leaf, Alias):
            continue
        if isinstance(leaf, Seeded):
            params += int(np.prod(leaf.shape))
            stored += sum(x.size * x.dtype.itemsize for x in leaf.stored())
            continue
        array = value(leaf)
        params += array.size
        trainable += 0 if isinstance(leaf, Fixed) else array.size
        stored += array.size * array.dtype.itemsize
    return Sizes(params, trainable, stored)
