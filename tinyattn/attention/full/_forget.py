"""Forget gates as a bias of the scores: sums of their logarithms between a key and a query.

The sum runs over the tokens that the query may see, so that a masked token does not matter: a step over
it decays nothing, as if it were absent. That holds for padding, and for segments however they interleave.

Source: Lin et al. 2025, "Forgetting Transformer", https://arxiv.org/abs/2503.02130, section 3.
"""

import jax
import jax.numpy as jnp

from tinyattn import biases
from tinyattn.masks import Mask

# The least logarithm of a gate: a sum that took up -1e30 would lose all that is added to it later.
LEAST = -100.0


def contain(key, forget):
    """Key [B, S, K, H] and logits [B, S, N], where a NaN of the latter has moved to the key.

    The core keeps a key that is NaN behind masks; a running sum would carry it beyond them.

    Raises:
      ValueError: The keys are not those of the same sequence as the gates.
    """
    T, S = forget.shape[1], key.shape[1]
    if S != T:
        raise ValueError(f"forget=True needs keys of the queries' own sequence: T={T}, S={S}")
    bad = jnp.isnan(forget)
    seen = bad.reshape(*key.shape[:3], -1).any(-1, keepdims=True)
    return jnp.where(seen, jnp.nan, key), jnp.where(bad, jnp.inf, forget)


def log_gates(forget) -> jax.Array:
    """log sigmoid(forget), at least `LEAST`, in float32 or wider."""
    wide = forget.astype(jnp.promote_types(forget.dtype, jnp.float32))
    return jnp.maximum(jax.nn.log_sigmoid(wide), LEAST)


def bias(forget, mask: Mask, other: biases.Bias | None = None) -> biases.Bias:
    """Σ_{s<r<=t} log sigmoid(forget_r) over the tokens r that the mask shows to t.

    Args:
      forget: Logits [B, T, N].
      mask: Causal.
      other: A bias to add.

    Raises:
      ValueError: It is not.
    """
    if mask.lookahead != 0:
        raise ValueError(
            f"forget=True fades what came before a token: lookahead={mask.lookahead} must be 0, so"
            f" give a causal mask"
        )
    if mask.key_valid is not None:
        forget = jnp.where(mask.key_valid[..., None], forget, jnp.inf)
    logs = log_gates(forget)
    if mask.segments:
        return _with(other, biases.Decay(*_sums_of_segments(logs, mask.segments)))
    total, rest = _sums(logs, jnp.zeros((1, logs.shape[1], 1), bool))
    return _with(other, biases.Decay(total, total, (rest, rest)))


def cached(log_decay, other: biases.Bias | None = None) -> biases.Bias:
    """The same for the last of all tokens so far, from the logarithms [B, S, N] of a cache."""
    later = jnp.pad(log_decay[:, 1:], ((0, 0), (0, 1), (0, 0)))
    since = jax.lax.cumsum(later, axis=1, reverse=True)
    return _with(other, biases.Decay(jnp.zeros_like(since[:, :1]), -since))


def _with(other, decay):
    return decay if other is None else biases.Sum((other, decay))


def _sums(steps, first):
    """Running sums along axis 1 that start anew where `first` is, and what each is off by.

    A difference of two sums from the start has few digits left after a strong decay; with what rounding
    has taken off both, it has all of them. Neither sum depends on another segment to the last bit.

    Source: Knuth 1969, "The art of computer programming", volume 2, section 4.2.2, theorem B.
    """

    def join(a, b):
        (begun, left, off), (first, right, more) = a, b
        total = left + right
        own = total - left
        off = off + more + ((left - (total - own)) + (right - own))
        return begun | first, jnp.where(first, right, total), jnp.where(first, more, off)

    first = jnp.broadcast_to(first, steps.shape)
    _, sums, rest = jax.lax.associative_scan(join, (first, steps, jnp.zeros_like(steps)), axis=1)
    return sums, jax.lax.stop_gradient(rest)


def _sums_of_segments(logs, segments):
    """Sums up to each query and up to each key [B, T, N], each within its own segment, and their rests."""
    B, T, _ = logs.shape

    def both(keys, queries):
        """[B, 2 T]: of two tokens at one place the key comes first, for a query sees itself."""
        keys, queries = (jnp.broadcast_to(x, (B, *x.shape[1:])) for x in (keys, queries))
        return jnp.concatenate([keys, queries], axis=1)

    def sort(x):
        return jnp.take_along_axis(x, order, axis=1)

    ids = [both(keys, queries) for queries, keys in segments]
    place = jnp.arange(T)[None]
    order = jnp.lexsort([both(place, place), *ids])
    changes = [jnp.diff(sort(x), axis=1) != 0 for x in ids]
    first = jnp.pad(sum(changes) > 0, ((0, 0), (1, 0)), constant_values=True)[..., None]
    steps = jnp.take_along_axis(both(logs, jnp.zeros_like(logs)), order[..., None], axis=1)
    back = jnp.argsort(order, axis=1)[..., None]
    sums, rest = (jnp.take_along_axis(x, back, axis=1) for x in _sums(steps, first))
    return sums[:, T:], sums[:, :T], (rest[:, T:], rest[:, :T])
