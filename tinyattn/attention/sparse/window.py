"""Sliding-window attention: a token sees less than `window` positions to either side, or every d-th one.

Queries go in blocks; each block sees its own keys and `window - 1` to the left and, unless the mask is
causal, to the right: executed FLOPs grow linearly with the length, whatever its remainder. With a
dilation of d, tokens that are d apart make a sequence of their own, and each is worked on so.

Source: Beltagy et al. 2020, "Longformer", https://arxiv.org/abs/2004.05150, section 3.1; Child et al.
  2019, https://arxiv.org/abs/1904.10509, for the causal form.
Differs: `window` counts the token itself and one side, |t - s| < window, as the causal form does;
  Longformer's w is 2 * window - 1. No global tokens.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import _residues
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments"})
SIMULATED = False
COST = "T * window"
DENSE_WHEN = {"window": 1 << 20}
CASES = (
    {"window": 3},
    {"window": 4, "num_kv_heads": 1, "dilation": 2, "block": 2},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      window: Tokens seen to one side, the token itself included.
      dilation: Positions from one of them to the next (d); 1 sees them all.
      block: Queries a block (C); 0 lets the backend choose, `window` or less. More means larger products
        and more wasted pairs.
    """

    window: int = 64
    dilation: int = 1
    block: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1 or self.dilation < 1 or self.block < 0:
            raise ValueError(
                f"window={self.window} and dilation={self.dilation} must be at least 1, and"
                f" block={self.block} positive, or 0 for the backend's choice"
            )


class Plan(NamedTuple):
    """How a length is cut: `blocks` blocks of C queries, each seeing `behind + C + ahead` keys."""

    blocks: int
    C: int
    behind: int
    ahead: int


def plan(config: Config, mask: Mask, T: int) -> Plan:
    """Blocks for T positions that lie side by side; one dense block where that is no more work."""
    C = min(config.block or softmax.beside(config.window), T)
    band = mask & masks.window(config.window)
    ahead = min(band.lookahead, T - 1)
    behind = softmax.behind(min(band.lookback, T - 1), C + ahead)
    blocks = -(-T // C)
    if blocks * C * (behind + C + ahead) >= softmax.pairs(T, T, band):
        return Plan(1, T, 0, 0)
    return Plan(blocks, C, behind, ahead)


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Attention within the window and the mask, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value, own="a window")
    T, d = size["T"], min(config.dilation, size["T"])
    query, key, value = (_residues.apart(x, d) for x in (query, key, value))
    mask = _residues.mask_apart(mask, d, size["B"], T)
    band = mask & masks.window(config.window)
    blocks, C, behind, ahead = plan(config, mask, -(-T // d))
    if blocks == 1:
        out = softmax.attend(query, key, value, band)
    else:
        starts = (jnp.arange(blocks) * C - behind)[None, None, :, None]
        spans = (softmax.Spans(starts, behind + C + ahead),)
        out = softmax.attend(query, key, value, band, spans=spans, block=C)
    return _residues.together(out, d, T)


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32):
    """An empty ring of the keys and values that the window spans, or of `capacity` if that is less."""
    return cache.empty(B, min(_reach(config), capacity), config.kv_heads, H, dtype)


def _reach(config: Config) -> int:
    """Positions from the first token of a causal window to the last."""
    return (config.window - 1) * config.dilation + 1


def step(config: Config, state: cache.Cache, query, key, value, active=None):
    """One token more, as `dense.step`; the ring forgets what the window no longer shows."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    slots = jnp.arange(state.key.shape[1])
    state = cache.write(state, key, value, active, slot=state.length % slots.size)
    age = (state.length[:, None] - 1 - slots) % slots.size
    seen = masks.padding(cache.valid(state) & (age % config.dilation == 0))
    out = softmax.attend(query, state.key, state.value, seen)
    # A ring that spans the window never fills up.
    return (out if slots.size == _reach(config) else cache.full(state, out)), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: constant once the window is full."""
    return dense.state_bytes(config, D=D, length=min(length, _reach(config)), itemsize=itemsize)


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Dense attention under the window's mask; positions alike modulo d are segments."""
    T = query.shape[1]
    return dense.reference(config, query, key, value, mask & _shown(config, T))


def _shown(config: Config, T: int) -> Mask:
    if config.dilation == 1:
        return masks.window(config.window)
    return masks.window(_reach(config)) & masks.segments(jnp.arange(T)[None] % config.dilation)


def effective(config: Config, mask: Mask, T: int) -> jax.Array:
    """The pairs that count, bool [B or 1, T, T]."""
    return (mask & _shown(config, T)).dense(T, T)


class Attention(attention.Shell):
    """Sliding-window attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """All pairs of a block and its keys are executed; those in the band are useful. FLOPs an example."""
    d = min(config.dilation, T)
    length = -(-T // d)
    apart = _residues.mask_apart(Mask(lookback=mask.lookback, lookahead=mask.lookahead), d, 1, T)
    blocks, C, behind, ahead = plan(config, apart, length)
    per_pair = 2 * config.num_heads * config.width(D)
    allowed = (mask & _shown(config, T)).pairs(T, S).mean()
    executed = blocks * C * (behind + C + ahead)
    if blocks == 1:
        executed = softmax.pairs(length, length, apart & masks.window(config.window))
    pairs = attention.Work(per_pair * d * executed, per_pair * float(allowed))
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "scores": pairs,
        "mix": pairs,
    }
