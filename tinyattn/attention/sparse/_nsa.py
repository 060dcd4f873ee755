"""Decoding of `nsa`: beside the tokens it keeps the compressed ones, which grow as their blocks do."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn import masks
from tinyattn.attention._core import cache, pieces, softmax
from tinyattn.attention._core.layout import contain
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import _decode


class State(NamedTuple):
    """Keys and values of all tokens so far, and weighted sums of those of each block.

    Attributes:
      tokens: As of `dense`.
      block_key: [B, blocks, K, H], at least float32; not seen before the block has ended.
      block_value: As `block_key`.
    """

    tokens: cache.Cache
    block_key: jax.Array
    block_value: jax.Array


def init_state(config, B: int, capacity: int, H: int, dtype=jnp.float32) -> State:
    """An empty cache with room for `capacity` tokens of B examples, and sums of nothing."""
    tokens = cache.empty(B, capacity, config.kv_heads, H, dtype)
    shape = (B, -(-capacity // config.block), config.kv_heads, H)
    sums = jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
    return State(tokens, sums, sums)


def step(config, state: State, query, key, value, gate, compress_key, compress_value, active=None):
    """One token more, as `dense.step`.

    Args:
      config: The variant's fields.
      state: Of `init_state`, or of the step before.
      query: [B, 1, N, H].
      key: [B, 1, K, H].
      value: [B, 1, K, H].
      gate: Logits [B, 1, N, 3].
      compress_key: Logits [C, K].
      compress_value: Logits [C, K].
      active: bool [B].
    """
    B, blocks, K, H = state.block_key.shape
    active = jnp.ones(B, bool) if active is None else active
    t, C, N, wide = state.tokens.length, config.block, query.shape[2], state.block_key.dtype
    tokens = cache.write(state.tokens, key, value, active)
    sums = _compressed(config, state, key, value, compress_key, compress_value, active)
    c, own, here = jnp.arange(blocks), (t // C)[:, None, None], t[:, None, None]
    shown = (c + 1) * C <= here + 1  # [B, 1, blocks]
    asked = query.astype(wide).reshape(B, K, N // K, H)
    scores = jnp.einsum("bkmh,bckh->bkmc", asked, sums[0]) * H**-0.5
    weights = pieces.softmax(scores, shown[:, :, None])
    compressed = jnp.einsum("bkmc,bckh->bkmh", weights, sums[1]).reshape(B, 1, N, H)
    if config.top >= blocks:
        seen = masks.padding(cache.valid(tokens))
        whole = softmax.attend(query, tokens.key, tokens.value, seen)
    else:
        # The choice has no gradient.
        rank = jnp.where(shown, jax.lax.stop_gradient(weights).sum(2), -jnp.inf)
        rank = jnp.where((c == 0) | (c == own), jnp.inf, rank)
        best, chosen = jax.lax.top_k(rank, config.top)
        at = (chosen[..., None] * C + jnp.arange(C)).reshape(B, K, -1)
        seen = jnp.repeat(best > -jnp.inf, C, axis=-1) & (at <= here)
        whole = _decode.attend(query, tokens, at, seen)
    near = here - jnp.arange(min(config.window, tokens.key.shape[1]))
    near = _decode.attend(query, tokens, near, near >= 0)
    branches = jnp.stack([compressed, whole.astype(wide), near.astype(wide)], -1)
    out = (branches * jax.nn.sigmoid(gate.astype(wide))[..., None, :]).sum(-1)
    return cache.full(tokens, out.astype(query.dtype)), State(tokens, *sums)


def _compressed(config, state, key, value, compress_key, compress_value, active):
    """The sums of the blocks' keys and values with one token more."""
    (B, blocks), C = state.block_key.shape[:2], config.block
    t = state.tokens.length
    row = jnp.where(active, t // C, blocks)
    key, value, poison = contain(key, value)

    def add(sums, new, logits):
        weight = jax.nn.softmax(logits.astype(sums.dtype), axis=0)[t % C]  # [B, K]
        # Not a number in all of it, as of a block that holds such a token in parallel.
        weight = jnp.where(poison, jnp.nan, weight[..., None])
        new = weight * new[:, 0].astype(sums.dtype)
        return sums.at[jnp.arange(B), row].add(new, mode="drop")

    return add(state.block_key, key, compress_key), add(state.block_value, value, compress_value)


def state_bytes(config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: keys and values, of blocks as well."""
    heads = dense.state_bytes(config, D=D, length=length, itemsize=itemsize)
    blocks = -(-length // config.block) * 2 * config.kv_heads * config.width(D)
    return heads + blocks * max(itemsize, 4)
