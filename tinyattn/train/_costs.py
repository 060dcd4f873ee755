"""What a program costs, derived from the program itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tinyattn import cost, model, weights
from tinyattn.tasks import Task
from tinyattn.train._config import removed
from tinyattn.train._step import Program, State


class Forward(NamedTuple):
    """The folded model on one example.

    Attributes:
      model: It, without the heads and columns that are pruned.
      theta: Of the model before, as it is at the end of training but for what is learned.
      flops: Its jaxpr's counts.
      compiled: Its executable.
      call: To time.
    """

    model: model.Transformer
    theta: Any
    flops: cost.Flops
    compiled: Any
    call: Callable[[], jax.Array]


def forward(program: Program, state: State) -> Forward:
    """Folds theta once and compiles the model's forward pass of one example.

    Raises:
      ValueError: Heads or columns are pruned, and the model without them gives other outputs.
    """
    # What a scheme does between steps is done to the end, as gradual pruning.
    theta = weights.combine(state.trainable, state.rest)
    theta = weights.settle(program.scheme.update(theta, program.config.steps - 1))
    example = jax.tree.map(lambda x: x[:1], program.task.test)
    encoder, small = removed(program.model, theta, example)
    params = jax.jit(weights.fold)(small)

    def apply(params, given):
        return encoder.apply({"params": params}, **given)

    arguments = jax.tree.map(jax.numpy.asarray, (params, example.given))
    compiled = jax.jit(apply).lower(*arguments).compile()
    if encoder is not program.model:
        masked = program.predict(theta, example)
        _check_same(program, masked, compiled(*arguments))
    flops = cost.count(apply, *arguments)
    return Forward(encoder, theta, flops, compiled, lambda: compiled(*arguments))


def _check_same(program: Program, masked, removed) -> None:
    """Refuses heads that are more than their weights, such as those whose bias goes by their number."""
    small = float(jax.numpy.finfo(program.model.config.dtype).eps) ** 0.5
    apart = float(abs(masked - removed).max())
    if apart > small * (1 + float(abs(masked).max())):
        raise ValueError(
            f"without what is pruned the model's outputs are {apart:.2g} off: heads of attention"
            f" {program.model.config.attention['name']!r} with positions ="
            f" {program.model.config.positions!r} and reuse = {program.model.config.reuse!r} are not"
            f" alike but for their weights, so prune no heads there"
        )


def costs(program: Program, state: State, ahead: Forward) -> dict[str, float | int | None]:
    """Every column of `cost.COLUMNS` but the latency, in base units.

    Args:
      program: Whose costs.
      state: A fresh state of it.
      ahead: Its `forward`.
    """
    B = program.config.batch_size
    batch = jax.tree.map(lambda x: x[:B], program.task.train)
    training = cost.count(program.step, state, batch).products
    config = ahead.model.config
    # With padding, allowed pairs differ between examples: the mean over the test split.
    test = program.task.test
    T = model.length(config, test.inputs)
    mask = model.mask(config, test.key_valid, test.segment_ids, T)
    P = 0 if test.prefix is None else test.prefix.shape[1]
    unneeded = model.unneeded_flops(config, T, mask, P)
    sizes = weights.sizes(ahead.theta)
    return {
        "useful_flops": _whole(ahead.flops.products - unneeded),
        "executed_flops": ahead.flops.products,
        "elementwise_ops": ahead.flops.elementwise,
        "training_flops": _whole(training / B / _examples(program.task)),
        "compiler_flops": cost.compiler_flops(ahead.compiled),
        "params": sizes.params,
        "trainable_params": sizes.trainable,
        "stored_bytes": sizes.bytes,
        "decode_state_bytes": model.state_bytes(config, T, P),
        "peak_activation_bytes": cost.peak_bytes(ahead.compiled),
    }


def _examples(task: Task) -> float:
    """How many examples, as the test split has them, a row of the training split holds in the mean."""
    packed = task.train.segment_ids
    if packed is None or task.test.segment_ids is not None:
        return 1
    return float((packed.max(1) + 1).mean())


def _whole(x: float) -> float | int:
    return int(x) if np.equal(x, int(x)) else float(x)
