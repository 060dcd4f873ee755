"""Matrices in fewer numbers: of low rank, mixtures of others, and of the numbers of a pool."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights._theta import Node, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Node):
    """a [d_in, R] times b [R, d_out], with `middle` [R] between them where it has one."""

    a: Any
    middle: Any
    b: Any
    shape: tuple[int, ...] = static()

    def build(self, fold):
        a = fold(self.a)
        if self.middle is not None:
            a = a * fold(self.middle)
        return (a @ fold(self.b)).reshape(self.shape)

    def reference(self, fold):
        a, b = fold(self.a), fold(self.b)
        middle = np.ones(a.shape[1]) if self.middle is None else fold(self.middle)
        return sum(m * np.outer(a[:, r], b[r]) for r, m in enumerate(middle)).reshape(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Atoms(Node):
    """Σ_s weights[s] atoms[s]."""

    weights: Any
    atoms: Any

    def build(self, fold):
        return jnp.tensordot(fold(self.weights), fold(self.atoms), 1)

    def reference(self, fold):
        return sum(w * atom for w, atom in zip(fold(self.weights), fold(self.atoms), strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hashed(Node):
    """Numbers of a pool: slot s is pool[|s| - 1] with the sign of s."""

    pool: Any
    slots: Any

    def build(self, fold):
        pool, slots = fold(self.pool), fold(self.slots)
        return pool[jnp.abs(slots) - 1] * jnp.sign(slots).astype(pool.dtype)

    def reference(self, fold):
        pool, slots = fold(self.pool), fold(self.slots)
        return np.array([np.sign(s) * pool[abs(s) - 1] for s in slots.ravel()]).reshape(slots.shape)
