"""Strided sparse attention: a token sees those nearer than `stride`, and every stride-th one.

No order of the tokens makes both kinds of keys contiguous, so each kind has a softmax of its own, and their
outputs are merged by the sums of their exponentials. The near keys are a band, in blocks of queries as in
`window`. The far ones are those of a token's own residue modulo the stride: side by side, the tokens of one
are a short sequence, dense in itself. With stride sqrt(n) each query is run against about 3 sqrt(n) keys,
or 4 sqrt(n) without a causal mask.

Source: Child et al. 2019, "Generating long sequences with sparse Transformers",
  https://arxiv.org/abs/1904.10509, section 4.2 (strided) and equation 8, one head that sees both parts.
Differs: without a causal mask it looks both ways alike.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention, masks
from tinyattn.attention._core import softmax
from tinyattn.attention.sparse import _decode, _pattern, _residues, window
from tinyattn.masks import Mask

SUPPORTS = _pattern.SUPPORTS
SIMULATED = False
COST = "T * (2 * stride + T / stride)"
DENSE_WHEN = {"stride": 1 << 20}
CASES = ({"stride": 3, "block": 1}, {"stride": 4, "block": 2, "num_kv_heads": 2})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      stride: Distance of the far keys, and how far the near ones reach (l in the paper).
      block: Queries a block of the near part (C); 0 is `stride`. More means larger products and more
        wasted pairs.
    """

    stride: int = 64
    block: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.stride < 1 or self.block < 0:
            raise ValueError(
                f"stride={self.stride} must be at least 1, and block={self.block} positive, or 0 for as"
                f" long as the stride"
            )


@dataclasses.dataclass(frozen=True)
class Other:
    """Pairs of different tokens: a token itself is among the far keys already."""

    def __call__(self, t, s):
        return t[:, None] != s


@dataclasses.dataclass(frozen=True)
class Either:
    """All pairs of the pattern."""

    stride: int

    def __call__(self, t, s):
        distance = abs(t[:, None] - s)
        return (distance < self.stride) | (distance % self.stride == 0)


class Plan(NamedTuple):
    """How T tokens are run: `near` blocks and `stride` sequences, or one dense table if `near` is None."""

    near: window.Plan | None
    stride: int
    executed: int


def plan(config: Config, mask: Mask, T: int) -> Plan:
    """Two parts, or a dense table where that is no more work."""
    stride = min(config.stride, T)
    near = window.plan(window.Config(window=stride, block=config.block), mask, T)
    length, dense = -(-T // stride), softmax.pairs(T, T)
    far = _residues.mask_apart(Mask(lookback=mask.lookback, lookahead=mask.lookahead), stride, 1, T)
    executed = stride * softmax.pairs(length, length, far)
    executed += near.blocks * near.C * (near.behind + near.C + near.ahead)
    return Plan(near, stride, executed) if executed < dense else Plan(None, stride, dense)


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Softmax over the pairs that both the pattern and the mask allow, [B, T, N, H].

    Raises:
      ValueError: The mask is not supported, or the keys are not those of the queries' own sequence.
    """
    T, heads = _pattern.length(__name__, query, key, value, mask), (query, key, value)
    near, stride, _ = plan(config, mask, T)
    if near is None:
        spans = (
            softmax.Spans(jnp.zeros((1, 1, softmax.plan(T, T)[0], 1), int), T, Either(stride)),
        )
        return softmax.attend(*heads, mask, spans=spans, block=softmax.plan(T, T)[1])
    starts = (jnp.arange(near.blocks) * near.C - near.behind)[None, None, :, None]
    spans = (softmax.Spans(starts, near.behind + near.C + near.ahead, Other()),)
    band = mask & masks.window(stride)
    band = softmax.attend(*heads, band, spans=spans, block=near.C, return_lse=True)
    apart = [_residues.apart(x, stride) for x in heads]
    mask = _residues.mask_apart(mask, stride, len(query), T)
    far = softmax.attend(*apart, mask, return_lse=True)
    return softmax.merge([band, [_residues.together(x, stride, T) for x in far]])


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


init_state, step, state_bytes = _decode.functions(places)


def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Dense attention where mask and pattern allow."""
    return _pattern.masked(pattern(config, query.shape[1]), query, key, value, mask)


def effective(config: Config, mask: Mask, T: int) -> jax.Array:
    """The pairs that count, bool [B or 1, T, T]."""
    return mask.dense(T, T) & pattern(config, T)


class Attention(attention.Shell):
    """Strided sparse attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Whole blocks and whole sequences are executed; pairs that count are useful. FLOPs an example."""
    far = masks.segments(np.arange(T)[None] % config.stride)
    kinds = (mask & masks.window(config.stride), mask & far, mask & masks.window(1))
    # A token itself is in both parts.
    near, far, own = (kind.pairs(T, S).mean() for kind in kinds)
    per_pair = 2 * config.num_heads * config.width(D)
    useful = per_pair * float(near + far - own)
    work = attention.Work(per_pair * plan(config, mask, T).executed, useful)
    return {**attention.projection_flops(config, D=D, T=T, S=S), "scores": work, "mix": work}
