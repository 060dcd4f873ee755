"""Biases of attention scores as structure: tables of distances or sums of tokens, never a T x S array.

A bias adds to the scores of every head before the softmax. An executor takes the part of one item, a
key/value head of one example with the query heads that read it, and asks it block by block.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp


class Bias(abc.ABC):
    """What executors need of a bias."""

    @abc.abstractmethod
    def per_item(self, B: int, K: int, M: int) -> "Bias":
        """The same bias with its arrays as [B, K, M, ...]: one for each query head of each item."""

    @abc.abstractmethod
    def scores(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """[M, t, s] of an item's part, whose arrays are [M, ...], at positions rows [t], columns [s]."""

    def dense(self, N: int, T: int, S: int) -> jax.Array:
        """The whole bias as an array [N, T, S], or [B, N, T, S] if examples differ: for tests."""
        own = jax.tree.map(lambda x: x[0, :, 0], self.per_item(1, N, 1))
        return own.scores(jnp.arange(T), jnp.arange(S))


def _heads(x: jax.Array, B: int, K: int, M: int) -> jax.Array:
    """[N, ...] to [B, K, M, ...]."""
    x = x.reshape(K, M, *x.shape[1:])
    return jnp.broadcast_to(x, (B, *x.shape))


def _each(items: Bias, T: int, S: int) -> jax.Array:
    """[B, N, T, S] of items [B, N, 1, ...]."""
    rows, columns = jnp.arange(T), jnp.arange(S)
    return jax.vmap(jax.vmap(lambda item: item.scores(rows, columns)[0]))(items)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear(Bias):
    """-slope |t - s|: the farther, the less.

    Source: Press et al. 2022, "Train short, test long" (ALiBi), https://arxiv.org/abs/2108.12409,
      section 3.
    Differs: |t - s| and not t - s, so that it is defined for keys ahead as well.

    Attributes:
      slopes: [N], not negative.
    """

    slopes: jax.Array

    def per_item(self, B, K, M):
        return Linear(_heads(self.slopes, B, K, M))

    def scores(self, rows, columns):
        distance = jnp.abs(rows[:, None] - columns[None, :])
        return -self.slopes[:, None, None] * distance


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relative(Bias):
    """A learned number for each head and each bucket of distances, exact up close and logarithmic afar.

    Source: Raffel et al. 2020, "T5", https://arxiv.org/abs/1910.10683, section 2.1; the buckets are
      those of the authors' code.

    Attributes:
      table: [N, buckets].
      farthest: Distance from which all keys share the last bucket (positions).
      causal: Whether all buckets are for keys behind; otherwise half of them are for keys ahead.
    """

    table: jax.Array
    farthest: int = dataclasses.field(default=128, metadata={"static": True})
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def per_item(self, B, K, M):
        return dataclasses.replace(self, table=_heads(self.table, B, K, M))

    def scores(self, rows, columns):
        bucket = buckets(
            columns[None, :] - rows[:, None], self.table.shape[-1], self.farthest, self.causal
        )
        return self.table[:, bucket]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decay(Bias):
    """query_t - key_s: what has faded from key to query, as the difference of two running sums.

    Attributes:
      query: [B, T, N], the sum up to each query.
      key: [B, S, N], the sum up to each key.
      rest: What the sums up to queries and to keys are off by, of the same shapes, so that a difference of
        two long ones has all its digits; None is nothing.
    """

    query: jax.Array
    key: jax.Array
    rest: tuple[jax.Array, jax.Array] | None = None

    def per_item(self, B, K, M):
        def items(x):
            x = x.reshape(*x.shape[:2], K, M).transpose(0, 2, 3, 1)
            return jnp.broadcast_to(x, (B, *x.shape[1:]))

        return jax.tree.map(items, self)

    def scores(self, rows, columns):
        # A block may reach beyond either end, where nothing is seen.
        def between(query, key):
            query = jnp.take(query, rows, axis=-1, mode="clip")
            return query[:, :, None] - jnp.take(key, columns, axis=-1, mode="clip")[:, None, :]

        found = between(self.query, self.key)
        return found if self.rest is None else found + between(*self.rest)

    def dense(self, N, T, S):
        items = self.per_item(len(self.query), N, 1)
        return _each(items, T, S)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placed(Bias):
    """A bias of positions whose queries stand where each example has come to, as in decoding.

    Attributes:
      bias: Of positions alone.
      places: Positions of the queries, int [B, T].
    """

    bias: Bias
    places: jax.Array

    def per_item(self, B, K, M):
        places = self.places[:, None, None]
        places = jnp.broadcast_to(places, (B, K, M, places.shape[-1]))
        return Placed(self.bias.per_item(B, K, M), places)

    def scores(self, rows, columns):
        # Those of one example, whatever the head.
        return self.bias.scores(jnp.take(self.places[0], rows, mode="clip"), columns)

    def dense(self, N, T, S):
        return _each(self.per_item(len(self.places), N, 1), T, S)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum(Bias):
    """Several biases at once.

    Attributes:
      parts: What is added up.
    """

    parts: tuple[Bias, ...]

    def per_item(self, B, K, M):
        return Sum(tuple(part.per_item(B, K, M) for part in self.parts))

    def scores(self, rows, columns):
        return sum(part.scores(rows, columns) for part in self.parts)

    def dense(self, N, T, S):
        return sum(part.dense(N, T, S) for part in self.parts)


def slopes(N: int) -> jax.Array:
    """ALiBi's slopes for N heads: 2^(-8 i / N) for powers of two, and between them the authors' mixture."""

    def powers(n):
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    nearest = 2 ** math.floor(math.log2(N))
    return jnp.asarray(powers(nearest) + powers(2 * nearest)[::2][: N - nearest], jnp.float32)


def buckets(offset: jax.Array, count: int, farthest: int, causal: bool) -> jax.Array:
    """The bucket of each offset s - t: int32, 0..count-1.

    Raises:
      ValueError: Too few buckets, or a farthest distance that leaves no room for the logarithmic ones.
    """
    half = count if causal else count // 2
    exact = half // 2
    if exact < 1 or farthest <= exact:
        raise ValueError(
            f"{count} buckets up to a distance of {farthest}: give at least"
            f" {2 if causal else 4} buckets and a distance above {max(exact, 1)}"
        )
    ahead = jnp.zeros_like(offset) if causal else half * (offset > 0)
    distance = jnp.maximum(-offset, 0) if causal else jnp.abs(offset)
    scaled = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(farthest / exact)
    far = exact + (scaled * (half - exact)).astype(jnp.int32)
    return ahead + jnp.where(distance < exact, distance, jnp.minimum(far, half - 1))
