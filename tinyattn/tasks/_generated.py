"""What generated tasks have in common: splits of examples, each from a stream of random bits of its own.

The numbers come of the raw bits of NumPy's Philox generator, whose stream never changes, so the examples of
a config are the same on every machine and in every release.
"""

import abc
import dataclasses

import datasets
import numpy as np

from tinyattn.tasks import Split, Task

SPLITS = ("train", "validation", "test")
# What the hub writes where nothing is to be predicted.
UNLABELLED = -100
# Examples drawn at a time, which bounds the memory that a draw takes.
BLOCK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """What a generated task's Config inherits.

    Attributes:
      train_examples: Of the training split.
      validation_examples: Of the validation split.
      test_examples: Of the test split.
      seed: Of the data; every split has its own stream of it.
    """

    train_examples: int = 10_000
    validation_examples: int = 1_000
    test_examples: int = 1_000
    seed: int = 0

    def __post_init__(self):
        for split in SPLITS:
            if (n := getattr(self, f"{split}_examples")) < 1:
                raise ValueError(f"{split}_examples={n} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")

    def at_least(self, **least: int) -> None:
        """Refuses fields that are below these numbers."""
        for name, n in least.items():
            if getattr(self, name) < n:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {n}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn(Generated, abc.ABC):
    """A generated task whose examples are drawn one like another; its Config adds `vocab_size` too."""

    @abc.abstractmethod
    def draw(self, bits: np.random.Philox, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of n examples, int32 [n, T] each; a class is a token of the vocabulary."""


def stream(config: Generated, split: str) -> np.random.Philox:
    """The bits of a split."""
    return np.random.Philox(np.random.SeedSequence([config.seed, SPLITS.index(split)]))


def integers(bits: np.random.Philox, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """int32 of low..high - 1."""
    return (low + bits.random_raw(shape) % np.uint64(high - low)).astype(np.int32)


def distinct(bits: np.random.Philox, n: int, weights: np.ndarray, count: int) -> np.ndarray:
    """n draws without replacement of `count` indices of `weights`, in the order drawn, [n, count].

    By a race: whoever's exponential waiting time, of rate `weights`, is over first is drawn first.
    """
    uniform = ((bits.random_raw((n, len(weights))) >> np.uint64(11)) + 0.5) * 2.0**-53
    return np.argsort(-np.log(uniform) / weights, axis=1, kind="stable")[:, :count]


def examples(config: Drawn, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and labels of a split, int32 [n, T] each."""
    bits, n = stream(config, split), getattr(config, f"{split}_examples")
    blocks = [config.draw(bits, min(BLOCK, n - start)) for start in range(0, n, BLOCK)]
    tokens, labels = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return tokens, labels


def dataset(config: Drawn) -> datasets.DatasetDict:
    """The splits as the hub would give them: `input_ids` and `labels`, [T] each."""

    def split(name):
        tokens, labels = examples(config, name)
        row = datasets.Sequence(datasets.Value("int32"), length=tokens.shape[1])
        features = datasets.Features(input_ids=row, labels=row)
        return datasets.Dataset.from_dict({"input_ids": tokens, "labels": labels}, features)

    return datasets.DatasetDict({name: split(name) for name in SPLITS})


def load(config: Drawn) -> Task:
    """The splits in memory.

    Raises:
      ValueError: An example to be tested is trained on, as happens where there are few different ones.
    """
    splits = {name: Split(*examples(config, name)) for name in SPLITS}
    known = {text.tobytes() for text in splits["train"].inputs}
    for name in SPLITS[1:]:
        texts = splits[name].inputs
        if again := sum(text.tobytes() in known for text in texts):
            raise ValueError(
                f"{again} of {name}_examples={len(texts)} are among train_examples={len(known)}:"
                f" make examples longer, so that more differ, or have fewer"
            )
    return Task(
        **splits,
        num_classes=config.vocab_size,
        vocab_size=config.vocab_size,
        augment=lambda rng, batch: batch,
    )
