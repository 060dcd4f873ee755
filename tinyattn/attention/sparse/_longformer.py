"""Decoding of `longformer`: when causal, only the global tokens and a window can still be seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn import masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention.full import dense


class State(NamedTuple):
    """The global tokens, then a ring of the window; and what global tokens read, if projected apart.

    Attributes:
      tokens: Of global_tokens + window slots, or of as many as the capacity.
      global_key: [B, G, K, H] or None.
      global_value: [B, G, K, H] or None.
    """

    tokens: cache.Cache
    global_key: jax.Array | None = None
    global_value: jax.Array | None = None


def init_state(config, B: int, capacity: int, H: int, dtype=jnp.float32) -> State:
    """An empty state, of one size for any capacity of more tokens than can be seen."""
    slots = min(config.global_tokens + config.window, capacity)
    tokens = cache.empty(B, slots, config.kv_heads, H, dtype)
    if not config.global_projections:
        return State(tokens)
    own = jnp.zeros((B, min(config.global_tokens, capacity), config.kv_heads, H), dtype)
    return State(tokens, own, own)


def step(
    config,
    state: State,
    query,
    key,
    value,
    active=None,
    *,
    global_query=None,
    global_key=None,
    global_value=None,
):
    """One token more, as `dense.step`; of the three last arrays it takes those of this token."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    tokens, slots = state.tokens, state.tokens.key.shape[1]
    t, G = tokens.length, min(config.global_tokens, slots)
    # Where the capacity leaves the ring no slot, this is one past the last.
    ring = G + (t - G) % max(1, slots - G)
    tokens = cache.write(tokens, key, value, active, slot=jnp.where(t < G, t, ring))
    out = softmax.attend(query, tokens.key, tokens.value, masks.padding(cache.valid(tokens)))
    state = State(tokens, state.global_key, state.global_value)
    if config.global_projections:
        slot = jnp.where(active, t, G)
        held = cache.put(state.global_key, global_key, slot)
        state = State(tokens, held, cache.put(state.global_value, global_value, slot))
        seen = masks.padding(jnp.arange(G) < tokens.length[:, None])
        first = softmax.attend(global_query, state.global_key, state.global_value, seen)
        out = jnp.where((t < G)[:, None, None, None], first, out)
    if slots < config.global_tokens + config.window:
        out = cache.full(tokens, out)
    return out, state


def state_bytes(config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: constant once the window is full."""
    kept = min(config.global_tokens + config.window, length)
    if config.global_projections:
        kept += min(config.global_tokens, length)
    return dense.state_bytes(config, D=D, length=kept, itemsize=itemsize)
