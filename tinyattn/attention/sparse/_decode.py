"""Decoding out of a cache from which each example gathers the keys that its own token sees.

Examples of a batch are of unequal length, so each has places of its own; there are as many for all, and
those that are too many are masked. Only what is gathered is worked on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tinyattn import masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention.full import dense


def attend(query, tokens: cache.Cache, at, seen) -> jax.Array:
    """Softmax over the keys at the places that are seen, [B, 1, N, H].

    Args:
      query: [B, 1, N, H].
      tokens: Of K heads.
      at: int [B, G, n], the places of G groups of the heads: of all alike, of each of the K or of each of
        the N. Where nothing is seen it may be any number.
      seen: bool [B, G, n].
    """
    (B, P, K, H), (G, n), N = tokens.key.shape, at.shape[1:], query.shape[2]
    J = min(G, K)  # Groups of key/value heads, each of which serves G / J groups.
    rows, groups = jnp.arange(B)[:, None, None], (jnp.arange(G) * J // G)[:, None]
    at = jnp.clip(at, 0, P - 1)

    def take(x):
        x = x.reshape(B, P, J, K // J, H)[rows, at, groups]
        return x.reshape(B * G, n, K // J, H)

    query = query.reshape(B * G, 1, N // G, H)
    mask = masks.padding(seen.reshape(B * G, n))
    return softmax.attend(query, take(tokens.key), take(tokens.value), mask).reshape(B, 1, N, H)


def functions(places: Callable) -> tuple[Callable, ...]:
    """`init_state`, `step` and `state_bytes` of a static pattern, which keep all keys and values.

    Args:
      places: (config, capacity, t) -> int [B, n], the places of the keys that queries at t, int [B], see
        of as many tokens as the capacity, each once. What is not in 0 to t does not count.
    """

    def step(config, state: cache.Cache, query, key, value, active=None):
        """One token more, as `dense.step`: it reads what its row of the pattern allows."""
        active = jnp.ones(query.shape[0], bool) if active is None else active
        t = state.length
        at = places(config, state.key.shape[1], t)[:, None]
        state = cache.write(state, key, value, active)
        out = attend(query, state, at, (at >= 0) & (at <= t[:, None, None]))
        return cache.full(state, out), state

    return dense.init_state, step, dense.state_bytes
