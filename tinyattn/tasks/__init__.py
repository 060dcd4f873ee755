"""What is learned: one task a file, each data in memory with its splits.

A task is a module, here or in a fork's own package, that exposes

- `Config`: a frozen keyword-only dataclass that validates itself;
- `load(config) -> Task`; or, where it reads a dataset, `DATASET`, the name that it has on the hub, and
  `load(config, source) -> Task`, which gets its tables by `source.read`; or, where it
  is made of other tasks, `OF`, the names of the fields that are their sections, and
  `wrap(config, *tasks) -> Task`;
- where new inputs can be asked about, `asked(config, files, lines) -> Asked`, of texts or names of files.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tinyattn import config as configs
from tinyattn import registry
from tinyattn.tasks import _metrics, _tokens
from tinyattn.tasks._metrics import ACCURACY, Metric, Predicted
from tinyattn.tasks._source import DIRECTORY, Source

__all__ = [
    "ACCURACY",
    "Asked",
    "Metric",
    "Predicted",
    "Source",
    "Split",
    "Task",
    "Writing",
    "load",
    "names",
    "score",
    "spec",
]

# Tasks that a process keeps for the next who asks, such as the rows of a table.
KEPT = 4
_LOADED: dict[str, "Task"] = {}


class Split(NamedTuple):
    """Examples side by side.

    Attributes:
      inputs: [n, ...]; images [n, height, width, channels] or frames [n, T, features] in float32, tokens
        [n, T] in int32, or a pair of images and frames.
      labels: int32 [n], or [n, T] with one for each token, or [n, A] with one for each place of `at`;
        negative where nothing is to be predicted.
      key_valid: bool [n, T], False where `inputs` is padding, of a pair its frames; None where nothing is.
      token_types: int32 [n, T], such as 0 for the first text of a pair and 1 for the second; None is 0.
      segment_ids: int32 [n, T], which text of several packed into a row a token belongs to; None is one.
      prefix: int32 [n, P], what a decoder reads, token for token before its label; None without one.
      prefix_segments: int32 [n, P], for which text of several a token of the prefix is; None is one.
      masked: bool [n, T], the tokens in whose place a model sees its mask embedding; None is none.
      at: int32 [n, A], the tokens whose outputs are asked for; None is all.
      targets: float32, in the shape of the labels and [features], what is to be predicted where a label is
        not negative and may say which text it is of; None where labels are classes.
    """

    inputs: np.ndarray | tuple[np.ndarray, np.ndarray]
    labels: np.ndarray
    key_valid: np.ndarray | None = None
    token_types: np.ndarray | None = None
    segment_ids: np.ndarray | None = None
    prefix: np.ndarray | None = None
    prefix_segments: np.ndarray | None = None
    masked: np.ndarray | None = None
    at: np.ndarray | None = None
    targets: np.ndarray | None = None

    @property
    def given(self) -> dict[str, np.ndarray]:
        """What a model is called with, by name: all that there is but what is to be predicted."""
        fields = self._asdict()
        asked = ("labels", "targets")
        return {name: x for name, x in fields.items() if name not in asked and x is not None}


class Writing(NamedTuple):
    """How a task's answers are written.

    Attributes:
      start: The token id that a decoder reads first.
      end: The one after which nothing is written.
      length: Tokens of an answer at most, that of its end included.
      text: Ids -> the text that they spell.
      beams: Texts that the search for answers keeps open; 1 is greedy.
      alpha: Of its length penalty.
    """

    start: int
    end: int
    length: int
    text: Callable[[Sequence[int]], str]
    beams: int = 1
    alpha: float = 0.0


class Task(NamedTuple):
    """A task in memory.

    Attributes:
      train, validation, test: Disjoint splits.
      num_classes: Labels are 0..num_classes - 1; of a regression, as many features as a target has.
      vocab_size: Number of token ids; 0 for images.
      augment: (rng, batch) -> batch, jittable, applied to training batches alone; it may give them other
        labels, or the `targets` that only the other splits have in memory.
      metric: What decides which weights are best, and what a table shows.
      measure: (split, predicted) -> the field's own numbers by name; `score` adds accuracy and loss.
      baselines: () -> numbers of the test split by name, of what a model has to beat.
      files: What answering for new inputs needs, such as the tokeniser; kept beside the record by name.
      told: What the record says of the data: which they are, and what preparing them dropped.
      writing: Of a task whose test answers are texts that a decoder writes; None of others.
      judge: Of these answers, the texts of the test split in order -> numbers by name.
      headline: Which of those a table shows; None is `metric`.
      others: Further test splits by name, whose numbers a record has as well.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    vocab_size: int
    augment: Callable[[jax.Array, Split], Split]
    metric: Metric = ACCURACY
    measure: Callable[[Split, Predicted], dict[str, float]] = lambda split, predicted: {}
    baselines: Callable[[], dict[str, float]] = dict
    files: Mapping[str, str] = {}
    told: Mapping[str, Any] = {}
    writing: Writing | None = None
    judge: Callable[[Sequence[str]], dict[str, float]] | None = None
    headline: Metric | None = None
    others: Mapping[str, Split] = {}

    @property
    def regression(self) -> bool:
        """Whether targets are predicted and not classes."""
        return self.test.targets is not None

    @property
    def vocabulary(self) -> str:
        """Names what the token ids mean, the hash of the tokeniser; "" where there is none."""
        text = self.files.get(_tokens.FILE, "")
        return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


