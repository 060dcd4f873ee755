"""Sigmoid attention: each weight is the sigmoid of its own score; a row is not normalised.

The weight of key s under query t is sigmoid(score - log n), so that n equal keys weigh about 1 together.
Queries go in pieces whose scores are computed again in the backward pass: memory is linear in the length.

Source: Ramapuram et al. 2024, "Theory, analysis, and best practices for sigmoid self-attention",
  https://arxiv.org/abs/2409.04431, sections 2 and 3.
Differs: n is the number of keys that the query may see, so that padding changes nothing and tokens decode
  one at a time; the paper takes the length of the sequence, which is `length`. Neither the paper's norm
  of the output nor LayerScale is part of the mechanism.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.attention._core import cache, pieces
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross", "bias"})
SIMULATED = False
COST = "T * T"
DENSE_WHEN = None
CASES = ({}, {"num_kv_heads": 2, "piece": 5, "length": 7})
# Scores of a head in one piece, unless the config says otherwise.
SCORES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      length: The n of the offset -log n, the same for all queries; 0 is as many keys as each may see.
      piece: Queries whose scores are held at a time; 0 is as many as make 2^17 scores, at least 64.
    """

    length: int = 0
    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.length < 0 or self.piece < 0:
            raise ValueError(
                f"length={self.length} must be positive, or 0 for the keys that a query may see, and"
                f" piece={self.piece} positive, or 0 for {SCORES} scores a piece"
            )


def attend(config: Config, query, key, value, mask: Mask, bias=None) -> jax.Array:
    """Σ_s sigmoid(query·key / sqrt(H) + bias - log n) value over the allowed keys, [B, T, N, H]."""
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    B, T, S, N, K, H = (size[axis] for axis in "BTSNKH")
    count, t = pieces.plan(T, config.piece, S, SCORES, pieces.FEWEST)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    key, value, poison = pieces.contained(key, value, dtype)
    bias = None if bias is None else bias.per_item(B, K, N // K)

    def piece(i, query):
        rows, columns = i * t + jnp.arange(t), jnp.arange(S)
        allowed = mask.allowed(rows, columns, S)[:, None, None]
        scores = jnp.einsum("btkmh,bksh->bkmts", query, key) / jnp.sqrt(H).astype(dtype)
        scores = jnp.where(poison[:, :, None, None], jnp.nan, scores)
        if bias is not None:
            scores += jax.vmap(jax.vmap(lambda item: item.scores(rows, columns)))(bias)
        # Masked here as well: NaN behind a mask would reach the gradient of the bias.
        scores = jnp.where(allowed, scores - _offset(config, allowed, dtype), 0)
        weights = jnp.where(allowed, jax.nn.sigmoid(scores), 0)
        return jnp.einsum("bkmts,bksh->btkmh", weights, value)

    return pieces.each(piece, query.astype(dtype), K, count, t).astype(kind)


def _offset(config: Config, allowed: jax.Array, dtype):
    """log n of each query, for allowed pairs [..., t, S]."""
    if config.length:
        return math.log(config.length)
    return jnp.log(jnp.maximum(allowed.sum(-1, keepdims=True), 1).astype(dtype))


init_state, state_bytes = dense.init_state, dense.state_bytes


def step(config: Config, state: cache.Cache, query, key, value, active=None, bias=None):
    """One token more, as `dense.step`: the keys that it may see are those so far."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    state = cache.write(state, key, value, active)
    seen = masks.padding(cache.valid(state))
    out = attend(config, query, state.key, state.value, seen, bias)
    return cache.full(state, out), state


def reference(config: Config, query, key, value, mask: Mask, bias=None) -> jax.Array:
    """The whole table of weights 1 / (1 + n exp(-score)) at once, in float32."""
    T, N, H = query.shape[1:]
    S, dtype = key.shape[1], query.dtype
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query.astype(jnp.float32), key) / jnp.sqrt(H)
    if bias is not None:
        scores += bias.dense(N, T, S)
    allowed = mask.dense(T, S)
    n = config.length or jnp.einsum("bts->bt", allowed.astype(jnp.float32))[:, None, :, None]
    weights = allowed[:, None] / (1 + n * jnp.exp(-scores))
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(dtype)


class Attention(attention.Shell):
    """Sigmoid attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every pair is executed; only allowed pairs are useful. FLOPs an example."""
    count, t = pieces.plan(T, config.piece, S, SCORES, pieces.FEWEST)
    per_pair = 2 * config.num_heads * config.width(D)
    pairs = attention.Work(per_pair * count * t * S, per_pair * float(mask.pairs(T, S).mean()))
    return {**attention.projection_flops(config, D=D, T=T, S=S), "scores": pairs, "mix": pairs}
