"""Explicit sparse attention: each query mixes the values of its `k` best keys only.

All scores are computed and the best allowed ones chosen; the keys and values of these are gathered, and
attention is among them. The choice is dense, but has no gradient, so the backward pass is sparse. Queries
go in pieces, so that memory stays linear in the length.

Source: Zhao et al. 2019, "Explicit Sparse Transformer", https://arxiv.org/abs/1912.11637, section 3.
Differs: exactly `k` keys where scores tie, the first ones; the paper keeps all that reach the k-th score.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention, masks
from tinyattn.attention._core import cache, pieces, softmax
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross"})
SIMULATED = False
COST = "T * (T + 2 * k)"
DENSE_WHEN = {"k": 1 << 20}
CASES = ({"k": 3}, {"k": 4, "piece": 5, "num_kv_heads": 2})
# Scores of a head in one piece, unless the config says otherwise.
SCORES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      k: Keys that a query keeps.
      piece: Queries whose scores are held at a time; 0 is as many as make 2^17 scores.
    """

    k: int = 16
    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.k < 1 or self.piece < 0:
            raise ValueError(
                f"k={self.k} must be at least 1 and piece={self.piece} positive, or 0 for a piece of"
                f" {SCORES} scores"
            )


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Softmax over the k best allowed scores of each query, times their values, [B, T, N, H]."""
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    T, S, K, H = (size[axis] for axis in "TSKH")
    if config.k >= S:
        return softmax.attend(query, key, value, mask)
    count, t = pieces.plan(T, config.piece, S, SCORES)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    key, value, poison = pieces.contained(key, value, dtype)

    def piece(i, query, source):
        scores = jnp.einsum("btkmh,bksh->bkmts", *jax.lax.stop_gradient((query, key)))
        scores = jnp.where(poison[:, :, None, None], jnp.nan, scores)
        allowed = mask.allowed(i * t + jnp.arange(t), jnp.arange(S), S)[:, None, None]
        best, kept = jax.lax.top_k(jnp.where(allowed, scores, -jnp.inf), config.k)
        (own, mixed), source = source.take(kept)
        scores = jnp.einsum("btkmh,bkmtjh->bkmtj", query, own) * H**-0.5
        scores = jnp.where(jnp.isnan(best), jnp.nan, scores)
        # Fewer keys than k may be allowed, or none.
        weights = pieces.softmax(scores, best != -jnp.inf)
        return jnp.einsum("bkmtj,bkmtjh->btkmh", weights, mixed), source

    return pieces.gathering(piece, query.astype(dtype), (key, value), K, count, t).astype(kind)


init_state, state_bytes = dense.init_state, dense.state_bytes


def step(config: Config, state: cache.Cache, query, key, value, active=None):
    """One token more, as `dense.step`: it mixes the values of the k best of all keys so far."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    state = cache.write(state, key, value, active)
    out = attend(config, query, state.key, state.value, masks.padding(cache.valid(state)))
    return cache.full(state, out), state


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """A sort of each row's scores, and a dense softmax over those before the k-th, in float32."""
    T, N, H = query.shape[1:]
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query.astype(jnp.float32), key) / jnp.sqrt(H)
    allowed = mask.dense(T, key.shape[1])[:, None]
    order = jnp.argsort(jnp.where(allowed, -scores, jnp.inf), axis=-1, stable=True)
    place = jnp.argsort(order, axis=-1)
    kept = allowed & (place < config.k)
    seen = kept.any(-1, keepdims=True)
    scores = jnp.where(seen, jnp.where(kept, scores, -jnp.inf), 0.0)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(query.dtype)


def effective(config: Config, mask: Mask, T: int) -> np.ndarray:
    """As many pairs as count, bool [B or 1, T, T]: which ones the scores decide; here the first keys."""
    allowed = np.asarray(mask.dense(T, T))
    return allowed & (allowed.cumsum(-1) <= config.k)


class Attention(attention.Shell):
    """Explicit sparse attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """All pairs are executed for the choice, and k a query once more. FLOPs an example."""
    per_pair = 2 * config.num_heads * config.width(D)
    parts = attention.projection_flops(config, D=D, T=T, S=S)
    useful = per_pair * float(np.minimum(mask.seen(T, S), config.k).sum(-1).mean())
    if config.k >= S:
        pairs = attention.Work(per_pair * softmax.pairs(T, S, mask), useful)
        return {**parts, "scores": pairs, "mix": pairs}
    count, t = pieces.plan(T, config.piece, S, SCORES)
    pairs = attention.Work(per_pair * count * t * config.k, useful)
    choice = attention.Work(per_pair * count * t * S, 0)
    return {**parts, "choice": choice, "scores": pairs, "mix": pairs}
