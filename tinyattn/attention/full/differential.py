"""Differential attention: λ times a second softmax map is taken from the first.

Heads come in pairs, 2i and 2i + 1, each with queries and keys of its own; their values, side by side, are
one of width 2H. A pair gives (1 - λ0) g norm((A_2i - λ A_2i+1) V_i) with a norm by root mean square, a
gain g [2H], and λ = exp(q1·k1) - exp(q2·k2) + λ0 of learned vectors [H]; all pairs of a layer share them.
A layer has the kernels of plain attention with as many heads.

Source: Ye et al. 2024, "Differential Transformer", https://arxiv.org/abs/2410.05258, section 2.1; the order
  of the heads and the epsilon of the norm are those of the authors' code.
Differs: λ0 is a field, by default the paper's of the first layer, and one for all layers of a model; the
  paper's grows with depth. `num_heads` counts maps, the paper's counts pairs. Each map is multiplied with
  the values before the difference, as in the authors' fast code: one product more than needed. With
  fewer key/value heads the maps of a pair still have keys of their own, as in that code; in the authors'
  plain code they may share them. A bias is of a map, not of a pair.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention.full import dense
from tinyattn.biases import Bias
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross", "bias"})
SIMULATED = False
COST = "T * T"
DENSE_WHEN = None
CASES = ({}, {"num_kv_heads": 2, "head_dim": 5, "lambda_init": 0.6})
# Added to the mean square of a head.
EPSILON = 1e-5
VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      lambda_init: Share of the second map at the start (λ0); the paper's is 0.8 - 0.6 exp(-0.3 (l - 1)) in
        layer l = 1, 2, ...
    """

    lambda_init: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        if self.num_heads % 2 or self.kv_heads % 2:
            raise ValueError(
                f"num_heads={self.num_heads} and num_kv_heads={self.num_kv_heads} must be even: two"
                f" heads make a pair of maps"
            )
        if not 0 <= self.lambda_init < 1:
            raise ValueError(
                f"lambda_init={self.lambda_init} must be in [0, 1): the output has a factor of"
                f" 1 - lambda_init"
            )


class _Difference(nn.Module):
    """The learned vectors of λ and the gain of the norm."""

    H: int

    @nn.compact
    def __call__(self):
        normal = nn.initializers.normal(0.1)
        lambdas = [self.param(name, normal, (self.H,)) for name in VECTORS]
        norm = self.param("norm", nn.initializers.ones, (2 * self.H,))
        return {"lambdas": jnp.stack(lambdas), "norm": norm}


def extras(config: Config, inputs, memory=None, *, kernel_init=None) -> dict[str, jax.Array]:
    """The vectors q1, k1, q2, k2 of λ, [4, H], and the gain of the norm, [2H]; no kernels."""
    return _Difference(config.width(inputs.shape[-1]), name="difference")()


class _OfMap(NamedTuple):
    """What the core asks of a bias, for the first map of all pairs (0) or the second (1)."""

    bias: Bias
    which: int

    def per_item(self, B: int, K: int, M: int) -> Bias:
        own = self.bias.per_item(B, K, 2 * M)
        return jax.tree.map(lambda x: x[:, :, self.which :: 2], own)


