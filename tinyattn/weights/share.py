"""Layers that share leaves: the stored tree keeps one copy and an alias wherever else it is used.

The gradient of a shared leaf is the sum over its uses. Sharing saves parameters and bytes and, by itself,
never a FLOP.

Source: Lan et al. 2020, "ALBERT", https://arxiv.org/abs/1909.11942, section 3.1 (all, attention or
  feed-forward shared; groups as in its released code); Takase and Kiyono 2021, "Lessons on parameter
  sharing across layers", https://arxiv.org/abs/2104.06022, section 2 (`groups` is its sequence, `cycle`,
  `cycle_rev`); Reid et al. 2021, "Subformer", https://arxiv.org/abs/2101.00234, section 3.1 (`sandwich`);
  Liu et al. 2024, "MobileLLM", https://arxiv.org/abs/2402.14905, section 2.2.4 (`repeat`).
Differs: any leaves, picked by path; after `delta`, also W0 and V alone while each layer keeps its D.
"""

import dataclasses
import re

from tinyattn import registry
from tinyattn.weights import _layers, _theta
from tinyattn.weights._scheme import Scheme

CASES = (
    {},
    {"groups": 2},
    {"leaves": "/attention/", "owners": "cycle_rev", "groups": 2},
    {"keep": "bias$", "owners": "sandwich"},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are shared, such as `/attention/` or `/ffn/`.
      keep: Regular expression: leaves that every layer keeps for itself all the same; "" is none.
      owners: Who shares with whom: `all`; `groups` of consecutive layers; `repeat`, each of `groups`
        layers used several times in a row, which is the same; `cycle`, `groups` layers over and over;
        `cycle_rev`, of which the last time round goes backwards; `sandwich`, the first and the last
        layer for themselves and those between in `groups`.
      groups: Distinct layers, of a sandwich those between.
      layers: Regular expression whose one group is the number of a layer in a path.
    """

    leaves: str = "."
    keep: str = ""
    owners: str = "groups"
    groups: int = 1
    layers: str = _layers.PATTERN

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"share: groups={self.groups} must be at least 1")
        if self.owners not in _layers.OWNERS:
            near = registry.nearest(self.owners, _layers.OWNERS)
            raise ValueError(f"share: owners={self.owners!r}; {near}")
        if self.owners == "all" and self.groups > 1:
            raise ValueError(f"share: owners='all' is one group, not groups={self.groups}")
        for name, pattern in (("leaves", self.leaves), ("keep", self.keep)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"share: {name}={pattern!r} is no regular expression: {error}"
                ) from error
        _layers.check("share", self.layers)


def owners(config: Config, theta) -> dict[str, str]:
    """Path of every leaf that is dropped to the path of the leaf it becomes an alias of.

    Raises:
      ValueError: Nothing is shared, the layers do not fall into the groups, or two layers that share
        differ in shape.
    """
    stored = _theta.leaves(theta)
    layers = _layers.Layers(config.layers, stored)
    if not layers.numbers:
        raise ValueError(
            f"share: no path has a layer as {config.layers!r} finds it; paths are like"
            f" {next(iter(stored))!r}: give 'layers'"
        )
    owner = layers.owners("share", config.owners, config.groups)
    picked = set(_theta.matching(config.leaves, theta))
    kept = set(_theta.matching(config.keep, theta)) if config.keep else set()
    found = {}
    for path, leaf in stored.items():
        number = layers.of(path)
        if number is None or path not in picked - kept or owner[number] == number:
            continue
        if isinstance(leaf, _theta.Alias):
            continue  # an earlier share's, which follows its owner
        own = layers.moved(path, owner[number])
        if own not in stored:
            raise ValueError(f"share: {path} has no counterpart {own} to share with")
        found[path] = _follow(stored, own)
        if (here := _signature(leaf)) != (there := _signature(stored[found[path]])):
            raise ValueError(f"share: {path} is {here} but {found[path]} is {there}")
    if not found and any(n != m for n, m in owner.items()):
        raise ValueError(f"share: {config.leaves!r} picks no leaf of more than one layer")
    return found


def _follow(stored, path: str) -> str:
    """The leaf behind a chain of aliases, as when two share schemes follow each other."""
    while path in stored and isinstance(stored[path], _theta.Alias):
        path = stored[path].owner
    return path


def _signature(leaf) -> str:
    array = _theta.value(leaf)
    kind = type(leaf).__name__.lower() if _theta.is_kind(leaf) else "trainable"
    return f"{kind} {array.dtype}{list(array.shape)}"


def make(config: Config) -> Scheme:
    """Keeps the owner's leaf of each group and makes the others its aliases."""

    def init(rng, theta):
        aliases = {path: _theta.Alias(owner) for path, owner in owners(config, theta).items()}
        return _theta.replace_leaves(theta, aliases)

    return Scheme(init)
