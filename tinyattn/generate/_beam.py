"""Beam search: the likeliest whole continuations among those that stay near the best at every token.

Source: Wu et al. 2016, "Google's neural machine translation system", https://arxiv.org/abs/1609.08144,
  section 7, for the length penalty.
Differs: no coverage penalty. Texts that end are set aside and leave their place to others; the search goes
  on until none that is still open could be among the best.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn.generate._loop import Prompt, Written, compiled, read
from tinyattn.model import State, Transformer


def penalty(length, alpha: float):
    """GNMT's ((5 + length) / 6)^alpha, by which the logarithm of a text's probability is divided.

    >>> penalty(7, 1.0)
    2.0
    """
    return ((5 + length) / 6) ** alpha


class _Search(NamedTuple):
    """The texts of a batch, those that are open and those that have ended, best first: [B, beams, ...]."""

    t: jax.Array
    state: State  # [B * beams, ...]
    own: jax.Array
    open: jax.Array
    logs: jax.Array
    ended: jax.Array
    scores: jax.Array
    lengths: jax.Array


def beam(
    transformer: Transformer,
    *,
    steps: int,
    eos: int | None = None,
    beams: int = 4,
    alpha: float = 0.0,
) -> Callable:
    """A function that searches: (params, prompt, length, **given) -> Written, with [B, beams, ...].

    Texts are sorted, best first. A score of -inf is of no text, where there are fewer than beams.

    Args:
      transformer: A decoder or an encoder-decoder.
      steps: Most tokens that are written.
      eos: The id after which a text ends; None is no such id.
      beams: Texts that are kept open, and returned.
      alpha: Of the length penalty; 0 is none, more favours longer texts.

    Raises:
      ValueError: Numbers out of range.
    """
    if beams < 1 or alpha < 0:
        raise ValueError(f"{beams=} must be at least 1 and {alpha=} at least 0")
    V, K = transformer.config.num_classes, beams

    def write(step: Callable, prompt: Prompt, rng) -> Written:
        B, P = prompt.ids.shape
        rows = jnp.arange(B)[:, None]
        many = prompt._replace(
            ids=jnp.repeat(prompt.ids, K, axis=0), length=jnp.repeat(prompt.length, K, axis=0)
        )

        def written(t):
            """Tokens of an open text before place t is read, [B]."""
            return jnp.clip(t + 1 - prompt.length, 0, steps)

        def open_still(s: _Search):
            """Whether an open text could come to be among the best, bool [B]."""
            bound = s.logs[:, 0] / penalty(steps, alpha)
            return (written(s.t) < steps) & (bound > s.scores[:, -1])

        def one(s: _Search) -> _Search:
            ids, writes = read(many, s.t, s.own.reshape(-1))
            writes = writes.reshape(B, K)[:, 0] & open_still(s)
            reads = (s.t < prompt.length) | writes
            found, state = step(s.state, ids, jnp.repeat(reads, K))
            n = written(s.t)
            # Twice as many as beams, for half of them may end.
            each = s.logs[..., None] + found.reshape(B, K, V)
            logs, best = jax.lax.top_k(each.reshape(B, K * V), min(2 * K, K * V))
            parent, new = best // V, (best % V).astype(jnp.int32)
            texts = s.open[rows, parent]
            texts = texts.at[rows, jnp.arange(texts.shape[1]), n[:, None]].set(new, mode="drop")
            ends = (new == eos) if eos is not None else jnp.zeros_like(new, bool)
            ends |= (n + 1 == steps)[:, None]

            # As in a search without ends, only the best of all count: one beam is greedy.
            counts = ends & (jnp.arange(ends.shape[1]) < K)
            own_scores = jnp.where(counts, logs / penalty(n + 1, alpha)[:, None], -jnp.inf)
            scores = jnp.concatenate([s.scores, own_scores], axis=1)
            scores, place = jax.lax.top_k(scores, K)
            ended = jnp.concatenate([s.ended, texts], axis=1)[rows, place]
            lengths = jnp.broadcast_to((n + 1)[:, None], ends.shape)
            lengths = jnp.concatenate([s.lengths, lengths], axis=1)[rows, place]

            logs, kept = _first(jnp.where(ends, -jnp.inf, logs), K)
            after = (texts[rows, kept], logs, new[rows, kept], ended, scores, lengths)
            before = (s.open, s.logs, s.own, s.ended, s.scores, s.lengths)
            # A prompt is read by all beams alike, and what is over stays.
            texts, logs, own, ended, scores, lengths = jax.tree.map(
                lambda a, b: jnp.where(writes.reshape(-1, *[1] * (a.ndim - 1)), a, b), after, before
            )
            source = jnp.where(writes[:, None], parent[rows, kept], jnp.arange(K))
            flat = (rows * K + source).reshape(-1)
            # All beams of a text attend to the same encoder's tokens.
            layers = jax.tree.map(lambda x: x[flat], state.layers)
            state = state._replace(layers=layers)
            return _Search(s.t + 1, state, own, texts, logs, ended, scores, lengths)

        nothing = jnp.full((B, K, steps), 0 if eos is None else eos, jnp.int32)
        start = _Search(
            t=jnp.zeros((), jnp.int32),
            state=jax.tree.map(lambda x: jnp.repeat(x, K, axis=0), prompt.state),
            own=jnp.zeros((B, K), jnp.int32),
            open=nothing,
            # The prompt is one text, so that the first step does not find every token as often as beams.
            logs=jnp.broadcast_to(jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf), (B, K)),
            ended=nothing,
            scores=jnp.full((B, K), -jnp.inf),
            lengths=jnp.zeros((B, K), jnp.int32),
        )
        end = jax.lax.while_loop(lambda s: (s.t < P + steps - 1) & open_still(s).any(), one, start)
        return Written(end.ended, end.lengths, end.scores)

    return compiled(transformer, steps, eos, write)


def _first(logs: jax.Array, K: int) -> tuple[jax.Array, jax.Array]:
    """The K greatest along the last axis and their places, -inf where there are fewer."""
    if logs.shape[-1] < K:
        logs = jnp.pad(logs, ((0, 0), (0, K - logs.shape[-1])), constant_values=-jnp.inf)
    found, place = jax.lax.top_k(logs, K)
    return found, jnp.where(found > -jnp.inf, place, 0)
