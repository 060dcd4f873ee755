"""From theta to params: aliases resolved, nodes built; and what a file would keep of them."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights._theta import (
    Alias,
    Fixed,
    Scratch,
    Seeded,
    is_node,
    leaves,
    map_nodes,
    places,
    value,
)


def _resolver(theta: Any):
    """(node or array) -> the same, or what it is an alias of."""
    known = places(theta)

    def resolve(x):
        while isinstance(x, Alias):
            x = known[x.owner]
        return x

    return resolve


def fold(theta: Any) -> Any:
    """The params that theta stands for: plain arrays. Differentiable and jittable."""
    return _folded(theta, frozenset())


def layers(theta: Any, takes: Collection[str]) -> Any:
    """The same for `affine.apply`: kernels at the paths `takes` in factors, where that trains cheaper."""
    return _folded(theta, frozenset(takes))


def _folded(theta, takes):
    resolve = _resolver(theta)
    made: dict[int, jax.Array] = {}  # a shared node is built once

    def folded(x):
        x = resolve(x)
        if not is_node(x):
            return x
        if id(x) not in made:
            made[id(x)] = x.build(folded)
        return made[id(x)]

    def leaf(path, x):
        found = resolve(x)
        if is_node(found) and jax.tree_util.keystr(path, simple=True, separator="/") in takes:
            factors = found.factored(folded, resolve)
            if factors is not None:
                return factors
        return folded(x)

    return jax.tree_util.tree_map_with_path(leaf, theta, is_leaf=is_node)


def reference(theta: Any) -> Any:
    """`fold` by the slow `reference` of each node, in NumPy."""
    resolve = _resolver(theta)

    def folded(x):
        x = resolve(x)
        return x.reference(folded) if is_node(x) else np.asarray(x)

    return jax.tree.map(folded, theta, is_leaf=is_node)


def penalty(theta: Any):
    """What the nodes of a theta add to the loss in training."""
    total = 0.0
    for node in places(theta).values():
        if is_node(node):
            total += node.penalty()
    return total


def settle(theta: Any) -> Any:
    """Theta with its scratch arrays at zero, as it is evaluated: what training draws is neutral at zero."""

    def still(x):
        return Scratch(x.value * 0) if isinstance(x, Scratch) else x

    return jax.tree.map(still, theta, is_leaf=lambda x: isinstance(x, Scratch))


def compact(theta: Any) -> Any:
    """Theta as a file keeps it, on the host: it builds the same params, and is not meant to be trained.

    A node of which another takes a part stays as it is, but for the nodes within it.
    """
    host = jax.tree.map(np.asarray, settle(theta))
    owners = [leaf.owner for leaf in leaves(theta).values() if isinstance(leaf, Alias)]

    def change(path, node):
        inside = any(owner.startswith(f"{path}/") for owner in owners)
        return node if inside else node.compact()

    return map_nodes(change, host)


class Sizes(NamedTuple):
    """What a theta holds.

    Attributes:
      params: Distinct numbers that the model is built from, regenerated ones included.
      trainable: Those that the optimiser moves.
      bytes: What a file keeps of it beside its header: `compact`, each leaf as `stored` packs it.
    """

    params: int
    trainable: int
    bytes: int


def stored(leaf: Any) -> np.ndarray | None:
    """What a file keeps of a leaf of a compact theta: one array, or None for nothing.

    Bools are packed to bits, a seeded array is four words: its seed, scale and checksum.
    """
    if isinstance(leaf, Alias | Scratch):
        return None
    if isinstance(leaf, Seeded):
        scale = np.asarray(leaf.scale, np.float32).view(np.uint32)
        words = [*np.asarray(leaf.seed, np.uint32), scale, np.asarray(leaf.checksum, np.uint32)]
        return np.array(words, np.uint32)
    array = np.asarray(value(leaf))
    return np.packbits(array.reshape(-1)) if array.dtype == bool else array


def sizes(theta: Any) -> Sizes:
    """Counts a theta; a shared leaf counts once."""
    params = trainable = 0
    for leaf in leaves(theta).values():
        if isinstance(leaf, Alias | Scratch):
            continue
        seeded = isinstance(leaf, Seeded)
        size = int(np.prod(leaf.shape)) if seeded else np.size(value(leaf))
        # Masks and places in a pool say which numbers, and are none.
        number = (
            leaf.draw == "uniform" if seeded else jnp.issubdtype(value(leaf).dtype, jnp.floating)
        )
        params += size * number
        trainable += 0 if isinstance(leaf, Fixed | Seeded) else size
    kept = [stored(leaf) for leaf in leaves(compact(theta)).values()]
    return Sizes(params, trainable, sum(x.nbytes for x in kept if x is not None))
