"""Rounding weights to few numbers, and the nodes that stand for them: see `quantize`."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights import _theta
from tinyattn.weights._codes import Codes
from tinyattn.weights._masks import through

# How many numbers a weight may be.
LEVELS = {"int8": 256, "int4": 16, "int2": 4, "ternary": 3, "binary": 2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FakeQuant(_theta.Node):
    """What the latent weights are rounded to, as `quantize` says.

    Attributes:
      latent: Of the shape of the leaf, trained.
      scale: float32 [groups, 1, outputs] where it is learned, None where it follows from the weights.
      kind: One of `LEVELS`.
      groups: Of inputs; 0 is one scale for the whole tensor.
      zero_point: As in `Config`.
    """

    # Rounding has no derivative: the gradient follows the rule that `quantize` states.
    estimated = True

    latent: Any
    scale: Any
    kind: str = _theta.static()
    groups: int = _theta.static()
    zero_point: bool = _theta.static()

    def build(self, fold):
        latent = fold(self.latent)
        w = _grouped(latent, self.groups)
        if self.scale is None:
            found = _rounded(jax.lax.stop_gradient(w), self.kind, self.zero_point)
            built = through(w, _product(*found))
        else:
            built = learned(w, fold(self.scale), self.kind)
        return built.reshape(latent.shape).astype(latent.dtype)

    def reference(self, fold):
        latent = fold(self.latent)
        wide = np.array(_grouped(latent, self.groups), np.float64)
        for i, k in np.ndindex(wide.shape[0], wide.shape[2]):
            scale = None if self.scale is None else fold(self.scale)[i, 0, k]
            wide[i, :, k] = _reference(wide[i, :, k], self.kind, self.zero_point, scale)
        return wide.reshape(latent.shape).astype(latent.dtype)

    def compact(self, read):
        if isinstance(self.latent, _theta.Alias):
            return self  # shared as it is trained
        scale = None if self.scale is None else read(self.scale)
        return packed(read(self.latent), self.kind, self.groups, self.zero_point, scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed(_theta.Node):
    """(codes - zero) scale: what a file keeps of quantised weights, and how those are that nothing trains.

    Attributes:
      codes: `Codes` of [groups, weights, outputs].
      scale: float32 [groups, 1, outputs].
      zero: The code of 0, uint8 [groups, 1, outputs]; None is `middle`.
      middle: The code of 0, the same for all.
      shape: Of the leaf.
      dtype: Of the leaf, by name.
    """

    codes: Any
    scale: Any
    zero: Any
    middle: int | float = _theta.static()
    shape: tuple[int, ...] = _theta.static()
    dtype: str = _theta.static()

    def build(self, fold):
        zero = self.middle if self.zero is None else fold(self.zero)
        array = _product(fold(self.codes), zero, fold(self.scale))
        return array.reshape(self.shape).astype(self.dtype)

    def reference(self, fold):
        zero = self.middle if self.zero is None else np.float64(fold(self.zero))
        array = (np.float64(fold(self.codes)) - zero) * fold(self.scale)
        return array.reshape(self.shape).astype(self.dtype)


def packed(array, kind: str, groups: int, zero_point: bool, scale=None) -> Packed:
    """An array of float numbers as a file keeps it; the fields are those of `FakeQuant`."""
    # Compiled as a whole, for its many small operations would be compiled one by one.
    rounded = jax.jit(_rounded, static_argnums=(1, 2))
    found = rounded(_grouped(array, groups), kind, zero_point, scale)
    codes = Codes.pack(np.asarray(found.codes, np.int64), LEVELS[kind])
    zero = _theta.Fixed(np.asarray(found.zero, np.uint8)) if zero_point else None
    scale = _theta.Fixed(np.asarray(found.scale, np.float32))
    return Packed(codes, scale, zero, _middle(kind), array.shape, array.dtype.name)


class _Rounded(NamedTuple):
    """Whole numbers 0..levels-1, what 0 is among them, and their scale."""

    codes: jax.Array
    zero: jax.Array | int | float
    scale: jax.Array


def _product(codes, zero, scale) -> jax.Array:
    """What the codes stand for, float32; as they are integers, no 0 among it is a -0."""
    return (jnp.asarray(codes, jnp.float32) - jnp.asarray(zero, jnp.float32)) * scale


def _rounded(w: jax.Array, kind: str, zero_point: bool, scale=None) -> _Rounded:
    """[groups, weights, outputs] to whole numbers 0..levels-1.

    All is done so that jit, eager execution and NumPy agree to the bit: sums in one order, and products
    with a reciprocal that is made once, where a compiler may turn a division into either.
    """
    levels, zero = LEVELS[kind], _middle(kind)
    if scale is not None:
        return _Rounded(_steps(w, kind, scale) + zero, zero, scale)
    if kind == "binary":
        # Codes 0 and 1 about 1/2, so that a step is twice the mean.
        return _Rounded((w >= 0).astype(jnp.int32), zero, 2 * _mean(jnp.abs(w)))
    if kind == "ternary":
        scale = _mean(jnp.abs(w))
        return _Rounded(_steps(w, kind, scale) + zero, zero, scale)
    if not zero_point:
        scale = jnp.abs(w).max(1, keepdims=True) * np.float32(1 / ((levels - 1) // 2))
        return _Rounded(_steps(w, kind, scale) + zero, zero, scale)
    low = jnp.minimum(w.min(1, keepdims=True), 0)
    high = jnp.maximum(w.max(1, keepdims=True), 0)
    scale = (high - low) * np.float32(1 / (levels - 1))
    zero = jnp.round(-low * _inverse(scale)).astype(jnp.int32)
    codes = jnp.round(w * _inverse(scale)).astype(jnp.int32) + zero
    return _Rounded(jnp.clip(codes, 0, levels - 1), zero, scale)


def _steps(w, kind: str, scale):
    """w / scale as whole numbers about 0."""
    return jnp.clip(jnp.round(w * _inverse(scale)), *_range(kind)).astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def learned(w: jax.Array, scale: jax.Array, kind: str) -> jax.Array:
    """w [groups, weights, outputs] rounded to multiples of scale [groups, 1, outputs], which learns too.

    Source: Esser et al. 2020, "LSQ", https://arxiv.org/abs/1902.08153, equations 1 to 5 and section 2.2.
    """
    return _steps(w, kind, scale) * scale


def _learned_forward(w, scale, kind):
    return learned(w, scale, kind), (w, scale)


def _learned_backward(kind, saved, dy):
    w, scale = saved
    low, high = _range(kind)
    ratio = w * _inverse(scale)
    inside = (low < ratio) & (ratio < high)
    slope = jnp.where(inside, jnp.round(ratio) - ratio, jnp.clip(ratio, low, high))
    balance = 1 / math.sqrt(w.shape[1] * high)
    return jnp.where(inside, dy, 0), balance * (dy * slope).sum(1, keepdims=True)


learned.defvjp(_learned_forward, _learned_backward)


def first_scale(array, kind: str, groups: int) -> jax.Array:
    """Where a learned scale starts; section 2.1 of the same paper."""
    size = _mean(jnp.abs(_grouped(jnp.asarray(array), groups)))
    return size * np.float32(2 / math.sqrt(_range(kind)[1]))


def _range(kind: str) -> tuple[int, int]:
    """The least and the largest whole number about 0."""
    low = -(LEVELS[kind] // 2)
    return low, low + LEVELS[kind] - 1


def _middle(kind: str) -> int | float:
    """The code of 0; that of binary weights lies between their two."""
    return 0.5 if kind == "binary" else LEVELS[kind] // 2


def _inverse(scale):
    """1 / scale, and 0 for a scale of 0, that of weights that are all zero."""
    some = jnp.abs(scale) >= np.finfo(np.float32).tiny
    return jnp.where(some, 1 / jnp.where(some, scale, 1), 0)


def _mean(x):
    """Over axis 1, which it keeps, with the additions in one order wherever it runs."""
    count = x.shape[1]
    while (n := x.shape[1]) > 1:
        x = jnp.pad(x, ((0, 0), (0, n % 2), (0, 0)))
        x = x[:, : (n + 1) // 2] + x[:, (n + 1) // 2 :]
    return x * np.float32(1 / count)


def _grouped(array, groups: int):
    """[groups, weights with one scale, outputs], float32."""
    wide = array.astype(np.float32)
    return wide.reshape((groups, array.shape[0] // groups, -1) if groups else (1, -1, 1))


def _reference(w: np.ndarray, kind: str, zero_point: bool, scale) -> np.ndarray:
    """The weights of one scale, by the definitions."""
    levels, size = LEVELS[kind], np.abs(w).mean()
    if kind == "binary":
        return np.where(w >= 0, size, -size)
    if zero_point:
        low, high = min(w.min(), 0), max(w.max(), 0)
        scale = (high - low) / (levels - 1) or 1.0
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(w / scale) + zero, 0, levels - 1) - zero) * scale
    if scale is None:
        scale = size if kind == "ternary" else np.abs(w).max() / ((levels - 1) // 2)
    return np.clip(np.rint(w / (scale or 1.0)), -(levels // 2), (levels - 1) // 2) * scale
