"""Attention within buckets of a locality-sensitive hash: a query sees the keys that point its way.

Queries and keys are hashed by the same random rotations, several rounds of them. In each round keys are
sorted by bucket and position, a query finds its own place among them by bisection and sees up to `span`
keys of its bucket around it, or up to it when causal; one softmax over the keys of all rounds.

Source: Kitaev et al. 2020, "Reformer", https://arxiv.org/abs/2001.04451, section 2.
Differs: queries and keys are not shared, so a query need not share a bucket with its own key, and one
  alone in all its buckets gives zeros. The paper cuts the sorted tokens into chunks that see the chunk
  before: which past keys a chunk holds depends on later tokens, and queries sorted apart from keys would
  not meet them, so here each query has a span of its own, within its bucket. A key found in several
  rounds counts as often, as by the sums of the rounds in the authors' code.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention
from tinyattn.attention._core import cache, pieces, softmax
from tinyattn.attention._core.layout import contain
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import _decode
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding"})
SIMULATED = False
COST = "T * rounds * (span + buckets)"
DENSE_WHEN = {"buckets": 1, "span": 1 << 20}
CASES = ({"buckets": 2, "span": 4}, {"buckets": 4, "span": 2, "num_kv_heads": 2, "piece": 5})
# Pairs of a head in one piece, unless the config says otherwise: their keys are copies.
PAIRS = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      buckets: Of a round, an even number; 1 is no hash.
      span: Keys of its bucket that a query sees in a round, at most.
      rounds: Hashes, each with rotations of its own.
      seed: Of the rotations.
      piece: Queries whose keys are gathered at a time; 0 is as many as make 2^14 pairs.
    """

    buckets: int = 16
    span: int = 64
    rounds: int = 2
    seed: int = 0
    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.buckets < 1 or (self.buckets % 2 and self.buckets > 1):
            raise ValueError(f"buckets={self.buckets} must be an even number, or 1 for no hash")
        if min(self.span, self.rounds) < 1 or min(self.seed, self.piece) < 0:
            raise ValueError(
                f"span={self.span} and rounds={self.rounds} must be at least 1, seed={self.seed} and"
                f" piece={self.piece} at least 0"
            )


def rotations(config: Config, H: int) -> np.ndarray:
    """Nearly normal numbers from counts of random bits, alike on all machines; [rounds, H, buckets / 2]."""
    shape = config.rounds, H, config.buckets // 2
    raw = np.random.Philox(key=config.seed).random_raw(shape)
    # Of 63 bits, whose mean is no count: an entry of zero would put a head of one number in one bucket.
    return (np.bitwise_count(raw >> np.uint64(1)).astype(np.float32) - 31.5) / 4


def hashes(config: Config, x: jax.Array) -> jax.Array:
    """Buckets of [B, T, N, H], int32 [B, N, rounds, T]: which of the rotated axes is nearest."""
    turned = jnp.einsum("btnh,rhc->bnrtc", x, rotations(config, x.shape[-1]).astype(x.dtype))
    if config.buckets == 1:
        return jnp.zeros(turned.shape[:-1], jnp.int32)
    return jnp.concatenate([turned, -turned], -1).argmax(-1).astype(jnp.int32)


