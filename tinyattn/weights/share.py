"""Layers that share leaves: the stored tree keeps one copy and an alias wherever else it is used.

The gradient of a shared leaf is the sum over its uses. Sharing saves parameters and bytes and, by itself,
never a FLOP.

Source: Lan et al. 2020, "ALBERT", https://arxiv.org/abs/1909.11942, section 3.1 (all, attention or
  feed-forward shared; groups as in its released code).
Differs: any leaves, picked by path; after `delta`, also W0 and V alone while each layer keeps its D.
"""

import dataclasses
import re

import jax
import numpy as np

from tinyattn.weights import _theta
from tinyattn.weights._scheme import Scheme, keep

CASES = ({}, {"groups": 2}, {"leaves": "/attention/"}, {"keep": "bias$"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are shared, such as `/attention/` or `/ffn/`.
      keep: Regular expression: leaves that every layer keeps for itself all the same; "" is none.
      groups: Groups of consecutive layers that share with one another; 1 is all layers.
      layers: Regular expression whose one group is the number of a layer in a path.
    """

    leaves: str = "."
    keep: str = ""
    groups: int = 1
    layers: str = r"block_(\d+)/"

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"share: groups={self.groups} must be at least 1")
        for name, pattern in (
            ("leaves", self.leaves),
            ("keep", self.keep),
            ("layers", self.layers),
        ):
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"share: {name}={pattern!r} is no regular expression: {error}"
                ) from error
            if name == "layers" and compiled.groups != 1:
                raise ValueError(f"share: layers={pattern!r} needs one (group), the layer's number")


def owners(config: Config, theta) -> dict[str, str]:
    """Path of every leaf that is dropped to the path of the leaf it becomes an alias of.

    Raises:
      ValueError: Nothing is shared, the layers do not fall into the groups, or two layers that share
        differ in shape.
    """
    stored = _theta.leaves(theta)
    number = {path: m for path in stored if (m := re.search(config.layers, path))}
    if not number:
        raise ValueError(
            f"share: no path has a layer as {config.layers!r} finds it; paths are like"
            f" {next(iter(stored))!r}: give 'layers'"
        )
    layers = sorted({int(m[1]) for m in number.values()})
    if len(layers) % config.groups:
        raise ValueError(
            f"share: groups={config.groups} must divide the {len(layers)} layers"
            f" {layers[0]}..{layers[-1]}"
        )
    size = len(layers) // config.groups
    owner = {layer: layers[i // size * size] for i, layer in enumerate(layers)}
    # A layer's number as its path spells it, for it may be padded with zeros.
    text = {int(m[1]): m[1] for m in number.values()}
    picked = set(_theta.matching(config.leaves, theta))
    kept = set(_theta.matching(config.keep, theta)) if config.keep else set()
    found = {}
    for path, m in number.items():
        if path not in picked - kept or owner[int(m[1])] == int(m[1]):
            continue
        if isinstance(stored[path], _theta.Alias):
            continue  # an earlier share's, which follows its owner
        own = f"{path[: m.start(1)]}{text[owner[int(m[1])]]}{path[m.end(1) :]}"
        if own not in stored:
            raise ValueError(f"share: {path} has no counterpart {own} to share with")
        found[path] = _follow(stored, own)
        if (here := _signature(stored[path])) != (there := _signature(stored[found[path]])):
            raise ValueError(f"share: {path} is {here} but {found[path]} is {there}")
    if not found and config.groups != len(layers):
        raise ValueError(f"share: {config.leaves!r} picks no leaf of more than one layer")
    return found


def _follow(stored, path: str) -> str:
    """The leaf behind a chain of aliases, as when two share schemes follow each other."""
    while isinstance(stored[path], _theta.Alias):
        path = stored[path].owner
    return path


def _signature(leaf) -> str:
    array = _theta.value(leaf)
    kind = type(leaf).__name__.lower() if _theta.is_kind(leaf) else "trainable"
    return f"{kind} {array.dtype}{list(array.shape)}"


def make(config: Config) -> Scheme:
    """Keeps the first layer's leaf of each group and makes the others its aliases."""

    def init(rng, theta):
        aliases = {path: _theta.Alias(owner) for path, owner in owners(config, theta).items()}
        return _theta.replace_leaves(theta, aliases)

    def build(theta):
        stored = _theta.leaves(theta)
        # The owner of an earlier share's alias may not be built yet; that share resolves it.
        found = {
            path: stored[leaf.owner]
            for path, leaf in stored.items()
            if isinstance(leaf, _theta.Alias) and leaf.owner in stored
        }
        return _theta.replace_leaves(theta, found)

    return Scheme(init, build, keep)


def reference(config: Config, theta):
    """Every layer's leaf looked up in its group's first layer, in NumPy."""
    stored = _theta.leaves(theta)

    def look_up(path, leaf):
        if not isinstance(leaf, _theta.Alias):
            return np.asarray(_theta.value(leaf))
        return np.asarray(_theta.value(stored[leaf.owner]))

    new = {path: look_up(path, leaf) for path, leaf in stored.items()}
    treedef = jax.tree.structure(theta, is_leaf=_theta.is_kind)
    return jax.tree.unflatten(treedef, list(new.values()))
