"""What tasks of images have in common: normalisation by the training pixels, and augmentation."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from tinyattn import registry
from tinyattn.tasks import Asked, Split, _asked

NORMALISATIONS = ("standard", "unit", "none")
FILE = "pixels.json"


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


class Pixels(NamedTuple):
    """How pixels become what a model reads, by the training images alone.

    Attributes:
      mean: That is taken away.
      scale: That is then divided by.
      brightest: The largest pixel there can be.
      shape: Rows and columns of an image.
    """

    mean: float
    scale: float
    brightest: float
    shape: tuple[int, int]

    def normal(self, pixels: np.ndarray) -> np.ndarray:
        """float32."""
        return ((pixels - self.mean) / self.scale).astype(np.float32)

    @property
    def background(self) -> float:
        """What a pixel of 0 becomes."""
        return float(self.normal(np.zeros(1, np.float32))[0])

    def files(self, names: Sequence[str]) -> dict[str, str]:
        """What asking about new images needs; `names` are those of the classes."""
        return {FILE: json.dumps(self._asdict()), _asked.CLASSES: json.dumps(list(names))}


def pixels(config: Images, train: np.ndarray, brightest: float) -> Pixels:
    """Of training images [n, height, width] or with channels.

    Raises:
      ValueError: They are all of one grey, so that they have no scale.
    """
    mean, scale = {
        "standard": (train.mean(), train.std()),
        "unit": (0.0, brightest),
        "none": (0.0, 1.0),
    }[config.normalise]
    if not scale > 0:
        raise ValueError("the training images are all of one grey; normalise='unit' needs no scale")
    return Pixels(float(mean), float(scale), brightest, train.shape[1:3])


def asked(config: Images, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Image files: made grey, resized to those of training, as these bright on dark.

    Raises:
      ValueError: A file is no image, or is not there.
    """
    known = Pixels(**json.loads(files[FILE]))
    height, width = known.shape
    images = []
    for line in lines:
        try:
            image = PIL.Image.open(line).convert("L").resize((width, height), PIL.Image.BOX)
        except OSError as error:
            raise ValueError(f"{line!r} is no image file that can be read: {error}") from error
        images.append(np.asarray(image, np.float32) * (known.brightest / 255.0))
    inputs = known.normal(np.stack(images))[..., None]
    return Asked(_asked.unlabelled(inputs), _asked.classes(json.loads(files[_asked.CLASSES])))


def augment(config: Images, background: float, rng: jax.Array, batch: Split) -> Split:
    """Shifts and noise of images [B, height, width, C]; what moves in from outside is background."""
    inputs = batch.inputs
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
    return batch._replace(inputs=inputs)