class Asked(NamedTuple):
    """New inputs, and how what a model says of them is read.

    Attributes:
      split: Its labels mean nothing.
      answers: Logits of all inputs, float32 [n, ...] -> a dict for each, that JSON can hold; None where
        answers are written.
      writing: How, where they are.
    """

    split: Split
    answers: Callable[[np.ndarray], list[dict[str, Any]]] | None = None
    writing: Writing | None = None


def score(task: Task, split: Split, predicted: Predicted) -> dict[str, float]:
    """Accuracy, mean loss (nats) and the task's own numbers of a split, by name.

    Of a regression the loss is the mean squared error of a feature, and there is no accuracy.
    """
    right = (
        {} if task.regression else {"accuracy": _metrics.accuracy(split.labels, predicted.labels)}
    )
    return {**right, "loss": float(predicted.losses.mean()), **task.measure(split, predicted)}


def names() -> tuple[str, ...]:
    """The tasks of this package."""
    return registry.names(__name__)


def spec(name: str, **fields: Any) -> registry.Spec:
    """A config section for a task: `spec("digits", shift=1)`."""
    return registry.spec(__name__, name, **fields)


def asked(section: Mapping[str, Any], files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Reads lines as the inputs of a task, each a text or the name of a file.

    Args:
      section: Of a run's config.
      files: Of the run, by name, `Task.files`.
      lines: What is asked about.

    Raises:
      ValueError: A line is refused, or the task has no inputs that a person could give.
    """
    module, config = registry.build(__name__, section)
    if not hasattr(module, "asked"):
        raise ValueError(f"task {section['name']!r} takes no inputs of a person's to answer about")
    return module.asked(config, files, lines)


def load(section: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> Task:
    """Loads the task that a section describes; equal sections share one copy in memory.

    Args:
      section: As `spec` makes it.
      source: Where datasets come from, the fields of `Source`; None is its defaults.

    Raises:
      ValueError: A section is refused, or its data cannot be had.
    """
    given = registry.defaults(Source) | dict(source or {})
    # Also by the environment: it says where a source without a directory looks.
    key = json.dumps([configs.plain(section), configs.plain(given), os.environ.get(DIRECTORY)])
    if key not in _LOADED:
        module, config = registry.build(__name__, section)
        if hasattr(module, "wrap"):
            task = module.wrap(config, *(load(getattr(config, name), source) for name in module.OF))
        elif hasattr(module, "DATASET"):
            task = module.load(config, registry.construct(Source, given, "data"))
        else:
            task = module.load(config)
        while len(_LOADED) >= KEPT:
            del _LOADED[next(iter(_LOADED))]
        _LOADED[key] = task._replace(baselines=functools.cache(task.baselines))
    return _LOADED[key]
