"""Longformer's attention: a sliding window, and a few first tokens that see and are seen by all.

The global tokens' queries read every key in a block of their own. The other queries go in blocks; each
block reads its window and the global tokens' keys: executed FLOPs grow linearly with the length.

Source: Beltagy et al. 2020, "Longformer", https://arxiv.org/abs/2004.05150, section 3.1.
Differs: `window` counts the token itself and one side, |t - s| < window, as `window` does; Longformer's w
  is 2 * window - 1. Global tokens are always the first ones, and have projections of their own only if
  `global_projections` says so. Causal masks are honoured, for global tokens as well.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import affine, attention, masks
from tinyattn.attention._core import softmax
from tinyattn.attention.sparse import _longformer, _parts, _pattern
from tinyattn.masks import Mask

SUPPORTS = _pattern.SUPPORTS
SIMULATED = False
COST = "T * (window + global_tokens)"
DENSE_WHEN = {"global_tokens": 1 << 20}
CASES = (
    {"window": 2, "global_tokens": 1},
    {
        "window": 3,
        "global_tokens": 2,
        "block": 4,
        "num_kv_heads": 2,
        "global_projections": True,
    },
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      window: Positions seen to one side, the token itself included.
      global_tokens: First tokens that see all and are seen by all.
      global_projections: Whether what global tokens see is projected apart: a query of their own, and a
        key and a value of every token that only they read.
      block: Queries a block (C); 0 lets the backend choose, `window` or less. More means larger products
        and more wasted pairs.
    """

    window: int = 64
    global_tokens: int = 1
    global_projections: bool = False
    block: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1 or self.global_tokens < 0 or self.block < 0:
            raise ValueError(
                f"window={self.window} must be at least 1, global_tokens={self.global_tokens} at"
                f" least 0, and block={self.block} positive, or 0 for the backend's choice"
            )
        if self.global_projections and not self.global_tokens:
            raise ValueError("global_projections=True needs global_tokens of at least 1")


@dataclasses.dataclass(frozen=True)
class Near:
    """Pairs within the window whose key is no global token."""

    window: int
    first: int

    def __call__(self, t, s):
        return (abs(t - s) < self.window) & (s >= self.first)


@dataclasses.dataclass(frozen=True)
class Seen:
    """All pairs of the pattern."""

    window: int
    first: int

    def __call__(self, t, s):
        return (abs(t - s) < self.window) | (t < self.first) | (s < self.first)


def parts(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    """The global queries and the others; one dense table where that is no more work."""
    G, rule = min(config.global_tokens, T), Seen(config.window, config.global_tokens)
    first, others = _global(config, mask, T), _local(config, mask, T)
    if not config.global_projections:
        return _pattern.or_dense(first + others, rule, T)
    return first + (_pattern.or_dense(others, rule, T, G) if others else ())


def _global(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    G = min(config.global_tokens, T)
    reach = T if mask.lookahead is None else min(T, G + mask.lookahead)
    return (_pattern.Part(np.arange(G), np.arange(reach)),) if G else ()


def _local(config: Config, mask: Mask, T: int) -> tuple[_pattern.Part, ...]:
    G = min(config.global_tokens, T)
    if T == G:
        return ()
    C = min(config.block or softmax.beside(config.window), T - G)
    band = mask & masks.window(config.window)
    ahead = min(band.lookahead, T - 1)
    behind = softmax.behind(min(band.lookback, T - 1), C + ahead)
    first = np.arange(G, T, C)[:, None]
    runs = (_pattern.Run(first - behind, behind + C + ahead, Near(config.window, G)),)
    if G:
        runs += (_pattern.Run(np.zeros_like(first), G),)
    return (_pattern.Part(np.arange(G, T), np.arange(T), C, runs),)


def pattern(config: Config, T: int) -> np.ndarray:
    """Which pairs the mechanism has, bool [T, T]."""
    found = np.zeros((T, T), bool)
    for t in range(T):
        found[t, max(0, t - config.window + 1) : t + config.window] = True
    found[: config.global_tokens] = True
    found[:, : config.global_tokens] = True
    return found


_attend, _reference, effective, _flops = _pattern.functions(__name__, parts, pattern)


def extras(
    config: Config,
    inputs: jax.Array,
    memory: jax.Array | None,
    *,
    kernel_init: nn.initializers.Initializer,
) -> dict[str, jax.Array]:
    """`global_query` [B, G, N, H], `global_key`, `global_value` [B, T, K, H] where they are asked for."""
    if not config.global_projections:
        return {}
    N, K, H = config.num_heads, config.kv_heads, config.width(inputs.shape[-1])
    (query,) = affine.dense(inputs[:, : config.global_tokens], {"global_query": N * H}, kernel_init)
    key, value = affine.dense(inputs, {"global_key": K * H, "global_value": K * H}, kernel_init)
    found = {"global_query": query, "global_key": key, "global_value": value}
    return {name: x.reshape(*x.shape[:2], -1, H) for name, x in found.items()}


def attend(
    config: Config,
    query,
    key,
    value,
    mask: Mask,
    global_query=None,
    global_key=None,
    global_value=None,
) -> jax.Array:
    """Softmax over the pairs that both the pattern and the mask allow, [B, T, N, H].

    Raises:
      ValueError: The mask is not supported, or the keys are not those of the queries' own sequence.
    """
    if not config.global_projections:
        return _attend(config, query, key, value, mask)
    T = _pattern.length(__name__, query, key, value, mask)
    first, *others = parts(config, mask, T)
    out = _parts.attend((first,), global_query, global_key, global_value, mask)
    if not others:
        return out
    return jnp.concatenate([out, _parts.attend(tuple(others), query, key, value, mask)], axis=1)


init_state, step, state_bytes = _longformer.init_state, _longformer.step, _longformer.state_bytes


def reference(
    config: Config,
    query,
    key,
    value,
    mask: Mask,
    global_query=None,
    global_key=None,
    global_value=None,
) -> jax.Array:
    """Dense attention where mask and pattern allow; rows of global tokens from their own heads."""
    out = _reference(config, query, key, value, mask)
    if not config.global_projections:
        return out
    G = min(config.global_tokens, query.shape[1])
    own = query.at[:, :G].set(global_query)
    own = _reference(config, own, global_key, global_value, mask)
    return out.at[:, :G].set(own[:, :G])


class Attention(attention.Shell):
    """Longformer's attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Whole blocks and runs are executed; pairs that count are useful. FLOPs an example."""
    work = _flops(config, mask, D=D, T=T, S=S)
    if config.global_projections:
        N, K, H = config.num_heads, config.kv_heads, config.width(D)
        work["global_query"] = attention.products(min(config.global_tokens, T) * D * N * H)
        work["global_key"] = work["global_value"] = attention.products(T * D * K * H)
    return work
