"""Linear attention with the feature map elu(x) + 1.

Without a causal mask all keys and values are summed into one [H, H] state a head; with one, a chunked
form carries the state from chunk to chunk and works densely within a chunk.

Source: Katharopoulos et al. 2020, "Transformers are RNNs", https://arxiv.org/abs/2006.16236, equations
  4-7 and 10-12; the chunked form is Hua et al. 2022, https://arxiv.org/abs/2202.10447, section 3.3.
Differs: no 1/sqrt(H) scale, which a feature map without exponent does not need. The normaliser is a
  column of ones beside the values, so it is one product with them. A query that may see no key gives zeros.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tinyattn import attention
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding", "cross"})
SIMULATED = False
DENSE_WHEN = None
CASES = ({"chunk": 4}, {"chunk": 5, "num_kv_heads": 1}, {"chunk": 64})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      chunk: Positions worked on densely at a time when causal (C).
    """

    chunk: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1")


def feature_map(x: jax.Array) -> jax.Array:
    """elu(x) + 1, positive everywhere."""
    return jax.nn.elu(x) + 1


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Σ_s φ(q_t)·φ(k_s) v_s / Σ_s φ(q_t)·φ(k_s) over the keys that the mask allows, [B, T, N, H]."""
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    N, H = size["N"], size["H"]
    features, keys = (feature_map(x.astype(jnp.float32)) for x in (query, key))
    if mask.key_valid is not None:
        # After the feature map: elu(0) + 1 is 1, not 0.
        keys = jnp.where(mask.key_valid[:, :, None, None], keys, 0.0)
    ones = jnp.ones((*value.shape[:-1], 1), jnp.float32)
    values = jnp.concatenate([value.astype(jnp.float32), ones], axis=-1)
    keys, values = attention.repeat_heads(keys, N), attention.repeat_heads(values, N)
    if mask.lookahead == 0:
        sums = _causal_sums(features, keys, values, min(config.chunk, size["T"]))
    else:
        state = jnp.einsum("bsnh,bsni->bnhi", keys, values)
        sums = jnp.einsum("btnh,bnhi->btni", features, state)
    out, total = sums[..., :H], sums[..., H:]
    seen = total > 0
    return jnp.where(seen, out / jnp.where(seen, total, 1.0), 0.0).astype(query.dtype)


def _causal_sums(query, key, value, C: int):
    """Σ_{s<=t} (q_t·k_s) v_s: densely within chunks of C, by a running state between them."""
    B, T, N, _ = query.shape
    chunks = -(-T // C)

    def cut(x):
        """[B, T, N, H] to [chunks, B, N, C, H]; the padded keys are zeros, so they add nothing."""
        x = jnp.pad(x, ((0, 0), (0, chunks * C - T), (0, 0), (0, 0)))
        return x.reshape(B, chunks, C, N, -1).transpose(1, 0, 3, 2, 4)

    query, key, value = cut(query), cut(key), cut(value)
    scores = jnp.tril(jnp.einsum("cbnth,cbnsh->cbnts", query, key))
    within = jnp.einsum("cbnts,cbnsi->cbnti", scores, value)
    states = jnp.einsum("cbnsh,cbnsi->cbnhi", key, value)
    # Not the inclusive sum less the chunk's own: that would let the future in through rounding.
    before = jnp.cumsum(jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]]), axis=0)
    sums = within + jnp.einsum("cbnth,cbnhi->cbnti", query, before)
    return sums.transpose(1, 0, 3, 2, 4).reshape(B, chunks * C, N, -1)[:, :T]


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """The quadratic form: a table of positive weights, masked and normalised row by row."""
    N = query.shape[2]
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    query_features, key_features = (
        jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0.0)))
        for x in (query.astype(jnp.float32), key)
    )
    weights = jnp.einsum("btnh,bsnh->bnts", query_features, key_features)
    weights = jnp.where(mask.dense(*weights.shape[2:])[:, None], weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(query.dtype)


class Attention(attention.Shell):
    """Linear attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """States and reads; chunks executed densely when causal. FLOPs an example.

    Useful work is the recurrent form's: every key into the state once, every query out of it once.
    """
    N, H = config.num_heads, config.width(D)
    length = T
    parts = {}
    if mask.lookahead == 0:
        C = min(config.chunk, T)
        length = -(-T // C) * C
        parts["within chunks"] = attention.Work(2 * N * length * C * (2 * H + 1), 0)
    keys = length if mask.lookahead == 0 else S
    parts["state"] = attention.Work(2 * N * keys * H * (H + 1), 2 * N * S * H * (H + 1))
    parts["read"] = attention.Work(2 * N * length * H * (H + 1), 2 * N * T * H * (H + 1))
    return {**attention.projection_flops(config, D=D, T=T, S=S), **parts}
