"""DeepSeek sparse attention: a cheap index of all keys picks the `k` that all heads of a query attend to.

The lightning indexer scores every pair with few narrow heads of its own, which share one key,
I_ts = Σ_j w_tj ReLU(q_tj·k_s) / sqrt(heads * width), and each query keeps the `k` best allowed keys. The
products of attention are sparse; the index is still quadratic, with a small factor. Queries go in pieces,
so that memory stays linear in the length.

The choice has no gradient, so the task does not train the indexer: `auxiliary`, a loss that a model in
training adds, does, by the divergence of its softmax from what the heads attend to. It moves nothing else.

Source: DeepSeek-AI 2025, "DeepSeek-V3.2", https://arxiv.org/abs/2512.02556, section 2.1, and the authors'
  code for the scale of the index.
Differs: heads are plain ones, where the paper's attention is latent. Index queries come from the tokens,
  not from a latent; index heads have a bias, and neither positions, a norm nor eight-bit numbers.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import affine, attention, masks
from tinyattn.attention._core import cache, pieces, softmax
from tinyattn.attention._core.layout import contain
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import topk
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross"})
SIMULATED = False
COST = "T * (T * index_heads * (index_dim + 1) + 2 * k * num_heads * H)"
DENSE_WHEN = {"k": 1 << 20}
CASES = ({"k": 3}, {"k": 4, "piece": 5, "num_kv_heads": 2, "index_heads": 1, "index_dim": 5})
DETACHED = frozenset({"index_query", "index_key", "index_weight"})
# Numbers of one example in a piece, scores and copies of keys, unless the config says otherwise.
NUMBERS = 1 << 19


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      k: Keys that a query keeps.
      index_heads: Heads of the indexer (H^I in the paper).
      index_dim: Their width (d^I in the paper).
      piece: Queries whose scores are held at a time; 0 is as many as make 2^19 numbers, at least 64.
    """

    k: int = 16
    index_heads: int = 2
    index_dim: int = 8
    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if min(self.k, self.index_heads, self.index_dim) < 1 or self.piece < 0:
            raise ValueError(
                f"k={self.k}, index_heads={self.index_heads} and index_dim={self.index_dim} must be"
                f" at least 1 and piece={self.piece} positive, or 0 for a piece of {NUMBERS} numbers"
            )


def plan(config: Config, T: int, S: int, H: int) -> tuple[int, int]:
    """Pieces of queries, and the queries of one."""
    per_query = config.index_heads * S + 2 * config.kv_heads * min(config.k, S) * H
    return pieces.plan(T, config.piece, per_query, NUMBERS, pieces.FEWEST)


def extras(config: Config, inputs, memory=None, *, kernel_init) -> dict[str, jax.Array]:
    """`index_query` [B, T, heads, width], `index_key` [B, S, 1, width], `index_weight` [B, T, heads]."""
    inputs, memory = jax.lax.stop_gradient((inputs, memory))
    heads, width = config.index_heads, config.index_dim
    of_query = {"index_query": heads * width, "index_weight": heads}
    if memory is None:
        query, weight, key = affine.dense(inputs, of_query | {"index_key": width}, kernel_init)
    else:
        query, weight = affine.dense(inputs, of_query, kernel_init)
        (key,) = affine.dense(memory, {"index_key": width}, kernel_init)
    query = query.reshape(*query.shape[:2], heads, width)
    return {"index_query": query, "index_key": key[:, :, None], "index_weight": weight}


class _Index(NamedTuple):
    """Keys of the indexer [B, S, 1, width] without NaN, and where it was among them, [B, 1, S]."""

    key: jax.Array
    poison: jax.Array

    def choose(self, config: Config, mask: Mask, i, x) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, t, K, M, H], their best scores [B, t, k], -inf for none, and whose [B, K, t, k].

        Of piece i, whose x are queries, those of the index, and its weights, each as of one key head.
        """
        query, mine, weight = (x[:, :, 0] for x in x)
        (B, t, _, H), S = query.shape, self.key.shape[1]
        found = jnp.einsum("btjd,bsd->btjs", mine, self.key[:, :, 0])
        weight = weight * (mine.shape[2] * mine.shape[3]) ** -0.5
        scores = jnp.einsum("btj,btjs->bts", weight, jax.nn.relu(found))
        scores = jnp.where(self.poison, jnp.nan, scores)
        allowed = mask.allowed(i * t + jnp.arange(t), jnp.arange(S), S)
        best, kept = jax.lax.top_k(jnp.where(allowed, scores, -jnp.inf), min(config.k, S))
        kept = jnp.broadcast_to(kept[:, None], (B, config.kv_heads, *kept.shape[1:]))
        return query.reshape(B, t, config.kv_heads, -1, H), best, kept


def _index(dtype, query, key, weight):
    key, poison = contain(key)
    return _Index(key.astype(dtype), poison), query.astype(dtype), weight.astype(dtype)


def attend(
    config: Config, query, key, value, mask: Mask, index_query, index_key, index_weight
) -> jax.Array:
    """Softmax over the k allowed keys of the best index, times their values, [B, T, N, H]."""
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    T, S, H = (size[axis] for axis in "TSH")
    if config.k >= S:
        return softmax.attend(query, key, value, mask)
    count, t = plan(config, T, S, H)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    key, value, poison = pieces.contained(key, value, dtype)
    index, *own = jax.lax.stop_gradient(_index(dtype, index_query, index_key, index_weight))

    def piece(i, x, source):
        query, best, kept = index.choose(config, mask, i, x)
        (keys, values), source = source.take(kept)
        weights = _weights(query, keys, pieces.gather(poison, kept), best)
        return jnp.einsum("bkmtj,bktjh->btkmh", weights, values), source

    queries = query.astype(dtype), *own
    return pieces.gathering(piece, queries, (key, value), 1, count, t).astype(kind)


def _weights(query, keys, poison, best):
    """Softmax [B, K, M, t, k] over gathered keys [B, K, t, k, H] of the best index [B, t, k]."""
    scores = jnp.einsum("btkmh,bktjh->bkmtj", query, keys)
    bad = jnp.isnan(best)[:, None] | poison
    scores = jnp.where(bad[:, :, None], jnp.nan, scores * query.shape[-1] ** -0.5)
    return pieces.softmax(scores, (best != -jnp.inf)[:, None, None])


def auxiliary(
    config: Config, query, key, value, mask: Mask, index_query, index_key, index_weight
) -> jax.Array:
    """KL(p_t || softmax I_t) over the keys that query t keeps, float32 [B, T]: what trains the indexer.

    p is the mean of the heads' softmax over these keys, and has no gradient. With `k` at least S it is the
    loss over all keys by which the paper warms the indexer up. 0 where a query may see no key.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    count, t = plan(config, *(size[axis] for axis in "TSH"))
    query, key = jax.lax.stop_gradient((query.astype(jnp.float32), key))
    key, _, poison = pieces.contained(key, key, jnp.float32)
    index, *own = _index(jnp.float32, index_query, index_key, index_weight)

    def piece(i, x):
        query, best, kept = index.choose(config, mask, i, x)
        keys, bad = pieces.gather(key, kept), pieces.gather(poison, kept)
        p = _weights(query, keys, bad, jax.lax.stop_gradient(best)).mean((1, 2))
        here = best != -jnp.inf
        log_q = jax.nn.log_softmax(jnp.where(here.any(-1, keepdims=True), best, 0))
        lost = jnp.where(here, jax.scipy.special.xlogy(p, p) - p * log_q, 0).sum(-1)
        return lost[:, :, None, None, None]

    return pieces.each(piece, (query, *own), 1, count, t)[:, :, 0, 0]


