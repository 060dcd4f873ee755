"""Count a program's operations by walking its jaxpr: nothing runs, nothing is allocated."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from tinyattn.cost import primitives as table
from tinyattn.cost.integers import fold, integer, opened, trip_count, values
from tinyattn.cost.primitives import RULES, Flops, Uncountable, size


def count(fn: Callable, *args: Any, **kwargs: Any) -> Flops:
    """Count the operations of `fn(*args, **kwargs)` as traced.

    `products` is in FLOPs, 2 a multiply-add (8 if complex), and holds matrix products and
    convolutions only. `elementwise` is in element operations: 1 per output element of an
    arithmetic, comparison, selection, rounding or random primitive, whatever its dtype; 1 per input
    element of a reduction, cumulative operation, sort or top-k; 1 per element of each window; 1 per
    update of a scatter-add. Moving, reshaping, casting and indexing are free.

    A scan counts its length times, a bounded `while` its trip count (its condition once more), a
    `cond` the one branch with most products (then most element operations), a custom derivative its
    primal, a `shard_map` its body on every device of its manual axes, a `pallas_call` its body on
    every grid cell (index maps are free, a declared `cost_estimate` is not read). There is no
    discount for masks, for causality or for anything a compiler would remove: recomputation under
    `jax.checkpoint` and results nobody uses are counted as written.

    Args:
      fn: Any function that `jax.make_jaxpr` traces. Bind what is not an array with
        `functools.partial`.
      *args: Arrays or `jax.ShapeDtypeStruct`s, in any pytree.
      **kwargs: Likewise.

    Returns:
      `Flops`. `elementwise` is None when a loop without products has an unknown trip count, or when
      a fused vendor kernel hides its element operations.

    Raises:
      Uncountable: A primitive without a rule, or a loop or grid of unknown extent around a product.
        The message holds its name, its place in the program and the remedy.

    >>> x = jax.ShapeDtypeStruct((4, 8), "float32")
    >>> count(lambda x: jax.nn.relu(x @ x.T), x)
    Flops(products=256, elementwise=16)
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs))


def count_jaxpr(closed_jaxpr: ClosedJaxpr | Jaxpr) -> Flops:
    """Count the operations of running a jaxpr once, by the convention of `count`.

    Args:
      closed_jaxpr: What `jax.make_jaxpr` returns; an open `Jaxpr`, such as a parameter of an
        equation, works too.

    Raises:
      Uncountable: As `count`.
    """
    return _walk(closed_jaxpr, (), ())


def _walk(jaxpr, arguments: Sequence[int | None], path: tuple[str, ...]) -> Flops:
    """Count `jaxpr`; `arguments` holds the integers known for its inputs, as far as they are."""
    body = opened(jaxpr)
    known = dict(zip(body.constvars, map(integer, getattr(jaxpr, "consts", ())), strict=False))
    known |= dict(zip(body.invars, arguments, strict=False))
    total = Flops(0, 0)
    for eqn in body.eqns:
        total = _plus(total, _count(eqn, known, path))
        fold(eqn, known)
    return total


def _count(eqn: JaxprEqn, known: Mapping, path: tuple[str, ...]) -> Flops:
    name = eqn.primitive.name
    if name in RULES:
        return RULES[name](eqn)
    if name in table.FREE:
        return Flops(0, 0)
    if name in table.ELEMENTWISE:
        return Flops(0, sum(map(size, eqn.outvars)))
    if name in table.REDUCTIONS:
        return Flops(0, size(eqn.invars[0]))
    if name == "addupdate":
        return Flops(0, size(eqn.invars[1]))
    if name in table.WINDOWS:
        windows = eqn.invars[0] if name == "select_and_scatter_add" else eqn.outvars[0]
        return Flops(0, size(windows) * math.prod(eqn.params["window_dimensions"]))
    if name in table.COMBINERS:
        return _combiner(eqn, path)
    if name in table.CALLS:
        return _call(eqn, known, path)
    if name in _CONTROL:
        return _CONTROL[name](eqn, known, path)
    raise _uncountable(eqn, path, "no table of tinyattn.cost lists it")


def _combiner(eqn: JaxprEqn, path: tuple[str, ...]) -> Flops:
    name = eqn.primitive.name
    if name.startswith("scatter"):
        # A plain overwriting scatter has no combining function.
        inner, elements = eqn.params["update_jaxpr"], size(eqn.invars[2])
    elif name == "reduce":
        inner, elements = eqn.params["jaxpr"], size(eqn.invars[0])
    else:
        window = math.prod(eqn.params["window_dimensions"])
        inner, elements = eqn.params["jaxpr"], size(eqn.outvars[0]) * window
    return Flops(0, 0) if inner is None else _times(_walk(inner, (), (*path, name)), elements)


