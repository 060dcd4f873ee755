"""Strided sparse attention: a token sees those nearer than `stride`, and every stride-th one.

No order of the tokens makes both kinds of keys contiguous, so keys are held twice: as they come, and
sorted by residue modulo the stride. Written in rows of `stride`, the tokens are a table; a block of queries
is a tile of it, tile x tile tokens, which read one run of either copy: the near keys of their rows and the
whole columns that they are in. With stride sqrt(n) each query is run against about 2 * tile * sqrt(n) keys.

Source: Child et al. 2019, "Generating long sequences with sparse Transformers",
  https://arxiv.org/abs/1904.10509, section 4.2 (strided) and equation 8, one head that sees both parts.
Differs: without a causal mask it looks both ways alike. Tiles share their keys, so up to twice `tile`
  times the pairs that count are executed, as products of that many rows instead of single ones.
"""

import dataclasses

import jax
import numpy as np

from tinyattn import attention
from tinyattn.attention.sparse import _decode, _pattern
from tinyattn.masks import Mask

SUPPORTS = _pattern.SUPPORTS
SIMULATED = False
COST = "T * (stride + T / stride)"
DENSE_WHEN = {"stride": 1 << 20}
CASES = ({"stride": 3, "tile": 1}, {"stride": 4, "tile": 2, "num_kv_heads": 2})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      stride: Distance of the far keys, and how far the near ones reach (l in the paper).
      tile: Side of a square of queries that are run together. More means larger products and more
        wasted pairs.
    """

    stride: int = 64
    tile: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.stride < 1 or self.tile < 1:
            raise ValueError(f"stride={self.stride} and tile={self.tile} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Near:
    """Pairs nearer than the stride."""

    stride: int

    def __call__(self, t, s):
        return abs(t - s) < self.stride


@dataclasses.dataclass(frozen=True)
class Far:
    """Pairs a multiple of the stride apart, and not near."""

    stride: int

    def __call__(self, t, s):
        return ((t - s) % self.stride == 0) & (abs(t - s) >= self.stride)


@dataclasses.dataclass(frozen=True)
class Either:
    """All pairs of the pattern."""

    stride: int

    def __call__(self, t, s):
        return ((t - s) % self.stride == 0) | (abs(t - s) < self.stride)


def parts(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    """Tiles of queries; one dense table where that is no more work."""
    stride = min(config.stride, T)
    height = -(-T // stride)
    down, across = min(config.tile, height), min(config.tile, stride)
    # The table of positions [height, stride], padded to whole tiles; T is padding.
    i, j = np.arange(-(-height // down) * down), np.arange(-(-stride // across) * across)
    table = np.where(j < stride, i[:, None] * stride + j, T)
    table = np.minimum(table, T)
    tiles = table.reshape(len(i) // down, down, len(j) // across, across).swapaxes(1, 2)
    corner_i, corner_j = np.meshgrid(i[::down], j[::across], indexing="ij")
    behind, ahead = (
        stride - 1 if bound is None else min(bound, stride - 1)
        for bound in (mask.lookback, mask.lookahead)
    )
    near = (corner_i * stride + corner_j).reshape(-1, 1) - behind
    length = behind + (down - 1) * stride + across + ahead
    # Near runs may read past the last token, but never into the sorted copy.
    edge = max(T, int(near.max()) + length)
    columns = np.concatenate([np.minimum(np.arange(edge), T), table[:height].T.ravel()])
    far = edge + (corner_j * height).reshape(-1, 1)
    runs = (
        _pattern.Run(near, length, Near(stride)),
        _pattern.Run(far, across * height, Far(stride)),
    )
    part = _pattern.Part(tiles.ravel(), columns, down * across, runs)
    return _pattern.or_dense((part,), Either(stride), T)


def pattern(config: Config, T: int) -> np.ndarray:
    """Which pairs the mechanism has, bool [T, T]."""
    found = np.zeros((T, T), bool)
    for t in range(T):
        found[t, max(0, t - config.stride) : t + config.stride + 1] = True
        found[t, t % config.stride :: config.stride] = True
    return found


def places(config: Config, capacity: int, t: jax.Array) -> jax.Array:
    """The near keys and the far ones behind queries at t, int [B]: int [B, n]."""
    near = np.arange(min(config.stride, capacity))
    back = np.concatenate([near, np.arange(config.stride, capacity, config.stride)])
    return t[:, None] - back


attend, reference, effective, flops = _pattern.functions(__name__, parts, pattern)
init_state, step, state_bytes = _decode.functions(places)


class Attention(attention.Shell):
    """Strided sparse attention as a module."""
