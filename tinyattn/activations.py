"""What an affine layer reads, rounded to few whole numbers a token as hardware of integers reads it.

The numbers stay floats: this is what such hardware would compute, and no speed of it. Each token has a
scale of its own, so that neither padding nor another example changes what is read of it.

Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
  integer-arithmetic-only inference", https://arxiv.org/abs/1712.05877, section 3, in training too; a scale
  for each token, found when it is read, as Yao et al. 2022, "ZeroQuant",
  https://arxiv.org/abs/2206.01861, section 4.1.
Differs: whole numbers lie about 0, to each side equally many, and the largest is the token's own, so that
  nothing is calibrated or cut off. The gradient passes as if nothing were rounded (Bengio et al. 2013,
  https://arxiv.org/abs/1308.3432).
"""

import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp
import numpy as np

# The largest whole number of each kind.
LARGEST = {"int8": 127, "int4": 7}
KINDS = ("float", *LARGEST)

_kind = contextvars.ContextVar("kind", default="float")


@contextlib.contextmanager
def kept_as(kind: str):
    """Within it, `rounded` rounds to this kind of `KINDS`."""
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def of_config(call):
    """A method of a module whose `config.activations` says how its affine layers round what they read."""

    @functools.wraps(call)
    def within(self, *args, **kwargs):
        with kept_as(self.config.activations):
            return call(self, *args, **kwargs)

    return within


def rounded(x: jax.Array) -> jax.Array:
    """x [..., features], a token's features rounded to the kind that is in force; else x itself."""
    kind = _kind.get()
    return x if kind == "float" else _rounded(x, LARGEST[kind])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(x, largest: int):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Products with reciprocals, which a compiler makes of some divisions and not of others.
    scale = jnp.abs(wide).max(-1, keepdims=True) * np.float32(1 / largest)
    # A token of zeros, or of numbers so small that their scale has no reciprocal, is zero.
    some = scale >= np.finfo(np.float32).tiny
    inverse = jnp.where(some, 1 / jnp.where(some, scale, 1), 0)
    return (jnp.round(wide * inverse) * scale).astype(x.dtype)


@_rounded.defjvp
def _rounded_jvp(largest, primals, tangents):
    return _rounded(*primals, largest), tangents[0]
