"""The sum of two digits, one shown and one spoken: neither alone tells more than chance.

Whatever the digit that is seen, the other is any of ten, so who sees one alone is right once in ten times,
as who guesses 9.

Source: Manhaeve et al. 2018, "DeepProbLog", https://arxiv.org/abs/1805.10872, section 6, experiment T1,
  where both digits are shown.
Differs: One of the two is spoken, and both labels are not given but their sum alone.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tinyattn import registry, tasks
from tinyattn.tasks import Asked, Split, Task, _asked, _generated

OF = ("seen", "heard")
WITHOUT = ("", *OF)
SUMS = 19


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      seen: Section of a task of images of digits.
      heard: Section of a task of recordings of digits.
      pairs: Images that a recording is paired with, of its own split, always the same.
      without: `seen` or `heard`, which of them is blank, to measure what the other tells alone; or "".
    """

    seen: Mapping[str, Any] = dataclasses.field(default_factory=lambda: tasks.spec("digits"))
    heard: Mapping[str, Any] = dataclasses.field(default_factory=lambda: tasks.spec("fsdd"))
    pairs: int = 4
    without: str = ""

    def __post_init__(self):
        if self.pairs < 1:
            raise ValueError(f"task.pairs={self.pairs} must be at least 1")
        if self.without not in WITHOUT:
            raise ValueError(
                f"task.without={self.without!r}; {registry.nearest(self.without, WITHOUT)}"
            )


def wrap(config: Config, seen: Task, heard: Task) -> Task:
    """The task of adding what two tasks show and say."""
    if (seen.num_classes, heard.num_classes) != (10, 10):
        raise ValueError(
            f"task.seen has {seen.num_classes} classes and task.heard {heard.num_classes}: give digits"
        )

    def split(number: int, name: str) -> Split:
        images, sounds = getattr(seen, name), getattr(heard, name)
        rows = np.repeat(np.arange(len(sounds.labels)), config.pairs)
        bits = np.random.Philox(np.random.SeedSequence([0, number]))
        other = _generated.integers(bits, rows.shape, 0, len(images.labels))
        inputs = images.inputs[other], sounds.inputs[rows]
        labels = images.labels[other] + sounds.labels[rows]
        return blank(config, Split(inputs, labels.astype(np.int32), sounds.key_valid[rows]))

    def augment(rng: jax.Array, batch: Split) -> Split:
        rngs, (images, sounds) = jax.random.split(rng), batch.inputs
        shown = seen.augment(rngs[0], batch._replace(inputs=images)).inputs
        said = heard.augment(rngs[1], batch._replace(inputs=sounds)).inputs
        return blank(config, batch._replace(inputs=(shown, said)))

    splits = {name: split(i, name) for i, name in enumerate(_generated.SPLITS)}
    return Task(
        **splits,
        num_classes=SUMS,
        vocab_size=0,
        augment=augment,
        baselines=lambda: _guess(splits["train"], splits["test"]),
        files={
            **seen.files,
            **heard.files,
            _asked.CLASSES: json.dumps(list(map(str, range(SUMS)))),
        },
        told={"seen": seen.told, "heard": heard.told},
    )


def blank(config: Config, batch: Split) -> Split:
    """The batch without one of the two; how long a recording is tells nothing either."""
    images, sounds = batch.inputs
    if config.without == "seen":
        return batch._replace(inputs=(images * 0, sounds))
    if config.without == "heard":
        return batch._replace(inputs=(images, sounds * 0), key_valid=batch.key_valid | True)
    return batch


def asked(config: Config, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Lines of an image file and a sound file, a tab between them.

    Raises:
      ValueError: A line has no tab, or several, or a file is refused.
    """
    parts = _asked.columns(lines, "an image file and a WAV file")
    images, sounds = (
        tasks.asked(getattr(config, name), files, part).split
        for name, part in zip(OF, parts, strict=True)
    )
    both = sounds._replace(inputs=(images.inputs, sounds.inputs))
    return Asked(blank(config, both), _asked.classes(json.loads(files[_asked.CLASSES])))


def _guess(train: Split, test: Split) -> dict[str, float]:
    """Test numbers of always telling the sum that is most frequent in training."""
    most = np.bincount(train.labels).argmax()
    return {"accuracy": float((test.labels == most).mean())}
