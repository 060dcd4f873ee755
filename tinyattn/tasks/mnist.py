"""Handwritten digits: 60,000 images of 28x28 to train on and 10,000 to test.

Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition",
  https://doi.org/10.1109/5.726791; on the hub ylecun/mnist.
Differs: 5,000 training images, stratified and always the same, are the validation split.
"""

import dataclasses
import io

import numpy as np
import PIL.Image
from sklearn.model_selection import train_test_split

from tinyattn.tasks import Source, Split, Task
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._images import Images, asked, augment, pixels
from tinyattn.tasks._texts import splits

__all__ = ["Config", "asked", "load"]

DATASET = "ylecun/mnist"
IMAGE, LABEL = "image", "label"
SIDE, BRIGHTEST, VALIDATION = 28, 255.0, 5000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Images):
    """
    Attributes:
      train_examples: The first so many of the training split alone; 0 is all.
    """

    train_examples: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.shift >= SIDE:
            raise ValueError(f"shift={self.shift} must be less than {SIDE} pixels")
        if self.train_examples < 0:
            raise ValueError(f"train_examples={self.train_examples} must not be negative")


def grey(image: dict, where: str) -> np.ndarray:
    """uint8 [28, 28] of a picture as the hub keeps it, a file's bytes.

    Raises:
      ValueError: It is no picture, or of another size.
    """
    try:
        array = np.asarray(PIL.Image.open(io.BytesIO(image["bytes"])).convert("L"))
    except (OSError, TypeError, KeyError) as error:
        raise ValueError(f"{where} is no image: {error}; mend the file") from error
    if array.shape != (SIDE, SIDE):
        raise ValueError(f"{where} has {array.shape} pixels, not {SIDE}x{SIDE}: mend the file")
    return array


def load(config: Config, source: Source) -> Task:
    """The images in memory, normalised by the statistics of the training split."""
    data = source.read(DATASET, "", ("train", "test"), (IMAGE, LABEL))

    def make() -> Prepared:
        frames = data.frames()
        train, validation = train_test_split(
            frames["train"],
            test_size=min(VALIDATION, len(frames["train"]) // 6),
            random_state=0,
            stratify=frames["train"][LABEL],
            shuffle=True,
        )
        train = train.sort_index()[: config.train_examples or None]
        parts = {"train": train, "validation": validation.sort_index(), "test": frames["test"]}
        arrays = {}
        for name, part in parts.items():
            images = [
                grey(image, f"{DATASET}: {name} image {row}") for row, image in part[IMAGE].items()
            ]
            arrays[f"{name}/inputs"] = np.stack(images)[..., None]
            arrays[f"{name}/labels"] = part[LABEL].to_numpy(np.int32)
        return Prepared(arrays, {}, {})

    fingerprint = data.fingerprint()
    raw = splits(prepared(fingerprint, config, make))
    known, names = pixels(config, raw["train"].inputs, BRIGHTEST), data.names(LABEL)
    made = {name: Split(known.normal(part.inputs), part.labels) for name, part in raw.items()}
    return Task(
        **made,
        num_classes=len(names),
        vocab_size=0,
        augment=lambda rng, batch: augment(config, known.background, rng, batch),
        files=known.files(names),
        told={"dataset": DATASET, "fingerprint": fingerprint},
    )
