"""Sizes that meet a budget: the value of a knob at which a row costs what all rows of a table may cost.

    config.budget = dict(cost="stored_bytes", target=20_000, tolerance=0.01)
    yield "dense", {"model.width": fit(8, 256, multiple=4), "model.ffn_width": fit(2, 8, of="model.width")}

Knobs are turned in the order given, coarse ones first: each is the largest whose cost does not exceed the
target while the knobs after it are at their lowest, and the last is the one that comes nearest.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tinyattn import config as configs
from tinyattn import cost, model, registry, tasks, train, weights

COSTS = ("executed_flops", "params", "trainable_params", "stored_bytes", "decode_state_bytes")


class Fit(NamedTuple):
    """A knob to be solved for, between `low` and `high`.

    Attributes:
      low: Least value.
      high: Largest value.
      multiple: It is a multiple of this.
      of: Key whose value `low` and `high` are counted in; "" is 1.
    """

    low: int
    high: int
    multiple: int = 1
    of: str = ""


def fit(low: int, high: int, *, multiple: int = 1, of: str = "") -> Fit:
    """A knob of a row: `{"model.width": fit(8, 256, multiple=4)}`.

    Raises:
      ValueError: There is no such value.
    """
    if not 0 < low <= high or multiple < 1:
        raise ValueError(
            f"fit({low}, {high}, multiple={multiple}) needs 0 < low <= high, multiple >= 1"
        )
    return Fit(low, high, multiple, of)


class Met(NamedTuple):
    """How a row meets its budget: what it costs and by what share that is off the target."""

    cost: str
    target: float
    value: float
    residual: float


def solve(base: Any, changes: Mapping[str, Any]) -> tuple[Any, Met | None]:
    """A row's config with its knobs solved, and how well it meets the budget; None without a budget.

    Args:
      base: With a section `budget`, or none.
      changes: As `config.override` takes them, knobs as `Fit`.

    Raises:
      ValueError: Knobs without a budget, an unknown cost, or no value within the tolerance.
    """
    knobs = {key: value for key, value in changes.items() if isinstance(value, Fit)}
    plain = {key: value for key, value in changes.items() if key not in knobs}
    resolved = configs.override(base, plain)
    wanted = resolved.get("budget")
    if not wanted:
        if knobs:
            raise ValueError(
                f"{next(iter(knobs))} is to be solved for, but the base has no 'budget'"
            )
        return resolved, None
    if wanted["cost"] not in COSTS:
        raise ValueError(
            f"budget.cost={wanted['cost']!r}; {registry.nearest(wanted['cost'], COSTS)}"
        )
    target, priced = float(wanted["target"]), _pricer(wanted["cost"])
    for place, key in enumerate(knobs):
        later = list(knobs)[place + 1 :]
        resolved = _turned(resolved, key, knobs, later, target, priced)
    found = priced(resolved)
    met = Met(wanted["cost"], target, found, found / target - 1)
    if abs(met.residual) > wanted["tolerance"]:
        chosen = {key: configs.check_key(resolved, key) for key in knobs}
        raise ValueError(
            f"{met.cost}={found:,.0f} is {met.residual:+.1%} off the budget of {target:,.0f}, nearest at"
            f" {chosen or 'fixed sizes'}: give another range, a finer knob after it, or more tolerance"
        )
    return resolved, met


def _turned(resolved, key: str, knobs: dict[str, Fit], later: list[str], target: float, priced):
    """The config with one knob turned and those after it at their lowest."""
    knob = knobs[key]
    unit = configs.check_key(resolved, knob.of) if knob.of else 1
    least = -(-knob.low * unit // knob.multiple)
    most = knob.high * unit // knob.multiple

    def at(step):
        made = configs.override(resolved, {key: step * knob.multiple})
        for other in later:
            rest = knobs[other]
            inner = configs.check_key(made, rest.of) if rest.of else 1
            lowest = -(-rest.low * inner // rest.multiple) * rest.multiple
            made = configs.override(made, {other: lowest})
        return made

    def value(step):
        return priced(at(step))

    # Upwards by doubling, for large models are dear to price; then between by interpolation.
    low, high = least, least
    while high < most and value(high) <= target:
        low, high = high, min(2 * high, most)
    if value(high) <= target:
        low = high
    halve = False
    while low + 1 < high:
        share = (target - value(low)) / (value(high) - value(low))
        guess = (low + high) // 2 if halve else low + round((high - low) * share)
        guess = min(max(guess, low + 1), high - 1)
        low, high, halve = (
            (guess, high, not halve) if value(guess) <= target else (low, guess, not halve)
        )
    if not later and low < most:
        return min((at(low), at(low + 1)), key=lambda made: abs(priced(made) - target))
    return at(low)


def _pricer(key: str) -> Callable[[Any], float]:
    """A function from a config to one of its costs, which remembers what it was asked."""
    known: dict[str, float] = {}

    def priced(config) -> float:
        name = configs.digest(config)
        if name not in known:
            known[name] = float(price(config, key))
        return known[name]

    return priced


def price(config: Any, key: str) -> float:
    """One of `COSTS` of a config, from shapes alone; nothing is compiled.

    Raises:
      ValueError: The parts do not fit, or the cost has no meaning for them.
    """
    encoder, scheme = model.build(config["model"]), weights.build(config["weights"])
    few = jax.tree.map(lambda x: x[:1], tasks.load(config["task"], config.get("data")).train)
    rng = jax.random.PRNGKey(0)
    shapes = jax.eval_shape(lambda rng: encoder.init(rng, **few.given)["params"], rng)
    theta = scheme.init(rng, jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes))
    theta = scheme.update(theta, np.int32(config["train"]["steps"]))
    encoder, small = train.removed(encoder, theta, few)
    if key == "decode_state_bytes":
        P = 0 if few.prefix is None else few.prefix.shape[1]
        found = model.state_bytes(encoder.config, model.length(encoder.config, few.inputs), P)
        if found is None:
            raise ValueError(
                f"budget.cost={key!r}: this model does not decode; choose another cost"
            )
        return found
    if key == "executed_flops":
        params = jax.eval_shape(weights.fold, small)
        return cost.count(lambda x: encoder.apply({"params": x}, **few.given), params).products
    sizes = weights.sizes(theta)
    named = {"params": "params", "trainable_params": "trainable", "stored_bytes": "bytes"}
    return getattr(sizes, named[key])
