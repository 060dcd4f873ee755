"""W = m (W0 + (alpha / R) AB) / |W0 + (alpha / R) AB|: a length for each output, and a direction.

The norm is that of each output's weights. m starts as the norms of W0, so W starts as W0 but for rounding.

Source: Liu et al. 2024, "DoRA", https://arxiv.org/abs/2402.09353, equation 5; with `detached` the norm is a
  constant in the gradient, by its section 4.3, so that training keeps less.
Differs: of a kernel of several axes the first are the inputs, and m has a number for each of the others.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights import _factors, _layers, _making, _theta
from tinyattn.weights._delta import Delta, Term
from tinyattn.weights._scheme import Scheme

CASES = (
    {"rank": 2, "alpha": 2.0},
    {"rank": 1, "alpha": 1.0, "detached": False, "leaves": "block.*kernel$"},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are reparameterised.
      rank: R.
      alpha: What AB is scaled by is alpha / R.
      detached: Whether the norm is a constant in the gradient.
    """

    leaves: str = "kernel$"
    rank: int = 8
    alpha: float = 16.0
    detached: bool = True

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"dora: rank={self.rank} must be at least 1")
        if not self.alpha:
            raise ValueError("dora: alpha=0 leaves nothing to train but m: give another number")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dora(_theta.Node):
    """magnitude [1, *outputs] times direction [inputs, *outputs], divided by its norm over the inputs."""

    magnitude: Any
    direction: Any
    detached: bool = _theta.static()

    @property
    def estimated(self):
        """Equation 11 of the paper."""
        return self.detached

    def build(self, fold):
        v = fold(self.direction)
        wide = v.astype(jnp.promote_types(v.dtype, jnp.float32))
        norm = jnp.sqrt(jnp.square(wide).sum(0, keepdims=True)).astype(v.dtype)
        if self.detached:
            norm = jax.lax.stop_gradient(norm)
        return fold(self.magnitude) / norm * v

    def reference(self, fold):
        v = np.array(fold(self.direction))
        magnitude = np.asarray(fold(self.magnitude))
        for k in np.ndindex(v.shape[1:]):
            own = (slice(None), *k)
            v[own] *= magnitude[(0, *k)] / np.linalg.norm(v[own])
        return v


def make(config: Config) -> Scheme:
    """Splits the leaves that `config.leaves` picks into lengths and directions of low-rank change."""
    factor = _factors.Factor(kind="lowrank", rank=config.rank)

    def split(rng, path, array):
        norm = np.sqrt(np.square(np.asarray(array, np.float64)).sum(0, keepdims=True))
        if array.ndim < 2 or not norm.all():
            raise ValueError(
                f"dora: {path}, of shape {array.shape}, has outputs without a direction: pick matrices"
                f" by 'leaves' of which no column is zero"
            )
        leaf = _making.Leaf(path, array, _layers.Layers(_layers.PATTERN, ()))
        rng = _making.rng_of(rng, path)
        low = _making.make(factor, leaf, "direction/terms/0/v", 1.0, rng, {})
        term = Term(None, low, config.alpha / config.rank)
        direction = Delta(_theta.Fixed(array), (term,), array.shape)
        return Dora(jnp.asarray(norm, array.dtype), direction, config.detached)

    def init(rng, theta):
        found = _theta.trained("dora", config.leaves, theta)
        new = {path: split(rng, path, leaf) for path, leaf in found.items()}
        return _theta.replace_leaves(theta, new)

    return Scheme(init)
