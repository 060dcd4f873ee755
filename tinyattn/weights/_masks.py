"""Masks of weights: learned through an estimator of their gradient, and what is stored of them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights._theta import Fixed, Node, Scratch, static

ESTIMATORS = ("straight_through", "hard_concrete")
# Temperature and stretch of the hard-concrete distribution: Louizos et al. 2018, section 4.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


@jax.custom_vjp
def through(scores: jax.Array, hard: jax.Array) -> jax.Array:
    """`hard` in value; the scores get its gradient as it is."""
    return hard


through.defvjp(lambda scores, hard: (hard, None), lambda _, dy: (dy, jnp.zeros_like(dy)))


@jax.jit
def top(scores, count):
    """Exactly `count` of the best scores, bool; of equal ones the first. Both may be traced.

    A number between the last of them and the next is found bit by bit, by counting: to sort all scores
    takes many times as long.
    """
    flat = scores.reshape(-1)
    if flat.dtype.itemsize < 4:
        flat = flat.astype(jnp.float32)
    bits = 8 * flat.dtype.itemsize
    signed, unsigned = jnp.dtype(f"int{bits}"), jnp.dtype(f"uint{bits}")
    # Whole numbers in the order of the scores; 0 and -0 are one.
    raw = jax.lax.bitcast_convert_type(jnp.where(flat == 0, 0, flat), signed)
    low = jax.lax.bitcast_convert_type(raw, unsigned)
    sign = unsigned.type(1 << (bits - 1))
    order = jnp.where(raw < 0, ~low, low | sign)
    least, reach, above = _greatest(lambda t: order >= t, count, flat.size, sign)
    # Equal to the last of them are more than are wanted: where none is, this ends before it begins.
    back = flat.size - jnp.arange(flat.size, dtype=jnp.uint32)
    half = jnp.uint32(1 << (flat.size.bit_length() - 1))
    last, _, _ = _greatest(
        lambda t: (order == least) & (back >= t), count - above, reach - above, half
    )
    return ((order > least) | ((order == least) & (back >= last))).reshape(scores.shape)


def _greatest(reach, count, number, bit):
    """The greatest t, from its highest `bit` down, that at least `count` reach; or one that `count` do.

    Args:
      reach: t -> which of n do, bool [n]; fewer the greater t is.
      count: How many are wanted.
      number: How many reach 0.
      bit: Power of two, of the dtype of t.

    Returns:
      t, how many reach it, and how many the last that was found too great: t + 1, where more than
      `count` reach t.
    """

    def narrow(state):
        bit, t, number, above = state
        found = _number(reach(t | bit))
        enough = found >= count
        t, number = jnp.where(enough, t | bit, t), jnp.where(enough, found, number)
        return bit >> 1, t, number, jnp.where(enough, above, found)

    def unsettled(state):
        bit, _, number, _ = state
        return (bit > 0) & (number != count)

    start = bit, jnp.zeros_like(bit), jnp.asarray(number, jnp.int32), jnp.int32(0)
    return jax.lax.while_loop(unsettled, narrow, start)[1:]


def _number(true: jax.Array) -> jax.Array:
    """How many of [n] are True, int32."""
    if true.size % 32:
        return true.sum(dtype=jnp.int32)
    # XLA on a CPU writes all that it adds up to memory, unless they are 32 at a time.
    return true.reshape(32, -1).sum(0, dtype=jnp.int8).sum(dtype=jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Straight(Node):
    """1 where the score is above 0, or where it is among the best `count`; 0 elsewhere.

    The gradient of the mask is taken for that of the scores (straight-through).

    Source: Mallya et al. 2018, "Piggyback", https://arxiv.org/abs/1801.06519, section 3 (a threshold);
      Ramanujan et al. 2020, "What's hidden in a randomly weighted neural network?",
      https://arxiv.org/abs/1911.13299, section 3 (the best).
    """

    estimated = True
    scores: Any
    count: int = static()

    def build(self, fold):
        scores = fold(self.scores)
        hard = top(scores, self.count) if self.count else scores > 0
        return through(scores, hard.astype(scores.dtype))

    def reference(self, fold):
        scores = fold(self.scores)
        if not self.count:
            return (scores > 0).astype(scores.dtype)
        ahead = np.argsort(-scores.ravel(), kind="stable")[: self.count]
        return np.isin(np.arange(scores.size), ahead).reshape(scores.shape).astype(scores.dtype)

    def compact(self, fold):
        return Fixed(self.reference(fold).astype(bool))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HardConcrete(Node):
    """min(1, max(0, stretched sigmoid((scores + noise) / beta))): zeros and ones with a gradient between.

    Noise is logistic, drawn by the scheme's `update` from `key` and the step; it is 0 in evaluation. In
    training the expected number of entries above 0, times `cost`, joins the loss.

    Source: Louizos, Welling and Kingma 2018, "Learning sparse neural networks through L0 regularization",
      https://arxiv.org/abs/1712.01312, equations 10 to 12.
    Differs: evaluation is the sample without noise, so the sigmoid keeps its temperature.
    """

    scores: Any
    noise: Scratch
    key: Scratch
    cost: float = static()

    def build(self, fold):
        s = jax.nn.sigmoid((fold(self.scores) + fold(self.noise)) / BETA)
        return jnp.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)

    def reference(self, fold):
        s = 1 / (1 + np.exp(-(fold(self.scores) + fold(self.noise)) / BETA))
        return np.minimum(1, np.maximum(0, s * (ZETA - GAMMA) + GAMMA))

    def compact(self, fold):
        return Fixed(np.asarray(self.build(fold)))

    def penalty(self):
        shift = BETA * math.log(-GAMMA / ZETA)
        return self.cost * jax.nn.sigmoid(self.scores - shift).sum()

    def redrawn(self, step) -> "HardConcrete":
        """With the noise of a step."""
        rng = jax.random.fold_in(self.key.value, step)
        noise = jax.random.logistic(rng, self.noise.value.shape, self.noise.value.dtype)
        return dataclasses.replace(self, noise=Scratch(noise))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse(Node):
    """Values at the places where `at` is True, in the order of its elements, and zero elsewhere."""

    values: Any
    at: Any

    def build(self, fold):
        values, at = fold(self.values), fold(self.at)
        number = jnp.cumsum(jnp.asarray(at).reshape(-1), dtype=jnp.int32).reshape(at.shape) - 1
        return jnp.where(at, values[jnp.maximum(number, 0)], jnp.zeros((), values.dtype))

    def reference(self, fold):
        values, at = fold(self.values), fold(self.at)
        out = np.zeros(at.shape, values.dtype)
        out[at] = values
        return out


def sparse(array: np.ndarray, at: np.ndarray) -> Sparse:
    """The elements of an array where `at`, bool of its shape, is True, as a file keeps them."""
    return Sparse(Fixed(array[at]), Fixed(at))


def learned(factor, shape, dtype, rng) -> Node:
    """The learned mask that a `_factors.Factor` asks for: all ones, or those of random scores."""
    scores = jnp.full(shape, factor.value, dtype)
    if factor.std:
        scores += factor.std * jax.random.normal(rng, shape, dtype)
    if factor.estimator == "hard_concrete":
        if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            rng = jax.random.key_data(rng)
        return HardConcrete(scores, Scratch(jnp.zeros(shape, dtype)), Scratch(rng), factor.cost)
    return Straight(scores, round(factor.density * math.prod(shape)))
