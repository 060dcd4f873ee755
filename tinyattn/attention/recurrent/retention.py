"""Retention: linear attention without a normaliser, whose heads forget at fixed rates.

Head i weighs a key that lies d tokens back with gamma^d, gamma = 1 - 2^(-5-i), so heads look back over 32,
64, 128, ... tokens. The decay is constant, so the state is carried from chunk to chunk in linear time.

Without a causal mask the weight is gamma^|t - s|: a pass forward and one backward, less the token itself,
which is in both. A step over a masked token decays nothing: tokens are as far apart as if it were absent.

Source: Sun et al. 2023, "Retentive Network", https://arxiv.org/abs/2307.08621, section 2.1 for the three
  forms, section 2.2 for the decays and the normalisation of scores.
Differs: of their normalisations the scale 1/sqrt(H) and the one by the root of a row's sum of decays are
  here; the one by the sum of scores, the group norm and the gate are not, and the rotation is the
  model's, as in other variants. The form without a causal mask is not theirs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention
from tinyattn.attention._core.layout import contain
from tinyattn.attention.recurrent import _chunks, _decode, _features
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding"})
SIMULATED = False
COST = "T * (H + chunk)"
DENSE_WHEN = None
CASES = ({"chunk": 4}, {"chunk": 5, "num_kv_heads": 2})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_features.Config):
    """Heads and `chunk`; the decays are given by the number of heads."""


def log_decays(N: int) -> np.ndarray:
    """The logarithm of every head's gamma, float32 [N]."""
    return np.log1p(-(2.0 ** (-5 - np.arange(N)))).astype(np.float32)


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Σ_s gamma^|t-s| (q_t·k_s) v_s / sqrt(H Σ_s gamma^|t-s|) over the allowed keys, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value, own="a distance")
    T, N = size["T"], size["N"]
    dtype, query = query.dtype, query.astype(jnp.float32) * size["H"] ** -0.5
    key, value, poison = contain(key, value)
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    decays = jnp.asarray(log_decays(N))
    valid = jnp.ones((1, T), bool) if mask.key_valid is None else mask.key_valid
    key, value, steps = _chunks.masked(key, value, decays, mask.key_valid)
    sums = _chunks.chunked(query, key, value, steps, chunk=config.chunk)
    weights = _geometric(decays, jnp.cumsum(valid, axis=1))
    if mask.lookahead != 0:
        turned = [jnp.flip(x, 1) for x in (query, key, value)]
        steps = steps if steps.ndim == 1 else jnp.flip(steps, 1)
        after = _chunks.chunked(*turned, steps, chunk=config.chunk)
        sums += jnp.flip(after, 1) - (query * key).sum(-1, keepdims=True) * value
        ahead = jnp.flip(jnp.cumsum(jnp.flip(valid, 1), axis=1), 1)
        weights += _geometric(decays, ahead) - valid[..., None]
    # At least 1 where a key is seen.
    out = sums * jax.lax.rsqrt(jnp.maximum(weights, 1.0))[..., None]
    return _features.poisoned(out, poison, mask).astype(dtype)


def _geometric(log_decays, count):
    """1 + gamma + ... + gamma^(count - 1), [N] and [B, T] to [B, T, N]."""
    return jnp.expm1(log_decays * count[..., None]) / jnp.expm1(log_decays)


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> _decode.State:
    """An empty state, float32 whatever the `dtype` of the heads, and the same for any `capacity`."""
    return _decode.empty(B, config.num_heads, H, H)


def step(config: Config, state: _decode.State, query, key, value, active=None):
    """One token more, as `dense.step`: a state for each query head, for each decays in its own way."""
    N, H = query.shape[2:]
    decays = jnp.asarray(log_decays(N))
    key, value = attention.repeat_heads(key, N), attention.repeat_heads(value, N)
    state = _decode.write(state, key, value, keep=jnp.exp(decays)[:, None], active=active)
    # At least 1 where a token has been read.
    weights = jnp.maximum(_geometric(decays, state.length[:, None]), 1.0)
    out = _decode.read(state, query) * jax.lax.rsqrt(H * weights)[..., None]
    return out.astype(query.dtype), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example: the same for any `length` and any `itemsize` of the heads."""
    H = config.width(D)
    return _decode.nbytes(config.num_heads, H, H)


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """The quadratic form: the table of decays, by distances counted pair by pair."""
    T, N, H = query.shape[1:]
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    gamma = 1 - 2.0 ** (-5 - jnp.arange(N))
    t, s, r = jnp.ix_(*[jnp.arange(T)] * 3)
    # The steps of the state that lie between key and query: onto a token, from the side of the key.
    steps = ((s < r) & (r <= t)) | ((t <= r) & (r < s))
    valid = jnp.ones((1, T), bool) if mask.key_valid is None else mask.key_valid
    distance = (steps & valid[:, None, None]).sum(-1)
    decay = jnp.where(mask.dense(T, T)[:, None], gamma[:, None, None] ** distance[:, None], 0.0)
    total = decay.sum(-1, keepdims=True)
    decay = jnp.where(total > 0, decay / jnp.sqrt(jnp.where(total > 0, total, 1.0)), 0.0)
    scores = jnp.einsum("btnh,bsnh->bnts", query.astype(jnp.float32), key) / H**0.5
    return jnp.einsum("bnts,bsnh->btnh", scores * decay, value).astype(query.dtype)


class Attention(attention.Shell):
    """Retention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """The chunked form, twice where the mask is not causal. FLOPs an example."""
    N, H = config.num_heads, config.width(D)
    passes = 1 if mask.lookahead == 0 else 2
    one = _features.flops(Mask(lookahead=0), N=N, P=H, width=H, chunk=config.chunk, T=T, S=S)
    parts = {
        name: attention.Work(passes * work.executed, passes * work.useful)
        for name, work in one.items()
    }
    return {**attention.projection_flops(config, D=D, T=T, S=S), **parts}