def plan(config: Config, T: int) -> tuple[int, int, int]:
    """Pieces of queries, their length, and the keys that a query sees in a round."""
    span = min(config.span, T)
    return *pieces.plan(T, config.piece, config.rounds * span, PAIRS), span


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Softmax over the keys that hashing finds within the mask, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value, own="a place by position")
    B, T, N, H, K = (size[axis] for axis in "BTNHK")
    if config.buckets == 1 and config.span >= T:
        return softmax.attend(query, key, value, mask)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    count, t, span = plan(config, T)
    R, M, found = config.rounds, N // K, config.rounds * span
    key, value, poison = pieces.contained(key, value, dtype)
    codes = hashes(config, key.swapaxes(1, 2)) * T + jnp.arange(T)
    if mask.key_valid is not None:
        # Past every bucket, so in none.
        codes = jnp.where(mask.key_valid[:, None, None], codes, config.buckets * T)
    order = jnp.argsort(codes, axis=-1)
    codes = jnp.take_along_axis(codes, order, -1)
    places = jax.vmap(jax.vmap(jax.vmap(lambda c, q: jnp.searchsorted(c, q))))

    def piece(i, query, source):
        first = hashes(config, jax.lax.stop_gradient(query).reshape(B, t, N, H)) * T
        first = first.reshape(B, K, M, R, t).swapaxes(2, 3)
        low, high = places(codes, first), places(codes, first + T)
        end = places(codes, first + i * t + jnp.arange(t) + 1)
        if mask.lookahead != 0:
            end = jnp.clip(end + span // 2, low + span, jnp.maximum(high, low + span))
        slots = (end[..., None] - span + jnp.arange(span)).reshape(B, K, R, -1)
        low, high = (jnp.repeat(x.reshape(B, K, R, -1), span, -1) for x in (low, high))
        at = jnp.take_along_axis(order, jnp.clip(slots, 0, T - 1), -1)

        def flat(x):
            """[B, K, R, M * t * span] to [B, K, M, t, R * span]."""
            x = x.reshape(B, K, R, M, t, span).transpose(0, 1, 3, 4, 2, 5)
            return x.reshape(B, K, M, t, found)

        allowed, at = flat((slots >= low) & (slots < high)), flat(at)
        (keys, values), source = source.take(at)
        scores = jnp.einsum("btkmh,bkmtjh->bkmtj", query, keys) * H**-0.5
        scores = jnp.where(pieces.gather(poison, at), jnp.nan, scores)
        weights = pieces.softmax(scores, allowed)
        return jnp.einsum("bkmtj,bkmtjh->btkmh", weights, values), source

    return pieces.gathering(piece, query.astype(dtype), (key, value), K, count, t).astype(kind)


class State(NamedTuple):
    """Keys and values of all tokens so far, and the buckets of the keys, [B, capacity, K, rounds]."""

    tokens: cache.Cache
    buckets: jax.Array


def _bucket_type(config: Config) -> np.dtype:
    return np.min_scalar_type(config.buckets - 1)


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> State:
    """An empty cache with room for `capacity` tokens of B examples."""
    tokens = cache.empty(B, capacity, config.kv_heads, H, dtype)
    shape = (B, capacity, config.kv_heads, config.rounds)
    return State(tokens, jnp.zeros(shape, _bucket_type(config)))


def step(config: Config, state: State, query, key, value, active=None):
    """One token more, as `dense.step`: of all keys so far it compares buckets, and gathers its spans."""
    B, capacity, K, R = state.buckets.shape
    active = jnp.ones(B, bool) if active is None else active
    N, wide = query.shape[2], jnp.promote_types(query.dtype, jnp.float32)
    # As in parallel, a key that is not finite is hashed as zeros.
    theirs, mine = (hashes(config, x.astype(wide)) for x in (contain(key, value)[0], query))
    slot = jnp.where(active, state.tokens.length, capacity)
    buckets = cache.put(state.buckets, theirs.transpose(0, 3, 1, 2), slot)
    tokens = cache.write(state.tokens, key, value, active)
    mine = mine.reshape(B, K, N // K, R, 1).astype(buckets.dtype)
    same = mine == buckets.transpose(0, 2, 3, 1)[:, :, None]  # [B, K, M, R, capacity]
    same &= cache.valid(tokens)[:, None, None, None]
    # The last ones of the bucket.
    at, _ = jax.lax.top_k(jnp.where(same, jnp.arange(capacity), -1), min(config.span, capacity))
    at = at.reshape(B, N, -1)
    return cache.full(tokens, _decode.attend(query, tokens, at, at >= 0)), State(tokens, buckets)


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: keys, values, buckets and the length."""
    heads = dense.state_bytes(config, D=D, length=length, itemsize=itemsize)
    return heads + length * config.kv_heads * config.rounds * _bucket_type(config).itemsize


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """How often each pair is found, by counting among all pairs, as weights of a dense softmax."""
    kind, (T, N, H) = query.dtype, query.shape[1:]
    query, key, value = (
        attention.repeat_heads(x, N).astype(jnp.float32) for x in (query, key, value)
    )
    mine, theirs = hashes(config, query)[..., None], hashes(config, key)[..., None, :]
    valid = mask.dense(T, T).any(1)[:, None, None, None]
    same = (mine == theirs) & valid  # [B, N, R, T, S]
    place = same.cumsum(-1)
    end = jnp.diagonal(place, axis1=-2, axis2=-1)[..., None]
    if mask.lookahead != 0:
        end = jnp.maximum(end + config.span // 2, config.span)
        end = jnp.minimum(end, place[..., -1:])
    found = same & (place <= end) & (place > end - config.span)
    times = found.sum(2)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / jnp.sqrt(H)
    top = jnp.where(times > 0, scores, -jnp.inf).max(-1, keepdims=True)
    powers = times * jnp.exp(jnp.where(times > 0, scores - jnp.where(top > -jnp.inf, top, 0), 0))
    total = powers.sum(-1, keepdims=True)
    weights = powers / jnp.where(total > 0, total, 1.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(kind)


def effective(config: Config, mask: Mask, T: int) -> np.ndarray:
    """As many pairs as one round finds in full buckets of equal size, at most; bool [B or 1, T, T]."""
    allowed = np.asarray(mask.dense(T, T))
    share = -(-allowed.sum(-1, keepdims=True) // config.buckets)
    return allowed & (allowed.cumsum(-1) <= np.minimum(share, config.span))


class Attention(attention.Shell):
    """Attention within buckets as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Hashes, and `rounds` times `span` keys a query, are executed. FLOPs an example.

    Useful are the pairs that one round would find were its buckets equally full: the rest is content's.
    """
    N, K, H = config.num_heads, config.kv_heads, config.width(D)
    valid = np.ones((1, S), bool) if mask.key_valid is None else np.asarray(mask.key_valid)
    seen = valid.cumsum(-1) if mask.lookahead == 0 else valid.sum(-1, keepdims=True).repeat(T, -1)
    shares = np.minimum(-(-seen // config.buckets), config.span)
    useful = 2 * N * H * float(shares.sum(-1).mean())
    parts = attention.projection_flops(config, D=D, T=T, S=S)
    if config.buckets == 1 and config.span >= T:
        pairs = attention.Work(2 * N * H * softmax.pairs(T, S, mask), useful)
        return {**parts, "scores": pairs, "mix": pairs}
    count, t, span = plan(config, T)
    per_token = 2 * H * config.rounds * (config.buckets // 2)
    hashed = attention.Work(per_token * (count * t * N + S * K), per_token * (T * N + S * K))
    pairs = attention.Work(2 * N * H * count * t * config.rounds * span, useful)
    return {**parts, "hash": hashed, "scores": pairs, "mix": pairs}
