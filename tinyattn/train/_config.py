"""The settings of a run, and what is refused before anything is compiled."""

import dataclasses
from typing import Any

import jax
import numpy as np

from tinyattn import affine, model, weights
from tinyattn.tasks import Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      steps: Updates in a run.
      batch_size: Examples a step (B).
      eval_every: Steps between evaluations on the validation split; 0 is only at the end.
      steps_per_dispatch: Steps that one call runs on the device, as a scan, at most: down to half
        as many where all calls are then equally long, for each length is compiled for itself.
      seeds_per_program: Seeds that train side by side in one program; 1 is one after the other.
      micro_batches: Parts of a batch whose gradients are added up one after the other: less memory,
        and on a CPU less time where a whole batch does not fit the cache. A batch norm takes the
        statistics of each part by itself; over `data_devices` it takes those of all.
      data_devices: Devices that a batch is split over. On a CPU two devices are two threads that
        share no cache line; the numbers depend on this setting and not on the machine's cores.
      label_smoothing: Share of the target that is spread over all classes.
      ema_decay: Of the average of the trainable leaves, and of what a batch norm keeps, that is evaluated
        in their place; 0 is none.
      patience: Evaluations without a better validation score, by the task's metric, after which a run
        stops and its best weights count; 0 is never, and the last weights count.
      pretrained: Run, or file of `weights.save`, whose folded params are where all seeds start, before the
        weight schemes: all of the body, and the head, pooler, class token and mask where they fit; the
        others are new. "" is the model's own. A run is known by this path, not by what is in the file.
      keep_weights: Whether a finished run leaves its weights beside its record.
    """

    steps: int = 1000
    batch_size: int = 64
    eval_every: int = 100
    steps_per_dispatch: int = 20
    seeds_per_program: int = 1
    micro_batches: int = 1
    data_devices: int = 1
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0
    pretrained: str = ""
    keep_weights: bool = True

    def __post_init__(self):
        counts = ("steps", "batch_size", "steps_per_dispatch")
        for name in (*counts, "seeds_per_program", "micro_batches", "data_devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
        if self.batch_size % (self.micro_batches * self.data_devices):
            raise ValueError(
                f"train.batch_size={self.batch_size} must be a multiple of micro_batches ="
                f" {self.micro_batches} times data_devices = {self.data_devices}"
            )
        for name in ("eval_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"train.{name}={getattr(self, name)} must be positive, or 0 for none"
                )
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be in [0, 1)")
        if self.patience and not self.eval_every:
            raise ValueError(f"train.patience={self.patience} needs evaluations: set eval_every")


def check(
    encoder: model.Transformer, scheme: weights.Scheme, task: Task, settings: Config
) -> frozenset[str]:
    """Refuses parts that do not fit together, before anything is compiled.

    Returns:
      The kernels that the model takes in factors, of `affine.takes`, for it is traced here.

    Raises:
      ValueError: They do not; the message has names, values and the remedy.
    """
    _check_task(encoder.config, task, settings)
    return _check_weights(encoder, scheme, task, settings)


def _check_task(encoder: model.Config, task: Task, settings: Config) -> None:
    if encoder.num_classes != task.num_classes:
        raise ValueError(
            f"model.num_classes={encoder.num_classes}, but the task has {task.num_classes} classes"
        )
    if encoder.inputs == "tokens" and encoder.vocab_size < task.vocab_size:
        raise ValueError(
            f"model.vocab_size={encoder.vocab_size}, but the task has {task.vocab_size} tokens"
        )
    if (encoder.inputs == "tokens") != bool(task.vocab_size):
        raise ValueError(f"model.inputs={encoder.inputs!r} does not fit the task's inputs")
    if settings.batch_size > len(task.train.labels):
        raise ValueError(
            f"train.batch_size={settings.batch_size} is more than the {len(task.train.labels)}"
            f" training examples"
        )
    if settings.data_devices > jax.device_count():
        raise ValueError(
            f"train.data_devices={settings.data_devices}, but there are {jax.device_count()}; on a"
            f" CPU set the environment variable JAX_NUM_CPU_DEVICES={settings.data_devices}"
        )
    if task.regression and settings.label_smoothing:
        raise ValueError(
            f"train.label_smoothing={settings.label_smoothing} is of classes, which the task's targets"
            f" are not: set it to 0"
        )
    for split in ("train", "validation", "test"):
        _check_labels(encoder, split, getattr(task, split))


def _check_labels(encoder: model.Config, name: str, split: Split) -> None:
    labels, T = split.labels, model.length(encoder, jax.tree.map(lambda x: x[:1], split.inputs))
    if encoder.decoder_layers:
        if split.prefix is None:
            raise ValueError(
                f"model.decoder_layers={encoder.decoder_layers} read a prefix, which the task's {name}"
                f" split has not; set it to 0"
            )
        T = split.prefix.shape[1]
    if split.masked is not None and split.masked.shape[1] != T:
        raise ValueError(
            f"the task's {name} split hides some of {split.masked.shape[1]} tokens, and the model has {T}"
            f" of an example: set task.patch to the side of the model's, model.patch or 2**model.tokeniser"
        )
    kinds = 0 if split.token_types is None else int(split.token_types.max()) + 1
    if kinds > encoder.token_types:
        raise ValueError(
            f"model.token_types={encoder.token_types}, but the task's {name} split has {kinds}: raise it"
        )
    if split.at is not None:
        T = split.at.shape[1]
    one_a_token = encoder.pool == "none"
    if labels.shape[1:] != ((T,) if one_a_token else ()):
        raise ValueError(
            f"model.pool={encoder.pool!r} gives {f'{T} outputs' if one_a_token else 'one output'} an"
            f" example, but the labels of the task's {name} split are {labels.shape}: 'none' is for"
            f" labels of tokens, any other pool for labels of examples"
        )
    if not (labels >= 0).reshape(len(labels), -1).any(1).all():
        raise ValueError(f"the task's {name} split has an example without a label")


def _check_weights(
    encoder: model.Transformer, scheme: weights.Scheme, task: Task, settings: Config
) -> frozenset[str]:
    """Traces the model and lets the scheme have a tree of ones: either may refuse the other."""
    few = jax.tree.map(lambda x: x[:1], task.train)
    rng = jax.random.PRNGKey(0)
    shapes, takes = affine.traced(encoder, **few.given)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    theta = scheme.init(rng, ones)
    removed(encoder, scheme.update(theta, settings.steps - 1), few)
    return takes


def _shapes(encoder: model.Transformer, few: Split):
    """Of the params."""
    rng = jax.random.PRNGKey(0)
    return jax.eval_shape(lambda rng: encoder.init(rng, **few.given)["params"], rng)


def removed(encoder: model.Transformer, theta: Any, few: Split) -> tuple[model.Transformer, Any]:
    """The model without the heads and columns that theta prunes whole, and its theta.

    Args:
      encoder: The model as it is trained.
      theta: Of it.
      few: Examples, of which only shapes matter.

    Raises:
      ValueError: What is left is no model of the same kind.
    """
    small = weights.removed(theta)
    before, after = (jax.eval_shape(weights.fold, tree) for tree in (theta, small))
    if [x.shape for x in jax.tree.leaves(before)] == [x.shape for x in jax.tree.leaves(after)]:
        return encoder, theta
    smaller = model.Transformer(model.shrink(encoder.config, before, after))
    expected = weights.leaves(jax.eval_shape(weights.fold, _shapes(smaller, few)))
    found = weights.leaves(after)
    for path, wanted in expected.items():
        if found[path].shape != wanted.shape:
            raise ValueError(
                f"prune leaves {found[path].shape} of {path}, where a model of what is left has"
                f" {wanted.shape}: let 'outputs' and 'inputs' pick all leaves of heads or columns, and"
                f" no others"
            )
    return smaller, small
