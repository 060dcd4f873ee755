"""What the ways to write share: prompts of unequal length, and the step that reads a token of each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tinyattn import model
from tinyattn.model import State, Transformer


class Written(NamedTuple):
    """What was written after a prompt.

    Attributes:
      ids: int32 [B, steps]; after `length` the EOS id, or 0 without one.
      length: int32 [B], tokens written, the EOS among them.
      score: float32 [B], the sum of the logarithms of their probabilities, of a beam search as penalised.
    """

    ids: jax.Array
    length: jax.Array
    score: jax.Array


class Prompt(NamedTuple):
    """Where a batch starts.

    Attributes:
      ids: int32 [B, P].
      length: int32 [B], of which as many are given.
      state: Before the first of them.
    """

    ids: jax.Array
    length: jax.Array
    state: State


def compiled(transformer: Transformer, steps: int, eos: int | None, write: Callable) -> Callable:
    """The jitted (params, prompt, length=None, rng=None, **given) of a way to write.

    Args:
      transformer: A decoder or an encoder-decoder.
      steps: Most tokens that are written.
      eos: The id after which a text ends; None is no such id.
      write: (step, prompt, rng) -> what is returned, where step(state, ids, active) gives the logarithms
        of the probabilities, [B, V], and the state.

    Raises:
      ValueError: Numbers out of range.
    """
    config = transformer.config
    V = config.num_classes
    if steps < 1:
        raise ValueError(f"{steps=} must be at least 1 token")
    if V < 1:
        raise ValueError("model.num_classes=0: without a head there is nothing to write")
    if eos is not None and not 0 <= eos < V:
        raise ValueError(f"{eos=} must be an id, 0..{V - 1}, or None")

    @jax.jit
    def run(params: Any, ids, length, rng, given: Mapping[str, jax.Array]):
        B, P = ids.shape
        state = model.start(transformer, params, B, P + steps - 1, **given)

        def step(state, ids, active):
            logits, state = model.step(transformer, params, state, ids, active)
            return jax.nn.log_softmax(logits), state

        return write(step, Prompt(ids, length, state), rng)

    def call(params, prompt, length=None, rng=None, **given):
        """Goes on with prompts.

        Args:
          params: Of the model, folded.
          prompt: int [B, P], read by the decoder; what it is to go on with, or BOS alone.
          length: int [B], ids of each prompt, of which the first so many count; None is all P.
          rng: For sampling.
          **given: What the encoder of an encoder-decoder reads: `inputs`, `key_valid`, `token_types`.

        Raises:
          ValueError: Prompts that are empty or no ids, or a model that does not decode.
        """
        ids = jnp.asarray(prompt, jnp.int32)
        if ids.ndim != 2 or not ids.size:
            raise ValueError(f"a prompt is int [B, P] with at least one id a row, not {ids.shape}")
        V = config.num_classes if config.decoder_layers else config.vocab_size
        if ids.min() < 0 or ids.max() >= V:
            raise ValueError(f"prompt has ids {ids.min()}..{ids.max()}; the model reads 0..{V - 1}")
        length = jnp.full(len(ids), ids.shape[1]) if length is None else jnp.asarray(length)
        if length.shape != (len(ids),) or length.min() < 1 or length.max() > ids.shape[1]:
            raise ValueError(f"length={length} must be 1..{ids.shape[1]} for each prompt")
        return run(params, ids, length.astype(jnp.int32), rng, given)

    # How many programs there are, for tests.
    call.programs = run._cache_size
    return call


def read(prompt: Prompt, t: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The id that stands at place t of every row, and whether the next is to be written, bool [B].

    Args:
      prompt: The prompts.
      t: int32 [].
      own: int32 [B], what was written for this place, where the prompt has ended.
    """
    given = prompt.ids[:, jnp.minimum(t, prompt.ids.shape[1] - 1)]
    return jnp.where(t < prompt.length, given, own), t + 1 >= prompt.length
