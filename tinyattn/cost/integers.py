"""Integers that a jaxpr fixes before it runs, and the loops they bound."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

_FOLDS = {
    "add": operator.add,
    "convert_element_type": operator.index,
    "mul": operator.mul,
    "sub": operator.sub,
}

# Which operand of a comparison must stay above the other, and the slack that turns <= into <.
_COMPARISONS = {"lt": (1, 0), "le": (1, 1), "gt": (0, 0), "ge": (0, 1)}


def opened(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    """The jaxpr without its constants, whichever of the two it is."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def integer(value: Any) -> int | None:
    """The value of a concrete integer scalar, else None."""
    if isinstance(value, jax.core.Tracer) or np.shape(value) != ():
        return None
    dtype = getattr(value, "dtype", None) or np.result_type(value)
    return int(value) if jax.dtypes.issubdtype(dtype, np.integer) else None


def values(atoms: Sequence, known: Mapping) -> list[int | None]:
    """The integers that `atoms`, variables or literals, are known to hold."""
    return [integer(a.val) if isinstance(a, Literal) else known.get(a) for a in atoms]


def fold(eqn: JaxprEqn, known: dict) -> None:
    """Add the integer that `eqn` yields to `known`, if its operands are known."""
    if eqn.primitive.name not in _FOLDS:
        return
    operands, out = values(eqn.invars, known), eqn.outvars[0]
    if None not in operands and jax.dtypes.issubdtype(out.aval.dtype, np.integer):
        known[out] = _in_range(_FOLDS[eqn.primitive.name](*operands), out)


def trip_count(eqn: JaxprEqn, operands: Sequence[int | None]) -> int | None:
    """Trips of a `while` that compares two integers, each fixed or moving by a constant step.

    Args:
      eqn: The `while` equation.
      operands: The integers its operands are known to hold.

    Returns:
      The exact number of times its body runs, or None if this form does not give it.
    """
    test, body = opened(eqn.params["cond_jaxpr"]), opened(eqn.params["body_jaxpr"])
    n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    fixed = dict(zip(body.invars, operands[n_test : n_test + n_body], strict=False))

    def course(atom) -> tuple[int | None, int | None]:
        """First value of one side of the comparison, and its step."""
        if isinstance(atom, Literal):
            return integer(atom.val), 0
        if atom not in test.invars:
            return None, None
        index = test.invars.index(atom)
        if index < n_test:
            return operands[index], 0
        carried = index - n_test
        return operands[index + n_body], _step(body, n_body + carried, carried, fixed)

    if len(test.eqns) != 1 or test.eqns[0].primitive.name not in _COMPARISONS:
        return None
    compare = test.eqns[0]
    upper, slack = _COMPARISONS[compare.primitive.name]
    high, high_step = course(compare.invars[upper])
    low, low_step = course(compare.invars[1 - upper])
    if None in (high, high_step, low, low_step):
        return None
    gap, closing = high - low + slack, low_step - high_step
    if gap <= 0:
        return 0
    if closing <= 0:
        return None
    trips = -(-gap // closing)
    # A counter that wraps around before it meets its bound goes on for longer.
    last = (high + trips * high_step, low + trips * low_step)
    return None if None in [_in_range(n, compare.invars[0]) for n in last] else trips


def _step(body: Jaxpr, before: int, after: int, fixed: Mapping) -> int | None:
    """By how much a loop's body moves the carry between its input and its output, if constant."""
    old, new = body.invars[before], body.outvars[after]
    if new is old:
        return 0
    for eqn in body.eqns:
        if new not in eqn.outvars or eqn.primitive.name not in ("add", "sub"):
            continue
        left, right = eqn.invars
        if left is old:
            by = values([right], fixed)[0]
            return -by if by is not None and eqn.primitive.name == "sub" else by
        if right is old and eqn.primitive.name == "add":
            return values([left], fixed)[0]
    return None


def _in_range(value: int, atom) -> int | None:
    limits = jax.numpy.iinfo(atom.aval.dtype)
    return value if limits.min <= value <= limits.max else None
