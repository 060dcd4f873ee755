"""From theta to params: aliases resolved, nodes built; and what a file would keep of them."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights._codes import Codes
from tinyattn.weights._theta import (
    Alias,
    Scratch,
    Seeded,
    is_kind,
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


def reader(theta: Any):
    """(node or array of theta) -> its array."""
    resolve = _resolver(theta)
    # A shared node is built once. What is a key's is kept with it, or another might get its id.
    made: dict[int, tuple[Any, jax.Array]] = {}

    def folded(x):
        x = resolve(x)
        if not is_node(x):
            return x
        if id(x) not in made:
            made[id(x)] = x, x.build(folded)
        return made[id(x)][1]

    return folded


def _folded(theta, takes):
    resolve, folded = _resolver(theta), reader(theta)

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


def _host(theta: Any) -> Any:
    """Theta as it is evaluated, in NumPy; a node of which all is shared is an alias as a whole."""
    theta = jax.tree.map(np.asarray, settle(theta))
    known = places(theta)
    first: dict[Any, str] = {}
    same: dict[str, str] = {}
    for path, node in nodes(theta).items():
        if not is_kind(node):
            owner = first.setdefault(_signature(path, node, known), path)
            if owner != path:
                same[path] = owner

    def change(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return Alias(same[name]) if name in same else jax.tree.map(moved, x, is_leaf=is_kind)

    def moved(leaf):
        if not isinstance(leaf, Alias):
            return leaf
        for gone, owner in same.items():
            if f"{leaf.owner}/".startswith(f"{gone}/"):
                return Alias(owner + leaf.owner.removeprefix(gone))
        return leaf

    return jax.tree_util.tree_map_with_path(change, theta, is_leaf=is_node) if same else theta


def nodes(theta):
    """Path to node, of those that stand where params have an array."""
    flat, _ = jax.tree_util.tree_flatten_with_path(theta, is_leaf=is_node)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat if is_node(x)}


def _signature(path: str, x, known):
    """Equal for nodes that are made alike of the same leaves."""
    while isinstance(x, Alias):
        path, x = x.owner, known[x.owner]
    if not is_node(x) or is_kind(x):
        return path
    inner, treedef = jax.tree_util.tree_flatten_with_path(
        x, is_leaf=lambda y: y is not x and is_node(y)
    )
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in inner]
    parts = zip(names, inner, strict=True)
    return treedef, tuple(_signature(f"{path}/{name}", y, known) for name, (_, y) in parts)


def compact(theta: Any) -> Any:
    """Theta as a file keeps it, on the host: it builds the same params, and is not meant to be trained.

    A node stays as it is, but for the nodes within it, where another takes a part that would change.

    Raises:
      ValueError: Theta has shapes instead of arrays.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(theta)):
        raise ValueError(
            "what a file keeps depends on values, and theta has shapes alone: give arrays, such as"
            " np.broadcast_to(np.zeros(()), shape), which take no memory"
        )
    host = _host(theta)
    read = reader(host)
    owners = [leaf.owner for leaf in leaves(host).values() if isinstance(leaf, Alias)]

    def change(path, node):
        new = node.compact(read)
        taken = [x.removeprefix(f"{path}/") for x in owners if x.startswith(f"{path}/")]
        if not taken or new is node:
            return new
        before, after = places(node), places(new)
        return new if all(after.get(name) is before[name] for name in taken) else node

    return map_nodes(change, host)


def removed(theta: Any) -> Any:
    """Theta without the rows and columns that its nodes prune whole, on the host: of smaller params."""
    host = _host(theta)
    read = reader(host)

    def change(x):
        array = x.removed(read) if is_node(x) else None
        return x if array is None else array

    return jax.tree.map(change, host, is_leaf=is_node)


class Sizes(NamedTuple):
    """What a theta holds.

    Attributes:
      params: Distinct numbers that the model is built from, regenerated ones included, and those at
        pruned places too unless they are `removed`.
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
    for leaf in leaves(removed(theta)).values():
        if isinstance(leaf, Alias | Scratch):
            continue
        size = math.prod(leaf.shape) if isinstance(leaf, Seeded | Codes) else np.size(value(leaf))
        params += size * _is_number(leaf)
    for leaf in leaves(theta).values():
        trainable += 0 if is_kind(leaf) else np.size(leaf)
    kept = [stored(leaf) for leaf in leaves(compact(theta)).values()]
    return Sizes(params, trainable, sum(x.nbytes for x in kept if x is not None))


def _is_number(leaf) -> bool:
    """Masks and places in a pool say which numbers, and are none."""
    if isinstance(leaf, Seeded):
        return leaf.draw == "uniform"
    return isinstance(leaf, Codes) or jnp.issubdtype(value(leaf).dtype, jnp.floating)
