"""Mixture of block attention: each query sees its own block of keys and the best other ones.

A gate, the query times the mean key of a block, ranks the blocks; the own one always counts, and of the
others (when causal of those that are past) the best `top` - 1. Chosen blocks are gathered query by query,
queries go in pieces: work grows as T * top * block, besides the gate's T * S / block.

Source: Lu et al. 2025, "MoBA", https://arxiv.org/abs/2502.13189, section 2.2, equations 2-6.
Differs: means are of valid keys only, and a block without any is not chosen. Also without a causal mask,
  where all blocks are ranked. Gathered query by query, where the paper sorts queries by block.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention, masks
from tinyattn.attention._core import cache, pieces, softmax
from tinyattn.attention._core.layout import contain
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import _decode
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding"})
SIMULATED = False
COST = "T * (2 * top * block + T / block)"
DENSE_WHEN = {"top": 1 << 20}
CASES = ({"block": 3, "top": 2}, {"block": 2, "top": 3, "num_kv_heads": 2, "piece": 5})
# Pairs of a head in one piece, unless the config says otherwise: their keys are copies.
PAIRS = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      block: Keys a block (C).
      top: Blocks that a query sees, its own included (k).
      piece: Queries whose blocks are gathered at a time; 0 is as many as make 2^14 pairs.
    """

    block: int = 64
    top: int = 3
    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.block < 1 or self.top < 1 or self.piece < 0:
            raise ValueError(
                f"block={self.block} and top={self.top} must be at least 1 and piece={self.piece}"
                f" positive, or 0 for a piece of {PAIRS} pairs"
            )


