"""Scaled dot-product attention over all keys: multi-head, grouped-query and multi-query.

Source: Vaswani et al. 2017, "Attention is all you need", https://arxiv.org/abs/1706.03762, section 3.2;
  Ainslie et al. 2023, "GQA", https://arxiv.org/abs/2305.13245, section 2.2, for `num_kv_heads`.
Differs: a query that may see no key gives zeros, where a softmax over a masked row gives the mean of
  the values.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tinyattn import attention
from tinyattn.attention import _softmax
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross"})
SIMULATED = False
DENSE_WHEN = {}
CASES = ({}, {"num_kv_heads": 2}, {"num_kv_heads": 1}, {"head_dim": 5})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """Multi-head by default; `num_kv_heads` makes it grouped- (1 < K < N) or multi-query (1)."""


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """softmax(query key^T / sqrt(H)) value over the keys that the mask allows, [B, T, N, H]."""
    attention.check(__name__, SUPPORTS, mask)
    attention.check_shapes(query, key, value)
    return _softmax.attend(query, key, value, mask)


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """The whole table of weights at once, in float32, straight from the formula."""
    N, H = query.shape[2:]
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query.astype(jnp.float32), key) / jnp.sqrt(H)
    allowed = mask.dense(*scores.shape[2:])[:, None]
    seen = allowed.any(-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0), axis=-1)
    out = jnp.einsum("bnts,bsnh->btnh", jnp.where(seen, weights, 0.0), value)
    return out.astype(query.dtype)


class Attention(attention.Shell):
    """Dense attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every pair is executed; only allowed pairs are useful. FLOPs an example."""
    per_pair = 2 * config.num_heads * config.width(D)
    pairs = attention.Work(
        per_pair * _softmax.pairs(T, S), per_pair * float(mask.pairs(T, S).mean())
    )
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "scores": pairs,
        "mix": pairs,
    }
