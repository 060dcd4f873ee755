"""Spoken digits: 3,000 recordings of 6 speakers who say zero to nine 50 times each.

Source: Jackson et al., "Free spoken digit dataset", https://github.com/Jakobovski/free-spoken-digit-dataset,
  whose takes 0 to 4 are the test split; masks in training as Park et al. 2019, "SpecAugment",
  https://arxiv.org/abs/1904.08779, section 2.
Differs: takes 5 to 9 are the validation split. No time warping; a mask is the mean of training, 0.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry
from tinyattn.tasks import Asked, Source, Split, Task, _asked, _speech, _steps
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._labelled import few
from tinyattn.tasks._texts import splits

DATASET = "fsdd"
AUDIO, LABEL, TAKE = "audio", "label", "take"
RATE, VALIDATION = 8000, 10
FILE = "bands.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      mels: Bands of the mel scale, the features of a frame.
      length: Frames of an example at most (T, of 10 ms); what is longer is cut off, and counted.
      broken: What becomes of a recording that cannot be read or is silent: `drop`, and say so, or `raise`.
      time_mask: Augmentation: up to so many frames in a row are masked, at another place each time.
      mel_mask: Augmentation: up to so many bands side by side are masked.
      train_examples: Of the training split, stratified and always the same; 0 is all.
    """

    mels: int = 40
    length: int = 96
    broken: str = "drop"
    time_mask: int = 0
    mel_mask: int = 0
    train_examples: int = 0

    def __post_init__(self):
        if self.broken not in _steps.BROKEN:
            raise ValueError(
                f"task.broken={self.broken!r}; {registry.nearest(self.broken, _steps.BROKEN)}"
            )
        for name, least, most in (
            ("mels", 1, 128),
            ("length", 1, 10_000),
            ("time_mask", 0, self.length),
            ("mel_mask", 0, self.mels),
        ):
            if not least <= getattr(self, name) <= most:
                value = getattr(self, name)
                raise ValueError(f"task.{name}={value} must be {least} to {most}")
        if self.train_examples < 0:
            raise ValueError(f"task.train_examples={self.train_examples} must not be negative")


def load(config: Config, source: Source) -> Task:
    """The recordings as frames in memory, each band with mean 0 and deviation 1 over those of training."""
    data = source.read(DATASET, "", ("train", "test"), (AUDIO, LABEL, TAKE))

    def make() -> Prepared:
        said, frames = _steps.Told(config.broken), data.frames()
        known = frames["train"]
        parts = {
            "train": known[known[TAKE] >= VALIDATION],
            "validation": known[known[TAKE] < VALIDATION],
            "test": frames["test"],
        }
        if config.train_examples:
            parts = few(parts, LABEL, config.train_examples)
        arrays = {}
        for split, part in parts.items():
            heard = _heard(part[AUDIO], split, config, said)
            if not heard:
                raise ValueError(f"{DATASET}: no recording of the {split} split is left")
            rows = _rows(list(heard.values()), config)
            cut = [row for row, x in heard.items() if len(x) > config.length]
            said.say("length", split, f"cut off at {config.length} frames", cut)
            arrays |= {
                f"{split}/inputs": rows.inputs,
                f"{split}/key_valid": rows.key_valid,
                f"{split}/labels": part[LABEL].loc[list(heard)].to_numpy(np.int32),
            }
        said.log(DATASET)
        return Prepared(arrays, {}, {"prepared": said.lines})

    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, make)
    raw = splits(found)
    frames = raw["train"].inputs[raw["train"].key_valid]
    mean, deviation = frames.mean(0), np.maximum(frames.std(0), 1e-3)

    names, bands = data.names(LABEL), {"mean": mean.tolist(), "deviation": deviation.tolist()}
    return Task(
        **{name: _normal(part, **bands) for name, part in raw.items()},
        num_classes=len(names),
        vocab_size=0,
        augment=lambda rng, batch: augment(config, rng, batch),
        files={FILE: json.dumps(bands), _asked.CLASSES: json.dumps(names)},
        told={"dataset": DATASET, "fingerprint": fingerprint, **found.told},
    )


def _normal(part: Split, mean, deviation) -> Split:
    inputs = (part.inputs - np.float32(mean)) / np.float32(deviation)
    return part._replace(inputs=np.where(part.key_valid[..., None], inputs, np.float32(0.0)))


def _rows(sounds: Sequence[np.ndarray], config: Config) -> Split:
    """Frames of recordings as rows of one length."""
    inputs = np.zeros((len(sounds), config.length, config.mels), np.float32)
    valid = np.zeros(inputs.shape[:2], bool)
    for i, frames in enumerate(sounds):
        n = min(len(frames), config.length)
        inputs[i, :n], valid[i, :n] = frames[:n], True
    return _asked.unlabelled(inputs, valid)


def asked(config: Config, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Sound files of one digit each, at any rate.

    Raises:
      ValueError: A file is no sound, is silent, or is longer than the model hears.
    """
    sounds = []
    for line in lines:
        frames = _speech.log_mel(_speech.samples(line, RATE, repr(line)), RATE, config.mels)
        if len(frames) > config.length:
            raise ValueError(
                f"{line!r} has {len(frames)} frames of 10 ms, and the model hears {config.length}: cut"
                f" it to one digit, or train with more task.length"
            )
        sounds.append(frames)
    split = _normal(_rows(sounds, config), **json.loads(files[FILE]))
    return Asked(split, _asked.classes(json.loads(files[_asked.CLASSES])))


def _heard(recordings, split: str, config: Config, said: _steps.Told) -> dict[int, np.ndarray]:
    """Row number to frames, of the recordings that can be heard."""
    found, broken = {}, []
    for row, audio in recordings.items():
        try:
            sound = _speech.samples(audio, RATE, f"{DATASET}: {split} recording {row}")
        except ValueError as error:
            if config.broken == "raise":
                raise ValueError(f"{error}; mend it, or set task.broken='drop'") from error
            broken.append(row)
            continue
        found[row] = _speech.log_mel(sound, RATE, config.mels)
    said.say("missing", split, "dropped: cannot be read, or are silent", broken)
    return found


def augment(config: Config, rng: jax.Array, batch: Split) -> Split:
    """Masks frames and bands of inputs [B, T, mels]."""
    inputs = batch.inputs
    for axis, most in ((1, config.time_mask), (2, config.mel_mask)):
        if most:
            rng, size_rng, start_rng = jax.random.split(rng, 3)
            B, n = inputs.shape[0], inputs.shape[axis]
            size = jax.random.randint(size_rng, (B, 1), 0, most + 1)
            start = (jax.random.uniform(start_rng, (B, 1)) * (n - size + 1)).astype(jnp.int32)
            masked = (jnp.arange(n) >= start) & (jnp.arange(n) < start + size)
            inputs = jnp.where(jnp.expand_dims(masked, 3 - axis), 0.0, inputs)
    return batch._replace(inputs=inputs)