def _call(eqn: JaxprEqn, known: Mapping, path: tuple[str, ...]) -> Flops:
    inner = next((eqn.params[key] for key in table.BODIES if key in eqn.params), None)
    if not isinstance(inner, ClosedJaxpr | Jaxpr):
        raise _uncountable(eqn, path, f"none of its parameters {sorted(eqn.params)} is its body")
    cost = _walk(inner, values(eqn.invars, known), (*path, _label(eqn)))
    if eqn.primitive.name != "shard_map":
        return cost
    axes = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))
    if axes is None:
        raise _uncountable(eqn, path, f"none of its parameters {sorted(eqn.params)} names its axes")
    return _times(cost, math.prod(eqn.params["mesh"].shape[axis] for axis in axes))


def _scan(eqn: JaxprEqn, known: Mapping, path: tuple[str, ...]) -> Flops:
    body = opened(eqn.params["jaxpr"])
    # Told by rank, because how a scan splits its operands is spelled differently across releases:
    # a scanned input or output has one axis more outside than inside, constants come first.
    scanned = sum(
        len(outer.aval.shape) > len(inner.aval.shape)
        for outer, inner in zip(eqn.invars, body.invars, strict=True)
    )
    carried = sum(
        len(outer.aval.shape) == len(inner.aval.shape)
        for outer, inner in zip(eqn.outvars, body.outvars, strict=True)
    )
    consts = eqn.invars[: len(eqn.invars) - carried - scanned]
    step = _walk(eqn.params["jaxpr"], values(consts, known), (*path, _label(eqn)))
    return _times(step, eqn.params["length"])


def _cond(eqn: JaxprEqn, known: Mapping, path: tuple[str, ...]) -> Flops:
    operands = values(eqn.invars[1:], known)
    branches = [
        _walk(branch, operands, (*path, f"cond[{index}]"))
        for index, branch in enumerate(eqn.params["branches"])
    ]
    return max(branches, key=_dearness)


def _while(eqn: JaxprEqn, known: Mapping, path: tuple[str, ...]) -> Flops:
    test_consts, body_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    operands = values(eqn.invars, known)
    inner = (*path, _label(eqn))
    test = _walk(eqn.params["cond_jaxpr"], operands[:test_consts], inner)
    body = _walk(eqn.params["body_jaxpr"], operands[test_consts:][:body_consts], inner)
    trips = trip_count(eqn, operands)
    if trips is not None:
        return _plus(_times(body, trips), _times(test, trips + 1))
    if test.products or body.products:
        raise _uncountable(
            eqn,
            path,
            "it holds a matrix product and its trip count is not known: the condition must compare "
            "an integer that moves by a constant step with a constant bound",
            "loop with lax.scan, or with lax.fori_loop over Python integers",
        )
    return Flops(0, None)


def _pallas_call(eqn: JaxprEqn, known: Mapping, path: tuple[str, ...]) -> Flops:
    grid = eqn.params["grid_mapping"].grid
    if not all(isinstance(cells, int) for cells in grid):
        raise _uncountable(eqn, path, f"its grid {grid} is not static")
    return _times(_walk(eqn.params["jaxpr"], (), (*path, _label(eqn))), math.prod(grid))


_CONTROL = {"scan": _scan, "cond": _cond, "while": _while, "pallas_call": _pallas_call}


def _plus(a: Flops, b: Flops) -> Flops:
    unknown = a.elementwise is None or b.elementwise is None
    return Flops(a.products + b.products, None if unknown else a.elementwise + b.elementwise)


def _times(cost: Flops, n: int) -> Flops:
    return Flops(cost.products * n, None if cost.elementwise is None else cost.elementwise * n)


def _dearness(cost: Flops) -> tuple[int, float]:
    return cost.products, math.inf if cost.elementwise is None else cost.elementwise


def _label(eqn: JaxprEqn) -> str:
    name = eqn.params.get("name")
    return f"{eqn.primitive.name}({name})" if isinstance(name, str) else eqn.primitive.name


def _uncountable(eqn: JaxprEqn, path: Sequence[str], why: str, remedy: str = "") -> Uncountable:
    name = eqn.primitive.name
    return Uncountable(
        f"cannot count {name!r} in {' > '.join(path) or 'the outermost jaxpr'}: {why}. "
        + (f"Remedy: {remedy}, or " if remedy else "Remedy: ")
        + f"give tinyattn.cost.RULES[{name!r}] a function from the equation to Flops."
    )