class State(NamedTuple):
    """Keys and values of all tokens so far, and their index keys [B, capacity, 1, width]."""

    tokens: cache.Cache
    index: jax.Array


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> State:
    """An empty cache with room for `capacity` tokens of B examples."""
    tokens = cache.empty(B, capacity, config.kv_heads, H, dtype)
    return State(tokens, jnp.zeros((B, capacity, 1, config.index_dim), dtype))


def step(
    config, state: State, query, key, value, index_query, index_key, index_weight, active=None
):
    """One token more, as `dense.step`: it attends to the k best of all so far."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    slot = jnp.where(active, state.tokens.length, state.index.shape[1])
    index = cache.put(state.index, index_key, slot)
    tokens = cache.write(state.tokens, key, value, active)
    seen = masks.padding(cache.valid(tokens))
    out = attend(config, query, tokens.key, tokens.value, seen, index_query, index, index_weight)
    return cache.full(tokens, out), State(tokens, index)


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: keys, values, index keys, the length."""
    heads = dense.state_bytes(config, D=D, length=length, itemsize=itemsize)
    return heads + length * config.index_dim * itemsize


def reference(
    config: Config, query, key, value, mask: Mask, index_query, index_key, index_weight
) -> jax.Array:
    """A sort of each query's index, and a dense softmax over those before the k-th, in float32."""
    kind, (T, N, H) = query.dtype, query.shape[1:]
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    index = jnp.zeros((len(query), T, key.shape[1]))
    for j in range(config.index_heads):
        met = jnp.einsum("btd,bsd->bts", index_query[:, :, j], index_key[:, :, 0])
        index += index_weight[:, :, j, None] * jnp.maximum(met, 0)
    allowed = mask.dense(T, key.shape[1])
    order = jnp.argsort(jnp.where(allowed, -index, jnp.inf), axis=-1, stable=True)
    kept = (allowed & (jnp.argsort(order, axis=-1) < config.k))[:, None]
    scores = jnp.einsum("btnh,bsnh->bnts", query.astype(jnp.float32), key) / jnp.sqrt(H)
    seen = kept.any(-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(seen, jnp.where(kept, scores, -jnp.inf), 0.0), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", jnp.where(seen, weights, 0.0), value).astype(kind)


def effective(config: Config, mask: Mask, T: int) -> np.ndarray:
    """As many pairs as count, bool [B or 1, T, T]: which ones the index decides; here the first keys."""
    return topk.effective(config, mask, T)


class Attention(attention.Shell):
    """DeepSeek sparse attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """All pairs are indexed, and k keys a query met and mixed; kept pairs are useful. FLOPs an example."""
    heads, width, H = config.index_heads, config.index_dim, config.width(D)
    parts = attention.projection_flops(config, D=D, T=T, S=S)
    parts["index_query"] = attention.products(T * D * heads * (width + 1))
    parts["index_key"] = attention.products(S * D * width)
    useful = topk.flops(config, mask, D=D, T=T, S=S)["mix"].useful
    per_pair = 2 * config.num_heads * H
    if config.k >= S:
        pairs = attention.Work(per_pair * softmax.pairs(T, S, mask), useful)
        return {**parts, "scores": pairs, "mix": pairs}
    count, t = plan(config, T, S, H)
    pairs = attention.Work(per_pair * count * t * config.k, useful)
    indexed = 2 * heads * (width + 1)
    allowed = float(mask.pairs(T, S).mean())
    index = attention.Work(indexed * count * t * S, indexed * allowed)
    return {**parts, "index": index, "scores": pairs, "mix": pairs}
