"""W = W0 + c Re F⁻¹(S): few numbers of a spectrum S are trained, at random places that a seed gives.

F⁻¹ is the inverse transform of a matrix, 1 / (d_in d_out) times the sum of its waves.

Source: Gao et al. 2024, "FourierFT", https://arxiv.org/abs/2405.03003, equations 2 to 4.
Differs: each leaf has places of its own, any of them equally likely (no `f_c`), where the paper draws
  places once for all layers; of a kernel of several axes the first are the inputs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.weights import _making, _theta
from tinyattn.weights._delta import Delta, Term
from tinyattn.weights._masks import Sparse
from tinyattn.weights._scheme import Scheme

CASES = (
    {"size": 5, "scale": 10.0},
    {"size": 3, "std": 0.0, "scale": 10.0, "leaves": "block.*kernel$"},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are reparameterised.
      size: Trained numbers of each leaf.
      scale: c.
      std: Standard deviation of the numbers at first; with 0 W starts as W0.
    """

    leaves: str = "kernel$"
    size: int = 1000
    scale: float = 300.0
    std: float = 1.0

    def __post_init__(self):
        if self.size < 1 or not self.scale:
            raise ValueError(
                f"fourier: size={self.size} and scale={self.scale} leave nothing to train: give 1 or"
                f" more numbers, and a scale other than 0"
            )
        if self.std < 0:
            raise ValueError(f"fourier: std={self.std} is a standard deviation: give 0 or more")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Waves(_theta.Node):
    """The real part of the inverse transform of a spectrum [d_in, d_out], in the shape of the leaf."""

    spectrum: Any
    shape: tuple[int, ...] = _theta.static()

    def build(self, fold):
        spectrum = fold(self.spectrum)
        wide = spectrum.astype(jnp.promote_types(spectrum.dtype, jnp.float32))
        return jnp.fft.ifft2(wide).real.reshape(self.shape).astype(spectrum.dtype)

    def reference(self, fold):
        spectrum = fold(self.spectrum)
        (I, O), (i, o) = spectrum.shape, np.indices(spectrum.shape)  # noqa: E741
        waves = np.zeros(spectrum.shape)
        for row, column in np.argwhere(spectrum):
            angle = 2 * np.pi * (row * i / I + column * o / O)
            waves += spectrum[row, column] * np.cos(angle) / (I * O)
        return waves.reshape(self.shape)


def make(config: Config) -> Scheme:
    """Adds waves to the leaves that `config.leaves` picks."""

    def added(rng, path, array):
        d_in, d_out = array.shape[0], math.prod(array.shape[1:])
        if array.ndim < 2 or config.size > d_in * d_out:
            raise ValueError(
                f"fourier: {path}, of shape {array.shape}, is no matrix with size={config.size} places"
                f" in its spectrum: pick others by 'leaves', or give a smaller size"
            )
        rng = _making.rng_of(rng, path)
        at = _theta.Seeded.make(jax.random.fold_in(rng, 0), (d_in, d_out), config.size, "mask")
        numbers = jnp.zeros(config.size, array.dtype)
        if config.std:
            drawn = jax.random.normal(jax.random.fold_in(rng, 1), numbers.shape, array.dtype)
            numbers += config.std * drawn
        term = Term(None, Waves(Sparse(numbers, at), array.shape), config.scale)
        return Delta(_theta.Fixed(array), (term,), array.shape)

    def init(rng, theta):
        found = _theta.trained("fourier", config.leaves, theta)
        new = {path: added(rng, path, leaf) for path, leaf in found.items()}
        return _theta.replace_leaves(theta, new)

    return Scheme(init)
