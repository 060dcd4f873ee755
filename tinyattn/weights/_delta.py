"""A leaf as a base and products: how it is built, when it runs in factors, and what is stored of it."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.affine import Factored
from tinyattn.weights import _theta
from tinyattn.weights._masks import sparse
from tinyattn.weights._matrices import LowRank


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term(_theta.Node):
    """scale * d ⊙ v, each an array, a node or None for 1."""

    d: Any
    v: Any
    scale: float = _theta.static()

    def build(self, fold):
        parts = [fold(x) for x in (self.d, self.v) if x is not None]
        # A mask that is not learned is of bools.
        kind = jnp.result_type(*(x for x in parts if x.dtype != bool)) if parts else float
        parts = [jnp.asarray(x).astype(kind) for x in parts]
        scale = [] if self.scale == 1.0 else [jnp.asarray(self.scale, kind)]
        return math.prod([*parts, *scale][1:], start=[*parts, *scale][0])

    def reference(self, fold):
        product = np.asarray(self.scale)
        for x in (self.d, self.v):
            if x is not None:
                product = product * fold(x)
        return product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delta(_theta.Node):
    """What replaces a leaf: w0 + the sum of its terms.

    Attributes:
      w0: The base; None is zero.
      terms: Of `Term`.
      shape: Of the leaf.
    """

    w0: Any
    terms: tuple[Term, ...]
    shape: tuple[int, ...] = _theta.static()

    def build(self, fold):
        parts = [fold(x) for x in (self.w0, *self.terms) if x is not None]
        return jnp.broadcast_to(sum(parts[1:], parts[0]), self.shape)

    def reference(self, fold):
        parts = [np.broadcast_to(fold(term), self.shape) for term in self.terms]
        return sum(parts, np.zeros(self.shape) if self.w0 is None else fold(self.w0))

    def factored(self, fold, resolve):
        """Where nothing needs a gradient of a whole matrix, and what replaces it costs less."""
        if len(self.shape) != 2 or (self.w0 is not None and _trains(resolve(self.w0), resolve)):
            return None
        base = None if self.w0 is None else resolve(self.w0)
        gains, pairs = [], []
        for term in self.terms:
            d, v = (None if x is None else resolve(x) for x in (term.d, term.v))
            d, v = (v, d) if isinstance(d, LowRank) or (base is not None and d is base) else (d, v)
            if not _diagonal(d, fold):
                return None
            scale = term.scale if d is None else fold(d) * term.scale
            if base is not None and v is base:
                gains.append(scale)
            elif isinstance(v, LowRank):
                pairs.append(_pair(v, scale, fold))
            else:
                return None
        sides = {jnp.shape(g) for g in gains} - {()}
        # A gain of inputs and one of outputs add up to no product of the two.
        if len(sides) > 1:
            return None
        d_in, d_out = self.shape
        ranks = sum(a.shape[1] for a, _ in pairs)
        if not self.terms or base is None or 3 * ranks * (d_in + d_out) >= d_in * d_out:
            return None
        gain = sum(gains, 1.0) if gains else None
        column = gain is not None and jnp.shape(gain) == (d_in, 1)
        if gain is not None and not column:
            gain = jnp.broadcast_to(gain, (1, d_out))
        array = fold(self.w0)
        return Factored(array, gain if column else None, None if column else gain, tuple(pairs))

    def compact(self, fold):
        return dataclasses.replace(self, terms=tuple(map(_compact, self.terms)))


def _trains(x, resolve) -> bool:
    """Whether any array in a node is trained."""
    found = [resolve(leaf) for leaf in _theta.leaves(x).values()]
    return any(not _theta.is_kind(leaf) for leaf in found)


def _diagonal(d, fold) -> bool:
    """Whether a factor is one number, or one for each input or output."""
    if d is None:
        return True
    if isinstance(d, _theta.Node) and not _theta.is_kind(d):
        return False
    shape = jnp.shape(fold(d))
    return len(shape) == 0 or (len(shape) == 2 and 1 in shape)


def _pair(v: LowRank, scale, fold):
    """(a, b) whose product is scale ⊙ v."""
    a, b = fold(v.a), fold(v.b)
    if v.middle is not None:
        a = a * fold(v.middle)
    if jnp.shape(scale) == (a.shape[0], 1):
        return a * scale, b
    return a, b * scale


def _compact(term: Term) -> Term:
    """A product with a mask is stored as the elements that the mask leaves."""
    d, v = (term.d, term.v) if isinstance(term.d, _theta.Fixed) else (term.v, term.d)
    if not isinstance(d, _theta.Fixed) or not hasattr(_theta.value(v), "dtype"):
        return term
    if (
        isinstance(v, _theta.Seeded)
        or np.ndim(d.value) == 0
        or d.value.shape != _theta.value(v).shape
    ):
        return term
    if d.value.dtype == bool:
        return Term(None, sparse(np.asarray(_theta.value(v)), d.value), term.scale)
    if (d.value == 0).any():
        return Term(None, sparse(d.value * _theta.value(v), d.value != 0), term.scale)
    return term
