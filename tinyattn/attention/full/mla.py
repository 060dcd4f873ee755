"""Multi-head latent attention: keys and values of all heads expand from one small latent a token.

The latent c of a token, [R], is a normed projection of it, from which head n has its key c W_n and its
value c V_n, both of width H. Beside that key stands a k' of width Hr, shared by all heads, which carries
the position: a score is (q·c W_n + q'·k') / sqrt(H + Hr). Decoding never expands: q W_n^T meets latents,
their mixture goes through V_n, and a token leaves R + Hr numbers behind.

Source: DeepSeek-AI 2024, "DeepSeek-V2", https://arxiv.org/abs/2405.04434, section 2.1; the norms of the
  latents, by root mean square, are in section 3.1.2 and the authors' code.
Differs: projections of tokens have biases. Rotary positions are the model's; where it has others, k' is a
  part of the key like any other, which the heads share. No scaling factors beside the norms, which section
  3.1.2 mentions and the authors' code has not.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, attention, axes, masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention._core.layout import contain
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross", "bias"})
SIMULATED = False
COST = "T * T"
DENSE_WHEN = None
CASES = (
    {"latent": 5, "rope_dim": 4},
    {"latent": 3, "query_latent": 7, "rope_dim": 0, "head_dim": 4},
)
LECUN = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """`head_dim` is the width of what a latent expands to; `num_kv_heads` is 0 or `num_heads`.

    Attributes:
      latent: Width of the latent of keys and values (R); the paper's is 4 H.
      query_latent: Width of a latent of their own that queries expand from; 0 is none.
      rope_dim: Width of the shared rotary key (Hr), an even number; 0 is none. The paper's is H / 2.
    """

    latent: int = 32
    query_latent: int = 0
    rope_dim: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.kv_heads != self.num_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads}: all heads share one latent and none shares what"
                f" it expands to; leave it 0 and choose 'latent' for a smaller cache"
            )
        if self.latent < 1 or self.query_latent < 0:
            raise ValueError(
                f"latent={self.latent} must be at least 1, and query_latent={self.query_latent}"
                f" positive or 0 for none"
            )
        if self.rope_dim < 0 or self.rope_dim % 2:
            raise ValueError(
                f"rope_dim={self.rope_dim} must be even, for positions turn pairs, or 0 for none"
            )


def project(
    config: Config, inputs, memory=None, *, rotate=None, kernel_init=LECUN
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query [B, T, N, H + Hr], shared key [B, S, 1, Hr] and latent [B, S, 1, R] of the tokens.

    Raises:
      ValueError: Positions are to be rotated and rope_dim is 0.
    """
    N, H, Hr = config.num_heads, config.width(inputs.shape[-1]), config.rope_dim
    if rotate and not Hr:
        raise ValueError("rope_dim=0 leaves nothing for rotary positions to turn: make it positive")
    query_layer = {"query": N * (H + Hr)}
    asked = {"query_latent": config.query_latent} if config.query_latent else query_layer
    kept = {"latent": config.latent} | ({"key": Hr} if Hr else {})
    if memory is None:
        query, latent, *key = affine.dense(inputs, asked | kept, kernel_init)
    else:
        (query,) = affine.dense(inputs, asked, kernel_init)
        latent, *key = affine.dense(memory, kept, kernel_init)
    if config.query_latent:
        query = nn.RMSNorm(dtype=query.dtype, name="query_norm")(query)
        (query,) = affine.dense(query, query_layer, kernel_init)
    latent = nn.RMSNorm(dtype=latent.dtype, name="latent_norm")(latent)[:, :, None]
    query = query.reshape(*query.shape[:-1], N, H + Hr)
    key = key[0][:, :, None] if key else latent[..., :0]
    if rotate:
        own, turned = jnp.split(query, [H], axis=-1)
        query, key = jnp.concatenate([own, rotate(turned)], axis=-1), rotate(key)
    return query, key, latent


class _Expansion(nn.Module):
    """[R, N, H], stored as the kernel [R, N H] that initialisers and weight schemes know."""

    shape: tuple[int, int, int]
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self):
        R, N, H = self.shape
        return self.param("kernel", self.kernel_init, (R, N * H)).reshape(self.shape)


def extras(config: Config, inputs, memory=None, *, kernel_init=LECUN) -> dict[str, jax.Array]:
    """What expands a latent to the keys and to the values of all heads, each [R, N, H]."""
    shape = config.latent, config.num_heads, config.width(inputs.shape[-1])
    return {
        name: _Expansion(shape, kernel_init, name=name)().astype(inputs.dtype)
        for name in ("up_key", "up_value")
    }


