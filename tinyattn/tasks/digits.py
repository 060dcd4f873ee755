"""Handwritten digits, 1,797 images of 8x8, which scikit-learn ships: no network is needed.

Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; the 1,797 images are
  its test part, https://archive.ics.uci.edu/dataset/80.
Differs: split here, 1,257 / 180 / 360, stratified by digit and fixed.
"""

import dataclasses

import datasets
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tinyattn import registry
from tinyattn.tasks import Split, Task

NORMALISATIONS = ("standard", "unit", "none")
TEST, VALIDATION = 360, 180


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      normalise: `standard` (mean 0 and deviation 1 over the training pixels), `unit` (to 0..1) or
        `none` (0..16).
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
        if not 0 <= self.shift < 8 or self.noise < 0:
            raise ValueError(
                f"shift={self.shift} must be 0 to 7 pixels and noise={self.noise} not negative"
            )


def dataset() -> datasets.DatasetDict:
    """The digits as the hub would give them: `image` 8x8 with values 0..16, and `label`."""
    digits = load_digits()
    features = datasets.Features(
        image=datasets.Array2D((8, 8), "float32"), label=datasets.ClassLabel(num_classes=10)
    )
    rows = np.arange(len(digits.target))
    rest, test = train_test_split(
        rows, test_size=TEST, random_state=0, stratify=digits.target, shuffle=True
    )
    train, validation = train_test_split(
        rest, test_size=VALIDATION, random_state=0, stratify=digits.target[rest], shuffle=True
    )
    images = digits.images.astype(np.float32)

    def split(picked):
        columns = {"image": images[picked], "label": digits.target[picked]}
        return datasets.Dataset.from_dict(columns, features=features)

    return datasets.DatasetDict(train=split(train), validation=split(validation), test=split(test))


def load(config: Config) -> Task:
    """The digits in memory, normalised by the statistics of the training split."""
    # Whole splits at once: row by row takes a hundred times longer.
    data = {name: part[:] for name, part in dataset().with_format("numpy").items()}
    images = {name: part["image"] for name, part in data.items()}
    mean, scale = {
        "standard": (images["train"].mean(), images["train"].std()),
        "unit": (0.0, 16.0),
        "none": (0.0, 1.0),
    }[config.normalise]

    def split(name):
        inputs = ((images[name] - mean) / scale).astype(np.float32)
        return Split(inputs[..., None], data[name]["label"].astype(np.int32))

    background = float((0.0 - mean) / scale)
    return Task(
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        num_classes=10,
        vocab_size=0,
        augment=lambda rng, inputs: augment(config, background, rng, inputs),
    )


def augment(config: Config, background: float, rng: jax.Array, inputs: jax.Array) -> jax.Array:
    """Shifts and noise of a batch [B, 8, 8, 1]; what moves in from outside is background."""
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
