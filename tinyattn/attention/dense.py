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
    """One head at a time, in float32, straight from the formula."""
    T, N, H = query.shape[1:]
    S, K = key.shape[1:3]
    allowed = mask.dense(T, S)
    out = []
    for n in range(N):
        heads = query[:, :, n], key[:, :, n * K // N], value[:, :, n * K // N]
        q, k, v = (x.astype(jnp.float32) for x in heads)
        scores = jnp.where(allowed, q @ k.mT / jnp.sqrt(H), -jnp.inf)
        seen = allowed.any(-1, keepdims=True)
        weights = jax.nn.softmax(jnp.where(seen, scores, 0.0), axis=-1)
        out.append(jnp.where(seen, weights, 0.0) @ v)
    return jnp.stack(out, axis=2).astype(query.dtype)


class Attention(attention.Shell):
    """Dense attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every pair is executed; only allowed pairs are useful. FLOPs an example."""
    per_pair = 2 * config.num_heads * config.width(D)
    pairs = attention.Work(per_pair * T * S, per_pair * float(mask.pairs(T, S).mean()))
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "scores": pairs,
        "mix": pairs,
    }
