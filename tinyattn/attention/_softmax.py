"""The softmax core: exact attention over dense blocks, with its own gradient."""

import jax
import jax.numpy as jnp

from tinyattn.masks import Mask

# Stands for minus infinity where a difference of two of them must not be NaN.
FLOOR = -1e30


def attend(query, key, value, mask: Mask):
    """softmax(query key^T / sqrt(H)) value over allowed keys; see `dense` for the shapes."""
    T, S = query.shape[1], key.shape[1]
    allowed = mask.dense(T, S) if mask.kinds else None
    return attend_block(query, key, value, allowed)


def attend_block(query, key, value, allowed=None):
    """One dense block: query [B, T, N, H], key and value [B, S, K, H], allowed bool [B or 1, T, S]."""
    B, T, N, H = query.shape
    K = key.shape[2]
    query = query.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=jnp.float32)
    scores = scores / jnp.sqrt(H)
    if allowed is not None:
        scores = jnp.where(allowed[:, None, None], scores, FLOOR)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    if allowed is not None:
        weights = jnp.where(allowed[:, None, None], weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value)
    return out.reshape(B, T, N, H)
