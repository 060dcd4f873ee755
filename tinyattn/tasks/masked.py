"""What is hidden of a text, an image or a recording, to be told from the rest: pretraining without labels.

    read     who ▢ ▢ ?        of 15% of the tokens 80% are hidden, 10% are any token, 10% stay
    labels   .   wrote faust .

The inputs are those of any other task, whose labels are not looked at. In training other tokens are hidden
at each step; of validation and test they are always the same ones.

Source: Devlin et al. 2019, "BERT", https://arxiv.org/abs/1810.04805, section 3.1; hidden anew each step as
  Liu et al. 2019, "RoBERTa", https://arxiv.org/abs/1907.11692, section 4.1; patches as Xie et al. 2022,
  "SimMIM", https://arxiv.org/abs/2111.09886, section 3; frames as Liu et al. 2020, "Mockingjay",
  https://arxiv.org/abs/1910.12638, section 2.2.
Differs: What stands in the place of a token is an embedding without an id (`model.masked`), so that the ids
  are those of the tasks that follow. A label is never a special or unknown token. There is no second
  sentence to be told apart. Patches and frames are hidden one by one, always, and the error is squared.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import tasks
from tinyattn.tasks import Split, Task, _generated, _metrics, _tokens

OF = ("of",)
HIDDEN, STAY = 0.8, 0.1
UNLABELLED = _generated.UNLABELLED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      of: Section of the task whose inputs these are.
      share: Of the tokens, patches or frames of an example, to be told; at least one is.
      patch: Side of a patch (pixels), or frames of a token, as the model has them: `model.patch`, or 2 to
        the power of `model.tokeniser`; texts have tokens whatever it is.
    """

    of: Mapping[str, Any] = dataclasses.field(default_factory=lambda: tasks.spec("digits"))
    share: float = 0.15
    patch: int = 1

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise ValueError(f"task.share={self.share} must be a share above 0 and below 1")
        if self.patch < 1:
            raise ValueError(f"task.patch={self.patch} must be at least 1")


class Draws(NamedTuple):
    """What chance decides of a batch.

    Attributes:
      order: [B, T], 0 to 1: those of the least are to be told.
      kind: [B, T], 0 to 1: which of them are hidden, stay, or are another token.
      ids: int32 [B, T], that token.
    """

    order: jax.Array
    kind: jax.Array
    ids: jax.Array


