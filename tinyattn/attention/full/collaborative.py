"""Collaborative attention: all heads share one query and one key, and differ by how they weigh features.

Of tokens x and y head n has the score (x W_Q) diag(m_n) (y W_K)^T: projections of width R for all heads
together, and for each a mixing vector m_n of R numbers. Heads that own a block of features each, with ones
there and zeros elsewhere, are multi-head attention; heads whose features overlap do with a smaller R.
The shared key is held once: it is not copied for the heads, and a cache of it grows by R numbers a token.

Source: Cordonnier, Loukas and Jaggi 2020, "Multi-head attention: collaborate instead of concatenate",
  https://arxiv.org/abs/2006.16362, section 3; that scores are divided by sqrt(R / N), and that mixing
  vectors start from a normal distribution of width 0.2, is the authors' code.
Differs: the shared query has a bias, which m_n weighs as it does the query, where the authors give each
  head a learned score of the keys. Rotary positions turn what is mixed, so that scores depend on distances;
  the paper's positions are not rotary. Values may be fewer than heads of scores.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, attention, axes, masks
from tinyattn.attention._core import cache, softmax
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross", "bias"})
SIMULATED = False
COST = "T * T"
# One-hot blocks are no field: that they make it multi-head has a test of its own.
DENSE_WHEN = None
CASES = ({"shared_dim": 7}, {"num_kv_heads": 2})
LECUN = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """`num_kv_heads` counts the heads of the values (K), for all share one key.

    Attributes:
      shared_dim: Width of the query and of the key that all heads share (R); 0 is N H, as much as
        multi-head attention has.
    """

    shared_dim: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.shared_dim < 0:
            raise ValueError(f"shared_dim={self.shared_dim} must be positive, or 0 for N H")

    def shared(self, H: int) -> int:
        """Width of the shared query and key (R) beside values of width H."""
        return self.shared_dim or self.num_heads * H


class _Mixing(nn.Module):
    """Declares the mixing vectors [N, R]."""

    @nn.compact
    def __call__(self, N: int, R: int) -> jax.Array:
        return self.param("vectors", nn.initializers.normal(0.2), (N, R))


def project(
    config: Config, inputs, memory=None, *, rotate=None, kernel_init=LECUN
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The shared query as each head mixes it [B, T, N, R], shared key [B, S, 1, R], value [B, S, K, H].

    Raises:
      ValueError: Positions are to be rotated and R is odd.
    """
    N, K, H = config.num_heads, config.kv_heads, config.width(inputs.shape[-1])
    R = config.shared(H)
    if rotate and R % 2:
        raise ValueError(f"rotary positions turn pairs: shared_dim={R} is odd; make it even")
    if memory is None:
        layers = {"query": R, "key": R, "value": K * H}
        query, key, value = affine.dense(inputs, layers, kernel_init)
    else:
        (query,) = affine.dense(inputs, {"query": R}, kernel_init)
        key, value = affine.dense(memory, {"key": R, "value": K * H}, kernel_init)
    mixing = _Mixing(name="mixing")(N, R).astype(query.dtype)
    query, key = query[:, :, None] * mixing, key[:, :, None]
    if rotate:
        query, key = rotate(query), rotate(key)
    return query, key, value.reshape(*value.shape[:-1], K, H)


def attend(config: Config, query, key, value, mask: Mask, bias=None) -> jax.Array:
    """softmax(query key^T / sqrt(R / N) + bias) value over the allowed keys, [B, T, N, H].

    Args:
      config: The variant's fields.
      query: [B, T, N, R], mixed.
      key: [B, S, 1, R], which all heads share.
      value: [B, S, K, H].
      mask: A query that may see no key gives zeros.
      bias: A `tinyattn.biases.Bias`.
    """
    attention.check(__name__, SUPPORTS, mask)
    _check_shapes(query, key, value)
    return softmax.attend(query, key, value, mask, scale=_scale(query), bias=bias)


def _scale(query) -> float:
    """Of the scores: one over the root of a head's share of the features."""
    return (query.shape[2] / query.shape[3]) ** 0.5


def _check_shapes(query, key, value) -> None:
    """Raises ValueError where the arrays do not fit together."""
    if key.ndim == 4 and key.shape[2] != 1:
        raise ValueError(f"all heads share one key: {key.shape[2]} are given")
    # K is the number of heads of the value alone.
    found = axes.sizes(query=(query, "BTNR"), key=(key[:, :, 0], "BSR"), value=(value, "BSKH"))
    if found["N"] % found["K"]:
        raise ValueError(f"{found['K']} value heads must divide {found['N']} query heads")


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> cache.Cache:
    """An empty cache of shared keys, and values of width H, for `capacity` tokens of B examples."""
    state = cache.empty(B, capacity, config.kv_heads, H, dtype)
    return state._replace(key=jnp.zeros((B, capacity, 1, config.shared(H)), dtype))


def step(config: Config, state: cache.Cache, query, key, value, active=None, bias=None):
    """One token more, as `dense.step`."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    state = cache.write(state, key, value, active)
    seen = masks.padding(cache.valid(state))
    out = attend(config, query, state.key, state.value, seen, bias)
    return cache.full(state, out), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: R + K H numbers a token and the length."""
    H = config.width(D)
    return length * (config.shared(H) + config.kv_heads * H) * itemsize + 4


def reference(config: Config, query, key, value, mask: Mask, bias=None) -> jax.Array:
    """The whole table of weights at once, in float32."""
    N, R = query.shape[2:]
    dtype, query, key = query.dtype, query.astype(jnp.float32), key[:, :, 0].astype(jnp.float32)
    value = attention.repeat_heads(value, N).astype(jnp.float32)
    scores = jnp.einsum("btnr,bsr->bnts", query, key) / jnp.sqrt(R / N)
    T, S = scores.shape[2:]
    if bias is not None:
        scores += bias.dense(N, T, S)
    allowed = mask.dense(T, S)[:, None]
    seen = allowed.any(-1, keepdims=True)
    scores = jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(dtype)


class Attention(attention.Shell):
    """Collaborative attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every pair is executed, at R features a head; allowed pairs are useful. FLOPs an example."""
    N, K, H = config.num_heads, config.kv_heads, config.width(D)
    R = config.shared(H)
    layers = {"query": T * D * R, "key": S * D * R, "value": S * D * K * H, "out": T * N * H * D}
    executed, useful = softmax.pairs(T, S, mask), float(mask.pairs(T, S).mean())
    core = {"scores": 2 * N * R, "mix": 2 * N * H}
    return {
        **{name: attention.products(n) for name, n in layers.items()},
        **{name: attention.Work(n * executed, n * useful) for name, n in core.items()},
    }
