"""Fixed sparse attention: a token sees its own block, and the last few tokens of every block.

The keys of those summary tokens are gathered behind the others, where those within the mask's reach are one
run that a block of queries reads besides its own. Blocks with runs of about one length go together: when
causal they are four parts, of which the first reads a quarter of the summaries. With stride sqrt(n) each
query is run against (1 + summary) * sqrt(n) keys, or (1 + 5 / 8 * summary) * sqrt(n) when causal.

Source: Child et al. 2019, "Generating long sequences with sparse Transformers",
  https://arxiv.org/abs/1904.10509, section 4.2 (fixed) and equation 9, one head that sees both parts.
Differs: without a causal mask, which the paper always has, summaries of later blocks are seen as well.
  All heads share one place for their summaries.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tinyattn import attention, masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import _parts, _pattern
from tinyattn.masks import Mask

SUPPORTS = _pattern.SUPPORTS
SIMULATED = False
COST = "T * (stride + summary * T / stride)"
DENSE_WHEN = {"stride": 1 << 20}
CASES = ({"stride": 4, "summary": 1}, {"stride": 3, "summary": 2, "num_kv_heads": 2})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      stride: Tokens a block (l in the paper).
      summary: Last tokens of each block that all others see (c in the paper), at most `stride`.
    """

    stride: int = 64
    summary: int = 8

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.summary <= self.stride:
            raise ValueError(
                f"summary={self.summary} must be in 1 to stride={self.stride}, the tokens of a block"
            )


@dataclasses.dataclass(frozen=True)
class Block:
    """Pairs within one block, or of two blocks."""

    stride: int
    same: bool

    def __call__(self, t, s):
        return (t // self.stride == s // self.stride) == self.same


@dataclasses.dataclass(frozen=True)
class Either:
    """All pairs of the pattern."""

    stride: int
    summary: int

    def __call__(self, t, s):
        summary = s % self.stride >= self.stride - self.summary
        return (t // self.stride == s // self.stride) | summary


def parts(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    """Blocks of queries with about as many keys together; one dense table where that is no more work."""
    C, stride, summary = min(config.stride, T), config.stride, config.summary
    # The last block may read past the last token, but never into the summaries.
    places = np.arange(-(-T // C) * C)
    found = places[(places < T) & (places % stride >= stride - summary)]
    first, end = _reach(config, mask, found, places[::C])
    parts = []
    for blocks in _parts.alike(C + end - first):
        rows = (blocks[:, None] * C + np.arange(C)).ravel()
        low, length = first[blocks].min(), int((end - first)[blocks].max())
        columns = np.concatenate([np.minimum(rows, T), found[low : end[blocks].max()]])
        runs = (_pattern.Run(np.arange(0, len(rows), C)[:, None], C, Block(stride, True)),)
        if length:
            starts = len(rows) + (first[blocks] - low)[:, None]
            runs += (_pattern.Run(starts, length, Block(stride, False)),)
        parts.append(_pattern.Part(rows[rows < T], columns, C, runs))
    return _pattern.or_dense(tuple(parts), Either(stride, summary), T)


def _reach(config: Config, mask: Mask, found, starts):
    """First and end of the summaries `found` within the mask's band, for the block from each start."""
    own = starts // config.stride * config.summary
    first, end = np.zeros_like(own), np.full_like(own, len(found))
    if mask.lookback is not None:
        first = np.searchsorted(found, starts - mask.lookback)
    if mask.lookahead is not None:
        end = np.searchsorted(found, starts + config.stride + mask.lookahead)
    # Those of the block itself are in its other run, so they count only if they lie between others.
    first = np.where(first < own, first, np.maximum(first, own + config.summary))
    end = np.where(end > own + config.summary, end, np.minimum(end, own))
    return first, np.maximum(first, end)


def pattern(config: Config, T: int) -> np.ndarray:
    """Which pairs the mechanism has, bool [T, T]."""
    found = np.zeros((T, T), bool)
    for first in range(0, T, config.stride):
        end = first + config.stride
        found[first:end, first:end] = True
        found[:, end - config.summary : end] = True
    return found


attend, reference, effective, flops = _pattern.functions(__name__, parts, pattern)


def _slots(config: Config, length: int) -> int:
    """Tokens kept of so many: one block, and the summaries of those before the last."""
    ended = (max(length, 1) - 1) // config.stride
    return min(config.stride, length) + ended * config.summary


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> cache.Cache:
    """An empty block, and after it room for the summaries of all blocks of `capacity` tokens."""
    return cache.empty(B, _slots(config, capacity), config.kv_heads, H, dtype)


def step(config: Config, state: cache.Cache, query, key, value, active=None):
    """One token more, as `dense.step`; of blocks that have ended only the summaries are kept."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    slots, stride, summary = state.key.shape[1], config.stride, config.summary
    C, t = min(stride, slots), state.length
    block, place = t // C, t % C
    state = cache.write(state, key, value, active, slot=place)
    # Held twice until the block has ended and the next one takes its slots.
    copy = C + block * summary + place - (stride - summary)
    copy = jnp.where(active & (place >= stride - summary), copy, slots)
    state = state._replace(
        key=cache.put(state.key, key, copy), value=cache.put(state.value, value, copy)
    )
    slot, (block, place) = jnp.arange(slots), (block[:, None], place[:, None])
    seen = jnp.where(slot < C, slot <= place, slot < C + block * summary)
    out = softmax.attend(query, state.key, state.value, masks.padding(seen))
    return cache.full(state, out, C * (1 + (slots - C) // summary)), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: a block, summaries and the length."""
    return dense.state_bytes(config, D=D, length=_slots(config, length), itemsize=itemsize)


class Attention(attention.Shell):
    """Fixed sparse attention as a module."""
