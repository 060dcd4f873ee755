"""Keys and values kept between decoding steps: all of them, or a ring of the last ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cache(NamedTuple):
    """What a decoding step reads and writes.

    Attributes:
      key: [B, capacity, K, H].
      value: [B, capacity, K, H].
      length: int32 [B], tokens written so far; examples of a batch may differ.
      log_decay: [B, capacity, N], at least float32, what each token takes off the scores of all before
        it; None if tokens do not fade. 0 where no token is.
    """

    key: jax.Array
    value: jax.Array
    length: jax.Array
    log_decay: jax.Array | None = None


def empty(B: int, capacity: int, K: int, H: int, dtype=jnp.float32, *, decays: int = 0) -> Cache:
    """A cache with room for `capacity` tokens an example, each with `decays` logarithms (N or none)."""
    if capacity < 1:
        raise ValueError(f"{capacity=} must be at least 1 token")
    shape = (B, capacity, K, H)
    cache = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(B, jnp.int32))
    if not decays:
        return cache
    wide = jnp.promote_types(dtype, jnp.float32)
    return cache._replace(log_decay=jnp.zeros((B, capacity, decays), wide))


def write(cache: Cache, key, value, active, log_decay=None, *, slot=None) -> Cache:
    """The cache with one more token, [B, 1, ...], for each example that is `active`, bool [B].

    It goes to its `slot`, int [B], such as that of a ring's oldest token. None is after the last one;
    what is beyond the capacity is not kept, see `full`.
    """
    slot = jnp.where(active, cache.length if slot is None else slot, cache.key.shape[1])
    return Cache(
        put(cache.key, key, slot),
        put(cache.value, value, slot),
        cache.length + active,
        None if cache.log_decay is None else put(cache.log_decay, log_decay, slot),
    )


def put(held: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
    """[B, slots, ...] with [B, 1, ...] at a slot of each example, int [B]; past the last it is dropped."""
    new = new[:, 0].astype(held.dtype)
    return held.at[jnp.arange(len(held)), slot].set(new, mode="drop")


def valid(cache: Cache) -> jax.Array:
    """Which slots hold a token, bool [B, capacity]."""
    return jnp.arange(cache.key.shape[1])[None] < cache.length[:, None]


def full(cache: Cache, out: jax.Array, capacity: int | None = None) -> jax.Array:
    """NaN for examples that outgrew their capacity, for a compiled step cannot raise: out [B, 1, N, H].

    The capacity is as many tokens as there are slots, if it is None.
    """
    over = cache.length > (cache.key.shape[1] if capacity is None else capacity)
    return jnp.where(over[:, None, None, None], jnp.nan, out)
