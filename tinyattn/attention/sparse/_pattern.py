"""Attention under a static pattern of pairs, run only where the pattern has any.

A variant says its pattern twice: as a table of pairs, which is the oracle, and as the parts that are run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention
from tinyattn.attention._core import softmax
from tinyattn.attention.sparse import _parts
from tinyattn.attention.sparse._parts import Part, Run
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments"})


def functions(name: str, parts: Callable, pattern: Callable) -> tuple[Callable, ...]:
    """`attend`, `reference`, `effective` and `flops` of the variant module called `name`.

    Args:
      name: Its `__name__`.
      parts: (config, mask, T) -> what is run, tuple[Part, ...].
      pattern: (config, T) -> the pairs that the mechanism has, bool [T, T].
    """

    def attend(config, query, key, value, mask: Mask) -> jax.Array:
        """Softmax over the pairs that both the pattern and the mask allow, [B, T, N, H].

        Raises:
          ValueError: The mask is not supported, or the keys are not those of the queries' own sequence.
        """
        T = length(name, query, key, value, mask)
        return _parts.attend(parts(config, mask, T), query, key, value, mask)

    def reference(config, query, key, value, mask: Mask) -> jax.Array:
        """Dense attention where mask and pattern allow."""
        return masked(pattern(config, query.shape[1]), query, key, value, mask)

    def effective(config, mask: Mask, T: int) -> jax.Array:
        """The pairs that count, bool [B or 1, T, T]."""
        return mask.dense(T, T) & pattern(config, T)

    def flops(config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
        """Whole blocks and runs are executed; pairs that count are useful. FLOPs an example."""
        per_pair, found = 2 * config.num_heads * config.width(D), parts(config, mask, T)
        useful = sum(float(_parts.pairs(part, mask, T).mean()) for part in found)
        work = attention.Work(
            per_pair * sum(part.executed(mask) for part in found), per_pair * useful
        )
        return {
            **attention.projection_flops(config, D=D, T=T, S=S),
            "scores": work,
            "mix": work,
        }

    return attend, reference, effective, flops


def or_dense(parts: tuple[Part, ...], rule: Callable, T: int, first: int = 0) -> tuple[Part, ...]:
    """The parts of the queries from `first` on, or their whole table where that is no more work."""
    if sum(part.executed(Mask()) for part in parts) < softmax.pairs(T - first, T):
        return parts
    blocks, C = softmax.plan(T - first, T)
    run = Run(np.zeros((blocks, 1), int), T, rule)
    return (Part(np.arange(first, T), np.arange(T), C, (run,)),)


def length(name: str, query, key, value, mask: Mask) -> int:
    """The number of tokens (T), after the checks that all patterns share.

    Raises:
      ValueError: The mask is not supported, or the keys are not those of the queries' own sequence.
    """
    attention.check(name, SUPPORTS, mask)
    return attention.check_shapes(query, key, value, own=name.rsplit(".", 1)[-1])["T"]


def masked(pattern, query, key, value, mask: Mask) -> jax.Array:
    """Softmax over the whole table, in float32, where mask and pattern, bool [T, T], both allow."""
    T, N, H = query.shape[1:]
    dtype, query = query.dtype, query.astype(jnp.float32)
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    allowed = (mask.dense(T, T) & pattern)[:, None]
    seen = allowed.any(-1, keepdims=True)
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / H**0.5
    scores = jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(dtype)
