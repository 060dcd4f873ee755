"""The engine of linear attention: causal sums of features with decay, in three forms that agree.

A query and a key meet in (q_t·k_s), so the sum over keys is a state that is carried along:
Σ_{s<=t} decay(t, s) (q_t·k_s) v_s with decay(t, s) = exp(Σ_{s<r<=t} log_decay_r). `parallel` builds the
T x T table, `recurrent` carries the state token by token, and `chunked` does the first within chunks of
C tokens and the second between them: its work and memory are linear in T, forward and backward.

A decay is the exponential of a sum over the tokens between, at most 0, so nothing overflows however long
the text is; a difference of two sums from the start would have no digits left after a strong decay.

Source: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236, section 3.3, for the recurrent form;
  Hua et al. 2022, https://arxiv.org/abs/2202.10447, section 3.3, for the chunked one; Yang et al. 2023,
  https://arxiv.org/abs/2312.06635, section 4, for decay within chunks.
Differs: the decay is one number a head, not one a feature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Direct(NamedTuple):
    """Heads narrower than their features, from which a table of weights is cheaper.

    Attributes:
      query: [B, T, N, H].
      key: [B, T, N or K, H].
      weigh: (q_t·k_s) -> the product of their features, elementwise.
    """

    query: jax.Array
    key: jax.Array
    weigh: Callable[[jax.Array], jax.Array]


def masked(key, value, log_decay, key_valid):
    """Keys that do not count: no features, no value, and a step over them does not decay the state.

    Args:
      key: Features [B, S, N, P]; a mask has to come after the feature map, which need not keep a 0.
      value: [B, S, N, I].
      log_decay: [N] or [B, S, N], at most 0, or None.
      key_valid: [B, S] bool or None.

    Returns:
      The three of them; the decay is [B, S, N] where there is one and keys are masked.
    """
    if key_valid is None:
        return key, value, log_decay
    key, value = (jnp.where(key_valid[:, :, None, None], x, 0.0) for x in (key, value))
    if log_decay is not None:
        log_decay = jnp.where(key_valid[:, :, None], log_decay, 0.0)
    return key, value, log_decay


def parallel(query, key, value, log_decay=None):
    """The quadratic form of the sums, [B, T, N, I].

    Args:
      query: Features [B, T, N, P].
      key: Features [B, T, N, P].
      value: [B, T, N, I].
      log_decay: [N], or [B, T, N] with a token's own, at most 0; None is no decay.
    """
    scores = jnp.tril(jnp.einsum("btnp,bsnp->bnts", query, key))
    if log_decay is not None:
        per_token = jnp.broadcast_to(log_decay, query.shape[:3])
        scores *= decays(per_token.transpose(0, 2, 1))[0]
    return jnp.einsum("bnts,bsni->btni", scores, value)


def recurrent(query, key, value, log_decay=None):
    """The same sums token by token, with a state [B, N, P, I]; arguments as of `parallel`."""
    B, _, N, P = query.shape
    per_token = jnp.broadcast_to(0.0 if log_decay is None else log_decay, query.shape[:3])

    def step(state, token):
        query, key, value, keep = token
        state = keep[..., None, None] * state + key[..., None] * value[..., None, :]
        return state, jnp.einsum("bnp,bnpi->bni", query, state)

    tokens = [x.swapaxes(0, 1) for x in (query, key, value, jnp.exp(per_token))]
    state = jnp.zeros((B, N, P, value.shape[-1]), value.dtype)
    return jax.lax.scan(step, state, tokens)[1].swapaxes(0, 1)


def chunked(query, key, value, log_decay=None, *, chunk: int, direct: Direct | None = None):
    """The same sums: densely within chunks, by a running state between them.

    Args:
      query: As of `parallel`, and so are the next three.
      key: Features.
      value: Values.
      log_decay: Logarithm of the decay.
      chunk: Tokens worked on densely at a time (C), of which no more are taken than there are.
      direct: What to take the weights within a chunk from; None is the features.
    """
    B, T, N, _ = query.shape
    C = min(chunk, T)
    chunks = -(-T // C)

    def cut(x):
        """[B, T, N, P] to [chunks, B, N, C, P]; the padded keys are zeros, so they add nothing."""
        x = jnp.pad(x, ((0, 0), (0, chunks * C - T), (0, 0), (0, 0)))
        return x.reshape(B, chunks, C, N, -1).transpose(1, 0, 3, 2, 4)

    pair = (query, key) if direct is None else (direct.query, direct.key)
    scores = jnp.einsum("cbnth,cbnsh->cbnts", *map(cut, pair))
    scores = jnp.tril(scores if direct is None else direct.weigh(scores))
    query, key, value = cut(query), cut(key), cut(value)
    between = since = None
    if log_decay is not None:
        if log_decay.ndim == 1:
            between, since = _steady(log_decay, C)
        else:
            between, since = decays(cut(log_decay[..., None])[..., 0])
        scores *= between
    within = jnp.einsum("cbnts,cbnsi->cbnti", scores, value)
    if between is not None:
        value *= between[..., -1, :, None]
    states = jnp.einsum("cbnsp,cbnsi->cbnpi", key, value)
    before = _before(states, None if since is None else since[..., -1])
    read = jnp.einsum("cbntp,cbnpi->cbnti", query, before)
    if since is not None:
        read *= since[..., None]
    sums = within + read
    return sums.transpose(1, 0, 3, 2, 4).reshape(B, chunks * C, N, -1)[:, :T]


def _before(states, keep):
    """The state that each chunk starts from: what all chunks before it have left, [chunks, B, N, P, I]."""

    # Not the inclusive sum less the chunk's own: that would let the future in through rounding. Nor a
    # cumulative sum, which goes over all states as often as their number can be halved.
    def step(state, chunk):
        own, keep = chunk
        kept = state if keep is None else keep[..., None, None] * state
        return kept + own, state

    keep = None if keep is None else jnp.broadcast_to(keep, states.shape[:3])
    return jax.lax.scan(step, jnp.zeros_like(states[0]), (states, keep))[1]


def decays(log_decay):
    """decay(t, s) for s <= t and else 0, [..., C, C], and that from the start of the chunk, [..., C].

    Args:
      log_decay: [..., C], at most 0.
    """
    C = log_decay.shape[-1]
    lower = jnp.tril(jnp.ones((C, C), bool))
    steps = jnp.where(jnp.tril(lower, -1), log_decay[..., None], 0.0)
    between = jnp.where(lower, jnp.exp(_summed(steps)), 0.0)
    return between, jnp.exp(jnp.cumsum(log_decay, axis=-1))


def _summed(steps):
    """The sums of the rows [..., C, C] up to each."""
    if jax.default_backend() != "cpu":
        return jnp.cumsum(steps, axis=-2)

    # Row by row each is read once. A cumulative sum reads all rows as often as their number can be halved.
    def step(total, row):
        return total + row, total + row

    rows = jnp.moveaxis(steps, -2, 0)
    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(rows[0]), rows)[1], 0, -2)


def _steady(log_decay, C: int):
    """`decays` of C tokens with one rate a head [N]: the logarithms are multiples of it."""
    places = jnp.arange(C)
    distance = places[:, None] - places
    between = jnp.exp(log_decay[:, None, None] * jnp.maximum(distance, 0))
    since = jnp.exp(log_decay[:, None] * (places + 1))
    return jnp.where(distance >= 0, between, 0.0), since