class Tokens(NamedTuple):
    """What a task's inputs are for a model.

    Attributes:
      kind: `tokens`, `patches` or `frames`.
      patch: Of the config.
      first: Least id that may be told and drawn; those below are special.
      ids: Number of token ids.
    """

    kind: str
    patch: int
    first: int
    ids: int

    def cut(self, inputs):
        """[B, height, width, C] or [B, frames, features] to [B, T, features] of a token."""
        B, p = inputs.shape[0], self.patch
        if self.kind == "frames":
            return inputs.reshape(B, inputs.shape[1] // p, -1)
        rows, columns = (side // p for side in inputs.shape[1:3])
        parts = inputs.reshape(B, rows, p, columns, p, -1).swapaxes(2, 3)
        return parts.reshape(B, rows * columns, -1)

    def blank(self, inputs, hidden):
        """The inputs without what is hidden, bool [B, T]: the mean of training, or padding."""
        if self.kind == "tokens":
            return _of(hidden).where(hidden, 0, inputs)
        whole = hidden.reshape(-1, *(side // self.patch for side in inputs.shape[1:-1]))
        for axis in range(1, whole.ndim):
            whole = whole.repeat(self.patch, axis)
        return _of(hidden).where(whole[..., None], np.float32(0), inputs)

    def candidates(self, batch: Split):
        """bool [B, T], what may be told: no special token, no padding."""
        if self.kind == "tokens":
            here = batch.inputs >= self.first
            return here if batch.key_valid is None else here & batch.key_valid
        if batch.key_valid is not None:
            return batch.key_valid.reshape(len(batch.key_valid), -1, self.patch).all(-1)
        return np.ones(self.cut(batch.inputs).shape[:2], bool)


def wrap(config: Config, task: Task) -> Task:
    """The task of telling what is hidden of another task's inputs.

    Raises:
      ValueError: Patches do not divide these, or they are several in one.
    """
    if isinstance(task.train.inputs, tuple):
        raise ValueError(
            f"task.of.name={config.of['name']!r} has a pair of inputs; give one of them"
        )
    made = _tokens_of(config, task)
    text = made.kind == "tokens"
    splits, empty = {}, []
    for number, name in enumerate(_generated.SPLITS):
        whole = getattr(task, name)
        may = made.candidates(whole)
        if rows := int((~may.any(1)).sum()):
            empty.append({"step": "masked", "split": name, "what": "nothing to hide", "rows": rows})
        splits[name] = _untouched(made, whole, may)
        if name != "train":
            splits[name] = hide(config, made, _fixed(number, splits[name], made), splits[name])
    train, test = splits["train"], splits["test"]
    # As many as are asked for, whether or not a text has them: a model's sizes hang on no data.
    classes = (
        max(task.vocab_size, config.of.get("vocab_size", 0)) if text else test.targets.shape[-1]
    )

    def augment(rng: jax.Array, batch: Split) -> Split:
        own_rng, *rngs = jax.random.split(rng, 4)
        batch, shape = task.augment(own_rng, batch), batch.labels.shape
        order, kind = (jax.random.uniform(one, shape) for one in rngs[:2])
        ids = jax.random.randint(rngs[2], shape, made.first, made.ids) if text else None
        return hide(config, made, Draws(order, kind, ids), batch)

    return Task(
        **splits,
        num_classes=classes,
        vocab_size=task.vocab_size,
        augment=augment,
        metric=_metrics.LOSS,
        measure=lambda split, predicted: _metrics.perplexity(predicted.losses) if text else {},
        baselines=lambda: _frequencies(train, test, classes) if text else _mean(made, train, test),
        files=task.files,
        told={**task.told, "masked": empty},
    )


def hide(config: Config, made: Tokens, draws: Draws, batch: Split) -> Split:
    """The batch with labels, or targets, where something is to be told, and without what is hidden."""
    xp, may = _of(draws.order), made.candidates(batch)
    n = may.sum(1, keepdims=True)
    count = xp.minimum(xp.maximum(xp.round(config.share * n), 1), n)
    places = xp.argsort(xp.where(may, draws.order, np.inf), axis=1, stable=True)
    told = may & (xp.argsort(places, axis=1, stable=True) < count)
    if made.kind != "tokens":
        return batch._replace(
            inputs=made.blank(batch.inputs, told),
            labels=xp.where(told, np.int32(0), np.int32(UNLABELLED)),
            masked=told,
            targets=made.cut(batch.inputs),
        )
    hidden = told & (draws.kind < HIDDEN)
    other = told & (draws.kind >= HIDDEN + STAY)
    return batch._replace(
        inputs=made.blank(xp.where(other, draws.ids, batch.inputs), hidden),
        labels=xp.where(told, batch.inputs, np.int32(UNLABELLED)),
        masked=hidden,
    )


def _of(array):
    """What computes with it: NumPy where a split is in memory, so that nothing is compiled for it."""
    return np if isinstance(array, np.ndarray) else jnp


def _tokens_of(config: Config, task: Task) -> Tokens:
    if task.vocab_size:
        # Generated tokens are none of them special.
        special = len(_tokens.SPECIALS) if task.vocabulary else 0
        return Tokens("tokens", 1, special, task.vocab_size)
    sides = task.train.inputs.shape[1:-1]
    if any(side % config.patch for side in sides):
        shape = "x".join(map(str, sides))
        raise ValueError(
            f"task.patch={config.patch} must divide the {shape} pixels or frames of an input"
        )
    return Tokens("patches" if len(sides) == 2 else "frames", config.patch, 0, 0)


def _untouched(made: Tokens, whole: Split, may: np.ndarray) -> Split:
    """Examples of which something may be told; all of that is labelled, nothing hidden."""
    kept = may.any(1)
    own = Split(
        **{name: x for name, x in whole.given.items() if name != "prefix"}, labels=whole.labels
    )
    own = jax.tree.map(lambda x: x[kept], own)
    ids = own.inputs if made.kind == "tokens" else 0
    labels = np.where(may[kept], ids, UNLABELLED).astype(np.int32)
    return own._replace(labels=labels, masked=np.zeros_like(may[kept]))


def _fixed(number: int, split: Split, made: Tokens) -> Draws:
    """The draws of a whole split, the same on every machine and in every release."""
    bits, shape = np.random.Philox(np.random.SeedSequence([0, number])), split.labels.shape
    order, kind = (
        ((bits.random_raw(shape) >> np.uint64(40)) * 2.0**-24).astype(np.float32) for _ in range(2)
    )
    text = made.kind == "tokens"
    return Draws(
        order, kind, _generated.integers(bits, shape, made.first, made.ids) if text else None
    )


def _frequencies(train: Split, test: Split, classes: int) -> dict[str, float]:
    """Test numbers of telling every token by how often it stands in training, each once more."""
    counts = 1 + np.bincount(train.labels[train.labels >= 0], minlength=classes)
    labels = test.labels[test.labels >= 0]
    loss = -np.log(counts / counts.sum())[labels].mean()
    return {"accuracy": float((labels == counts.argmax()).mean()), "loss": float(loss)}


def _mean(made: Tokens, train: Split, test: Split) -> dict[str, float]:
    """Test numbers of telling every patch or frame by the mean of training at its place."""
    there = (train.labels >= 0)[..., None]
    whole = made.cut(train.inputs)
    mean = np.where(there, whole, 0).sum(0) / np.maximum(there.sum(0), 1)
    errors = ((test.targets - mean) ** 2).mean(-1)
    return {"loss": float(errors[test.labels >= 0].mean())}
