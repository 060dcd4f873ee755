"""What theta is made of: arrays, which are trained, and nodes that stand where params have an array.

Nodes are pytrees, so theta says by itself what is trained, what is stored and what is regenerated, and
passes through jit, vmap and checkpoints as any tree does.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tinyattn import registry
from tinyattn.weights import _philox


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


def leaves(theta: Any) -> dict[str, Any]:
    """Path to leaf, such as `block_0/attention/query/kernel`, in the tree's order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(theta, is_leaf=is_kind)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in flat}


def places(theta: Any) -> dict[str, Any]:
    """Path to whatever may be shared there: arrays, and nodes with all that is in them."""
    found = {}

    def walk(prefix, tree):
        if is_node(tree) or hasattr(tree, "dtype"):
            found[prefix] = tree
        children, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
        for path, child in children:
            if child is not tree:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                walk(f"{prefix}/{name}" if prefix else name, child)

    walk("", theta)
    return found


def replace_leaves(theta: Any, new: dict[str, Any]) -> Any:
    """Theta with the leaves at these paths replaced."""
    paths = leaves(theta)
    treedef = jax.tree.structure(theta, is_leaf=is_kind)
    return jax.tree.unflatten(treedef, [new.get(path, leaf) for path, leaf in paths.items()])


def map_nodes(function: Callable[[str, Node], Any], theta: Any) -> Any:
    """Theta with each node, given with its path, replaced by what the function makes of it; inner first."""

    def visit(prefix, path, x):
        if not is_node(x):
            return x
        name = "/".join(
            filter(None, (prefix, jax.tree_util.keystr(path, simple=True, separator="/")))
        )
        inner = {
            f.name: jax.tree_util.tree_map_with_path(
                functools.partial(visit, f"{name}/{f.name}"), getattr(x, f.name), is_leaf=is_node
            )
            for f in dataclasses.fields(x)
            if not f.metadata.get("static")
        }
        return function(name, dataclasses.replace(x, **inner))

    return jax.tree_util.tree_map_with_path(functools.partial(visit, ""), theta, is_leaf=is_node)


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


def owned(name: str, pattern: str, theta: Any) -> dict[str, Any]:
    """Path to leaf of those that a scheme called `name` may change: what matches and is no alias.

    Raises:
      ValueError: There are none.
    """
    stored = leaves(theta)
    picked = {path: stored[path] for path in matching(pattern, theta)}
    found = {path: leaf for path, leaf in picked.items() if not isinstance(leaf, Alias)}
    if not found:
        raise ValueError(
            f"{name}: all that {pattern!r} picks are aliases of shared leaves: pick owners"
        )
    return found


def trained(name: str, pattern: str, theta: Any) -> dict[str, Any]:
    """The same, of which all must be trained.

    Raises:
      ValueError: One is not, or there are none.
    """
    found = owned(name, pattern, theta)
    for path, leaf in found.items():
        if is_kind(leaf):
            kind = type(leaf).__name__.lower()
            raise ValueError(f"{name}: {path} is {kind}, not trained: exclude it")
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
    """Theta without its seeded arrays: their seeds are kept."""
    return _seeded(Seeded.stripped, theta)


def regenerate(theta: Any) -> Any:
    """Undoes `strip`.

    Raises:
      ValueError: A regenerated array has another checksum than the one that was stored.
    """
    return _seeded(Seeded.regenerated, theta)


def _seeded(function, theta):
    def change(leaf):
        return function(leaf) if isinstance(leaf, Seeded) else leaf

    return jax.tree.map(change, theta, is_leaf=is_kind)
