"""Handwritten digits, 1,797 images of 8x8, which scikit-learn ships: no network is needed.

Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; the 1,797 images are
  its test part, https://archive.ics.uci.edu/dataset/80.
Differs: split here, 1,257 / 180 / 360, stratified by digit and fixed.
"""

import dataclasses

import datasets
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tinyattn.tasks import Split, Task
from tinyattn.tasks._images import Images, asked, augment, pixels

__all__ = ["Config", "asked", "dataset", "load"]

TEST, VALIDATION, BRIGHTEST = 360, 180, 16.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Images):
    """Only the fields of all tasks of images."""

    def __post_init__(self):
        super().__post_init__()
        if self.shift >= 8:
            raise ValueError(f"shift={self.shift} must be less than 8 pixels")


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
    known = pixels(config, data["train"]["image"], BRIGHTEST)

    def split(name):
        inputs = known.normal(data[name]["image"])
        return Split(inputs[..., None], data[name]["label"].astype(np.int32))

    return Task(
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        num_classes=10,
        vocab_size=0,
        augment=lambda rng, batch: augment(config, known.background, rng, batch),
        files=known.files([str(digit) for digit in range(10)]),
    )
