"""One training step as a pure function, and the programs that are compiled from it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from tinyattn import model, optim, registry, tasks, weights
from tinyattn.tasks import Split, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      steps: Updates in a run.
      batch_size: Examples a step (B).
      eval_every: Steps between evaluations on the validation split; 0 is only at the end.
      steps_per_dispatch: Steps that one call runs on the device, as a scan.
      seeds_per_program: Seeds that train side by side in one program; 1 is one after the other.
      label_smoothing: Share of the target that is spread over all classes.
      ema_decay: Of the average of the trainable leaves that is evaluated in their place; 0 is none.
      patience: Evaluations without a better validation accuracy after which a run stops and its best
        weights count; 0 is never, and the last weights count.
    """

    steps: int = 1000
    batch_size: int = 64
    eval_every: int = 100
    steps_per_dispatch: int = 20
    seeds_per_program: int = 1
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "steps_per_dispatch", "seeds_per_program"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be at least 1")
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


class State(NamedTuple):
    """All that a run carries from step to step; arrays only.

    Attributes:
      step: int32 [], updates made.
      trainable: What the optimiser moves, of `weights.partition`.
      rest: Fixed, seeded and aliased leaves.
      opt: State of the optimiser.
      average: Moving average of `trainable`; None without one.
      rng: uint32 [2], never changed: step t uses `fold_in(rng, t)`.
    """

    step: jax.Array
    trainable: Any
    rest: Any
    opt: Any
    average: Any
    rng: jax.Array

    @property
    def theta(self) -> Any:
        """What is evaluated and stored: the average where there is one."""
        evaluated = self.trainable if self.average is None else self.average
        return weights.combine(evaluated, self.rest)


class Sums(NamedTuple):
    """Sums over the examples of a step, to be divided once, on the host."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


class Program(NamedTuple):
    """A config made into functions; compiled once and used by all its seeds.

    Attributes:
      task: The data.
      model: The Linen module.
      scheme: The chain of weight schemes.
      config: The training section.
      init: seed -> State.
      step: (state, batch) -> (state, Sums); pure.
      run: (state, data, indices [k, B]) -> (state, Sums of [k]); jitted, donates the state.
      run_many: The same for states stacked along a first axis, and indices [seeds, k, B].
      predict: (theta, inputs, key_valid) -> logits; jitted.
    """

    task: Task
    model: model.Encoder
    scheme: weights.Scheme
    config: Config
    init: Callable
    step: Callable
    run: Callable
    run_many: Callable
    predict: Callable


def make(config: Mapping[str, Any]) -> Program:
    """Checks every section of a config and makes its program; compiles nothing.

    Raises:
      ValueError: Anything that does not fit, with names, values and the remedy.
    """
    settings = registry.construct(Config, config["train"], "train")
    optimizer = optim.build(
        registry.construct(optim.Config, config["optim"], "optim"), settings.steps
    )
    scheme = weights.build(config["weights"])
    encoder = model.build(config["model"])
    task = tasks.load(config["task"])
    _check(encoder.config, task, settings)

    init_params = jax.jit(lambda rng: encoder.init(rng, task.train.inputs[:1])["params"])
    init_opt = jax.jit(optimizer.init)

    def init(seed: int) -> State:
        init_rng, scheme_rng, run_rng = jax.random.split(jax.random.PRNGKey(seed), 3)
        params = init_params(init_rng)
        theta = scheme.init(scheme_rng, params)
        trainable, rest = jax.tree.map(jnp.asarray, weights.partition(theta))
        average = optim.average_init(trainable) if settings.ema_decay else None
        opt = init_opt(trainable)
        return State(jnp.zeros((), jnp.int32), trainable, rest, opt, average, run_rng)

    def loss(trainable, rest, batch: Split, rng):
        params = scheme.build(weights.combine(trainable, rest))
        logits = encoder.apply({"params": params}, batch.inputs, batch.key_valid, rng=rng)
        targets = jax.nn.one_hot(batch.labels, task.num_classes)
        targets = optax.smooth_labels(targets, settings.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        correct = (logits.argmax(-1) == batch.labels).sum()
        return losses.mean(), Sums(losses.sum(), correct, batch.labels.size)

    def step(state: State, batch: Split) -> tuple[State, Sums]:
        augment_rng, dropout_rng = jax.random.split(jax.random.fold_in(state.rng, state.step))
        batch = batch._replace(inputs=task.augment(augment_rng, batch.inputs))
        gradient = jax.grad(loss, has_aux=True)
        grads, sums = gradient(state.trainable, state.rest, batch, dropout_rng)
        updates, opt = optimizer.update(grads, state.opt, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        theta = scheme.update(weights.combine(trainable, state.rest), state.step)
        trainable, rest = weights.partition(theta)
        average = state.average
        if average is not None:
            average = optim.average(average, trainable, settings.ema_decay, state.step)
        return State(state.step + 1, trainable, rest, opt, average, state.rng), sums

    def run(state: State, data: Split, indices):
        def body(state, index):
            return step(state, jax.tree.map(lambda x: x[index], data))

        return jax.lax.scan(body, state, indices)

    def predict(theta, inputs, key_valid=None):
        return encoder.apply({"params": scheme.build(theta)}, inputs, key_valid)

    return Program(
        task=task,
        model=encoder,
        scheme=scheme,
        config=settings,
        init=init,
        step=step,
        run=jax.jit(run, donate_argnums=0),
        run_many=jax.jit(jax.vmap(run, in_axes=(0, None, 0)), donate_argnums=0),
        predict=jax.jit(predict),
    )


def _check(encoder: model.Config, task: Task, settings: Config) -> None:
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
    model.length(encoder, task.train.inputs[:1])


def batches(seed: int, examples: int, batch_size: int, first: int, count: int) -> np.ndarray:
    """Which examples steps first..first+count-1 train on, int32 [count, B].

    A pure function of seed and step: an epoch is a permutation, its incomplete last batch is left out.
    """
    steps_per_epoch = examples // batch_size
    rows = []
    order, epoch = None, -1
    for step in range(first, first + count):
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            order = np.random.default_rng([seed, epoch]).permutation(examples)
        start = step % steps_per_epoch * batch_size
        rows.append(order[start : start + batch_size])
    return np.asarray(rows, np.int32)


def evaluate(
    program: Program, theta: Any, split: Split, batch: int = 256
) -> tuple[np.ndarray, ...]:
    """Which examples of a split are answered rightly, bool [n], and their losses, float32 [n]."""
    n = len(split.labels)
    logits = []
    for start in range(0, n, batch):
        part = jax.tree.map(lambda x, i=start: x[i : i + batch], split)
        # The last batch is filled up, so that one compiled program serves all.
        fill = batch - len(part.labels)
        part = jax.tree.map(lambda x, k=fill: np.concatenate([x, np.repeat(x[:1], k, 0)]), part)
        logits.append(np.asarray(program.predict(theta, part.inputs, part.key_valid)))
    logits = np.concatenate(logits)[:n]
    losses = scipy.special.logsumexp(logits, axis=-1) - logits[np.arange(n), split.labels]
    return logits.argmax(-1) == split.labels, losses
