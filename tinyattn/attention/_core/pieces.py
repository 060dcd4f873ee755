"""Queries in pieces, each gathering the keys that it chose by content: what such variants share.

A piece is a run of queries. The backward pass computes a piece again, so that neither its scores nor its
copies of keys and values are kept, and memory grows with a piece, not with the length. Gradients of what
is gathered are added where they belong in one array that goes from piece to piece: the gradient of a
gather would be as long as the keys, once a piece.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn.attention._core.layout import contain

# Queries a piece at least, where each is run against all keys: a product with them has a gradient as long
# as they are, and the sum of these over the pieces must not outgrow the products.
FEWEST = 64


def plan(T: int, piece: int, per_query: int, most: int, fewest: int = 1) -> tuple[int, int]:
    """Pieces and the queries of one: equal ones, so that the last is not mostly padding.

    Args:
      T: Queries.
      piece: Queries a piece that the config asks for, 0 for as many as make `most` pairs.
      per_query: Pairs of a query.
      most: Pairs of a head in one piece.
      fewest: Queries a piece at least, unless the config asks for less.
    """
    pieces = -(-T // min(T, piece or max(fewest, most // per_query)))
    return pieces, -(-T // pieces)


def contained(key, value, dtype):
    """Key and value [B, S, K, H] as [B, K, S, H] in `dtype`, without what a mask could not keep away.

    Returns:
      The two, and where NaN and infinities were, bool [B, K, S].
    """
    key, value, poison = contain(key, value)
    return key.swapaxes(1, 2).astype(dtype), value.swapaxes(1, 2).astype(dtype), poison


def gather(x: jax.Array, at: jax.Array) -> jax.Array:
    """x [B, K, S, ...] at places [B, K, ...] along S."""
    return jax.vmap(jax.vmap(lambda x, at: x[at]))(x, at)


class Source(NamedTuple):
    """Arrays [B, K, S, ...] that pieces gather from.

    Attributes:
      arrays: Without a gradient.
      sums: Of the same shapes, and nobody reads them: their gradient is that of the arrays.
    """

    arrays: tuple[jax.Array, ...]
    sums: tuple[jax.Array, ...]

    def take(self, at: jax.Array) -> tuple[tuple[jax.Array, ...], "Source"]:
        """All arrays at places [B, K, ...] along S, and what to take from after that."""
        rows, sums = _take(self.arrays, self.sums, at)
        return rows, self._replace(sums=sums)


@jax.custom_vjp
def _take(arrays, sums, at):
    return tuple(gather(x, at) for x in arrays), sums


def _take_bwd(at, gradients):
    rows, sums = gradients
    add = jax.vmap(jax.vmap(lambda total, at, new: total.at[at].add(new)))
    return None, tuple(add(total, at, new) for total, new in zip(sums, rows, strict=True)), None


_take.defvjp(lambda arrays, sums, at: (_take(arrays, sums, at), at), _take_bwd)


def each(function: Callable, query, K: int, pieces: int, t: int) -> jax.Array:
    """All pieces, one after the other: [B, T, N, H].

    Args:
      function: (i, query [B, t, K, M, H]) -> [B, t, K, M, H] of piece i, whose first query is i * t.
      query: [B, T, N, H]; the last piece is filled up with zeros. Or a tree of such arrays.
      K: Key/value heads, of which each serves M = N / K heads of the query.
      pieces: How many, of `plan`.
      t: Queries a piece.
    """
    return gathering(lambda i, query, source: (function(i, query), source), query, (), K, pieces, t)


def gathering(function: Callable, query, arrays, K: int, pieces: int, t: int) -> jax.Array:
    """As `each`, for pieces that gather from arrays.

    Args:
      function: (i, query, source) -> (out, source), where the latter is what `Source.take` left.
      query: As of `each`, and so are the last three.
      arrays: A tuple of [B, K, S, ...].
      K: Key/value heads.
      pieces: How many.
      t: Queries a piece.
    """
    B, T = jax.tree.leaves(query)[0].shape[:2]

    def cut(x):
        """[B, T, N, ...] to [pieces, B, t, K, M, ...]."""
        x = jnp.pad(x, ((0, 0), (0, pieces * t - T)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(B, pieces, t, K, -1, *x.shape[3:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(sums, x):
        out, source = function(*x, Source(jax.lax.stop_gradient(arrays), sums))
        return source.sums, out

    query = jax.tree.map(cut, query)
    if pieces == 1:
        out = one(arrays, (0, jax.tree.map(lambda x: x[0], query)))[1][None]
    else:
        out = jax.lax.scan(one, arrays, (jnp.arange(pieces), query))[1]
    return out.swapaxes(0, 1).reshape(B, pieces * t, -1, out.shape[-1])[:, :T]


def softmax(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """Along the last axis over what is allowed; 0 elsewhere, and everywhere if nothing is."""
    scores = jnp.where(allowed, scores, -jnp.inf)
    weights = jax.nn.softmax(jnp.where(allowed.any(-1, keepdims=True), scores, 0))
    return jnp.where(allowed, weights, 0)
