"""Block-sparse attention: any layout of blocks, tiled over the sequence, and only the set blocks are run.

Query and key blocks of C tokens form a grid; the layout says which of its cells are set. Rows of the grid
with about as many set blocks go together, so that a dense row does not make the others dense; blocks
out of a causal mask's or a window's reach are not run.

Source: Gray et al. 2017, "GPU kernels for block-sparse weights",
  https://cdn.openai.com/blocksparse/blocksparsepaper.pdf, section 3, for products by layout; Child et al.
  2019, https://arxiv.org/abs/1904.10509, section 5.3, for their use in attention.
Differs: one layout serves all heads, and it repeats in both directions where it is smaller than the grid,
  so executed FLOPs are its density times those of dense attention.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention
from tinyattn.attention.sparse import _decode, _parts, _pattern
from tinyattn.masks import Mask

SUPPORTS = _pattern.SUPPORTS
SIMULATED = False
COST = "T * T"
DENSE_WHEN = {"block": 4, "layout": ("1",)}
CASES = (
    {"block": 3, "layout": ("101", "110", "011")},
    {"block": 4, "layout": ("1111", "1100", "0110", "1011"), "num_kv_heads": 2},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      block: Tokens a block (C).
      layout: Rows of 0 and 1, as strings ("110") or tuples (1, 1, 0): queries of block i see keys of
        block j if layout[i % rows][j % columns] is 1. Kept as strings.
    """

    block: int = 64
    layout: tuple = ("1100", "0110", "0011", "1001")

    def __post_init__(self):
        super().__post_init__()
        if self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1")
        rows = [self.layout] if isinstance(self.layout, str) else self.layout
        rows = tuple("".join(str(int(x) if x in (0, 1) else x) for x in row) for row in rows)
        if not rows or len({len(row) for row in rows}) > 1:
            raise ValueError(f"layout={self.layout!r} must have rows, all of one length")
        if bad := set("".join(rows)) - {"0", "1"}:
            raise ValueError(
                f"layout={self.layout!r} holds {', '.join(map(repr, sorted(bad)))}: give 0 and 1"
            )
        if empty := [i for i, row in enumerate(rows) if "1" not in row]:
            raise ValueError(
                f"row {empty[0]} of layout={self.layout!r} sets no block, so its queries would see"
                f" nothing: set at least one"
            )
        object.__setattr__(self, "layout", rows)


@dataclasses.dataclass(frozen=True)
class Set:
    """Pairs whose cell of the grid is set."""

    bits: bytes
    blocks: int
    C: int

    def __call__(self, t, s):
        table = np.frombuffer(self.bits, bool).reshape(self.blocks, self.blocks)
        cell = t // self.C, s // self.C
        if isinstance(t, np.ndarray):
            return table[cell]
        return jnp.asarray(table).at[cell].get(mode="clip")


def grid(config: Config, T: int) -> tuple[np.ndarray, int]:
    """Which cells are set, bool [blocks, blocks], and the tokens of a block (C)."""
    C = min(config.block, T)
    places = np.arange(-(-T // C))
    layout = np.array([[x == "1" for x in row] for row in config.layout])
    rows, columns = layout.shape
    return layout[places[:, None] % rows, places % columns], C


def parts_of(layout: np.ndarray, C: int, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    """The parts that run the set cells of a grid, bool [blocks, blocks], within the mask's band."""
    blocks = len(layout)
    i, j = np.arange(blocks)[:, None] * C, np.arange(blocks)[None] * C
    live = layout.copy()
    if mask.lookback is not None:
        live &= j + C - 1 >= i - mask.lookback
    if mask.lookahead is not None:
        live &= j <= i + C - 1 + mask.lookahead
    rule = Set(layout.tobytes(), blocks, C)
    found = []
    for rows in _parts.alike(live.sum(1)):
        positions = (rows[:, None] * C + np.arange(C)).ravel()
        run = _run(live[rows], C, rule)
        columns = np.arange(T if run.length else 0)
        found.append(_pattern.Part(positions[positions < T], columns, C, (run,)))
    return tuple(found)


def _run(live, C: int, rule) -> _pattern.Run:
    """The live cells of rows, bool [rows, blocks]: one long run a row where that is no more work."""
    blocks = live.shape[1]
    most = live.sum(1).max()
    first = live.argmax(1)
    last = np.where(live.any(1), blocks - 1 - live[:, ::-1].argmax(1), -1)
    if (last - first).max() < most or not most:
        return _pattern.Run(first[:, None] * C, int(most) * C, rule)
    # Rows with fewer cells read past the last key, where all is masked.
    cells = np.sort(np.where(live, np.arange(blocks), blocks), axis=1)[:, :most]
    return _pattern.Run(cells * C, C)


def spread(layout: np.ndarray, C: int, T: int) -> np.ndarray:
    """A grid's cells as pairs of tokens, bool [T, T]."""
    return np.kron(layout, np.ones((C, C), bool))[:T, :T]


def parts(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    """Rows of the grid with about as many set blocks together."""
    return parts_of(*grid(config, T), mask, T)


def pattern(config: Config, T: int) -> np.ndarray:
    """Which pairs the mechanism has, bool [T, T]."""
    return spread(*grid(config, T), T)


def places(config: Config, capacity: int, t: jax.Array) -> jax.Array:
    """The keys of the set blocks that queries at t, int [B], look back to, int [B, n]."""
    return behind(*grid(config, capacity), t)


def behind(layout: np.ndarray, C: int, t: jax.Array) -> jax.Array:
    """The keys of a grid's set cells up to the own one, for queries at t, int [B]: int [B, n]."""
    blocks, live = len(layout), np.tril(layout)
    most = max(1, live.sum(1).max())
    # Rows with fewer cells read past the last key, where all is masked.
    cells = np.sort(np.where(live, np.arange(blocks), blocks), axis=1)[:, :most]
    own = jnp.asarray(cells)[jnp.minimum(t // C, blocks - 1)]
    return (own[..., None] * C + jnp.arange(C)).reshape(len(t), -1)


attend, reference, effective, flops = _pattern.functions(__name__, parts, pattern)
init_state, step, state_bytes = _decode.functions(places)


class Attention(attention.Shell):
    """Block-sparse attention as a module."""
