"""How the softmax core lays its arrays out and goes over them: what decides a program, items and blocks."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tinyattn.attention._core.plan import streams


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

    @property
    def held(self) -> int:
        """Keys with padding at their end, as many as the longest run."""
        return max(self.S, *self.lengths, 0)

    @property
    def streams(self) -> bool:
        """Whether items go one after the other, not all in one batch."""
        return streams(self.T, self.S)

    @property
    def flat(self) -> bool:
        """Whether `over` is one loop, whose blocks cut what they need from the arrays of all items."""
        return bool(self.lengths) and self.streams


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
    """[B, S, K, H] to [B * K, held, H], or to [B * K, H, held]."""
    x = jnp.pad(x, ((0, 0), (0, static.held - static.S), (0, 0), (0, 0)))
    x = x.transpose(0, 2, 3, 1) if turned else x.swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])


def of_keys(static, x, like):
    """The inverse of `keys_of`, in the type of `like`."""
    x = x.reshape(-1, static.K, *x.shape[1:]).swapaxes(1, 2)
    return x[:, : static.S].astype(like.dtype)


def over(static, one, own, blocks, like=()):
    """one(sums, (index, i), own, blocks) -> (sums, out) of every block i of every item.

    Items go one after the other or, short, in one batch within each block: batching a loop from outside
    would trace its body three times. Where blocks see few keys, what an item has is not cut out first: with
    the outputs put back that was as much as a tenth of the time.

    Args:
      static: The program.
      one: For arrays without the axes of items and blocks; but the sums are those of all items if the
        program is `flat`.
      own: Arrays [items, ...].
      blocks: Arrays [items, blocks, ...].
      like: Arrays of which the sums have the shape, [items, ...].

    Returns:
      The sums [items, ...] over an item's blocks, and the outputs [items, blocks, ...].
    """
    items, count = blocks[0].shape[:2]
    index = jnp.arange(items)
    wide = jnp.promote_types(blocks[0].dtype, jnp.float32)

    def zeros(like):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, wide), like)

    if static.flat:

        def cut(sums, x):
            place, blocks = x
            take = functools.partial(jax.lax.dynamic_index_in_dim, index=place[0], keepdims=False)
            return one(sums, place, jax.tree.map(take, own), blocks)

        places = jnp.divmod(jnp.arange(items * count), count)
        joined = tuple(x.reshape(-1, *x.shape[2:]) for x in blocks)
        sums, out = jax.lax.scan(cut, zeros(like), (places, joined))
        return sums, jax.tree.map(lambda x: x.reshape(items, count, *x.shape[1:]), out)

    def loop(step, blocks, like):
        """step(sums, i, blocks) over arrays [blocks, ...]; a single one without a loop."""
        if count > 1:
            return jax.lax.scan(
                lambda sums, x: step(sums, *x), zeros(like), (jnp.arange(count), tuple(blocks))
            )
        sums, out = step(zeros(like), 0, tuple(x[0] for x in blocks))
        return sums, jax.tree.map(lambda x: x[None], out)

    if static.streams:

        def item(x):
            index, own, blocks, like = x
            return loop(lambda sums, i, x: one(sums, (index, i), own, x), blocks, like)

        return jax.lax.map(item, (index, own, tuple(blocks), like))

    def together(sums, i, x):
        return jax.vmap(lambda sums, index, own, x: one(sums, (index, i), own, x))(
            sums, index, own, x
        )

    sums, out = loop(together, [x.swapaxes(0, 1) for x in blocks], like)
    return sums, jax.tree.map(lambda x: x.swapaxes(0, 1), out)


def contain(*arrays):
    """Keys and values without NaN and infinities, and where they were, bool [B, K, S].

    Zero times NaN is NaN, so they would reach queries that may not see them; a query that may gets NaN
    by its score.

    Args:
      *arrays: [B, S, K, H], keys, values and what else a token adds to a head.

    Returns:
      Each of them, and then where any was not finite.
    """
    poison = poisoned(*arrays)
    bad = poison.swapaxes(1, 2)[..., None]
    return *(jnp.where(bad, 0.0, x) for x in arrays), poison


def poisoned(*arrays):
    """Which keys or values are not finite, bool [B, K, S]."""
    good = functools.reduce(jnp.logical_and, (jnp.isfinite(x).all(-1) for x in arrays))
    return ~good.swapaxes(1, 2)
