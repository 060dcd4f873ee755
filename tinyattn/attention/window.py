"""Sliding-window attention: a token sees less than `window` positions to either side.

Queries go in blocks; each block sees its own keys and `window - 1` to the left and, unless the mask is
causal, to the right: executed FLOPs grow linearly with the length, whatever its remainder.

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
from tinyattn.attention import _softmax, dense
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments"})
SIMULATED = False
DENSE_WHEN = {"window": 1 << 20}
CASES = ({"window": 3}, {"window": 4, "block": 2}, {"window": 5, "num_kv_heads": 1})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      window: Positions seen to one side, the token itself included.
      block: Queries a block (C); 0 is `window`. More means larger products and more wasted pairs.
    """

    window: int = 64
    block: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1 or self.block < 0:
            raise ValueError(
                f"window={self.window} must be at least 1 and block={self.block} positive, or 0 for"
                f" as long as the window"
            )


class Plan(NamedTuple):
    """How a length is cut: `blocks` blocks of C queries, each seeing `behind + C + ahead` keys."""

    blocks: int
    C: int
    behind: int
    ahead: int


def plan(config: Config, mask: Mask, T: int) -> Plan:
    """Blocks for T positions; one dense block where that is no more work."""
    C = min(config.block or config.window, T)
    band = mask & masks.window(config.window)
    behind, ahead = min(band.lookback, T - 1), min(band.lookahead, T - 1)
    blocks = -(-T // C)
    if blocks * C * (behind + C + ahead) >= _softmax.pairs(T, T):
        return Plan(1, T, 0, 0)
    return Plan(blocks, C, behind, ahead)


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Attention within the window and the mask, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    B, T = size["B"], size["T"]
    if size["S"] != T:
        raise ValueError(f"a window needs keys of the same sequence: T={T}, S={size['S']}")
    band = mask & masks.window(config.window)
    blocks, C, behind, ahead = plan(config, mask, T)
    if blocks == 1:
        return _softmax.attend(query, key, value, band)

    starts = jnp.arange(blocks) * C
    spans = starts[:, None] + jnp.arange(-behind, C + ahead)
    allowed = jax.vmap(lambda start, span: band.allowed(start + jnp.arange(C), span, T))
    bias = jnp.moveaxis(allowed(starts, spans), 0, 1)  # [B or 1, blocks, C, span]

    def fold(x):
        """[B, blocks, ...] to [B * blocks, ...]: a block is an example of its own."""
        return jnp.broadcast_to(x, (B, *x.shape[1:])).reshape(-1, *x.shape[2:])

    padded = jnp.pad(query, ((0, 0), (0, blocks * C - T), (0, 0), (0, 0)))
    out = _softmax.attend_block(
        fold(padded.reshape(B, blocks, C, *query.shape[2:])),
        fold(_spans(key, blocks, C, behind, ahead)),
        fold(_spans(value, blocks, C, behind, ahead)),
        fold(bias),
    )
    return out.reshape(B, blocks * C, *query.shape[2:])[:, :T]


def _spans(x, blocks: int, C: int, behind: int, ahead: int):
    """[B, S, K, H] to [B, blocks, behind + C + ahead, K, H], zeros beyond the ends.

    Whole blocks are shifted and joined, so that the gradient is a sum of slices and not a scatter.
    """
    B, S, K, H = x.shape
    left, right = -(-behind // C), -(-ahead // C)
    x = jnp.pad(x, ((0, 0), (left * C, (blocks + right) * C - S), (0, 0), (0, 0)))
    x = x.reshape(B, left + blocks + right, C, K, H)
    shifted = [x[:, i : i + blocks] for i in range(left + 1 + right)]
    joined = jnp.concatenate(shifted, axis=2)
    return joined[:, :, left * C - behind : (left + 1) * C + ahead]


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Dense attention under the window's mask."""
    return dense.reference(config, query, key, value, mask & masks.window(config.window))


class Attention(attention.Shell):
    """Sliding-window attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """All pairs of a block and its keys are executed; those in the band are useful. FLOPs an example."""
    blocks, C, behind, ahead = plan(config, mask, T)
    per_pair = 2 * config.num_heads * config.width(D)
    allowed = (mask & masks.window(config.window)).pairs(T, S).mean()
    executed = blocks * C * (behind + C + ahead) if blocks > 1 else _softmax.pairs(T, S)
    pairs = attention.Work(per_pair * executed, per_pair * float(allowed))
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "scores": pairs,
        "mix": pairs,
    }
