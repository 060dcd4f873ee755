"""One continuation of each prompt: the likeliest token every time, or one that is drawn.

Source: Fan et al. 2018, "Hierarchical neural story generation", https://arxiv.org/abs/1805.04833, section
  5.4, for `top_k`; Holtzman et al. 2020, "The curious case of neural text degeneration",
  https://arxiv.org/abs/1904.09751, section 3.1, for `top_p`.
Differs: of equally likely tokens at the edge of `top_k` all stay.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tinyattn.generate._loop import Prompt, Written, compiled, read
from tinyattn.model import Transformer


def greedy(transformer: Transformer, *, steps: int, eos: int | None = None) -> Callable:
    """A function that takes the likeliest token every time: (params, prompt, length, **given) -> Written.

    Raises:
      ValueError: Numbers out of range.
    """
    return compiled(transformer, steps, eos, _writer(steps, eos, lambda logs, rng: logs.argmax(-1)))


def sample(
    transformer: Transformer,
    *,
    steps: int,
    eos: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Callable:
    """A function that draws every token: (params, prompt, length, rng, **given) -> Written.

    Args:
      transformer: A decoder or an encoder-decoder.
      steps: Most tokens that are written.
      eos: The id after which a text ends; None is no such id.
      temperature: By which logits are divided; less is more certain.
      top_k: Likeliest tokens that may be drawn; 0 is all.
      top_p: Probability that the likeliest tokens must have together, which may be drawn; 1 is all.

    Raises:
      ValueError: Numbers out of range.
    """
    V = transformer.config.num_classes
    if temperature <= 0 or not 0 <= top_k <= V or not 0 < top_p <= 1:
        raise ValueError(
            f"{temperature=} must be positive (`greedy` is its limit of 0), {top_k=} in 0..{V} and"
            f" {top_p=} in (0, 1]"
        )

    def choose(logs, rng):
        return jax.random.categorical(rng, filtered(logs, temperature, top_k, top_p))

    write = compiled(transformer, steps, eos, _writer(steps, eos, choose))

    def call(params, prompt, length=None, *, rng, **given):
        return write(params, prompt, length, rng, **given)

    call.programs = write.programs
    return call


def filtered(logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Logits [..., V] over the temperature, -inf where a token may not be drawn.

    The probability that `top_p` counts is that of what the temperature and `top_k` leave.
    """
    logits = logits / temperature
    if top_k:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1:
        order = jnp.argsort(logits, axis=-1, descending=True)
        shares = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
        # A token stays if those before it have not enough, so at least one does.
        before = jnp.cumsum(shares, axis=-1) - shares
        kept = jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def _writer(steps: int, eos: int | None, choose: Callable) -> Callable:
    """The loop over places, as `compiled` wants it."""

    def write(step: Callable, prompt: Prompt, rng) -> Written:
        B, P = prompt.ids.shape
        rows = jnp.arange(B)
        empty = Written(
            jnp.full((B, steps), 0 if eos is None else eos, jnp.int32),
            jnp.zeros(B, jnp.int32),
            jnp.zeros(B),
        )

        def going(carry):
            t, _, _, done, _ = carry
            return (t < P + steps - 1) & ~done.all()

        def one(carry):
            t, own, state, done, written = carry
            ids, writes = read(prompt, t, own)
            logs, state = step(state, ids, ~done)
            draw = None if rng is None else jax.random.fold_in(rng, t)
            new = choose(logs, draw).astype(jnp.int32)
            writes &= ~done
            # Past the last place is nowhere.
            place = jnp.where(writes, written.length, steps)
            written = Written(
                written.ids.at[rows, place].set(new, mode="drop"),
                written.length + writes,
                written.score + jnp.where(writes, logs[rows, new], 0.0),
            )
            done |= written.length == steps
            if eos is not None:
                done |= writes & (new == eos)
            return t + 1, new, state, done, written

        start = (
            jnp.zeros((), jnp.int32),
            prompt.ids[:, 0],
            prompt.state,
            jnp.zeros(B, bool),
            empty,
        )
        return jax.lax.while_loop(going, one, start)[-1]

    return write
