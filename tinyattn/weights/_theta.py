"""Theta as a tree: paths to its leaves and nodes, and what the optimiser sees of it.

Nodes are pytrees, so theta says by itself what is trained, what is stored and what is regenerated, and
passes through jit, vmap and checkpoints as any tree does.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax

from tinyattn import registry
from tinyattn.weights._kinds import (
    MOVED,
    Alias,
    Fixed,
    Moved,
    Node,
    Scratch,
    Seeded,
    is_kind,
    is_node,
    static,
    value,
)

__all__ = [
    "MOVED",
    "Alias",
    "Fixed",
    "Moved",
    "Node",
    "Scratch",
    "Seeded",
    "apart",
    "combine",
    "is_kind",
    "is_node",
    "leaves",
    "map_nodes",
    "matching",
    "move",
    "moving",
    "owned",
    "partition",
    "places",
    "regenerate",
    "replace_leaves",
    "static",
    "strip",
    "together",
    "trained",
    "value",
]


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


def apart(params: Any) -> tuple[Any, Any]:
    """(params without what a training pass moves, that): two trees with None where the other has a leaf."""
    rest = jax.tree.map(lambda x: None if isinstance(x, Moved) else x, params, is_leaf=is_kind)
    moved = jax.tree.map(lambda x: x if isinstance(x, Moved) else None, params, is_leaf=is_kind)
    return rest, moved


def together(theta: Any, moved: Any) -> Any:
    """Undoes `apart`, whatever nodes stand in the place of params by now."""

    def pick(a, b):
        return b if a is None else a

    return jax.tree.map(pick, theta, moved, is_leaf=lambda x: x is None or is_node(x))


def moving(theta: Any) -> Any:
    """What changes in training, by gradients or by itself, with None in the place of all else."""
    trainable, rest = partition(theta)
    return combine(trainable, apart(rest)[1])


def move(theta: Any, moved: Any) -> Any:
    """Theta with the values of the collection `MOVED`, a tree of arrays, of a training pass."""
    return replace_leaves(theta, {path: Moved(x) for path, x in leaves(moved).items()})


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
