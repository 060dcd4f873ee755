"""A decoder's pointer: its next token is of the vocabulary, or one that stands in what its encoder read.

Source: See et al. 2017, "Get to the point", https://arxiv.org/abs/1704.04368, equations 8 and 9.
Differs: the pointer's attention is one of its own, not that of a layer; its keys are made of a token and of
  the one before it, so that a place may be picked by what it follows; and the switch between both reads the
  decoder's output alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn.masks import Mask
from tinyattn.model._config import Config
from tinyattn.model._embedding import dense, restarts


class Pointed(NamedTuple):
    """What a pointer picks from.

    Attributes:
      keys: [B, S, D].
      ids: int [B, S], what stands at each place.
      mask: Which places may be picked.
    """

    keys: jax.Array
    ids: jax.Array
    mask: Mask


def pointed(config: Config, tokens: jax.Array, ids: jax.Array, mask: Mask) -> Pointed:
    """What is made once of the encoder's tokens [B, S, D], by parameters of the module that calls."""
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0), (0, 0)))
    for _, segment_ids in mask.segments:
        before = jnp.where(restarts(segment_ids)[..., None] == 0, 0.0, before)
    both = jnp.concatenate([tokens, before], axis=-1)
    return Pointed(dense(config, config.width, "pointer_key", both), ids, mask)


def mixed(config: Config, logits: jax.Array, x: jax.Array, to: Pointed) -> jax.Array:
    """The logarithms of the probabilities of the mixture, float32 [B, T, V].

    Args:
      config: Of the model.
      logits: Of the vocabulary, [B, T, V].
      x: The decoder's tokens, [B, T, D].
      to: What is pointed to.
    """
    query = dense(config, config.width, "pointer_query", x)
    switch = dense(config, 1, "pointer_switch", x).astype(jnp.float32)
    scores = jnp.einsum("btd,bsd->bts", query, to.keys, preferred_element_type=jnp.float32)
    scores /= config.width**0.5
    valid = jnp.ones_like(to.ids, bool) if to.mask.key_valid is None else to.mask.key_valid
    seen = to.mask.dense(*scores.shape[1:])
    # Where there is no place at all the vocabulary is left, and scores are finite lest NaN comes back.
    switch = jnp.where(seen.any(-1, keepdims=True), switch, jnp.inf)
    share = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min))
    same = (to.ids[:, :, None] == to.ids[:, None, :]) & valid[:, None]
    # Of an id that stands at several places the sum, given to the first of them.
    of_id = jnp.einsum("bus,bts->but", same.astype(jnp.float32), share)
    copied = jax.nn.log_sigmoid(-switch).mT + jnp.log(of_id + jnp.finfo(jnp.float32).tiny)
    B, S = to.ids.shape
    first = valid & ~jnp.tril(same, -1).any(-1)
    # Other places point past the vocabulary, each to one of its own, and are dropped.
    place = jnp.where(first, to.ids, logits.shape[-1] + jnp.arange(S))
    # All tokens of an id at once: on a CPU each place of a scatter is a turn of a loop.
    at = jnp.arange(B)[:, None], slice(None), place
    logs = jax.nn.log_softmax(logits) + jax.nn.log_sigmoid(switch)
    written = logs.at[at].get(mode="fill", fill_value=0.0, unique_indices=True)
    both = jnp.logaddexp(written, copied)
    return logs.at[at].set(both, mode="drop", unique_indices=True)
