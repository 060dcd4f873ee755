"""How the softmax core lays its arrays out: what decides a program, and items of queries and keys."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What decides the program: T queries in blocks of C, S keys, K heads of keys, each with M of queries.

    `values` is how many heads of values a head of keys has, which lie side by side along its width. The
    first query is at position `row`, the first key at `column`.
    """

    T: int
    S: int
    row: int
    column: int
    C: int
    K: int
    M: int
    values: int
    scale: float
    cap: float
    dropout: float
    lengths: tuple[int, ...]
    allowed: tuple[Callable | None, ...]


def queries_of(static, x):
    """[B, T, N, H] to [B * K, blocks, H, M * C]: an item's blocks of queries, tokens last."""
    B, T, _, H = x.shape
    blocks = -(-T // static.C)
    x = jnp.pad(x, ((0, 0), (0, blocks * static.C - T), (0, 0), (0, 0)))
    x = x.reshape(B, blocks, static.C, static.K, static.M, H).transpose(0, 3, 1, 5, 4, 2)
    return x.reshape(B * static.K, blocks, H, static.M * static.C)


def tokens_of(static, x):
    """The inverse of `queries_of`."""
    items, blocks, H, _ = x.shape
    x = x.reshape(items // static.K, static.K, blocks, H, static.M, static.C)
    x = x.transpose(0, 2, 5, 1, 4, 3).reshape(items // static.K, blocks * static.C, -1, H)
    return x[:, : static.T]


def keys_of(static, x, *, turned: bool = False):
    """[B, S, K, H] to [B * K, S, H], or to [B * K, H, S], and padding for runs that begin outside."""
    reach = max(static.lengths, default=0)
    x = jnp.pad(x, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    x = x.transpose(0, 2, 3, 1) if turned else x.swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])


def of_keys(static, x, like):
    """The inverse of `keys_of`, in the type of `like`."""
    reach = max(static.lengths, default=0)
    x = x.reshape(-1, static.K, *x.shape[1:]).swapaxes(1, 2)
    return x[:, reach : reach + static.S].astype(like.dtype)


def contain(key, value):
    """Keys and values without NaN and infinities, and where they were, bool [B, K, S].

    Zero times NaN is NaN, so they would reach queries that may not see them; a query that may gets NaN
    by its score.
    """
    good = jnp.isfinite(key).all(-1) & jnp.isfinite(value).all(-1)
    key, value = (jnp.where(good[..., None], x, 0.0) for x in (key, value))
    return key, value, ~good.swapaxes(1, 2)
