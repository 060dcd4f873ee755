"""Tokens that are d apart as sequences of their own, side by side: d of them, ceil(T / d) tokens each."""

import jax.numpy as jnp

from tinyattn.masks import Mask


def apart(x, d: int):
    """[B, T, ...] to [B * d, ceil(T / d), ...], with zeros at the ends."""
    if d == 1:
        return x
    B, T = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -T % d)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(B, -1, d, *x.shape[2:]).swapaxes(1, 2).reshape(B * d, -1, *x.shape[2:])


def together(x, d: int, T: int):
    """The inverse of `apart`: [B, T, ...]."""
    x = x.reshape(-1, d, *x.shape[1:]).swapaxes(1, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]


def mask_apart(mask: Mask, d: int, B: int, T: int) -> Mask:
    """The mask of sequences that `apart` made of B examples of T tokens; zeros at their end are masked."""
    if d == 1:
        return mask

    def own(x):
        return apart(jnp.broadcast_to(x, (B, T)), d)

    valid = mask.key_valid
    if valid is None and T % d:
        valid = jnp.ones((1, T), bool)
    return Mask(
        lookback=None if mask.lookback is None else mask.lookback // d,
        lookahead=None if mask.lookahead is None else mask.lookahead // d,
        key_valid=None if valid is None else own(valid),
        segments=tuple((own(q), own(k)) for q, k in mask.segments),
    )
