"""Attention on a ring: the last token is as close to the first as to the one before it.

Source: Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864, section 3.2.1, for what turns.
Differs: only the first two features turn, by an angle that closes the circle after T tokens.
"""

import dataclasses

import jax.numpy as jnp

from tinyattn import attention
from tinyattn.attention import dense

SUPPORTS = dense.SUPPORTS - {"cross"}  # another sequence has another circle
SIMULATED = False  # no product is masked that could have been left out
DENSE_WHEN = {"turns": 0}
CASES = ({"turns": 2, "num_kv_heads": 2},)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      turns: How often a sequence goes round the circle.
    """

    turns: int = 1


def angles(config, T):
    """The place of every token on the circle, [T, 1] (radians)."""
    return 2 * jnp.pi * config.turns / T * jnp.arange(T)[:, None]


def attend(config, query, key, value, mask):
    """Dense attention between heads that are turned to their places, [B, T, N, H]."""
    attention.check(__name__, SUPPORTS, mask)
    cos, sin = (f(angles(config, query.shape[1])) for f in (jnp.cos, jnp.sin))

    def turn(x):
        a, b = x[..., 0], x[..., 1]
        turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
        return jnp.concatenate([turned.astype(x.dtype), x[..., 2:]], axis=-1)

    return dense.attend(config, turn(query), turn(key), value, mask)


def reference(config, query, key, value, mask):
    """The two features as one complex number, times that of the place."""

    def turn(x):
        z = (x[..., 0] + 1j * x[..., 1]) * jnp.exp(1j * angles(config, x.shape[1]))
        return jnp.concatenate([z.real[..., None], z.imag[..., None], x[..., 2:]], axis=-1)

    return dense.reference(config, turn(query), turn(key), value, mask)


class Attention(attention.Shell):
    """The module: projections around `attend`."""


def flops(config, mask, *, D, T, S):
    """Those of dense attention: turning multiplies element by element."""
    return dense.flops(config, mask, D=D, T=T, S=S)
