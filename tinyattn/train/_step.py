"""One training step as a pure function, and the programs that are compiled from it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from tinyattn import affine, model, optim, registry, tasks, weights
from tinyattn.tasks import Split, Task
from tinyattn.train._config import Config, check
from tinyattn.train._initial import initial


class State(NamedTuple):
    """All that a run carries from step to step; arrays only.

    Attributes:
      step: int32 [], updates made.
      trainable: What the optimiser moves, of `weights.partition`.
      rest: Fixed, moved, seeded and aliased leaves.
      opt: State of the optimiser.
      average: Moving average of `weights.moving(theta)`; None without one.
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
        """What is evaluated and stored: the average where there is one, without noise of training."""
        evaluated = self.trainable if self.average is None else self.average
        return weights.settle(weights.combine(evaluated, self.rest))


class Sums(NamedTuple):
    """Sums over the labels of a step, to be divided once."""

    loss: jax.Array
    correct: jax.Array  # 0 of a regression
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
      predict: (theta, batch) -> logits; jitted.
      judge: (theta, batch) -> what is predicted, in the shape of the labels, or of the targets, and
        losses, in that of the labels; jitted.
    """

    task: Task
    model: model.Transformer
    scheme: weights.Scheme
    config: Config
    init: Callable
    step: Callable
    run: Callable
    run_many: Callable
    predict: Callable
    judge: Callable


def make(config: Mapping[str, Any]) -> Program:
    """Checks every section of a config, and that they fit; the program is compiled when it is run.

    Raises:
      ValueError: Anything that does not fit, with names, values and the remedy.
    """
    settings = registry.construct(Config, config["train"], "train")
    optimizer = optim.build(
        registry.construct(optim.Config, config["optim"], "optim"), settings.steps
    )
    scheme = weights.build(config["weights"])
    encoder = model.build(config["model"])
    task = tasks.load(config["task"], config.get("data"))
    takes = check(encoder, scheme, task, settings)
    init_params = initial(encoder, task, settings.pretrained)

    def init(seed: int) -> State:
        init_rng, scheme_rng, run_rng = jax.random.split(jax.random.PRNGKey(seed), 3)
        params = init_params(init_rng)
        theta = scheme.init(scheme_rng, params)
        trainable, rest = jax.tree.map(jnp.asarray, weights.partition(theta))
        average = optim.average_init(weights.moving(theta)) if settings.ema_decay else None
        opt = jax.jit(optimizer.init)(trainable)
        return State(jnp.zeros((), jnp.int32), trainable, rest, opt, average, run_rng)

    def loss(trainable, rest, batch: Split, rng, axis):
        theta = weights.combine(trainable, rest)
        params = weights.layers(theta, takes)
        asked = {"rng": rng, "auxiliary": True, "axis": axis, "mutable": [weights.MOVED]}
        (outputs, own), moved = affine.apply(encoder, params, **batch.given, **asked)
        labelled = batch.labels >= 0
        if task.regression:
            losses, correct = squares(outputs, batch), jnp.zeros_like(labelled)
        else:
            targets = jax.nn.one_hot(batch.labels, task.num_classes)
            targets = optax.smooth_labels(targets, settings.label_smoothing)
            losses = optax.softmax_cross_entropy(outputs, targets)
            # What is predicted is never negative.
            correct = outputs.argmax(-1) == batch.labels
        losses = jnp.where(labelled, losses, 0.0)
        # Everything else is a sum over labels, to be divided by their number.
        total = losses.sum() + labelled.sum() * weights.penalty(theta)
        if own is not None:
            # An example's own loss counts once for each of its labels.
            total += (own * labelled.reshape(len(own), -1).sum(1)).sum()
        sums = Sums(losses.sum(), correct.sum(), labelled.sum())
        return total, (sums, moved.get(weights.MOVED, {}))

    def gradients(state: State, batch: Split, rng, axis):
        """Of the loss summed over a batch, one part of it at a time; and the mean of what is moved."""

        def part(i, batch):
            augment_rng, dropout_rng = jax.random.split(jax.random.fold_in(rng, i))
            batch = task.augment(augment_rng, batch)
            return jax.grad(loss, has_aux=True)(
                state.trainable, state.rest, batch, dropout_rng, axis
            )

        m = settings.micro_batches
        if m == 1:
            grads, (sums, moved) = part(0, batch)
            return grads, sums, moved
        parts = jax.tree.map(lambda x: x.reshape(m, -1, *x.shape[1:]), batch)

        def body(total, inputs):
            return jax.tree.map(jnp.add, total, part(*inputs)), None

        shapes = jax.eval_shape(part, 0, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, (sums, moved)), _ = jax.lax.scan(body, zeros, (jnp.arange(m), parts))
        return grads, sums, jax.tree.map(lambda x: x / m, moved)

    def step(state: State, batch: Split, axis: str | None = None) -> tuple[State, Sums]:
        rng = jax.random.fold_in(state.rng, state.step)
        if axis is not None:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis))
        grads, sums, moved = gradients(state, batch, rng, axis)
        if axis is not None:
            # One reduction of one vector: a reduction a leaf costs twice the step.
            flat, unravel = jax.flatten_util.ravel_pytree(grads)
            grads, sums = unravel(jax.lax.psum(flat, axis)), jax.lax.psum(sums, axis)
        # Parts and devices need not have equally many labels.
        grads = jax.tree.map(lambda g: g / sums.count, grads)
        updates, opt = optimizer.update(grads, state.opt, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        theta = weights.move(weights.combine(trainable, state.rest), moved)
        theta = scheme.update(theta, state.step)
        trainable, rest = weights.partition(theta)
        average = state.average
        if average is not None:
            average = optim.average(average, weights.moving(theta), settings.ema_decay, state.step)
        return State(state.step + 1, trainable, rest, opt, average, state.rng), sums

    def run(state: State, data: Split, indices, axis: str | None = None):
        def body(state, index):
            return step(state, jax.tree.map(lambda x: x[index], data), axis)

        return jax.lax.scan(body, state, indices)

    def run_many(states: State, data: Split, indices, axis: str | None = None):
        return jax.vmap(lambda state, i: run(state, data, i, axis))(states, indices)

    def predict(theta, batch: Split):
        return encoder.apply({"params": scheme.build(theta)}, **batch.given)

    def judge(theta, batch: Split):
        # On the device: the logits of a large vocabulary are more than all else.
        logits = predict(theta, batch)
        if task.regression:
            return logits, squares(logits, batch)
        right = jnp.take_along_axis(logits, jnp.maximum(batch.labels, 0)[..., None], axis=-1)
        losses = jax.nn.logsumexp(logits, axis=-1) - right[..., 0]
        return logits.argmax(-1).astype(jnp.int32), losses

    return Program(
        task=task,
        model=encoder,
        scheme=scheme,
        config=settings,
        init=init,
        step=step,
        run=_compiled(run, settings.data_devices, P(None, "data")),
        run_many=_compiled(run_many, settings.data_devices, P(None, None, "data")),
        predict=jax.jit(predict),
        judge=jax.jit(judge),
    )


def squares(outputs: jax.Array, batch: Split) -> jax.Array:
    """The mean over features of the squared error of each label, in the labels' shape."""
    return ((outputs - batch.targets) ** 2).mean(-1)


def _compiled(run: Callable, devices: int, batch: P) -> Callable:
    """The jitted dispatch, its batches split over devices that each hold the whole state."""
    if devices == 1:
        return jax.jit(run, donate_argnums=0)
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    split = jax.shard_map(
        functools.partial(run, axis="data"),
        mesh=mesh,
        in_specs=(P(), P(), batch),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(split, donate_argnums=0)


def batches(seed: int, examples: int, batch_size: int, first: int, count: int) -> np.ndarray:
    """Which examples steps first..first+count-1 train on, int32 [count, B].

    A pure function of seed and step: an epoch is a permutation, less its incomplete last batch.
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
