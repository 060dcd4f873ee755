"""BigBird's attention: a window of blocks, a few first blocks that see all, and random blocks.

It is a layout of blocks, run by `blocks`: the rows of the global blocks go in one part and the others in
another, so executed FLOPs grow linearly with the length.

Source: Zaheer et al. 2020, "Big Bird", https://arxiv.org/abs/2007.14062, section 2 and appendix D.
Differs: the internal construction with the first blocks alone as global ones, where the authors' code
  takes the first and the last. Random blocks depend on the seed and the length and on nothing else: all
  heads, calls and layers of one config share them. They are drawn without regard to the mask, so a
  causal row sees those of them that lie behind it; decoding sees those of a sequence as long as the
  capacity. Short sequences are not switched to dense attention.
"""

import dataclasses

import jax
import numpy as np

from tinyattn import attention
from tinyattn.attention.sparse import _decode, _pattern, blocks
from tinyattn.masks import Mask

SUPPORTS = _pattern.SUPPORTS
SIMULATED = False
COST = "T * block * (window_blocks + global_blocks + random_blocks)"
DENSE_WHEN = {"block": 4, "window_blocks": (1 << 20) + 1}
CASES = (
    {"block": 2, "window_blocks": 1, "random_blocks": 1},
    {"block": 2, "window_blocks": 3, "global_blocks": 0, "random_blocks": 2, "num_kv_heads": 1},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      block: Tokens a block (C).
      window_blocks: Blocks seen around a query's own, itself included: an odd number.
      global_blocks: First blocks, which see all and are seen by all.
      random_blocks: Blocks that each block sees besides, or as many as there are.
      seed: What they are drawn from, 0 to 2**64 - 1.
    """

    block: int = 64
    window_blocks: int = 3
    global_blocks: int = 1
    random_blocks: int = 3
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.block < 1 or self.global_blocks < 0 or self.random_blocks < 0:
            raise ValueError(
                f"block={self.block} must be at least 1, global_blocks={self.global_blocks} and"
                f" random_blocks={self.random_blocks} at least 0"
            )
        if self.window_blocks < 1 or self.window_blocks % 2 == 0:
            raise ValueError(
                f"window_blocks={self.window_blocks} must be odd, as many to either side of the"
                f" query's own: try {max(1, self.window_blocks + 1)}"
            )
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed={self.seed} must be in 0 to 2**64 - 1")


def grid(config: Config, T: int) -> tuple[np.ndarray, int]:
    """Which cells are set, bool [blocks, blocks], and the tokens of a block (C)."""
    C = min(config.block, T)
    places = np.arange(-(-T // C))
    layout = abs(places[:, None] - places) <= config.window_blocks // 2
    layout[:, : config.global_blocks] = True
    layout[: config.global_blocks] = True
    for row, cells in enumerate(layout):
        # Raw bits of a counter: their stream is promised stable, that of a generator's methods is not.
        draw = np.random.Philox(key=np.array([config.seed, row], np.uint64))
        bits = draw.random_raw(len(places))
        free = np.flatnonzero(~cells)
        cells[free[np.argsort(bits[free], kind="stable")[: config.random_blocks]]] = True
    return layout, C


def parts(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    """Rows of the grid with about as many set blocks together."""
    return blocks.parts_of(*grid(config, T), mask, T)


def pattern(config: Config, T: int) -> np.ndarray:
    """Which pairs the mechanism has, bool [T, T]."""
    return blocks.spread(*grid(config, T), T)


def places(config: Config, capacity: int, t: jax.Array) -> jax.Array:
    """The keys of the set blocks that queries at t, int [B], look back to, int [B, n]."""
    return blocks.behind(*grid(config, capacity), t)


attend, reference, effective, flops = _pattern.functions(__name__, parts, pattern)
init_state, step, state_bytes = _decode.functions(places)


class Attention(attention.Shell):
    """BigBird's attention as a module."""
