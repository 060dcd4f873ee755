"""Native sparse attention: gated sums of compressed blocks, the best whole blocks, and a window.

Keys and values are cut into blocks. A learned mean makes one key and one value of each block, to which a
query attends as if it were a token, once the block has ended. These probabilities, summed over the query
heads that share a key/value head, rank the blocks: the `top` best, among them always the query's own and
the first, are gathered and attended to key by key. The third branch is a sliding window. Sigmoid gates of
the query's token, three a head, weigh the branches: work grows as T * (top * block + window + T / block).

Source: Yuan et al. 2025, "Native Sparse Attention", https://arxiv.org/abs/2502.11089, section 3,
  equation 5 for the gates, 7 for the compression, 8 to 12 for the choice.
Differs: blocks of the compression do not overlap and are those of the choice, the paper's simplest case, so
  that the probability of one is the score of the other. Compression is a mean weighted by the place in
  the block, head by head, not a network. The branches share their keys and values. Of nearby blocks only
  the own one is always in. A block without a valid key does not count, and a mean is of valid keys only.
  Also without a causal mask, where all blocks and keys to both sides count.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import affine, attention
from tinyattn.attention._core import pieces, softmax
from tinyattn.attention.sparse import _nsa, window
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding"})
SIMULATED = False
COST = "T * (top * block + 2 * window + T / block)"
DENSE_WHEN = None
CASES = (
    {"block": 3, "top": 2, "window": 3},
    {"block": 2, "top": 3, "window": 4, "num_kv_heads": 2, "piece": 5},
)
# Pairs of a head in one piece, unless the config says otherwise: their keys are copies.
PAIRS = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      block: Keys a block (C), for the compression and for the choice (l, d and l' in the paper).
      top: Blocks that a query sees whole, its own and the first included (n).
      window: Positions seen to one side in the sliding window, the token itself included (w).
      piece: Queries whose blocks are gathered at a time; 0 is as many as make 2^14 pairs.
    """

    block: int = 32
    top: int = 4
    window: int = 64
    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if min(self.block, self.window) < 1 or self.piece < 0:
            raise ValueError(
                f"block={self.block} and window={self.window} must be at least 1 and"
                f" piece={self.piece} positive, or 0 for a piece of {PAIRS} pairs"
            )
        if self.top < 2:
            raise ValueError(
                f"top={self.top} must be at least 2, a query's own block and the first"
            )


def local(config: Config) -> window.Config:
    """The third branch."""
    heads = {name: getattr(config, name) for name in ("num_heads", "num_kv_heads", "head_dim")}
    return window.Config(window=config.window, **heads)


def plan(config: Config, T: int) -> tuple[int, int]:
    """Pieces of queries, and the queries of one."""
    # Not by the compressed pairs: with the length, pieces get larger, not more.
    return pieces.plan(T, config.piece, config.top * config.block, PAIRS)


class _Compression(nn.Module):
    """The logits of a block's places; at first it is the plain mean."""

    config: Config

    @nn.compact
    def __call__(self):
        zeros, shape = nn.initializers.zeros, (self.config.block, self.config.kv_heads)
        return {f"compress_{name}": self.param(name, zeros, shape) for name in ("key", "value")}


def extras(config: Config, inputs, memory=None, *, kernel_init) -> dict[str, jax.Array]:
    """`gate`, logits [B, T, N, 3], and `compress_key` and `compress_value`, logits [C, K]."""
    (gate,) = affine.dense(inputs, {"gate": 3 * config.num_heads}, kernel_init)
    gate = gate.reshape(*gate.shape[:2], config.num_heads, 3)
    return {"gate": gate, **_Compression(config, name="compress")()}