def attend(config: Config, query, key, value, mask: Mask, up_key, up_value, bias=None) -> jax.Array:
    """Softmax attention over the expanded keys and values, [B, T, N, H].

    Args:
      config: The variant's fields.
      query: [B, T, N, H + Hr].
      key: [B, S, 1, Hr], which all heads share.
      value: [B, S, 1, R], the latents.
      mask: Who may see whom.
      up_key: [R, N, H].
      up_value: [R, N, H].
      bias: A `tinyattn.biases.Bias` of the N heads.
    """
    attention.check(__name__, SUPPORTS, mask)
    _check_shapes(query, key, value, up_key, up_value)
    # The gradient of an expansion sums over all tokens, those that nobody may see as well.
    key, value, poison = contain(key, value)
    keys, values = (_product("bsr,rnh->bsnh", value[:, :, 0], up) for up in (up_key, up_value))
    shared = jnp.broadcast_to(key, (*keys.shape[:-1], key.shape[-1])).astype(keys.dtype)
    keys = jnp.concatenate([keys, shared], axis=-1)
    keys = jnp.where(poison[:, 0, :, None, None], jnp.nan, keys)
    return softmax.attend(query, keys, values, mask, bias=bias)


def _product(formula: str, x, y):
    """The einsum, no narrower than float32."""
    wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return jnp.einsum(formula, x, y, preferred_element_type=wide)


def _check_shapes(query, key, value, up_key, up_value) -> None:
    """Raises ValueError where the arrays do not fit together."""
    # H is the width of the shared key here, and of the expanded one below.
    found = axes.sizes(key=(key, "BSKH"), value=(value, "BSKR"))
    axes.sizes(
        value=(value, "BSKR"),
        up_key=(up_key, "RNH"),
        up_value=(up_value, "RNH"),
        query=(query[..., found["H"] :], "BTNH"),
    )
    if found["K"] != 1:
        raise ValueError(f"all heads share one key and one latent: {found['K']} are given")


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> cache.Cache:
    """An empty cache of latents and shared keys for `capacity` tokens of B examples, whatever H is."""
    state = cache.empty(B, capacity, 1, config.latent, dtype)
    return state._replace(key=jnp.zeros((B, capacity, 1, config.rope_dim), dtype))


def step(
    config: Config, state: cache.Cache, query, key, value, up_key, up_value, active=None, bias=None
):
    """One token more: its output [B, 1, N, H] among all tokens so far, and the new state.

    Args:
      config: The variant's fields.
      state: Of `init_state`, or of the step before.
      query: [B, 1, N, H + Hr].
      key: [B, 1, 1, Hr].
      value: [B, 1, 1, R].
      up_key: [R, N, H].
      up_value: [R, N, H].
      active: bool [B], examples that get a token; None is all. The output of the others means nothing
        and their state stays.
      bias: A `tinyattn.biases.Bias` of the N heads.

    Returns:
      The output, NaN beyond the capacity, and the state.
    """
    _check_shapes(query, key, value, up_key, up_value)
    active = jnp.ones(query.shape[0], bool) if active is None else active
    state = cache.write(state, key, value, active)
    own, turned = jnp.split(query, [up_key.shape[-1]], axis=-1)
    own = _product("btnh,rnh->btnr", own, up_key)
    absorbed = jnp.concatenate([own, turned.astype(own.dtype)], axis=-1)
    kept = jnp.concatenate([state.value, state.key], axis=-1)
    seen, scale = masks.padding(cache.valid(state)), 1 / math.sqrt(query.shape[-1])
    mixed = softmax.attend(absorbed, kept, state.value, seen, scale=scale, bias=bias)
    out = _product("btnr,rnh->btnh", mixed, up_value).astype(query.dtype)
    return cache.full(state, out), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: R + Hr numbers a token and the length."""
    return length * (config.latent + config.rope_dim) * itemsize + 4


def reference(
    config: Config, query, key, value, mask: Mask, up_key, up_value, bias=None
) -> jax.Array:
    """The two sums of a score apart and the whole table of weights at once, in float32."""
    H, dtype = up_key.shape[-1], query.dtype
    query, key, value, up_key, up_value = (
        x.astype(jnp.float32) for x in (query, key[:, :, 0], value[:, :, 0], up_key, up_value)
    )
    scores = jnp.einsum("btnh,bsr,rnh->bnts", query[..., :H], value, up_key)
    scores += jnp.einsum("btnh,bsh->bnts", query[..., H:], key)
    N, T, S = scores.shape[1:]
    scores /= jnp.sqrt(query.shape[-1])
    if bias is not None:
        scores += bias.dense(N, T, S)
    allowed = mask.dense(T, S)[:, None]
    seen = allowed.any(-1, keepdims=True)
    scores = jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bnts,bsr,rnh->btnh", weights, value, up_value).astype(dtype)


class Attention(attention.Shell):
    """Multi-head latent attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every latent is expanded and every pair executed; allowed pairs are useful. FLOPs an example."""
    N, H, Hr, R = config.num_heads, config.width(D), config.rope_dim, config.latent
    width = config.query_latent or D
    parts = {"query": T * width * N * (H + Hr)}
    if config.query_latent:
        parts["query_latent"] = T * D * width
    parts |= {"key": S * D * Hr, "latent": S * D * R, "out": T * N * H * D}
    parts |= {"up_key": S * R * N * H, "up_value": S * R * N * H}
    executed, useful = softmax.pairs(T, S, mask), float(mask.pairs(T, S).mean())
    core = {"scores": 2 * N * (H + Hr), "mix": 2 * N * H}
    return {
        **{name: attention.products(n) for name, n in parts.items()},
        **{name: attention.Work(n * executed, n * useful) for name, n in core.items()},
    }
