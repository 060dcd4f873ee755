"""The nodes of pruned leaves: a weight times a mask of units, and what is stored of the two."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights import _fold, _masks
from tinyattn.weights._codes import Codes
from tinyattn.weights._quantized import Packed
from tinyattn.weights._theta import Alias, Fixed, Node, Scratch, leaves, places, static
from tinyattn.weights._units import Units


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask(Node):
    """Which units are kept, [G, U].

    Attributes:
      kept: Bools, fixed: only `update` changes them.
      scores: Trained numbers [G, U] that get the gradient of the mask; None where it is judged otherwise.
      key: Of random scores; None without.
      zeros: Units of each group that are pruned in the end.
      config: Of the scheme that made it.
    """

    estimated = True
    kept: Any
    scores: Any
    key: Scratch | None
    zeros: int = static()
    config: Any = static()

    def build(self, fold):
        kept = fold(self.kept)
        if self.scores is None:
            return kept
        scores = fold(self.scores)
        return _masks.through(scores, kept.astype(scores.dtype))

    def reference(self, fold):
        return fold(self.kept)

    def compact(self, fold):
        return dataclasses.replace(self, scores=None, key=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pruned(Node):
    """A weight, and zero where the mask has it so.

    Attributes:
      weight: Array or node; it keeps what it has at pruned places.
      mask: A `Mask`, or the alias of one that several leaves have.
      units: How the leaf falls into the units of the mask.
      axis: Of the leaf, along which units are whole slices and are removed; -1 is none.
      judge: Whether the norms of this leaf's units say which are kept.
    """

    weight: Any
    mask: Any
    units: Units = static()
    axis: int = static(default=-1)
    judge: bool = static(default=True)

    def build(self, fold):
        weight = fold(self.weight)
        return weight * self.units.spread(fold(self.mask)).astype(weight.dtype)

    def reference(self, fold):
        weight = np.array(fold(self.weight))
        number = self.units.gather(np.arange(weight.size).reshape(weight.shape))
        weight.reshape(-1)[number[~(fold(self.mask) > 0)]] = 0
        return weight

    def compact(self, fold):
        """Values and bits, unless what the weight is made of is smaller, or is stored elsewhere."""
        at = np.asarray(self.units.spread(fold(self.mask)) > 0)
        if isinstance(self.weight, Packed):
            return self._rounded(at)
        values = np.asarray(fold(self.weight))[at]
        own = [_fold.stored(leaf) for leaf in leaves(self.weight).values()]
        if values.nbytes >= sum(x.nbytes for x in own if x is not None):
            return self
        return Kept(Fixed(values), self.mask, self.units)

    def _rounded(self, at) -> "Kept":
        """Of a quantised weight the codes that are kept."""
        codes = self.weight.codes
        numbers = codes.reference(None).reshape(at.shape)[at]
        grid = dataclasses.replace(self.weight, codes=None)
        return Kept(Codes.pack(numbers, codes.base), self.mask, self.units, grid)

    def removed(self, fold):
        if self.axis < 0:
            return None
        kept = np.asarray(fold(self.mask))[0] > 0
        weight = np.asarray(fold(self.weight))
        each = weight.shape[self.axis] // kept.size
        return np.compress(kept.repeat(each), weight, self.axis)

    def norms(self, fold):
        """[G, U], of the units."""
        elements = jnp.asarray(self.units.gather(fold(self.weight)))
        # The root of a square would lose what is very small.
        one = elements.shape[-1] == 1
        return jnp.abs(elements[..., 0]) if one else jnp.linalg.norm(elements, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept(Node):
    """What a file has of a pruned leaf: the values that are kept, in order, and the mask of units.

    Attributes:
      values: Numbers, or codes of the grid.
      mask: Which are kept.
      units: How the leaf falls into the units of the mask.
      grid: A `Packed` without codes, of a quantised leaf; None of others.
    """

    values: Fixed
    mask: Any
    units: Units = static()
    grid: Any = None

    def build(self, fold):
        at = self.units.spread(fold(self.mask))
        array = _masks.Sparse(fold(self.values), at).build(fold)
        if self.grid is None:
            return array
        scale = self.grid.scale.value
        codes = array.reshape(scale.shape[0], -1, scale.shape[2])
        built = dataclasses.replace(self.grid, codes=codes).build(fold)
        return jnp.where(at, built, jnp.zeros((), built.dtype))


def best(scores: jax.Array, zeros) -> jax.Array:
    """All but the `zeros` lowest of each row of scores [G, U], bool; of equal ones the first are kept."""
    kept = scores.shape[-1] - zeros
    return jax.vmap(lambda row: _masks.top(row, kept))(scores)


def masks(config: Any, theta: Any) -> dict[str, Mask]:
    """Path to mask, of those that the scheme of this config made and that are no one else's."""
    return {
        path: x
        for path, x in places(theta).items()
        if isinstance(x, Mask) and x.config == config and isinstance(x.kept, Fixed)
    }


def scored(theta: Any) -> Callable[[str, Mask], jax.Array]:
    """(path of a mask, mask) -> its scores [G, U]; units of several judging leaves have their product."""
    known, read = places(theta), _fold.reader(theta)
    judges: dict[str, list[Pruned]] = {}
    for path, node in known.items():
        if isinstance(node, Pruned) and node.judge:
            owner = f"{path}/mask"
            while isinstance(known[owner], Alias):
                owner = known[owner].owner
            judges.setdefault(owner, []).append(node)

    def scores(path, mask):
        match mask.config.score:
            case "movement":
                return read(mask.scores)
            case "random":
                return jax.random.uniform(mask.key.value, mask.kept.value.shape)
        return functools.reduce(jnp.multiply, [node.norms(read) for node in judges[path]])

    return scores