def attend(config: Config, query, key, value, mask: Mask, lambdas, norm, bias=None) -> jax.Array:
    """(1 - λ0) norm((A1 - λ A2) value) of each pair over the keys that the mask allows, [B, T, N, H].

    Args:
      config: The variant's fields.
      query: [B, T, N, H], maps 2i and 2i + 1 of pair i.
      key: [B, S, K, H], in pairs alike.
      value: [B, S, K, H], two for each pair.
      mask: Who may see whom.
      lambdas: [4, H], the vectors q1, k1, q2, k2.
      norm: [2H], the gain.
      bias: A `tinyattn.biases.Bias` of the N maps.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    B, T, S, N, K, H = (size[axis] for axis in "BTSNKH")
    if K % 2 or lambdas.shape != (4, H) or norm.shape != (2 * H,):
        raise ValueError(
            f"{K} key/value heads of width {H} must be even in number, with lambdas [4, {H}] and norm"
            f" [{2 * H}]: {lambdas.shape} and {norm.shape}"
        )
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    # Maps may be near each other: nothing is rounded before their difference.
    queries = query.astype(dtype).reshape(B, T, N // 2, 2, H)
    keys, values = key.reshape(B, S, K // 2, 2, H), value.reshape(B, S, K // 2, 2 * H)
    first, second = (
        softmax.attend(
            queries[:, :, :, which],
            keys[:, :, :, which],
            values,
            mask,
            bias=None if bias is None else _OfMap(bias, which),
        )
        for which in (0, 1)
    )
    q1, k1, q2, k2 = lambdas.astype(dtype)
    share = jnp.exp((q1 * k1).sum()) - jnp.exp((q2 * k2).sum()) + config.lambda_init
    out = first - share * second
    out *= jax.lax.rsqrt(jnp.square(out).mean(-1, keepdims=True) + EPSILON)
    out *= (1 - config.lambda_init) * norm.astype(dtype)
    return out.reshape(B, T, N, H).astype(query.dtype)


init_state, state_bytes = dense.init_state, dense.state_bytes


def step(
    config: Config, state: cache.Cache, query, key, value, lambdas, norm, active=None, bias=None
):
    """One token more: its output [B, 1, N, H] among all tokens so far, and the new state.

    Args:
      config: The variant's fields.
      state: Of `init_state`, or of the step before.
      query: [B, 1, N, H].
      key: [B, 1, K, H].
      value: [B, 1, K, H].
      lambdas: [4, H].
      norm: [2H].
      active: bool [B], examples that get a token; None is all. The output of the others means nothing
        and their state stays.
      bias: A `tinyattn.biases.Bias` of the N maps.

    Returns:
      The output, NaN beyond the capacity, and the state.
    """
    active = jnp.ones(query.shape[0], bool) if active is None else active
    state = cache.write(state, key, value, active)
    seen = masks.padding(cache.valid(state))
    out = attend(config, query, state.key, state.value, seen, lambdas, norm, bias)
    return cache.full(state, out), state


def reference(config: Config, query, key, value, mask: Mask, lambdas, norm, bias=None) -> jax.Array:
    """Pair by pair, the tables of both maps and their difference, in float32."""
    dtype, (B, T, N, H), (S, K) = query.dtype, query.shape, key.shape[1:3]
    query, key, value, lambdas, norm = (
        x.astype(jnp.float32) for x in (query, key, value, lambdas, norm)
    )
    share = jnp.exp(lambdas[0] @ lambdas[1]) - jnp.exp(lambdas[2] @ lambdas[3])
    share += config.lambda_init
    # Head n is a map of pair n // 2, which reads the keys and values of pair n // 2 // (N / K).
    own = [2 * (n // 2 // (N // K)) + n % 2 for n in range(N)]
    scores = jnp.einsum("btnh,bsnh->bnts", query, key[:, :, jnp.array(own)]) / jnp.sqrt(H)
    if bias is not None:
        scores += bias.dense(N, T, S)
    allowed = mask.dense(T, S)[:, None]
    seen = allowed.any(-1, keepdims=True)
    scores = jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0)
    maps = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    even, odd = (value[:, :, jnp.array(own[which::2])] for which in (0, 1))
    both = jnp.concatenate([even, odd], axis=-1)
    out = jnp.einsum("bnts,bsnh->btnh", maps[:, ::2] - share * maps[:, 1::2], both)
    out /= jnp.sqrt((out**2).mean(-1, keepdims=True) + EPSILON)
    return ((1 - config.lambda_init) * norm * out).reshape(B, T, N, H).astype(dtype)


class Attention(attention.Shell):
    """Differential attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Both maps are multiplied with values of width 2H, where their difference alone needs it."""
    per_pair = 2 * config.num_heads * config.width(D)
    executed = per_pair * softmax.pairs(T, S, mask)
    useful = per_pair * float(mask.pairs(T, S).mean())
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "scores": attention.Work(executed, useful),
        "mix": attention.Work(2 * executed, useful),
    }