def attend(
    config: Config, query, key, value, mask: Mask, gate, compress_key, compress_value
) -> jax.Array:
    """The gated sum of the three branches within the mask, [B, T, N, H].

    Gates are of the compressed blocks, the whole ones and the window, in this order.

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value, own="an own block")
    B, T, H, K = (size[axis] for axis in "BTHK")
    C, blocks = config.block, -(-T // config.block)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    gate = jax.nn.sigmoid(gate.astype(dtype))
    out = gate[..., 2:] * window.attend(local(config), query, key, value, mask)
    if config.top >= blocks:
        out += gate[..., 1:2] * softmax.attend(query, key, value, mask)
    key, value, poison = pieces.contained(key, value, dtype)
    valid = jnp.ones((1, T), bool) if mask.key_valid is None else mask.key_valid
    valid = jnp.broadcast_to(valid[:, None], poison.shape)

    def cut(x):
        """[B, K, T, ...] to [B, K, blocks, C, ...]."""
        x = jnp.pad(x, ((0, 0), (0, 0), (0, blocks * C - T), *[(0, 0)] * (x.ndim - 3)))
        return x.reshape(B, K, blocks, C, *x.shape[3:])

    key, value, valid, poison = map(cut, (key, value, valid, poison))

    def compressed(x, logits):
        """[B, K, blocks, C, H] to [B, K, blocks, H]."""
        logits = jnp.broadcast_to(logits.astype(dtype).T[:, None], valid.shape)
        return jnp.einsum("bkcj,bkcjh->bkch", pieces.softmax(logits, valid), x)

    block_key, block_value = compressed(key, compress_key), compressed(value, compress_value)
    block_poison, held = ((x & valid).any(-1)[:, :, None] for x in (poison, valid))
    count, t = plan(config, T)

    def piece(i, x, source):
        query, open_ = x
        rows, c = jnp.minimum(i * t + jnp.arange(t), T - 1)[:, None], jnp.arange(blocks)
        shown = held & ((c + 1) * C <= rows + 1) if mask.lookahead == 0 else held
        scores = jnp.einsum("btkmh,bkch->bkmtc", query, block_key) * H**-0.5
        scores = jnp.where(block_poison[:, :, None], jnp.nan, scores)
        weights = pieces.softmax(scores, shown[:, :, None])
        out = open_[..., :1] * jnp.einsum("bkmtc,bkch->btkmh", weights, block_value)
        if config.top >= blocks:
            return out, source
        # The choice has no gradient.
        rank = jnp.where(shown, jax.lax.stop_gradient(weights).sum(2), -jnp.inf)
        rank = jnp.where((c == 0) | (c == rows // C), jnp.inf, rank)
        best, chosen = jax.lax.top_k(rank, config.top)
        allowed = (best > -jnp.inf)[..., None] & pieces.gather(valid, chosen)
        if mask.lookahead == 0:
            allowed &= chosen[..., None] * C + jnp.arange(C) <= rows[..., None]

        def flat(x):
            """[B, K, t, top, C, ...] to [B, K, t, top * C, ...]."""
            return x.reshape(B, K, t, config.top * C, *x.shape[5:])

        (keys, values), source = source.take(chosen)
        scores = jnp.einsum("btkmh,bktjh->bkmtj", query, flat(keys))
        bad = flat(pieces.gather(poison, chosen))[:, :, None]
        scores = jnp.where(bad, jnp.nan, scores * H**-0.5)
        weights = pieces.softmax(scores, flat(allowed)[:, :, None])
        mixed = jnp.einsum("bkmtj,bktjh->btkmh", weights, flat(values))
        return out + open_[..., 1:2] * mixed, source

    blockwise = pieces.gathering(piece, (query, gate), (key, value), K, count, t)
    return (out + blockwise).astype(kind)


init_state, step, state_bytes = _nsa.init_state, _nsa.step, _nsa.state_bytes


def reference(
    config: Config, query, key, value, mask: Mask, gate, compress_key, compress_value
) -> jax.Array:
    """Each branch as a dense softmax under a mask of its own; ranks by comparing all pairs of blocks."""
    kind, (B, T, N, H), C, K = query.dtype, query.shape, config.block, key.shape[2]
    query, key, value = (
        attention.repeat_heads(x, N).astype(jnp.float32) for x in (query, key, value)
    )
    t, s, c = jnp.arange(T)[:, None], jnp.arange(T), jnp.arange(-(-T // C))
    seen = jnp.broadcast_to(mask.dense(T, T)[:, None], (B, 1, T, T))
    member = (s // C == c[:, None]) & seen.any(2, keepdims=True)  # [B, 1, c, s]

    def compressed(x, logits):
        powers = jnp.repeat(jnp.exp(logits - logits.max(0)).T, N // K, axis=0)
        powers = member * powers[:, None, s % C]  # [B, N, c, s]
        total = powers.sum(-1, keepdims=True)
        return jnp.einsum("bncs,bsnh->bcnh", powers / jnp.where(total > 0, total, 1.0), x)

    def weigh(key, allowed):
        scores = jnp.where(allowed, jnp.einsum("btnh,bsnh->bnts", query, key) / H**0.5, -jnp.inf)
        some = allowed.any(-1, keepdims=True)
        return jnp.where(some, jax.nn.softmax(jnp.where(some, scores, 0.0), axis=-1), 0.0)

    ended = c * C + C - 1 <= t if mask.lookahead == 0 else c >= 0
    shown = member.any(-1)[:, :, None] & ended
    whole = weigh(compressed(key, compress_key), shown)
    rank = jnp.repeat(whole.reshape(B, K, N // K, T, -1).sum(2), N // K, axis=1)
    rank = jnp.where((c == t // C) | (c == 0), 2.0 * N, jnp.where(shown, rank, -1.0))
    mine, other = rank[..., None], rank[..., None, :]
    ahead = (other > mine) | ((other == mine) & (c < c[:, None]))
    chosen = (ahead.sum(-1) < config.top) & (rank >= 0)
    picked = seen & jnp.repeat(chosen, C, axis=-1)[..., :T]
    near = seen & (jnp.abs(t - s) < config.window)
    tables = [(whole, compressed(value, compress_value))]
    tables += [(weigh(key, allowed), value) for allowed in (picked, near)]
    branches = jnp.stack([jnp.einsum("bnts,bsnh->btnh", *table) for table in tables], -1)
    open_ = 1 / (1 + jnp.exp(-gate.astype(jnp.float32)))
    return jnp.einsum("btnhi,btni->btnh", branches, open_).astype(kind)


class Attention(attention.Shell):
    """Native sparse attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Means, all compressed blocks, `top` whole ones and a window are executed. FLOPs an example.

    Useful whole blocks are the own one and as many full ones: exact when causal without padding.
    """
    N, K, H, C = config.num_heads, config.kv_heads, config.width(D), config.block
    blocks, (count, t) = -(-T // C), plan(config, T)
    valid = np.ones((1, T), bool) if mask.key_valid is None else np.asarray(mask.key_valid)
    before, rows = np.pad(valid.cumsum(-1), ((0, 0), (1, 0))), np.arange(T)
    causal, first = mask.lookahead == 0, rows // C * C
    end = rows + 1 if causal else np.minimum(first + C, T)
    own = before[:, end] - before[:, first]
    rest = before[:, first] if causal else before[:, -1:] - own
    picked = float((own + np.minimum(rest, (config.top - 1) * C)).sum(-1).mean())
    starts = np.arange(blocks) * C
    held = np.add.reduceat(valid, starts, axis=-1) > 0
    shown = held * (np.maximum(T - starts - C + 1, 0) if causal else T)
    shown, per_pair = float(shown.sum(-1).mean()), 4 * N * H
    executed = softmax.pairs(T, S, mask) if config.top >= blocks else count * t * config.top * C
    near = window.flops(local(config), mask, D=D, T=T, S=S)
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "gate": attention.products(3 * T * D * N),
        "compress": attention.Work(4 * K * blocks * C * H, 4 * K * H * float(valid.sum(-1).mean())),
        "compressed": attention.Work(per_pair * count * t * blocks, per_pair * shown),
        "chosen": attention.Work(per_pair * executed, per_pair * picked),
        "window scores": near["scores"],
        "window mix": near["mix"],
    }
