"""What tasks of images have in common: normalisation by the training pixels, and augmentation."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry

NORMALISATIONS = ("standard", "unit", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """
    Attributes:
      normalise: `standard` (mean 0 and deviation 1 over the training pixels), `unit` (to 0..1) or
        `none` (as they come).
      shift: Augmentation: every training image moves by up to this many pixels each way, each time.
      noise: Augmentation: standard deviation of Gaussian noise, in units of the normalised pixels.
    """

    normalise: str = "standard"
    shift: int = 0
    noise: float = 0.0

    def __post_init__(self):
        if self.normalise not in NORMALISATIONS:
            raise ValueError(
                f"normalise={self.normalise!r}; {registry.nearest(self.normalise, NORMALISATIONS)}"
            )
        if self.shift < 0 or self.noise < 0:
            raise ValueError(f"shift={self.shift} and noise={self.noise} must not be negative")


def normaliser(config: Images, train: np.ndarray, brightest: float) -> Callable:
    """A function of pixels, 0 to `brightest`, that knows the training images alone; float32."""
    mean, scale = {
        "standard": (train.mean(), train.std()),
        "unit": (0.0, brightest),
        "none": (0.0, 1.0),
    }[config.normalise]
    if not scale > 0:
        raise ValueError("the training images are all of one grey; normalise='unit' needs no scale")
    return lambda pixels: ((pixels - mean) / scale).astype(np.float32)


def augment(config: Images, background: float, rng: jax.Array, inputs: jax.Array) -> jax.Array:
    """Shifts and noise of a batch [B, height, width, C]; what moves in from outside is background."""
    shift_rng, noise_rng = jax.random.split(rng)
    if config.shift:
        reach = config.shift
        margin = ((0, 0), (reach, reach), (reach, reach), (0, 0))
        padded = jnp.pad(inputs, margin, constant_values=background)
        starts = jax.random.randint(shift_rng, (inputs.shape[0], 2), 0, 2 * reach + 1)

        def crop(image, start):
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), inputs.shape[1:])

        inputs = jax.vmap(crop)(padded, starts)
    if config.noise:
        inputs += config.noise * jax.random.normal(noise_rng, inputs.shape)
    return inputs