def plan(config: Config, T: int) -> tuple[int, int]:
    """Pieces of queries, and the queries of one."""
    return pieces.plan(T, config.piece, config.top * config.block, PAIRS)


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Attention to the own and the best other blocks within the mask, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value, own="an own block")
    B, T, N, H, K = (size[axis] for axis in "BTNHK")
    C, blocks = config.block, -(-T // config.block)
    if config.top >= blocks:
        return softmax.attend(query, key, value, mask)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    key, value, poison = pieces.contained(key, value, dtype)
    valid = jnp.ones((1, T), bool) if mask.key_valid is None else mask.key_valid
    valid = jnp.broadcast_to(valid, (B, T))

    def cut(x, fill=0):
        """[B, K, S, ...] to [B, K, blocks, C, ...]."""
        width = [(0, 0)] * x.ndim
        width[2] = (0, blocks * C - T)
        return jnp.pad(x, width, constant_values=fill).reshape(B, -1, blocks, C, *x.shape[3:])

    key, value, valid, poison = cut(key), cut(value), cut(valid[:, None]), cut(poison)
    held = valid.sum(3)[..., None]
    means = jnp.where(valid[..., None], key, 0).sum(3) / jnp.maximum(held, 1)
    means = jax.lax.stop_gradient(means)  # The choice has no gradient.
    count, t = plan(config, T)

    def piece(i, query, source):
        rows = i * t + jnp.arange(t)
        own = jnp.broadcast_to(jnp.minimum(rows // C, blocks - 1)[:, None], (B, K, N // K, t, 1))
        gate = jnp.einsum("btkmh,bkch->bkmtc", jax.lax.stop_gradient(query), means)
        columns = jnp.arange(blocks)
        ranked = columns < own if mask.lookahead == 0 else columns != own
        ranked &= held[:, :, None, None, :, 0] > 0
        best, chosen = jax.lax.top_k(jnp.where(ranked, gate, -jnp.inf), config.top - 1)
        here = jnp.concatenate([jnp.ones_like(own, bool), best != -jnp.inf], -1)[..., None]
        chosen = jnp.concatenate([own, chosen], -1)
        columns = chosen[..., None] * C + jnp.arange(C)
        allowed = here & pieces.gather(jnp.broadcast_to(valid, poison.shape), chosen)
        if mask.lookahead == 0:
            allowed &= columns <= rows[:, None, None]
        allowed = allowed & (columns < T)

        def flat(x):
            """[..., top, C] to [..., top * C]."""
            return x.reshape(B, K, N // K, t, config.top * C, *x.shape[6:])

        found, source = source.take(chosen)
        keys, values = map(flat, found)
        scores = jnp.einsum("btkmh,bkmtjh->bkmtj", query, keys) / jnp.sqrt(H).astype(dtype)
        scores = jnp.where(flat(pieces.gather(poison, chosen)), jnp.nan, scores)
        weights = pieces.softmax(scores, flat(allowed))
        return jnp.einsum("bkmtj,bkmtjh->btkmh", weights, values), source

    return pieces.gathering(piece, query.astype(dtype), (key, value), K, count, t).astype(kind)


class State(NamedTuple):
    """Keys and values of all tokens so far, and sums of the keys of blocks.

    Attributes:
      tokens: As of `dense`.
      sums: [B, blocks, K, H], at least float32, of the blocks that a gate may rank.
    """

    tokens: cache.Cache
    sums: jax.Array


def _ranked(config: Config, length: int) -> int:
    """Blocks of so many tokens that a gate may rank: all but the last, none where all are seen anyway."""
    blocks = -(-length // config.block)
    return 0 if config.top >= blocks else blocks - 1


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> State:
    """An empty cache with room for `capacity` tokens of B examples, and sums of nothing."""
    tokens = cache.empty(B, capacity, config.kv_heads, H, dtype)
    shape = (B, _ranked(config, capacity), config.kv_heads, H)
    return State(tokens, jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)))


def step(config: Config, state: State, query, key, value, active=None):
    """One token more, as `dense.step`: only the chosen blocks are read, of the others their sums."""
    B, ranked, K, H = state.sums.shape
    active = jnp.ones(B, bool) if active is None else active
    t, C, N = state.tokens.length, config.block, query.shape[2]
    tokens = cache.write(state.tokens, key, value, active)
    if not ranked:
        out = softmax.attend(query, tokens.key, tokens.value, masks.padding(cache.valid(tokens)))
        return cache.full(tokens, out), State(tokens, state.sums)
    # The choice has no gradient.
    asked, new = jax.lax.stop_gradient((query, contain(key, value)[0]))
    own = t // C
    rows = jnp.where(active, own, ranked)
    sums = state.sums.at[jnp.arange(B), rows].add(new[:, 0].astype(state.sums.dtype), mode="drop")
    asked = asked.astype(sums.dtype).reshape(B, K, N // K, H)
    gate = jnp.einsum("bkmh,bckh->bkmc", asked, sums / C).reshape(B, N, ranked)
    own = own[:, None, None]
    gate = jnp.where(jnp.arange(ranked) < own, gate, -jnp.inf)
    best, chosen = jax.lax.top_k(gate, config.top - 1)
    chosen = jnp.concatenate([jnp.broadcast_to(own, (B, N, 1)), chosen], -1)
    here = jnp.concatenate([jnp.ones((B, N, 1), bool), best > -jnp.inf], -1)
    at = (chosen[..., None] * C + jnp.arange(C)).reshape(B, N, -1)
    seen = jnp.repeat(here, C, axis=-1) & (at <= t[:, None, None])
    return cache.full(tokens, _decode.attend(query, tokens, at, seen)), State(tokens, sums)


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: keys, values, sums and the length."""
    heads = dense.state_bytes(config, D=D, length=length, itemsize=itemsize)
    sums = _ranked(config, length) * config.kv_heads * config.width(D)
    return heads + sums * max(itemsize, 4)


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Each block's place in the ranking by comparing all pairs of gates, then a masked dense softmax."""
    kind, (T, N, H) = query.dtype, query.shape[1:]
    C, blocks = config.block, -(-T // config.block)
    query, key, value = (
        attention.repeat_heads(x, N).astype(jnp.float32) for x in (query, key, value)
    )
    # What a token may see without regard to order: its padding.
    valid = mask.dense(T, T).any(1)
    member = (jnp.arange(T) // C == jnp.arange(blocks)[:, None]) & valid[:, None]
    count = member.sum(-1)
    mean = jnp.einsum("bcs,bsnh->bcnh", member.astype(jnp.float32), key)
    mean /= jnp.maximum(count, 1)[..., None, None]
    gate = jnp.einsum("btnh,bcnh->bntc", query, mean)
    own, c = jnp.arange(T)[:, None] // C, jnp.arange(blocks)
    ranked = (c < own if mask.lookahead == 0 else c != own) & (count > 0)[:, None, None]
    gate = jnp.where(ranked, gate, -jnp.inf)
    mine, other = gate[..., None], gate[..., None, :]
    ahead = (other > mine) | ((other == mine) & (c < c[:, None]))
    chosen = (ranked & (ahead.sum(-1) < config.top - 1)) | (c == own)
    allowed = jnp.repeat(chosen, C, axis=-1)[..., :T] & mask.dense(T, T)[:, None]
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / jnp.sqrt(H)
    seen = allowed.any(-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", jnp.where(seen, weights, 0.0), value).astype(kind)


def _reach(config: Config, mask: Mask, T: int) -> tuple[np.ndarray, np.ndarray]:
    """First key and end of the keys of each query, [T] each, were the nearest blocks the best."""
    rows, blocks = np.arange(T), -(-T // config.block)
    top, own = min(config.top, blocks), rows // config.block
    if mask.lookahead == 0:
        return np.maximum(own - top + 1, 0) * config.block, rows + 1
    first = np.clip(own - top // 2, 0, blocks - top)
    return first * config.block, np.minimum((first + top) * config.block, T)


def effective(config: Config, mask: Mask, T: int) -> np.ndarray:
    """As many pairs as count, bool [B or 1, T, T]: which blocks the gate decides; here the nearest."""
    first, end = (x[:, None] for x in _reach(config, mask, T))
    return np.asarray(mask.dense(T, T)) & (np.arange(T) >= first) & (np.arange(T) < end)


class Attention(attention.Shell):
    """Mixture of block attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """The gate and `top` blocks for each query are executed. FLOPs an example.

    Useful are the pairs of the nearest blocks: exact when causal without padding, where all blocks that
    the gate ranks are full; else full and partial blocks may change places.
    """
    per_pair = 2 * config.num_heads * config.width(D)
    blocks, (count, t) = -(-T // config.block), plan(config, T)
    valid = np.ones((1, T), bool) if mask.key_valid is None else np.asarray(mask.key_valid)
    before = np.pad(valid.cumsum(-1), ((0, 0), (1, 0)))
    first, end = _reach(config, mask, T)
    useful = per_pair * float((before[:, end] - before[:, first]).sum(-1).mean())
    parts = attention.projection_flops(config, D=D, T=T, S=S)
    if config.top >= blocks:
        pairs = attention.Work(per_pair * softmax.pairs(T, S, mask), useful)
        return {**parts, "scores": pairs, "mix": pairs}
    own = np.arange(T) // config.block
    ranked = int(own.sum()) if mask.lookahead == 0 else T * (blocks - 1)
    pairs = attention.Work(per_pair * count * t * config.top * config.block, useful)
    gate = attention.Work(per_pair * count * t * blocks, per_pair * ranked)
    return {**parts, "gate": gate, "scores": pairs, "mix": pairs}
