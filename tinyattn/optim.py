"""From a config to an optax optimiser: clipping, the update rule and its learning-rate schedule.

Steps are counted from 0: the update from step t to t + 1 is made at `schedule(config, steps)(t)`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tinyattn import registry

SCHEDULES = ("constant", "cosine", "linear", "one_cycle", "step")
OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How to descend. Every field has one plain type, so that each can be overridden by a flag.

    Attributes:
      optimizer: One of `OPTIMIZERS`.
      learning_rate: The peak, which every schedule scales.
      schedule: One of `SCHEDULES`.
      warmup_steps: Linear rise to the peak, (t + 1) / (warmup_steps + 1) of it at step t (steps).
      end_factor: What cosine and linear end at, as a fraction of the peak.
      step_milestones: When the step schedule decays, as rising fractions of all steps.
      step_factor: What the step schedule multiplies by at each milestone.
      b1: Decay of Adam's first moment (per step).
      b2: Decay of Adam's second moment (per step).
      eps: Added to the root of Adam's second moment.
      momentum: Decay of SGD's momentum (per step); 0 is none.
      weight_decay: Pull of the decayed leaves towards 0; see `build` for how and for which.
      clip_norm: Largest norm of the whole gradient; 0 is no clipping.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    end_factor: float = 0.0
    step_milestones: tuple[float, ...] = (0.5, 0.75)
    step_factor: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self):
        for field, valid in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            name = getattr(self, field)
            if name not in valid:
                raise ValueError(f"unknown {field} {name!r}; {registry.nearest(name, valid)}")
        for field in ("learning_rate", "step_factor", "eps"):
            self._require(field, "a finite number above 0", lambda x: 0 < x < math.inf)
        for field in ("end_factor", "weight_decay", "clip_norm"):
            self._require(field, "a finite number, 0 or more", lambda x: 0 <= x < math.inf)
        for field in ("b1", "b2", "momentum"):
            self._require(field, "a number in [0, 1)", lambda x: 0 <= x < 1)
        whole = "a whole number of steps, 0 or more"
        self._require("warmup_steps", whole, lambda x: isinstance(x, int) and x >= 0)
        self._require("step_milestones", "rising fractions in (0, 1)", _is_rising)
        object.__setattr__(self, "step_milestones", tuple(self.step_milestones))
        if self.schedule == "one_cycle" and self.warmup_steps:
            raise ValueError(
                f"one_cycle rises by itself, but warmup_steps={self.warmup_steps}; set it to 0"
            )

    def _require(self, field: str, what: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, field)
        try:
            fine = holds(value)
        except TypeError:  # None, or text, has no order among numbers
            fine = False
        if not fine:
            raise ValueError(f"{field}={value!r} must be {what}")


def _is_rising(fractions) -> bool:
    edges = [0.0, *fractions, 1.0]
    return all(a < b for a, b in itertools.pairwise(edges))


def schedule(config: Config, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    After the warm-up, cosine and linear fall over the remaining steps to `end_factor` of the peak,
    which they reach at t = steps; constant stays. Milestones count from step 0. `one_cycle` rises
    for 30% of the steps from 1/25 of the peak, then falls to 1e-4 of where it began.

    Args:
      config: The choice and its numbers.
      steps: Length of the whole run (steps).

    Returns:
      A function of the step, which may be traced.

    Raises:
      ValueError: No step is left after the warm-up, or a milestone lies in it.
    """
    warmup, peak = config.warmup_steps, config.learning_rate
    if steps <= warmup:
        raise ValueError(f"{steps=} leaves none after warmup_steps={warmup}; lower it")
    rest = steps - warmup
    match config.schedule:
        case "constant":
            body = optax.constant_schedule(peak)
        case "cosine":
            body = optax.cosine_decay_schedule(peak, rest, alpha=config.end_factor)
        case "linear":
            body = optax.linear_schedule(peak, config.end_factor * peak, rest)
        case "one_cycle":
            body = optax.cosine_onecycle_schedule(steps, peak)
        case "step":
            milestones = [round(fraction * steps) for fraction in config.step_milestones]
            if any(t < warmup for t in milestones):
                raise ValueError(
                    f"step_milestones={config.step_milestones} are steps {milestones} of {steps},"
                    f" some within warmup_steps={warmup}; lower that, or raise the milestones"
                )
            body = _decay_at([t - warmup for t in milestones], peak, config.step_factor)
    if warmup:
        # From peak / (warmup + 1), for an update at rate 0 would be a step without effect.
        rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
        body = optax.join_schedules([rise, body], [warmup])
    # JAX divides int32, the counter of optax, in float32 even where a run is in float64.
    return lambda t: body(jnp.asarray(t, float))


def _decay_at(milestones: list[int], peak: float, factor: float) -> optax.Schedule:
    def rate(t):
        # optax's piecewise schedule keeps one factor of two milestones that round to one step.
        return peak * factor ** sum(jnp.where(t >= m, 1, 0) for m in milestones)

    return rate


def matrices(params: Any) -> Any:
    """True for leaves of two or more axes: kernels, embeddings and their factors, not biases."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def build(
    config: Config, steps: int, decayed: Callable[[Any], Any] = matrices
) -> optax.GradientTransformation:
    """Clips the whole gradient, then updates by the optimizer at the schedule's rate.

    Weight decay is scaled by the learning rate. `adamw` keeps it apart from the gradient's moments
    (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101); `adam` and `sgd` add it to the
    clipped gradient, before moments or momentum, as PyTorch does. Leaves that are None in the
    parameters stay None.

    Args:
      config: The choice and its numbers.
      steps: Length of the whole run (steps).
      decayed: Maps the parameters to a tree of bools, the leaves that weight decay acts on. Where
        layers are stacked along an axis of their own a bias has two axes too: pass another rule.

    Raises:
      ValueError: The schedule does not fit into `steps`.
    """
    decayed_weights = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    decay = [decayed_weights] if config.weight_decay else []
    adam = [optax.scale_by_adam(config.b1, config.b2, config.eps)]
    trace = [optax.trace(config.momentum)] if config.momentum else []
    rules = {"adamw": adam + decay, "adam": decay + adam, "sgd": decay + trace}
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    rate = optax.scale_by_learning_rate(schedule(config, steps))
    return optax.chain(*clip, *rules[config.optimizer], rate)


def average_init(params: Any) -> Any:
    """The running average of weights before the first update: a copy, at least in float32."""

    def copy(leaf):
        # In bfloat16 an average with decay 0.999 would round back to where it was.
        return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32), copy=True)

    return jax.tree.map(copy, params)


def average(avg: Any, params: Any, decay: float, step: Any) -> Any:
    """Exponential moving average of weights, which forgets its start sooner early in the run.

    avg + (1 - d)(params - avg) with d = min(decay, (1 + step) / (10 + step)), the warm-up of
    TensorFlow's `ExponentialMovingAverage(num_updates=step)`.

    Args:
      avg: From `average_init`, or from the step before.
      params: The weights after the update that was made at `step`.
      decay: The final share of the old average, in [0, 1).
      step: Number of updates before that one; may be traced.
    """
    step = jnp.asarray(step, float)
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda a, p: a + share.astype(a.dtype) * (p.astype(a.dtype) - a), avg, params
    )
